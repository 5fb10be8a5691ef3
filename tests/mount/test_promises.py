"""What the mount promises its users, each promise kept by a real mount."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig import (
    FINISHED_S,
    Emulator,
    Mounted,
    Outcome,
    Rig,
    open_rig,
    record_id,
    wait_until,
    write_live_record,
)
from .rig import write_record as write

pytestmark = pytest.mark.fuse

LINES = b"".join(b"[INFO] line %d \xe5\xbc\x80\xe5\xa7\x8b\n" % n for n in range(12_000))
SMALL = b"[DEBUG] small\n" * 100
RECORDS = 12

FIRST = record_id(0)
LOG = f"{FIRST}/stage1.info.log"
OTHER_LOG = f"{record_id(1)}/stage1.info.log"

_MODEST_BYTES = 120 << 20
_HUGE_MIB = 256


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(RECORDS):
        logs: dict[str, bytes | Path] = {"stage1.info.log": LINES, "stage1.debug.log": SMALL}
        write(folder, number, logs | {"stage2.info.log": SMALL})
    return folder


@pytest.fixture
def live(tmp_path: Path) -> Path:
    folder = tmp_path / "live"
    write_live_record(folder, 0, stages=2)
    return folder


@pytest.fixture(scope="session")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("huge")
    write(folder, 0, {"stage1.info.log": b""})
    with (folder / LOG).open("wb") as file:
        for mib in range(_HUGE_MIB):
            file.seek(mib << 20)
            file.write(b"[INFO] MiB number %d\n" % mib)
        file.truncate(_HUGE_MIB << 20)
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def failure(command: str, path: Path, number: int) -> bytes:
    return f"{command}: {path}: {os.strerror(number)}\n".encode()


# One download.


def test_three_hundred_readers_at_once_cause_one_download(rig: Rig, recordings: Path) -> None:
    # The delay keeps the first answer back until all have asked.
    emulator = rig.emulator(recordings, "task_log:delay=3")
    mounted = rig.mount(emulator)
    script = 'for i in $(seq 300); do sha256sum "$1" & done; wait'
    outcome = rig.shell(script, mounted / LOG, timeout_s=60)
    assert outcome.err == b""
    assert outcome.out == f"{sha256(LINES)}  {mounted / LOG}\n".encode() * 300
    assert emulator.calls() == 1


def test_a_finished_log_is_not_downloaded_again_after_a_restart(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    mounted.stop()
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    assert emulator.calls() == 1


def test_a_finished_log_is_not_downloaded_again_after_kill_9(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    # Kept on disk a moment after its last byte was served; the crash comes after that.
    wait_until(lambda: mounted.status()["disk_cache"]["used_bytes"] > 0)
    mounted.kill()
    dead = rig.run("cat", mounted / LOG)
    assert os.strerror(errno.ENOTCONN).encode() in dead.err
    mounted = rig.mount(emulator)  # which clears the dead mount away
    assert rig.run("cat", mounted / LOG).out == LINES
    assert emulator.calls() == 1


def test_a_download_cut_short_by_kill_9_leaves_no_short_log(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings, "task_log:stall")
    mounted = rig.mount(emulator)
    rig.start("cat", mounted / LOG)
    wait_until(lambda: emulator.calls("bytes") > 0)
    mounted.kill()
    emulator.faults()
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES


def test_a_second_read_does_not_reach_the_daemon(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    assert rig.run("cat", mounted / LOG).out == LINES
    before = mounted.status()["kernel"]["reads"]
    assert before > 0
    assert rig.run("cat", mounted / LOG).out == LINES
    assert mounted.status()["kernel"]["reads"] == before


def test_without_a_cache_directory_a_small_log_is_downloaded_once(
    rig: Rig, recordings: Path
) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator, cache=None)
    for _ in range(3):
        assert rig.run("cat", mounted / LOG).out == LINES
    assert emulator.calls() == 1


# Whole or error.


@pytest.mark.parametrize("how", ["cut=1", "cut=1,range=off", "cut=2,no-content-length"])
def test_a_body_that_breaks_off_is_served_whole(rig: Rig, recordings: Path, how: str) -> None:
    emulator = rig.emulator(recordings, f"task_log:{how}")
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    assert emulator.calls() > 1


def test_a_body_that_always_breaks_off_is_an_error_never_an_end(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings, "task_log:cut,range=off"))
    mounted.expect_logged("WARNING codeartsfs.fs.reply: (read|open|getattr): EIO: ")
    outcome = rig.run("cat", mounted / LOG, timeout_s=60)
    assert outcome.code == 1
    assert outcome.err == failure("cat", mounted / LOG, errno.EIO)


def test_a_read_that_fails_is_tried_for_once_however_often_the_kernel_asks(
    rig: Rig, recordings: Path
) -> None:
    # It asks again for every page that it could not read ahead, and for every other reader.
    emulator = rig.emulator(recordings, "task_log:cut,range=off")
    mounted = rig.mount(emulator)
    mounted.expect_logged("WARNING codeartsfs.fs.reply: read: EIO: ")
    readers = [rig.start("cat", mounted / LOG) for _ in range(4)]
    assert [rig.finish(reader).code for reader in readers] == [1] * 4
    assert emulator.calls() < 10  # five without progress are one try; there were seven of them


def test_a_read_that_times_out_waits_for_the_deadline_once(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings, "task_log:stall")
    mounted = rig.mount(emulator, "--deadline", "2")
    mounted.expect_logged("WARNING codeartsfs.fs.reply: read: ETIMEDOUT: ")
    began = time.monotonic()
    readers = [rig.start("cat", mounted / LOG) for _ in range(4)]
    outcomes = [rig.finish(reader) for reader in readers]
    # Seconds are the point: it was as many deadlines as there were readers, and two more.
    assert time.monotonic() - began < 6
    for outcome in outcomes:
        assert outcome.err == failure("cat", mounted / LOG, errno.ETIMEDOUT)


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("error500", errno.EIO),
        ("fail-envelope", errno.EIO),
        ("forbid", errno.EACCES),
        ("expire-token", errno.EACCES),
    ],
)
def test_a_log_that_cannot_be_had_is_an_error_at_open(
    rig: Rig, recordings: Path, fault: str, number: int
) -> None:
    mounted = rig.mount(rig.emulator(recordings, f"task_log:{fault}"))
    mounted.expect_logged(f"WARNING codeartsfs.fs.reply: .*: {errno.errorcode[number]}: ")
    target = rig.folder / "copy"
    outcome = rig.run("cp", mounted / LOG, target)
    assert outcome.code == 1
    assert os.strerror(number).encode() in outcome.err
    assert not target.exists()
    opening = f"import os; os.stat = None; open({os.fspath(mounted / LOG)!r})"
    assert f"[Errno {number}]".encode() in rig.run(sys.executable, "-c", opening).err


def test_an_error_is_not_remembered_as_absence(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings, "task_log:forbid")
    mounted = rig.mount(emulator)
    mounted.expect_logged("WARNING .*EACCES")
    assert rig.run("cat", mounted / LOG).code == 1
    emulator.faults()
    assert rig.run("cat", mounted / LOG).out == LINES


def test_what_the_api_does_not_have_is_absent(rig: Rig, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    write(recordings, 0, {"stage1.info.log": LINES})
    mounted = rig.mount(rig.emulator(recordings))
    record, level, stage = record_id(9), "stage1.debug.log", "stage7.info.log"
    for path in (f"{record}/stage1.info.log", f"{FIRST}/{level}", f"{FIRST}/{stage}"):
        outcome = rig.run("cat", mounted / path)
        assert outcome.err == failure("cat", mounted / path, errno.ENOENT)
    assert os.strerror(errno.ENOENT).encode() in rig.run("ls", mounted / record).err


def test_a_log_that_does_not_come_in_time_is_a_timeout_and_the_mount_lives(
    rig: Rig, recordings: Path
) -> None:
    emulator = rig.emulator(recordings, "task_log:delay=30")
    mounted = rig.mount(emulator, "--deadline", "1")
    mounted.expect_logged(
        "WARNING codeartsfs.fs.reply: .*: ETIMEDOUT: .*: no answer within the deadline of 1 s;"
        " spent on first_byte 1 s, "
    )
    outcome = rig.run("cat", mounted / LOG, timeout_s=20)
    assert outcome.err == failure("cat", mounted / LOG, errno.ETIMEDOUT)
    emulator.faults()
    assert rig.run("cat", mounted / OTHER_LOG).out == LINES


def test_a_timeout_says_what_the_api_answered_meanwhile(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings, "task_log:throttle,retry-after=1")
    mounted = rig.mount(emulator, "--deadline", "2")
    mounted.expect_logged(
        r"WARNING codeartsfs.fs.reply: .*: ETIMEDOUT: .*; spent on throttled .*; last tried in"
        r" vain: GET /v4/.*: HTTP 429 \(request [0-9a-f]+\)"
    )
    outcome = rig.run("cat", mounted / LOG, timeout_s=20)
    assert outcome.err == failure("cat", mounted / LOG, errno.ETIMEDOUT)


# Bounded: callers can be killed, and nobody waits for others.


def stuck(rig: Rig, emulator: Emulator, mounted: Mounted, where: str) -> subprocess.Popen[bytes]:
    """Start a program and return it once it waits in the mount, in the given operation."""
    before = emulator.calls()
    emulator.faults("task_log:stall" if where == "read" else "task_log:delay=300")
    program = "stat" if where == "getattr" else "cat"
    reader = rig.start(program, mounted / LOG, stdout=subprocess.DEVNULL)
    wait_until(lambda: emulator.calls() > before)
    if where == "read":
        wait_until(lambda: emulator.calls("bytes") >= len(LINES) // 2)
    time.sleep(0.5)  # nothing outside tells that a process has got as far as its system call
    assert reader.poll() is None
    return reader


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
@pytest.mark.parametrize("where", ["open", "getattr", "read"])
def test_a_waiting_caller_can_be_killed(
    rig: Rig, recordings: Path, where: str, number: signal.Signals
) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator, *(["--stat-size", "zero"] if where == "open" else []))
    reader = stuck(rig, emulator, mounted, where)
    reader.send_signal(number)
    # Seconds are the point here: without our care it would take until --deadline, a minute.
    assert reader.wait(timeout=5) == -number


def test_stuck_readers_hold_up_nobody_else_and_sigterm_frees_them(
    rig: Rig, recordings: Path
) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / OTHER_LOG).out == LINES
    emulator.faults("task_log:delay=300")
    readers = [rig.start("cat", mounted / LOG) for _ in range(150)]
    wait_until(lambda: mounted.status()["logs"]["boarded"] >= 149)
    assert rig.run("cat", mounted / OTHER_LOG).out == LINES
    listed = rig.run("ls", mounted / record_id(2))
    assert b"stage1.info.log" in listed.out.split()
    mounted.stop()
    assert [rig.finish(reader).code for reader in readers] == [1] * 150


def test_look_ups_and_open_listings_do_not_wait_for_the_network(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings, "delay=300")
    mounted = rig.mount(emulator)
    waiting = rig.start("ls", mounted / FIRST)
    wait_until(lambda: emulator.calls("full_stages") == 1)
    assert rig.run("stat", mounted / FIRST, mounted / record_id(1)).code == 0
    assert rig.run("ls", mounted.path).code == 0
    assert rig.run("df", mounted.path).code == 0
    junk = mounted / f"{FIRST}/.git"
    assert os.strerror(errno.ENOENT).encode() in rig.run("stat", junk).err
    assert waiting.poll() is None


def test_a_log_can_be_looked_at_while_a_read_of_it_waits(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    reader = stuck(rig, emulator, mounted, "read")
    assert rig.run("stat", "-c", "%s", mounted / LOG).out == b"%d\n" % len(LINES)
    assert rig.run("ls", "-l", mounted / FIRST).code == 0
    assert reader.poll() is None


def test_sigterm_ends_a_mount_with_a_stuck_reader(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    reader = stuck(rig, emulator, mounted, "getattr")
    mounted.process.terminate()
    # Seconds are the point: service managers kill what takes longer.
    assert mounted.process.wait(timeout=10) == 0
    assert rig.finish(reader).code == 1


# Free looks.


@pytest.mark.parametrize(
    "name",
    [
        ".git",
        ".hidden",
        "HEAD",
        f"{FIRST}/.git",
        f"{FIRST}/stageX",
        f"{FIRST}/stage1",
        f"{FIRST}/stage0.info.log",
        f"{FIRST}/stage1.info.log.swp",
        f"{FIRST}/.stage1.info.log.swp",
        f"{FIRST}/foo.swp",
        FIRST.upper() + "X",
    ],
)
def test_names_that_cannot_exist_cost_nothing(shelf: "Shelf", name: str) -> None:
    before = shelf.emulator.calls("total")
    outcome = shelf.rig.run("cat", shelf.mounted / name)
    assert outcome.err == failure("cat", shelf.mounted / name, errno.ENOENT)
    assert shelf.emulator.calls("total") == before


@pytest.mark.parametrize(
    ("number", "command"),
    list(
        enumerate(
            [
                ["ls"],
                ["ls", "--color=always"],
                ["ls", "-la"],
                ["find"],
                ["find", "-size", "+1"],
                ["du"],
            ],
            start=2,
        )
    ),
    ids=str,
)
def test_listing_programs_cause_no_download(
    shelf: "Shelf", number: int, command: list[str]
) -> None:
    before = shelf.emulator.calls()
    outcome = shelf.rig.run(*command, cwd=shelf.mounted / record_id(number))
    assert (outcome.code, outcome.err) == (0, b"")
    assert shelf.emulator.calls() == before


class Shelf:
    """One mount for many looks that leave nothing behind."""

    def __init__(self, rig: Rig, emulator: Emulator, mounted: Mounted) -> None:
        self.rig = rig
        self.emulator = emulator
        self.mounted = mounted


@pytest.fixture(scope="module")
def shelf(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Shelf"]:
    with open_rig(tmp_path_factory.mktemp("shelf")) as rig:
        emulator = rig.emulator(recordings)
        yield Shelf(rig, emulator, rig.mount(emulator))


# Sizes.


def test_crawlers_get_what_is_here_and_cause_no_download(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    wait_until(lambda: mounted.status()["disk_cache"]["used_bytes"] > 0)
    crawler = rig.folder / "updatedb"
    for program in ("cat", "find"):
        # What it is called is all that is known of a program.
        shutil.copy(str(shutil.which(program)), crawler)
        before = emulator.calls("total")
        if program == "cat":
            assert rig.run(crawler, mounted / LOG).out == LINES
            refused = rig.run(crawler, mounted / OTHER_LOG)
            assert refused.err.endswith(b": Permission denied\n")
        else:
            walk = rig.run(crawler, mounted.path)
            assert f"{FIRST}/stage1.info.log".encode() in walk.out
            assert rig.run(crawler, mounted / record_id(1)).err.endswith(b"Permission denied\n")
        assert emulator.calls("total") == before
    mounted.stop()
    mounted = rig.mount(emulator, "--crawlers", "none")
    assert rig.run(crawler, mounted / OTHER_LOG, "-size", "+1").code == 0
    shutil.copy(str(shutil.which("cat")), crawler)
    assert rig.run(crawler, mounted / OTHER_LOG).out == LINES


def test_stat_of_an_unopened_log_tells_its_size_and_when_its_stage_finished(
    rig: Rig, recordings: Path
) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    outcome = rig.run("stat", "-c", "%s %Y %a", mounted / LOG)
    assert outcome.out == b"%d %d 444\n" % (len(LINES), FINISHED_S)
    assert emulator.calls() == 1


def test_a_size_that_was_asked_for_is_remembered_but_its_download_is_not_kept(
    rig: Rig, recordings: Path
) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("stat", "-c", "%s", mounted / LOG).out == b"%d\n" % len(LINES)
    wait_until(lambda: mounted.status()["logs"]["downloading"] == 0)
    assert rig.run("stat", "-c", "%s", mounted / LOG).out == b"%d\n" % len(LINES)
    assert emulator.calls() == 1
    assert rig.run("cat", mounted / LOG).out == LINES


def test_stat_size_auto_shows_listing_programs_zero_until_the_log_is_opened(
    rig: Rig, recordings: Path
) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    size = ("find", mounted / LOG, "-printf", "%s\n")
    assert rig.run(*size).out == b"0\n"
    assert rig.run("cat", mounted / LOG).out == LINES
    assert rig.run(*size).out == b"%d\n" % len(LINES)


def test_stat_size_probe_shows_everybody_the_size(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings), "--stat-size", "probe")
    size = rig.run("find", mounted / LOG, "-printf", "%s\n")
    assert size.out == b"%d\n" % len(LINES)


def test_stat_size_zero_shows_nobody_the_size_before_an_open(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator, "--stat-size", "zero")
    assert rig.run("stat", "-c", "%s", mounted / LOG).out == b"0\n"
    assert emulator.calls() == 0
    assert rig.run("busybox", "cat", mounted / LOG).out == LINES
    assert rig.run("stat", "-c", "%s", mounted / LOG).out == b"%d\n" % len(LINES)


@pytest.mark.parametrize("fault", ["range=on", "chunked"])
def test_programs_that_trust_the_kernels_size_read_a_cold_log_whole(
    rig: Rig, tmp_path: Path, fault: str
) -> None:
    # busybox copies with sendfile, which never asks for attributes.
    sizes = (0, 1, 2, 4095, 4096, 4097, 4098, 8193, 131073, 262145)
    recordings = tmp_path / "recordings"
    for number, size in enumerate(sizes):
        write(recordings, number, {"stage1.info.log": LINES[:size]})
    mounted = rig.mount(rig.emulator(recordings, fault), "--stat-size", "zero")
    for number, size in enumerate(sizes):
        outcome = rig.run("busybox", "cat", mounted / f"{record_id(number)}/stage1.info.log")
        assert (outcome.code, outcome.out) == (0, LINES[:size]), size


# Read-only.


@pytest.mark.parametrize(
    "script",
    [
        'touch "$1/new"',
        'echo x > "$1/stage1.info.log"',
        'echo x >> "$1/stage1.info.log"',
        'mkdir "$1/folder"',
        'rm -f "$1/stage1.info.log"',
        'mv "$1/stage1.info.log" "$1/stage9.info.log"',
        'chmod 644 "$1/stage1.info.log"',
        'ln -s x "$1/link"',
    ],
)
def test_attempts_to_write_end_with_erofs(shelf: "Shelf", script: str) -> None:
    outcome = shelf.rig.shell(script, shelf.mounted / record_id(10))
    assert outcome.code == 1
    assert os.strerror(errno.EROFS).encode() in outcome.err


# Still there.


def test_cached_logs_and_their_listing_survive_the_network(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    listed = rig.run("ls", mounted / FIRST).out
    assert b"stage1.info.log" in listed.split()
    rig.take_down(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    assert rig.run("ls", mounted / FIRST).out == listed
    mounted.stop()
    mounted = rig.mount(emulator)
    assert rig.run("ls", mounted.path).out == f"{FIRST}\n".encode()
    assert rig.run("ls", mounted / FIRST).out == listed
    assert rig.run("cat", mounted / LOG).out == LINES


def test_cached_logs_survive_expired_credentials(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    emulator.faults("expire-token")
    assert rig.run("cat", mounted / LOG).out == LINES
    mounted.stop()
    mounted = rig.mount(emulator)
    mounted.expect_logged("WARNING .*EACCES")
    assert rig.run("cat", mounted / LOG).out == LINES
    assert rig.run("ls", mounted / FIRST).code == 0
    refused = rig.run("cat", mounted / OTHER_LOG)
    assert refused.err == failure("cat", mounted / OTHER_LOG, errno.EACCES)


def test_cached_logs_survive_the_server_forgetting_them(rig: Rig, tmp_path: Path) -> None:
    remembers, forgot = tmp_path / "remembers", tmp_path / "forgot"
    write(remembers, 0, {"stage1.info.log": LINES})
    write(forgot, 1, {"stage1.info.log": LINES})
    mounted = rig.mount(rig.emulator(remembers))
    assert rig.run("cat", mounted / LOG).out == LINES
    mounted.stop()
    mounted = rig.mount(rig.emulator(forgot))
    assert rig.run("cat", mounted / LOG).out == LINES


def test_a_damaged_cache_entry_is_a_miss_never_wrong_bytes(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    mounted.stop()
    [entry] = [
        file
        for file in (rig.folder / "cache").rglob("*")
        if file.is_file() and file.stat().st_size >= len(LINES)
    ]
    with entry.open("r+b") as file:
        file.seek(entry.stat().st_size // 2)
        file.write(b"damaged")
    mounted = rig.mount(emulator)
    mounted.expect_logged("WARNING codeartsfs.logs.disk: cache: entry .* is damaged")
    assert rig.run("cat", mounted / LOG).out == LINES
    assert emulator.calls() == 2


def test_the_cache_is_private(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    assert rig.run("cat", mounted / LOG).out == LINES
    mounted.stop()
    paths = [rig.folder / "cache", *(rig.folder / "cache").rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []


# Fetching ahead.


def test_who_walks_through_records_gets_logs_fetched_ahead_and_each_once(
    rig: Rig, tmp_path: Path
) -> None:
    folder = tmp_path / "walked"
    logs: dict[str, bytes | Path] = {
        f"stage{stage}.{level}.log": b"%d\n" % stage
        for stage in range(1, 7)
        for level in ("info", "debug")
    }
    records = [write(folder, number, logs) for number in range(6)]
    emulator = rig.emulator(folder)
    mounted = rig.mount(emulator, at="ahead", cache="ahead-cache")
    assert rig.run("ls", *(mounted / record for record in records)).code == 0
    rig.run("ls", mounted.path)
    found = rig.shell("cat */stage?.*.log | sort | uniq -c", cwd=mounted.path)
    assert found.out.split() == [word for n in range(1, 7) for word in (b"12", b"%d" % n)]
    assert emulator.calls() == 72
    counts = mounted.status()["logs"]
    assert counts["fetched_ahead"] > 36
    assert counts["fetched_in_vain"] == 0


def test_what_a_program_was_given_is_fetched_while_it_reads_the_first(
    rig: Rig, tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    logs: dict[str, bytes | Path] = {f"stage{n}.info.log": b"%d\n" % n for n in (1, 2)}
    first, second, third = (write(folder, number, logs) for number in range(3))
    emulator = rig.emulator(folder)
    mounted = rig.mount(emulator, at="given", cache="given-cache")
    given = (f"{first}/stage2.info.log", f"./{second}/stage1.info.log", str(mounted / third))
    read_the_first = ("sh", "-c", 'read -r line < "$1"; kill -STOP $$', "sh", *given)
    reader = rig.start(*read_the_first, cwd=mounted.path)
    wait_until(lambda: mounted.status()["logs"]["fetched_ahead"] == 3)
    reader.kill()
    rig.finish(reader)
    assert emulator.calls() == 4
    assert (
        rig.run("cat", *given[:2], mounted / third / "stage2.info.log", cwd=mounted.path).code == 0
    )
    assert emulator.calls() == 4
    assert mounted.status()["logs"]["fetched_in_vain"] == 1


def test_nothing_is_fetched_ahead_for_one_log_or_if_not_wanted(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / LOG).out == LINES
    assert rig.run("cat", mounted / OTHER_LOG).out == LINES
    assert mounted.status()["logs"]["fetched_ahead"] == 0
    assert emulator.calls() == 2
    mounted = rig.mount(emulator, "--prefetch", "0", at="none", cache=None)
    rig.shell("cat stage1.*.log > /dev/null", cwd=mounted / FIRST)
    assert emulator.calls() == 4


# Running logs.


def test_busy_readers_of_a_growing_log_see_only_what_was_written(rig: Rig, live: Path) -> None:
    # Growth a few hundred times while others read: the kernel must not show any of them the
    # zeros with which it fills up the last page of a file in its cache.
    line = "0123456789\n"
    emulator = rig.emulator(live)
    emulator.grow(FIRST, stage="stage1", append=line)
    mounted = rig.mount(emulator, "--refresh", "0.1")
    script = """
