"""``codeartsfs demo``, run for real: what a newcomer sees, and that nothing of it stays."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from codeartsfs.commands.emulator import demo
from codeartsfs.emulator.demo import JOB, LARGE, LIVE_JOB
from codeartsfs.fs import mountpoint

DEMO = (sys.executable, "-m", "codeartsfs", "demo")
ONE_STEP = """
import dataclasses, sys
from codeartsfs.emulator import demo
demo.TOUR = (dataclasses.replace(demo.TOUR[0], command=sys.argv.pop(1)),)
from codeartsfs.commands.emulator import demo as command
command()
"""


def left_behind(temporary: Path) -> list[str]:
    """Return what there is in a directory for temporary files, mounted in it, or running in it."""
    left = [os.fspath(path) for path in temporary.iterdir()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left += [line for line in mounts if f" {temporary}" in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = [(process / "cmdline").read_bytes().decode(errors="replace")]
            told.append(os.readlink(process / "cwd"))
        except OSError:
            continue  # it is over, or not ours
        left += [f"{process.name}: {text}" for text in told if os.fspath(temporary) in text]
    return left


@contextmanager
def running(temporary: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a demo whose temporary files are in a directory of the test's own."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Settings of the user's own must not matter.
        env={**os.environ, "TMPDIR": str(temporary), "CODEARTSFS_REGION": "cn-north-4"},
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    return tmp_path.resolve()


@pytest.mark.fuse
def test_the_tour_shows_every_step_and_leaves_nothing_behind(temporary: Path) -> None:
    with running(temporary, *DEMO) as process:
        output, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, "")
    assert left_behind(temporary) == []
    assert "\x1b" not in output  # colours are for terminals

    steps = dict(re.findall(r"^\$ (.+)\n((?:.*\n)*?  \(.*)$", output, re.MULTILINE))
    assert {"standard-library-live", "telemetry-tool"} < set(steps["ls by-job"].splitlines())
    followed = steps[f"tail -n 2 -f {LIVE_JOB}/latest/stage4.info.log"]
    # It began with two lines at most, so all others came while it was followed.
    assert len(re.findall(r"^\[.* GMT\+08:00\] ", followed, re.MULTILINE)) > 2
    assert "^C\n" in followed

    links = re.findall(r" (\S+) -> \.\./\.\./(\S+)$", steps[f"ls -l {JOB}"], re.MULTILINE)
    records = dict(links)
    assert records["2"] == records["latest"] == records["latest-failed"]
    assert records["1"] == records["latest-success"]
    errors = steps[f"grep -n 'error:' {JOB}/latest-failed/failed.info.log"]
    assert errors.count("has no member named ‘length’") == 3
    entries = steps[f"ls {JOB}/2/ {JOB}/2/by-name"].splitlines()
    assert {"failed.info.log", "stage3.debug.log", "03-Make.info.log"} < set(entries)
    assert entries[-1].endswith(", no API calls)")
    told = steps[f"head -n 8 {JOB}/2/record.json"]
    assert '"failed_stage": "stage3",\n' in told
    assert told.endswith(", no API calls)")

    sums = re.findall(
        rf"^\$ md5sum {LARGE}/stage3.debug.log\n([0-9a-f]{{32}})  .*\n  \([\d.]+ s, (.*)\)$",
        output,
        re.MULTILINE,
    )
    [(first, first_cost), (second, second_cost)] = sums
    assert first == second
    assert first_cost.endswith("27.1 MB downloaded")
    assert second_cost == "no API calls"

    assert re.search(r'"downloads": [1-9]', output)


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_a_step_ends_everything(
    temporary: Path, number: signal.Signals
) -> None:
    command = "echo begun; sleep 1000 & sleep 1000"
    with running(temporary, sys.executable, "-c", ONE_STEP, command) as process:
        assert process.stdout is not None
        assert "begun\n" in process.stdout  # reads on until then
        process.send_signal(number)
        process.stdout.read()
        assert process.wait() == 128 + number
    assert left_behind(temporary) == []


@pytest.mark.fuse
def test_a_step_that_fails_ends_the_tour_with_exit_code_1(temporary: Path) -> None:
    command = f"cat {JOB}/latest-running/stage1.info.log"
    with running(temporary, sys.executable, "-c", ONE_STEP, command) as demo:
        output, complaints = demo.communicate()
    assert demo.returncode == 1
    assert "No such file" in complaints
    last = complaints.splitlines()[-1]
    assert last == f"Error: the demo failed: exit status 1 of: {command}"
    assert "That was the tour." not in output
    assert left_behind(temporary) == []


@pytest.mark.fuse
def test_a_mount_that_is_taken_away_ends_the_tour_in_one_line(temporary: Path) -> None:
    command = f'{sys.executable} -m codeartsfs umount --lazy "$PWD" && exit 9'
    with running(temporary, sys.executable, "-c", ONE_STEP, command) as demo:
        _, complaints = demo.communicate()
    assert demo.returncode == 1
    assert complaints == f"Error: the demo failed: exit status 9 of: {command}\n"
    assert left_behind(temporary) == []


@pytest.mark.fuse
def test_a_reader_that_goes_away_ends_the_tour(temporary: Path) -> None:
    with running(temporary, *DEMO) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 1
    assert left_behind(temporary) == []


@pytest.mark.fuse
def test_with_stay_the_mount_is_there_until_interrupted(temporary: Path) -> None:
    with running(temporary, *DEMO, "--stay") as process:
        assert process.stdout is not None
        where = process.stdout.readline().removeprefix("Mounted at ").rstrip("\n")
        assert "Ctrl-C ends the demo and leaves nothing behind.\n" in process.stdout
        assert mountpoint.mounted_type(Path(where)) == mountpoint.FS_TYPE
        log = Path(where) / JOB / "latest-failed/failed.info.log"
        assert "error: " in log.read_text("utf-8")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert left_behind(temporary) == []


def test_without_fuse_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> None:
        raise mountpoint.NoFuseError("there is no /dev/fuse here")

    monkeypatch.setattr(mountpoint, "check_fuse", none_here)
    result = CliRunner().invoke(demo)
    assert (result.exit_code, result.output) == (5, "Error: there is no /dev/fuse here\n")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert result.output == "Error: the demo needs an extra: pip install 'codeartsfs[demo]'\n"
