"""fetch, grep, open and cache: what needs no mount, beside mounts of the same cache."""

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig import (
    COMMAND,
    JOB,
    TOKEN,
    Emulator,
    Outcome,
    Rig,
    open_rig,
    record_id,
    wait_until,
    write_live_record,
    write_record,
)

pytestmark = pytest.mark.fuse

FIRST, SECOND, THIRD, MISSING, LONG = (record_id(number) for number in range(5))
PROJECT = JOB["project_id"]
HOSTILE = {
    "job_id": "10b00000000000000000000000000002",
    "name": "evil\x1b[2J/\u202ejob",
    "build_project_id": "b0000000-0000-0000-0000-000000000002",
    "project_id": PROJECT,
}
MANY = {
    "job_id": "10b00000000000000000000000000003",
    "name": "many-steps",
    "build_project_id": "b0000000-0000-0000-0000-000000000003",
    "project_id": PROJECT,
}
EVIL = "evil%1B[2J%2F%E2%80%AEjob"
TEXT = b"[INFO] a line\n[ERROR] it failed\nplain\n" * 200
ODD = {
    "stage1.info.log": b"dos ERROR\r\nlines\r\n",
    "stage2.info.log": b"\x1b[31mERROR\x1b[0m in red\n" + b"x" * 300_000 + b"ERROR no newline",
    "stage3.info.log": b"bin\0ary ERROR\n\xff\xfe ERROR\n",
    "stage4.info.log": b"",
}


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    logs = {
        "stage1.info.log": TEXT + b"one\n",
        "stage1.debug.log": TEXT + b"debug\n",
        "stage2.info.log": TEXT + b"two\n",
        "stage2.debug.log": TEXT + b"debug two\n",
    }
    write_record(folder, 0, logs, display_names={"stage2": "Maven build"})
    write_record(folder, 1, logs, failed="stage1")
    write_record(folder, 2, ODD, job=HOSTILE)
    steps = {f"stage{number}": f"Step {number}" for number in range(1, 7)}
    write_record(
        folder, 4, {f"{stage}.info.log": TEXT for stage in steps}, job=MANY, display_names=steps
    )
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Iterator[Emulator]:
    with open_rig(tmp_path_factory.mktemp("served")) as rig:
        yield rig.emulator(recordings)


@pytest.fixture
def emulator(served: Emulator) -> Iterator[Emulator]:
    yield served
    served.faults()