import os, sys
path, over, line = sys.argv[1], sys.argv[2], sys.argv[3].encode()
while not os.path.exists(over):
    with open(path, "rb", buffering=0) as file:
        text = b"".join(iter(lambda: file.read(131072), b""))
    if text != line * (len(text) // len(line)):
        print(len(text), "bytes, of these zeros:", text.count(0))
"""
    over = rig.folder / "over"
    python = (sys.executable, "-c", script)
    readers = [rig.start(*python, mounted / LOG, over, line) for _ in range(8)]
    for number in range(400):
        emulator.grow(FIRST, stage="stage1", append=line * (20 * number % 977 + 1))
        time.sleep(0.005)  # the readers' turn
    over.touch()
    assert [rig.finish(reader) for reader in readers] == [Outcome(0, b"", b"")] * 8


def test_a_running_log_can_be_mapped_privately_only(rig: Rig, live: Path) -> None:
    # The price of keeping it out of the kernel's cache; finished logs can be mapped any way.
    emulator = rig.emulator(live)
    emulator.grow(FIRST, stage="stage1", append="a line\n")
    mounted = rig.mount(emulator, "--settle", "0.1")
    script = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    print(mmap.mmap(file.fileno(), 0, getattr(mmap, sys.argv[2]), mmap.PROT_READ)[:])
"""
    private = rig.run(sys.executable, "-c", script, mounted / LOG, "MAP_PRIVATE")
    assert (private.code, private.out) == (0, b"b'a line\\n'\n")
    shared = rig.run(sys.executable, "-c", script, mounted / LOG, "MAP_SHARED")
    assert f"[Errno {errno.ENODEV}]".encode() in shared.err
    assert rig.run("rg", "--mmap", "-c", "line", mounted / LOG).out == b"1\n"
    emulator.grow(FIRST, stage="stage1", finish=True)
    map_shared = (sys.executable, "-c", script, mounted / LOG, "MAP_SHARED")
    wait_until(lambda: rig.run(*map_shared).code == 0)  # once it is sealed


def test_a_stage_that_has_not_begun_is_an_empty_file(rig: Rig, live: Path) -> None:
    mounted = rig.mount(rig.emulator(live))
    assert b"stage2.info.log" in rig.run("ls", mounted / FIRST).out
    outcome = rig.run("cat", mounted / f"{FIRST}/stage2.info.log")
    assert (outcome.code, outcome.out, outcome.err) == (0, b"", b"")


def test_nobody_looking_means_no_requests(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    emulator.grow(FIRST, stage="stage1", append="line\n")
    mounted = rig.mount(emulator, "--refresh", "0.1")
    assert rig.run("cat", mounted / LOG).out == b"line\n"
    before = emulator.calls("total")
    time.sleep(1)  # ten times --refresh
    assert emulator.calls("total") == before


def test_a_rewritten_log_is_shown_to_new_opens(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    emulator.grow(FIRST, stage="stage1", append="first try\n" * 50)
    mounted = rig.mount(emulator, "--refresh", "0.1")
    mounted.expect_logged("WARNING .*the server rewrote")
    mounted.permit_logged("WARNING .*ESTALE")
    assert rig.run("cat", mounted / LOG).out == b"first try\n" * 50
    emulator.grow(FIRST, stage="stage1", append="second\n" * 90, rewrite=True)
    time.sleep(0.2)  # older than --refresh now
    assert rig.run("cat", mounted / LOG).out == b"second\n" * 90


def test_a_reader_of_a_log_that_is_rewritten_gets_an_error(rig: Rig, live: Path) -> None:
    emulator = rig.emulator(live)
    emulator.grow(FIRST, stage="stage1", append="first try\n" * 50)
    mounted = rig.mount(emulator, "--refresh", "0.1")
    mounted.expect_logged("WARNING .*the server rewrote")
    mounted.expect_logged("WARNING .*ESTALE")
    script = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
assert os.pread(file, 10, 0) == b"first try\\n"
print("opened", flush=True)
while True:
    os.fstat(file)
    os.pread(file, 10, 0)
    time.sleep(0.05)
"""
    said = rig.folder / "said"
    with said.open("wb") as file:
        reader = rig.start(sys.executable, "-c", script, mounted / LOG, stdout=file)
    wait_until(lambda: said.read_bytes() == b"opened\n")
    emulator.grow(FIRST, stage="stage1", append="second\n" * 90, rewrite=True)
    assert f"[Errno {errno.ESTALE}]".encode() in rig.finish(reader).err


# Large logs.


def test_head_of_a_slow_log_does_not_wait_for_its_end(rig: Rig, huge: Path) -> None:
    mounted = rig.mount(rig.emulator(huge, "task_log:slow=2000000"))
    assert rig.run("head", "-n1", mounted / LOG).out == b"[INFO] MiB number 0\n"
    logs = mounted.status()["logs"]
    assert (logs["downloads"], logs["downloading"]) == (1, 1)


def test_memory_does_not_grow_with_the_size_of_logs(rig: Rig, huge: Path) -> None:
    mounted = rig.mount(rig.emulator(huge))
    outcome = rig.shell('cat "$1" | sha256sum', mounted / LOG, timeout_s=120)
    with (huge / LOG).open("rb") as file:
        assert outcome.out.decode().split()[0] == hashlib.file_digest(file, "sha256").hexdigest()
    status = Path(f"/proc/{mounted.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    assert int(match[1]) << 10 < _MODEST_BYTES
