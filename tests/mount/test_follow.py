"""Following running builds: what real readers see, and what it costs."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from codeartsfs.emulator.iam import Accounts

from .rig import Emulator, Mounted, Rig, record_id, wait_until, write_live_record

pytestmark = pytest.mark.fuse

RECORD = record_id(0)
LOG = f"{RECORD}/stage1.info.log"
PROJECT = "c0de0000000000000000000000000001"

REREAD = """
import sys, time
shown = 0
while True:
    with open(sys.argv[1], "rb") as log:
        text = log.read()
    sys.stdout.buffer.write(text[shown:])
    sys.stdout.flush()
    shown = len(text)
    time.sleep(0.2)
"""
READERS = {
    "tail -f": ("tail", "-n", "+1", "-f"),
    "tail -F": ("tail", "-n", "+1", "-F"),
    "busybox tail -f": ("busybox", "tail", "-n", "+1", "-f"),
    "a script that reads again": (sys.executable, "-c", REREAD),
}


@pytest.fixture
def live(tmp_path: Path) -> Path:
    folder = tmp_path / "live"
    write_live_record(folder, 0, stages=2)
    return folder


class Growing:
    """A log that is written to from here."""

    def __init__(self, emulator: Emulator, stage: str = "stage1") -> None:
        self._emulator = emulator
        self._stage = stage
        self._lines = 0
        self.text = ""

    def lines(self, count: int) -> None:
        """Write lines of many sizes, each in two halves."""
        for _ in range(count):
            self._lines += 1
            line = f"line {self._lines}" + " 开" * (self._lines * 37 % 900) + " end\n"
            for piece in (line[: len(line) // 2], line[len(line) // 2 :]):
                self._emulator.grow(RECORD, stage=self._stage, append=piece)
            self.text += line

    def slowly(self, lines: int, every_s: float = 0.1) -> None:
        """Write a line at a time, so that growth is seen in many steps, not in one."""
        for _ in range(lines):
            self.lines(1)
            time.sleep(every_s)

    def finish(self, status: str = "SUCCESS") -> None:
        self._emulator.grow(RECORD, stage=self._stage, finish=True, status=status)


class Follower:
    """A program that follows a log, and what it has said."""

    def __init__(self, rig: Rig, log: Path, *command: str) -> None:
        self._rig = rig
        self.path = rig.folder / f"seen{len(rig.readers)}"
        with self.path.open("wb") as file:
            self.process = rig.start(*(command or READERS["tail -f"]), log, stdout=file)

    @property
    def text(self) -> str:
        # Bytes come as they are read: a character may be half here.
        return self.path.read_bytes().decode(errors="replace")

    def stop(self) -> None:
        """End it; it must have had nothing to complain about."""
        self.process.terminate()
        assert self._rig.finish(self.process).err == b""


def is_final(rig: Rig, path: Path) -> bool:
    return b'final="true"' in rig.run("getfattr", "-n", "user.codearts.final", path).out


@pytest.mark.parametrize("reader", READERS)
def test_each_line_is_seen_once_and_in_order_to_the_end(rig: Rig, live: Path, reader: str) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    mounted = rig.mount(emulator)
    follower = Follower(rig, mounted / LOG, *READERS[reader])
    wait_until(lambda: follower.text == growing.text)
    growing.slowly(30)
    growing.finish()
    wait_until(lambda: len(follower.text) >= len(growing.text))
    time.sleep(2.5)  # readers look once a second: more looks must bring nothing more
    assert follower.text == growing.text
    follower.stop()


def test_less_follows_to_the_end(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    mounted = rig.mount(emulator)
    seen = rig.folder / "seen"
    # less needs a terminal; script(1) gives it one and writes down what appears there.
    command = f"stty rows 50 cols 20000; less +F {mounted / LOG}"
    follower = rig.start("script", "-q", "-f", "-c", command, seen)
    wait_until(lambda: seen.exists() and b"line 1" in seen.read_bytes())

    def numbers() -> list[int]:
        return [int(n) for n in re.findall(r"line (\d+)[ 开]* end", seen.read_text())]

    growing.slowly(20)
    growing.finish()
    wait_until(lambda: 21 in numbers())
    assert numbers() == list(range(1, 22))
    os.killpg(follower.pid, signal.SIGKILL)


def test_an_editor_that_loads_again_has_the_new_lines(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(3)
    mounted = rig.mount(emulator)
    first, second, go = (rig.folder / name for name in ("first", "second", "go"))
    script = rig.folder / "script.vim"
    script.write_text(
        f"edit {mounted / LOG}\nwrite! {first}\n"
        f"while !filereadable('{go}')\nsleep 50m\nendwhile\n"
        f"edit!\nwrite! {second}\nqall!\n"
    )
    vim = rig.start("vim", "-u", "NONE", "-es", "-S", script)
    wait_until(lambda: first.exists() and first.read_text() == growing.text)
    growing.lines(5)
    time.sleep(1.1)  # older than --refresh now
    go.touch()
    rig.finish(vim)
    assert second.read_text() == growing.text


def test_fifty_followers_cost_what_one_does(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    mounted = rig.mount(emulator)
    began = time.monotonic()
    followers = [Follower(rig, mounted / LOG) for _ in range(50)]
    growing.slowly(40)
    wait_until(lambda: all(follower.text == growing.text for follower in followers))
    # One look a second, one question for the state every five; and one more of each.
    took_s = time.monotonic() - began
    assert emulator.calls("task_log") <= took_s + 2
    assert emulator.calls("full_stages") <= took_s / 5 + 2
    for follower in followers:
        follower.stop()


def test_a_follower_that_is_stopped_costs_nothing_and_misses_nothing(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    mounted = rig.mount(emulator)
    follower = Follower(rig, mounted / LOG)
    wait_until(lambda: follower.text == growing.text)
    follower.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)  # a look that had begun
    before = emulator.calls("total")
    growing.slowly(20)
    assert emulator.calls("total") == before
    follower.process.send_signal(signal.SIGCONT)
    wait_until(lambda: follower.text == growing.text)
    follower.stop()


@pytest.mark.parametrize("fault", ["error500", "task_log:cut", "throttle,retry-after=1"])
def test_an_outage_delays_lines_and_loses_none(rig: Rig, live: Path, fault: str) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    mounted = rig.mount(emulator)
    mounted.permit_logged("WARNING .*(EIO|ETIMEDOUT)")
    follower = Follower(rig, mounted / LOG)
    growing.slowly(10)
    emulator.faults(fault)
    growing.slowly(60)  # six seconds
    emulator.faults()
    growing.slowly(10)
    wait_until(lambda: follower.text == growing.text)
    follower.stop()


def test_a_token_that_expires_on_the_way_is_renewed(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(1)
    demo = Accounts()
    mounted = rig.mount(
        emulator,
        credentials={
            "CODEARTSFS_USER": demo.user,
            "CODEARTSFS_PASSWORD": demo.password,
            "CODEARTSFS_ACCOUNT": demo.domain,
            "CODEARTSFS_IAM_PROJECT": demo.region,
        },
    )
    follower = Follower(rig, mounted / LOG)
    growing.slowly(10)
    tokens = emulator.calls("iam_tokens")
    emulator.faults("expire-token")
    growing.slowly(20)
    wait_until(lambda: follower.text == growing.text)
    assert emulator.calls("iam_tokens") > tokens
    follower.stop()


def test_where_ranges_are_ignored_only_what_is_new_is_transferred(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live, "range=off")
    growing = Growing(emulator)
    growing.lines(300)
    mounted = rig.mount(emulator, "--project", PROJECT, "--settle", "0.1")
    follower = Follower(rig, mounted / LOG)
    growing.slowly(40)
    wait_until(lambda: follower.text == growing.text)
    # The log as it was, a second time to see that ranges are ignored, and no third time.
    assert emulator.calls("task_log") == 2
    assert emulator.calls("log_page") >= 2
    growing.finish()
    wait_until(lambda: is_final(rig, mounted / LOG))
    assert rig.run("cat", mounted / LOG).out.decode() == growing.text
    assert emulator.calls("task_log") == 3  # compared as a whole, once, and sealed
    assert follower.text == growing.text
    follower.stop()


def test_the_log_is_sealed_when_its_stage_is_over_and_never_asked_for_again(
    rig: Rig, live: Path
) -> None:
    emulator = rig.emulator(live)
    growing = Growing(emulator)
    growing.lines(5)
    mounted = rig.mount(emulator, "--settle", "0.1")
    assert rig.run("cat", mounted / LOG).out.decode() == growing.text
    assert not is_final(rig, mounted / LOG)
    growing.lines(5)
    growing.finish("ABORTED")  # by a user: over all the same
    wait_until(lambda: rig.run("stat", mounted / LOG).code == 0 and is_final(rig, mounted / LOG))
    calls = emulator.calls()
    assert rig.run("cat", mounted / LOG).out.decode() == growing.text
    mounted.stop()
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out.decode() == growing.text
    assert emulator.calls() == calls


def test_tail_by_name_goes_on_with_a_log_that_was_rewritten(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    emulator.grow(RECORD, stage="stage1", append="first try\n" * 50)
    mounted = rig.mount(emulator)
    mounted.expect_logged(f"WARNING .*the server rewrote {LOG}")
    mounted.permit_logged("WARNING .*ESTALE")
    follower = Follower(rig, mounted / LOG, *READERS["tail -F"])
    wait_until(lambda: follower.text == "first try\n" * 50)
    emulator.grow(RECORD, stage="stage1", append="second\n" * 90, rewrite=True)
    wait_until(lambda: follower.text == "first try\n" * 50 + "second\n" * 90)
    emulator.grow(RECORD, stage="stage1", append="third\n")
    wait_until(lambda: follower.text.endswith("second\nthird\n"))
    follower.process.terminate()
    rig.finish(follower.process)  # which says that the file was replaced


def test_a_stage_that_has_not_begun_can_be_followed_from_before_its_first_line(
    rig: Rig, live: Path
) -> None:
    emulator = rig.emulator(live)
    mounted = rig.mount(emulator)
    follower = Follower(rig, mounted / f"{RECORD}/stage2.info.log")
    time.sleep(2)  # it looks, and there is nothing
    growing = Growing(emulator, "stage2")
    growing.slowly(10)
    wait_until(lambda: follower.text == growing.text)
    follower.stop()


def refresh(rig: Rig, *paths: Path) -> tuple[int, str, str]:
    outcome = rig.run(sys.executable, "-m", "codeartsfs", "refresh", *paths)
    return outcome.code, outcome.out.decode(), outcome.err.decode()


def test_a_look_can_be_ordered_where_age_would_decide(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live, "no-stages")
    emulator.grow(RECORD, stage="stage1", append="line 1\n")
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == b"line 1\n"
    emulator.grow(RECORD, stage="stage1", append="line 2\n")
    assert rig.run("cat", mounted / LOG).out == b"line 1\n"
    assert refresh(rig, mounted / LOG) == (0, f"{mounted / LOG}: 14 bytes, 7 new\n", "")
    assert rig.run("cat", mounted / LOG).out == b"line 1\nline 2\n"


def test_a_record_and_a_job_can_be_listed_anew(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    mounted = rig.mount(emulator, "--project", PROJECT)
    job = mounted / "by-job/web-app"
    assert rig.run("ls", job, mounted / RECORD).code == 0
    for path, kind in ((job, "records"), (mounted / RECORD, "full_stages")):
        before = emulator.calls(kind)
        assert refresh(rig, path) == (0, f"{path}: listed anew\n", "")
        assert emulator.calls(kind) == before + 1


def test_what_cannot_be_refreshed_is_said_in_a_line(rig: Rig, live: Path) -> None:
    mounted: Mounted = rig.mount(rig.emulator(live))
    code, out, err = refresh(rig, rig.folder, mounted / f"{RECORD}/stage9.info.log")
    assert (code, out) == (1, "")
    assert err == (
        f"Error: {rig.folder}: nothing that a mount of codeartsfs shows\n"
        f"Error: {mounted / RECORD}/stage9.info.log: No such file or directory\n"
    )