class Commands:
    """Runs commands against an emulator, with the cache that mounts of the rig have."""

    def __init__(self, rig: Rig, url: str = "", cwd: Path | None = None) -> None:
        self._rig = rig
        self._url = url
        self._cwd = cwd

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Outcome:
        process = subprocess.run(
            self.line(*arguments),
            env=self.environment(**environment),
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
            cwd=self._cwd,
        )
        outcome = Outcome(process.returncode, process.stdout, process.stderr)
        assert b"Traceback" not in outcome.err, outcome.err.decode()
        return outcome

    def line(self, *arguments: str) -> list[str]:
        return [*COMMAND, *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        api = {"CODEARTSFS_TOKEN": TOKEN, "CODEARTSFS_ENDPOINT": self._url} if self._url else {}
        return self._rig.environment(
            CODEARTSFS_CACHE_DIR=os.fspath(self.cache),
            CODEARTSFS_MAX_REQUESTS_PER_SECOND="0",
            **api,
            **more,
        )

    @property
    def cache(self) -> Path:
        return self._rig.folder / "cache"

    def kept(self) -> set[str]:
        return {str(path.relative_to(self.cache / "v1")) for path in self.cache.glob("v1/*-*/*")}


@pytest.fixture
def run(rig: Rig, emulator: Emulator) -> Commands:
    return Commands(rig, emulator.url)


@pytest.fixture
def keep(rig: Rig) -> Commands:
    """Commands that have neither API nor credentials."""
    return Commands(rig)


def error(outcome: Outcome) -> str:
    [line] = outcome.err.decode().splitlines()
    assert line.startswith("Error: ")
    return line


# fetch.


def test_what_is_fetched_is_not_asked_for_again(run: Commands, emulator: Emulator) -> None:
    with emulator.costs(task_log=4, full_stages=1):
        outcome = run("fetch", FIRST, "--level", "all")
    assert outcome.code == 0
    assert outcome.out.decode().splitlines()[-1].startswith("4 logs, 29.7 KiB: 4 downloaded")
    with emulator.costs():
        outcome = run("fetch", FIRST, "--level", "all")
    assert outcome.out.decode().splitlines()[-1] == "4 logs, 29.7 KiB: 4 from the cache"


def test_a_mount_reads_what_was_fetched_and_fetch_finds_what_a_mount_read(
    rig: Rig, run: Commands, emulator: Emulator
) -> None:
    mounted = rig.mount(emulator)
    run("fetch", f"{FIRST}/stage1.info.log")
    with emulator.costs():
        assert rig.run("cat", mounted / f"{FIRST}/stage1.info.log").out == TEXT + b"one\n"
    rig.run("cat", mounted / f"{FIRST}/stage2.info.log")
    mounted.stop()
    with emulator.costs():
        assert run("fetch", FIRST).code == 0


@pytest.mark.parametrize(
    ("name", "logs"),
    [
        (FIRST, [f"{FIRST}/stage1.info.log", f"{FIRST}/stage2.info.log"]),
        (f"{FIRST}/stage1.debug.log", [f"{FIRST}/stage1.debug.log"]),
        (f"{SECOND}/failed.info.log", [f"{SECOND}/stage1.info.log"]),
        ("web-app", ["web-app/2/stage1.info.log", "web-app/2/stage2.info.log"]),
        (JOB["job_id"], ["web-app/2/stage1.info.log", "web-app/2/stage2.info.log"]),
        ("web-app/latest-failed/failed.info.log", ["web-app/2/stage1.info.log"]),
        ("by-job/web-app/1/stage2.info.log", ["by-job/web-app/1/stage2.info.log"]),
        (f"{EVIL}/latest/stage1.info.log", [f"{EVIL}/3/stage1.info.log"]),
    ],
)
def test_names_lead_where_they_lead_in_a_mount(run: Commands, name: str, logs: list[str]) -> None:
    outcome = run("fetch", name, "--project", PROJECT)
    assert outcome.code == 0, outcome
    assert sorted(line.split()[-1] for line in outcome.out.decode().splitlines()[:-1]) == logs


@pytest.mark.parametrize(
    ("directory", "name", "label"),
    [
        (FIRST, ".", "stage1.info.log"),
        (FIRST, "./stage1.info.log", "stage1.info.log"),
        (FIRST, "stage1.info.log", "stage1.info.log"),
        (FIRST, "../by-job/web-app/1", "../by-job/web-app/1/stage1.info.log"),
        ("", "by-job/web-app/1", "by-job/web-app/1/stage1.info.log"),
        ("", "web-app/1", "web-app/1/stage1.info.log"),
        ("by-job", "web-app/latest-failed", "web-app/2/stage1.info.log"),
        ("", "{mount}/by-job/web-app/1", "{mount}/by-job/web-app/1/stage1.info.log"),
    ],
)
def test_paths_are_those_in_the_mount_one_stands_in(
    rig: Rig, emulator: Emulator, directory: str, name: str, label: str
) -> None:
    mounted = rig.mount(emulator, "--project", PROJECT)
    there = Commands(rig, emulator.url, cwd=mounted / directory)
    outcome = there("fetch", name.format(mount=mounted.path), CODEARTSFS_PROJECT=PROJECT)
    assert outcome.code == 0, outcome
    shown = [line.split()[-1] for line in outcome.out.decode().splitlines()[:-1]]
    assert label.format(mount=mounted.path) in shown


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wep-app", "no record or job is called 'wep-app'; did you mean 'web-app'?"),
        ("web-app/latset", "no number of a build of web-app; did you mean 'latest'?"),
        ("web-app/77", "no build 77 of job"),
        (FIRST[:-1], "no record or job is called"),
        (f"{FIRST}/stage1.inf.log", "no log 'stage1.inf.log'; did you mean 'stage1.info.log'?"),
        (MISSING, f"no build record {MISSING}"),
        ("/tmp", "'/tmp' is not in a mount of codeartsfs"),
        ("\x1b[2J", r"'\x1b[2J'"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line_and_the_others_are_fetched(
    run: Commands, name: str, said: str
) -> None:
    outcome = run("fetch", name, f"{FIRST}/stage1.info.log", "--project", PROJECT)
    assert outcome.code == 1
    assert said in error(outcome)
    assert run.kept() == {f"{FIRST}/stage1.info.log"}


@pytest.mark.parametrize("fault", ["no-stages", "forbid-stages", "full_stages:error500"])
def test_where_stages_are_not_told_what_is_here_is_not_all(
    run: Commands, emulator: Emulator, fault: str
) -> None:
    emulator.faults("no-stages")
    run("fetch", f"{FIRST}/stage1.info.log")
    emulator.faults(fault)
    outcome = run("grep", "two", FIRST)
    assert (outcome.code, outcome.out) == (2, b"")
    assert "there may be other stages" in error(outcome)
    assert run("fetch", FIRST).code == 1
    assert run("grep", "two", FIRST, "--stage", "2").code == 0
    emulator.faults()
    assert run("grep", "two", FIRST).code == 0
    emulator.faults(fault)
    assert run("grep", "three", FIRST).code == 1


@pytest.mark.parametrize("stage", ["2", "stage2", "maven build"])
def test_stages_go_by_number_and_by_name(run: Commands, stage: str) -> None:
    assert run("fetch", FIRST, "--stage", stage).code == 0
    assert run.kept() == {f"{FIRST}/stage2.info.log"}


def test_the_newest_builds_of_a_job_can_be_fetched(run: Commands) -> None:
    run("fetch", "web-app", "--project", PROJECT, "--builds", "5", "--stage", "1")
    assert run.kept() == {f"{FIRST}/stage1.info.log", f"{SECOND}/stage1.info.log"}


def test_what_could_not_be_had_is_said_and_the_rest_is_there(
    run: Commands, emulator: Emulator
) -> None:
    emulator.faults("task_log:forbid=1")
    outcome = run("fetch", FIRST, "--jobs", "1")
    assert outcome.code == 1
    assert f"{FIRST}/stage1.info.log" in error(outcome)
    assert run.kept() == {f"{FIRST}/stage2.info.log"}
    assert outcome.out.decode().endswith(", 1 could not be had\n")


def test_a_cache_that_is_too_small_for_all_is_said(run: Commands) -> None:
    outcome = run("fetch", FIRST, SECOND, "--cache-size", "20000", "--jobs", "1")
    assert outcome.code == 1
    assert b", 2 evicted again by the others, see --cache-size" in outcome.out
    assert len(run.kept()) == 2


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_fetch_goes_on_with_what_is_missing(
    rig: Rig, recordings: Path, end: signal.Signals
) -> None:
    emulator = rig.emulator(recordings, "slow=20000")
    run = Commands(rig, emulator.url)
    process = subprocess.Popen(
        ["env", "--default-signal", *run.line("fetch", FIRST, SECOND, "--jobs", "1")],
        env=run.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: bool(run.kept()))
    process.send_signal(end)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL)
    assert (b"the same command goes on with the rest" in said) == (end == signal.SIGINT)
    here = len(run.kept())
    assert 0 < here < 4
    emulator.faults()
    outcome = run("fetch", FIRST, SECOND)
    assert f"{4 - here} downloaded" in outcome.out.decode()
    assert outcome.out.decode().endswith(f", {here} from the cache\n")
    assert len(run.kept()) == 4
    assert os.listdir(run.cache / "v1" / "tmp") == []


def test_a_running_log_is_fetched_as_far_as_it_is_and_a_mount_goes_on_with_it(
    rig: Rig, tmp_path: Path
) -> None:
    record = write_live_record(tmp_path / "live", 0)
    emulator = rig.emulator(tmp_path / "live")
    run = Commands(rig, emulator.url)
    emulator.grow(record, stage="stage1", append="first\n" * 1000)
    outcome = run("fetch", record)
    assert outcome.code == 0
    assert b"(may still grow)" in outcome.out
    emulator.grow(record, stage="stage1", append="second\n")
    mounted = rig.mount(emulator)
    log = mounted / f"{record}/stage1.info.log"
    assert rig.run("cat", log).out == b"first\n" * 1000 + b"second\n"


def test_a_running_log_that_was_fetched_is_not_shown_for_whole_while_the_api_refuses(
    rig: Rig, tmp_path: Path
) -> None:
    record = write_live_record(tmp_path / "live", 0)
    emulator = rig.emulator(tmp_path / "live")
    emulator.grow(record, stage="stage1", append="first\n")
    Commands(rig, emulator.url)("fetch", record)
    emulator.faults("task_log:forbid")
    mounted = rig.mount(emulator)
    mounted.permit_logged("HTTP 403")
    log = mounted / f"{record}/stage1.info.log"
    refused = rig.run("cat", log)
    assert (refused.code, refused.out) == (1, b"")
    assert b"Permission denied" in refused.err
    emulator.faults()
    wait_until(lambda: rig.run("cat", log).out == b"first\n")


def test_a_part_that_was_fetched_is_not_shown_for_whole_while_the_api_is_slow(
    rig: Rig, tmp_path: Path
) -> None:
    record = write_live_record(tmp_path / "live", 0)
    emulator = rig.emulator(tmp_path / "live")
    emulator.grow(record, stage="stage1", append="first\n")
    Commands(rig, emulator.url)("fetch", record)
    emulator.grow(record, stage="stage1", append="second\n", finish=True)
    emulator.faults("task_log:delay=7")
    mounted = rig.mount(emulator)
    assert rig.run("cat", mounted / f"{record}/stage1.info.log").out == b"first\nsecond\n"


def test_a_part_that_cannot_be_completed_is_not_fetched_and_not_searched_in_vain(
    rig: Rig, tmp_path: Path
) -> None:
    record = write_live_record(tmp_path / "live", 0)
    emulator = rig.emulator(tmp_path / "live")
    run = Commands(rig, emulator.url)
    emulator.grow(record, stage="stage1", append="first\n")
    run("fetch", record)
    emulator.grow(record, stage="stage1", append="second\n")
    emulator.faults("task_log:forbid")
    for command in (["fetch"], ["open"], ["grep", "second"], ["grep", "first"]):
        outcome = run(*command, record)
        assert outcome.code == {"fetch": 1, "open": 1, "grep": 2}[command[0]]
        assert "HTTP 403" in error(outcome)
    emulator.faults()
    assert run("grep", "-c", "second", record).code == 0


# Pins.


def test_a_pinned_record_outlives_eviction_by_others(run: Commands, emulator: Emulator) -> None:
    limit = ("--cache-size", "28000")  # three logs
    assert run("fetch", "--pin", FIRST, *limit).code == 0
    for stage in ("1", "2"):
        assert run("fetch", SECOND, "--stage", stage, *limit).code == 0
    assert run.kept() == {
        f"{FIRST}/stage1.info.log",
        f"{FIRST}/stage2.info.log",
        f"{SECOND}/stage2.info.log",
    }
    with emulator.costs():
        assert run("fetch", FIRST, *limit).code == 0


def test_a_mount_that_runs_heeds_a_new_pin(rig: Rig, run: Commands, emulator: Emulator) -> None:
    mounted = rig.mount(emulator, "--cache-size", "20000", "--memory-cache", "0")
    rig.run("cat", mounted / f"{FIRST}/stage1.info.log")
    assert run("cache", "pin", FIRST).code == 0
    for name in ("stage1.info.log", "stage1.debug.log", "stage2.info.log"):
        assert rig.run("cat", mounted / SECOND / name).code == 0
    wait_until(lambda: "evicted" in mounted.log.read_text())
    assert f"{FIRST}/stage1.info.log" in run.kept()


def test_where_pins_fill_the_cache_other_logs_are_read_and_not_kept(
    rig: Rig, run: Commands, emulator: Emulator
) -> None:
    run("fetch", "--pin", FIRST)
    limit = ("--cache-size", "10000")
    outcome = run("fetch", SECOND, *limit)
    assert outcome.code == 1
    assert b"2 not kept, see codeartsfs cache info" in outcome.out
    assert b"What is pinned is more than the limit" in run("cache", "info", *limit).out
    mounted = rig.mount(emulator, *limit)
    mounted.permit_logged("is not kept")
    assert rig.run("cat", mounted / f"{SECOND}/stage1.info.log").out == TEXT + b"one\n"


def test_a_record_can_be_pinned_before_it_is_here(run: Commands) -> None:
    assert b"nothing of it is here yet" in run("cache", "pin", FIRST).out
    run("fetch", SECOND)
    run("fetch", FIRST)
    assert run("cache", "prune", "--size", "0").code == 1
    assert run.kept() == {f"{FIRST}/stage1.info.log", f"{FIRST}/stage2.info.log"}
    assert run("cache", "unpin", FIRST).out == f"{FIRST}: unpinned\n".encode()
    assert run("cache", "prune", "--size", "0").code == 0
    assert run.kept() == set()


def test_a_stage_that_is_not_there_is_answered_with_those_that_are(run: Commands) -> None:
    said = error(run("open", LONG, "9"))
    assert "has no stage '9'; there are: " in said
    assert "'Step 1'" in said
    assert "'stage1'" not in said


def test_an_editor_that_is_not_there_is_named_with_its_variable(run: Commands) -> None:
    outcome = run("open", FIRST, "--editor", VISUAL="", EDITOR="no-such-editor")
    assert outcome.code == 1
    assert "no-such-editor" in error(outcome)
    assert "EDITOR" in error(outcome).removeprefix("Error: cannot run no-such-editor")


# What is printed, and to whom.


PRINTING = [
    ("config", "show"),
    ("cache", "info"),
    ("cache", "list"),
    ("cache", "verify"),
    ("fetch", FIRST),
    ("open", FIRST),
    ("completion", "bash"),
    ("--version",),
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(
    run: Commands, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run("fetch", FIRST)
    outlet, inlet = os.pipe()
    os.close(outlet)
    with open(inlet, "wb") as nobody:
        process = subprocess.run(
            run.line(*arguments),
            env=run.environment(TMPDIR=str(tmp_path)),
            stdout=nobody,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    assert b"pipe" not in process.stderr.lower()
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize("arguments", [*PRINTING, ("status",), ("doctor",)], ids=" ".join)
def test_an_output_that_is_closed_is_nobodys_mistake(
    run: Commands, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    process = subprocess.run(
        ["bash", "-c", 'exec "$@" >&-', "bash", *run.line(*arguments)],
        env=run.environment(TMPDIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_an_output_that_is_full_is_said_in_one_line(
    run: Commands, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    run("fetch", FIRST)
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            run.line(*arguments),
            env=run.environment(TMPDIR=str(tmp_path)),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    assert process.returncode == 1
    said = process.stderr.decode().splitlines()[-1]
    assert said == "Error: cannot write the output: No space left on device"
    assert b"Traceback" not in process.stderr


# cache.


def test_the_cache_is_looked_after_without_api_and_credentials(
    run: Commands, keep: Commands
) -> None:
    run("fetch", FIRST, "--level", "all")
    told = json.loads(keep("cache", "info", "--json").out)
    assert (told["logs"], told["records"], told["final"]["logs"]) == (4, 1, 4)
    assert told["used_bytes"] == sum(
        path.stat().st_size for path in keep.cache.glob("v1/*-*/*.log")
    )
    assert keep("cache", "verify").code == 0


def test_where_there_is_no_cache_none_is_made(keep: Commands) -> None:
    assert "there is no cache at" in error(keep("cache", "info"))
    assert not keep.cache.exists()


def test_the_list_tells_builds_and_holds_no_control_characters(
    run: Commands, keep: Commands
) -> None:
    run("fetch", f"{EVIL}/latest", "web-app", "--project", PROJECT)
    lines = keep("cache", "list", "--logs").out.decode().splitlines()
    assert any(f"{EVIL}/3" in line for line in lines)
    assert any("web-app/2" in line and "failure" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    told = json.loads(keep("cache", "list", "--json").out)
    assert {record["job"] for record in told} == {HOSTILE["name"], "web-app"}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_and_fetched_again(
    run: Commands, keep: Commands, emulator: Emulator
) -> None:
    run("fetch", FIRST)
    damaged = keep.cache / "v1" / FIRST / "stage1.info.log"
    flip_a_byte(damaged)
    outcome = keep("cache", "verify", "--keep")
    assert (outcome.code, damaged.exists()) == (1, True)
    outcome = keep("cache", "verify")
    assert (outcome.code, damaged.exists()) == (1, False)
    assert outcome.out.splitlines()[0] == f"{FIRST}/stage1.info.log: damaged, removed".encode()
    assert keep("cache", "verify").code == 0
    with emulator.costs(task_log=1):
        run("fetch", FIRST)


def test_what_is_no_log_is_damaged_and_stops_no_verifying(run: Commands, keep: Commands) -> None:
    run("fetch", FIRST, SECOND)
    folder = keep.cache / "v1" / FIRST
    (folder / "stage1.info.log").unlink()
    os.mknod(folder / "stage1.info.log", stat.S_IFSOCK | 0o600)
    flip_a_byte(keep.cache / "v1" / SECOND / "stage1.info.log")
    outcome = keep("cache", "verify")
    assert outcome.code == 1
    assert outcome.out.count(b"damaged, removed") == 2
    assert keep("cache", "verify").code == 0


def test_verifying_does_not_count_as_use(run: Commands, keep: Commands) -> None:
    run("fetch", FIRST)
    before = {path: path.stat().st_mtime_ns for path in keep.cache.glob("v1/*-*/*")}
    keep("cache", "verify")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_prune_takes_what_was_opened_longest_ago(run: Commands, keep: Commands) -> None:
    run("fetch", FIRST)
    os.utime(keep.cache / "v1" / FIRST / "stage2.info.log", (1, 1))
    would = keep("cache", "prune", "--older-than", "1d", "--dry-run")
    assert b"1 log, 7.9 KiB would be evicted" in would.out
    assert len(keep.kept()) == 2
    assert keep("cache", "prune", "--older-than", "1d").code == 0
    assert keep.kept() == {f"{FIRST}/stage1.info.log"}


def test_clear_asks_and_leaves_what_is_pinned(run: Commands, keep: Commands) -> None:
    run("fetch", FIRST)
    run("fetch", "--pin", SECOND)
    assert keep("cache", "clear", stdin=b"n\n").code == 1
    assert len(keep.kept()) == 4
    assert "--yes" in error(keep("cache", "clear", stdin=b""))
    assert len(keep.kept()) == 4
    assert keep("cache", "clear", stdin=b"y\n").code == 0
    assert {name.split("/")[0] for name in keep.kept()} == {SECOND}
    assert keep("cache", "clear", "--yes", "--pinned-too").code == 0
    assert keep.kept() == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_cache_that_cannot_be_cleared_is_a_failure(run: Commands, keep: Commands) -> None:
    run("fetch", FIRST)
    subprocess.run(["mount", "--bind", "-o", "ro", keep.cache, keep.cache], check=True)
    try:
        outcome = keep("cache", "clear", "--yes")
    finally:
        subprocess.run(["umount", keep.cache], check=True)
    assert outcome.code == 1
    assert b"Error: not all could be removed" in outcome.err


def test_a_mount_reads_on_while_its_cache_is_cleared(
    rig: Rig, keep: Commands, emulator: Emulator
) -> None:
    mounted = rig.mount(emulator, "--memory-cache", "0")
    log = mounted / f"{FIRST}/stage1.info.log"
    assert rig.run("cat", log).out == TEXT + b"one\n"
    keep("cache", "clear", "--yes")
    assert rig.run("dd", f"if={log}", "iflag=direct", "status=none").out == TEXT + b"one\n"
    assert rig.run("cat", mounted / f"{FIRST}/stage2.info.log").out == TEXT + b"two\n"


# grep.


@pytest.mark.parametrize(
    "options",
    [
        ["ERROR"],
        ["-i", "error"],
        ["--ignore-case", "--count", "error"],
        ["--max-count=2", "--only-matching", "ERROR"],
        ["-c", "ERROR"],
        ["-l", "two"],
        ["-v", "-E", "INFO|plain"],
        ["-F", "[ERROR]"],
        ["-w", "-o", "ERR.R"],
        ["-P", r"ERR(?=OR)"],
        ["-a", "ary"],
        ["-e", "one", "-e", "-two"],
        ["-m1", "ERROR"],
        ["no such thing"],
    ],
)
def test_what_is_found_is_what_grep_finds_in_the_same_files(
    rig: Rig, run: Commands, recordings: Path, options: list[str]
) -> None:
    records = [THIRD, FIRST]
    files = [
        str(path.relative_to(recordings))
        for record in records
        for path in sorted((recordings / record).glob("*.info.log"))
    ]
    real = rig.run("grep", "-n", "-H", *options, "--", *files, cwd=recordings)
    ours = run("grep", *options, *records)
    assert (ours.code, ours.out) == (real.code, real.out)


def test_lines_are_called_by_job_where_that_is_how_they_were_asked_for(run: Commands) -> None:
    outcome = run("grep", "-rn", "two", "web-app/latest", "--project", PROJECT)
    assert outcome.out == b"web-app/2/stage2.info.log:601:two\n"


def test_a_download_that_fails_is_never_no_match(run: Commands, emulator: Emulator) -> None:
    emulator.faults("task_log:forbid=1")
    outcome = run("grep", "no such thing", FIRST)
    assert outcome.code == 2
    assert "stage" in error(outcome)
    emulator.faults("task_log:forbid=1")
    assert run("grep", "ERROR", SECOND, "--max-downloads", "1").code == 2
    assert run("grep", "ERROR", SECOND).code == 0


def test_what_was_searched_is_kept(run: Commands, emulator: Emulator) -> None:
    run("grep", "ERROR", FIRST)
    with emulator.costs():
        assert run("grep", "-q", "two", FIRST).code == 0


def test_a_pattern_that_is_none_costs_nothing(run: Commands, emulator: Emulator) -> None:
    with emulator.costs():
        outcome = run("grep", r"\(", FIRST)
    assert outcome.code == 2
    assert error(outcome).startswith("Error: grep: ")


def test_a_reader_that_leaves_ends_the_search_quietly(rig: Rig, run: Commands) -> None:
    line = "set -o pipefail; " + " ".join(run.line("grep", "''", FIRST)) + " | head -1"
    process = subprocess.run(
        ["env", "--default-signal", "bash", "-c", line],
        env=run.environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b"")
    assert process.stdout == f"{FIRST}/stage1.info.log:1:[INFO] a line\n".encode()


def test_a_search_without_means_is_never_no_match(run: Commands) -> None:
    run("fetch", FIRST)
    for most in (10, 14, 18, 22):  # open files; they run out at different steps
        process = subprocess.run(
            ["prlimit", f"--nofile={most}", *run.line("grep", "-c", "no-such-thing", FIRST)],
            env=run.environment(),
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert process.returncode == 2 or process.stdout.count(b":0\n") == 2, process
        assert b"Traceback" not in process.stderr


def test_who_interrupts_a_search_before_it_begins_is_not_told_no_match(
    run: Commands, tmp_path: Path
) -> None:
    (tmp_path / "grep").write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 60\n")
    (tmp_path / "grep").chmod(0o755)
    process = subprocess.Popen(
        ["env", "--default-signal", *run.line("grep", "no such thing", FIRST)],
        env=run.environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until((tmp_path / "begun").exists)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, b"")


# open.


def test_the_log_that_failed_is_shown_in_the_mount_of_the_same_api(
    rig: Rig, run: Commands, emulator: Emulator
) -> None:
    mounted = rig.mount(emulator)
    outcome = run("open", SECOND)
    assert outcome.out.decode() == f"{mounted.path}/{SECOND}/stage1.info.log\n"
    assert run("open", SECOND, "2").out.decode() == f"{mounted.path}/{SECOND}/stage2.info.log\n"


def test_without_a_mount_a_copy_is_shown(run: Commands, tmp_path: Path) -> None:
    outcome = run("open", FIRST, TMPDIR=str(tmp_path))
    copy = Path(outcome.out.decode().strip())
    assert copy.read_bytes() == TEXT + b"two\n"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.is_relative_to(tmp_path)


@pytest.mark.parametrize("how", ["--pager", "--editor"])
def test_the_copy_for_a_program_goes_with_it(run: Commands, tmp_path: Path, how: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    outcome = run(
        "open", how, FIRST, "1", TMPDIR=str(scratch), PAGER="wc -l", VISUAL="wc -l", EDITOR="false"
    )
    assert outcome.out.startswith(b"601 ")
    assert outcome.code == 0
    assert list(scratch.iterdir()) == []


def test_a_mount_that_hangs_does_not_hang_who_opens(
    rig: Rig, run: Commands, emulator: Emulator, tmp_path: Path
) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        outcome = run("open", FIRST, TMPDIR=str(tmp_path))
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    assert outcome.out.decode().startswith(f"{tmp_path}/codeartsfs-")


@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGTERM])
def test_the_copy_goes_with_the_terminal(run: Commands, tmp_path: Path, end: int) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pager = f"sh -c 'touch {tmp_path}/shown; sleep 60'"
    process = subprocess.Popen(
        # Who runs these tests may ignore SIGHUP, as nohup(1) does.
        ["env", "--default-signal=HUP", *run.line("open", "--pager", FIRST, "1")],
        env=run.environment(TMPDIR=os.fspath(scratch), PAGER=pager),
        start_new_session=True,
    )
    wait_until((tmp_path / "shown").exists)
    os.killpg(process.pid, end)
    assert process.wait(20) == 128 + end
    assert os.listdir(scratch) == []


def test_a_log_that_is_not_there_cannot_be_opened(run: Commands) -> None:
    outcome = run("open", FIRST, "9")
    assert outcome.code == 1
    assert "has no stage '9'" in error(outcome)
