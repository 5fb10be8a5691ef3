"""What a mount says of itself while it works, and when it does not: files and the command."""

import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .rig import COMMAND, TOKEN, Emulator, Mounted, Outcome, Rig, open_rig, record_id, wait_until
from .rig import write_record as write

pytestmark = pytest.mark.fuse

LINES = b"[INFO] a line\n" * 10_000
RECORDS = 40
STATUS, METRICS = ".codeartsfs/status.json", ".codeartsfs/metrics"
RUNNING = (Path(__file__).parents[2] / "docs/running.md").read_text()
OK, WRONG, USAGE, NO_MOUNT = 0, 1, 2, 4

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def log_of(number: int) -> str:
    return f"{record_id(number)}/stage1.info.log"


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(RECORDS):
        write(folder, number, {"stage1.info.log": LINES})
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One rig for tests that leave no traces: each reads records of its own."""
    with open_rig(tmp_path_factory.mktemp("shared")) as rig:
        yield rig


@pytest.fixture(scope="module")
def api(shared: Rig, recordings: Path) -> Emulator:
    return shared.emulator(recordings)


@pytest.fixture(scope="module")
def mounted(shared: Rig, api: Emulator) -> Mounted:
    options = ("-o", "allow_other", "--max-downloads", "2", "--prefetch", "0")
    return shared.mount(api, *options)


@pytest.fixture
def emulator(api: Emulator) -> Iterator[Emulator]:
    yield api
    api.faults()


def status(rig: Rig, *arguments: str | Path) -> Outcome:
    return rig.run(*COMMAND, "status", *arguments)


def looks(outcome: Outcome) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(outcome.out)
    return found


def dead(rig: Rig, emulator: Emulator) -> Mounted:
    mounted = rig.mount(emulator)
    mounted.kill()
    return mounted


# The files.


@pytest.mark.parametrize("name", [STATUS, METRICS])
def test_what_it_says_is_for_who_mounted_alone(shared: Rig, mounted: Mounted, name: str) -> None:
    outcome = shared.run("stat", "-c", "%a %u %F", mounted / name)
    assert outcome.out.decode().startswith(f"400 {os.getuid()} regular")


@needs_root
@pytest.mark.parametrize("name", [STATUS, METRICS])
def test_others_cannot_read_what_it_says(shared: Rig, mounted: Mounted, name: str) -> None:
    def as_nobody(*command: str) -> Outcome:
        nobody = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
        return shared.run(*nobody, *command, cwd=mounted.path)

    assert as_nobody("head", "-c", "6", log_of(0)) == Outcome(0, b"[INFO]", b"")
    refused = as_nobody("cat", name)
    assert (refused.code, refused.out) == (1, b"")
    assert b"Permission denied" in refused.err


def test_both_files_are_listed_where_one_looks(shared: Rig, mounted: Mounted) -> None:
    outcome = shared.run("ls", "-la", mounted / ".codeartsfs")
    assert outcome.err == b""
    assert {line.split()[-1] for line in outcome.out.decode().splitlines()[1:]} == {
        ".",
        "..",
        "metrics",
        "status.json",
    }


def test_looking_asks_the_api_nothing(shared: Rig, mounted: Mounted, emulator: Emulator) -> None:
    with emulator.costs():
        shared.run("ls", "-la", mounted / ".codeartsfs")
        shared.run("cat", mounted / METRICS, mounted / STATUS)
        status(shared, mounted.path)


def test_calls_are_counted_by_kind(shared: Rig, mounted: Mounted, emulator: Emulator) -> None:
    shared.run("cat", mounted / log_of(1))
    shared.run("cat", mounted / f"{record_id(1)}/record.json")
    calls = mounted.status()["api"]["calls"]
    assert {call: said["count"] for call, said in calls.items()} == {
        call: emulator.calls(call) for call in ("task_log", "full_stages", "record")
    }


def test_metrics_say_what_status_says(shared: Rig, mounted: Mounted, emulator: Emulator) -> None:
    shared.run("cat", mounted / log_of(2))
    said = mounted.status()
    text = shared.run("cat", mounted / METRICS).out.decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["mountpoint"] == os.fspath(mounted.path)
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    assert values["codeartsfs_opens_total"] == said["kernel"]["opens"]
    assert values["codeartsfs_api_requests_total"] == said["api"]["requests"]
    assert values["codeartsfs_log_received_bytes_total"] == said["logs"]["received_bytes"]
    assert values["codeartsfs_api_received_bytes_total"] == said["api"]["received_bytes"]
    assert values["codeartsfs_process_resident_memory_bytes"] > 1 << 20


def test_a_download_under_way_is_shown(shared: Rig, mounted: Mounted, emulator: Emulator) -> None:
    emulator.faults("task_log:slow=50000")
    reader = shared.start("cat", mounted / log_of(3))
    wait_until(lambda: any(f["landed_bytes"] for f in mounted.status()["in_flight"]))
    [flight] = mounted.status()["in_flight"]
    assert flight["path"] == log_of(3)
    assert flight["doing"] == "bytes"
    assert flight["waiters"] == 1
    assert flight["background"] is False
    assert 0 < flight["landed_bytes"] < flight["size_bytes"] == len(LINES)
    assert flight["bytes_per_s"] > 0
    shown = status(shared, mounted.path).out.decode()
    assert f"{log_of(3)}: " in shown
    assert "1 waiting, now for its bytes" in shown
    assert shared.finish(reader).out == LINES
    wait_until(lambda: not mounted.status()["in_flight"])


@pytest.mark.parametrize(
    ("number", "faults", "reason"),
    [
        (4, ["task_log:delay=0.4"], "first_byte"),
        (5, ["full_stages:delay=0.4"], "stages"),
        (6, ["task_log:throttle=1", "task_log:retry-after=1"], "throttled"),
        (7, ["task_log:error500=3"], "retry"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_slow_is_explained(
    shared: Rig,
    mounted: Mounted,
    emulator: Emulator,
    number: int,
    faults: list[str],
    reason: str,
) -> None:
    emulator.faults(*faults)
    assert shared.run("cat", mounted / log_of(number)).out == LINES
    slow = next(s for s in mounted.status()["slowest"] if s["path"] == log_of(number))
    assert (slow["program"], slow["operation"]) == ("cat", "stat")  # which cat does first
    assert next(iter(slow["waited_for"])) == reason
    assert sum(slow["waited_for"].values()) == pytest.approx(slow["took_s"], abs=0.02)


def test_who_has_to_wait_for_other_downloads_is_told(
    shared: Rig, mounted: Mounted, emulator: Emulator
) -> None:
    emulator.faults("task_log:delay=1")
    readers = [shared.start("cat", mounted / log_of(number)) for number in (8, 9, 10)]
    wait_until(lambda: [f["doing"] for f in mounted.status()["in_flight"]].count("slot") == 1)
    for reader in readers:
        assert shared.finish(reader).out == LINES
    assert any("slot" in slow["waited_for"] for slow in mounted.status()["slowest"])


def test_an_error_is_told_with_what_was_slow(
    shared: Rig, mounted: Mounted, emulator: Emulator
) -> None:
    emulator.faults("task_log:delay=0.2", "task_log:forbid")
    assert shared.run("cat", mounted / log_of(11)).code == 1
    mounted.permit_logged("EACCES")
    [slow] = [s for s in mounted.status()["slowest"] if s["path"] == log_of(11) and s["error"]]
    assert "task-log" in slow["error"]
    assert mounted.status()["kernel"]["operations"][slow["operation"]]["failed"] == 1


def test_what_is_in_the_cache_is_known_without_a_new_log(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    first = rig.mount(emulator)
    for number in range(3):
        rig.run("cat", first / log_of(number))
    assert first.status()["logs"]["misses"] == 3
    wait_until(lambda: first.status()["disk_cache"]["logs"] == 3)
    used_bytes = first.status()["disk_cache"]["used_bytes"]
    first.stop()
    second = rig.mount(emulator)
    wait_until(lambda: second.status()["disk_cache"]["logs"] == 3)
    assert second.status()["disk_cache"]["used_bytes"] == used_bytes
    rig.run("cat", second / log_of(0))
    said = second.status()
    assert (said["logs"]["hits"], said["logs"]["misses"]) == (1, 0)
    assert (said["disk_cache"]["hits"], said["disk_cache"]["hit_rate"]) == (1, 1.0)


# The command.


def test_all_is_well(shared: Rig, mounted: Mounted, emulator: Emulator) -> None:
    outcome = status(shared, mounted.path)
    assert (outcome.code, outcome.err) == (OK, b"")
    first, *rest = outcome.out.decode().splitlines()
    assert first.startswith(f"{mounted.path}  ok, mounted ")
    assert f"pid {mounted.process.pid}" in first
    assert rest[0] == f"  api          ok, {emulator.url}"
    assert not re.search(r"[ \t]$|\x1b", outcome.out.decode(), re.MULTILINE)


def test_a_mount_is_found_by_what_is_in_it_and_by_links(
    shared: Rig, mounted: Mounted, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(mounted.path)
    for path in (mounted / record_id(0), link, link / "by-job"):
        [look] = looks(status(shared, path, "--json"))
        assert look["mountpoint"] == os.fspath(mounted.path)


def test_json_is_a_list_of_all_mounts(rig: Rig, recordings: Path, mounted: Mounted) -> None:
    gone = dead(rig, rig.emulator(recordings))
    outcome = status(rig, "--json")
    states = {look["mountpoint"]: look["state"] for look in looks(outcome)}
    assert states[os.fspath(mounted.path)] == "ok"
    assert states[os.fspath(gone.path)] == "dead"
    assert outcome.code == WRONG


def test_a_dead_mount_is_said_to_be_dead(rig: Rig, recordings: Path) -> None:
    mounted = dead(rig, rig.emulator(recordings))
    outcome = status(rig, mounted.path)
    assert outcome.code == WRONG
    assert outcome.out.decode() == (
        f"{mounted.path}  dead: its daemon is gone; clear it away with:"
        f" codeartsfs umount {mounted.path}\n"
    )


def test_a_stopped_mount_is_said_to_be_stuck_and_can_be_unmounted(
    rig: Rig, recordings: Path
) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        outcome = status(rig, mounted.path, "--json")
        assert outcome.code == WRONG
        assert [look["state"] for look in looks(outcome)] == ["stuck"]
        assert rig.run(*COMMAND, "umount", "--lazy", mounted.path) == Outcome(0, b"", b"")
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    assert mounted.process.wait(15) == 0


def test_mounts_that_are_stuck_hold_up_no_other(rig: Rig, recordings: Path) -> None:
    emulator = rig.emulator(recordings)
    stuck = [rig.mount(emulator, at=at, cache=None) for at in ("one", "two", "three")]
    for mounted in stuck:
        mounted.process.send_signal(signal.SIGSTOP)
    try:
        looking = rig.start(*COMMAND, "status", "--json")
        children = Path(f"/proc/{looking.pid}/task/{looking.pid}/children")
        wait_until(lambda: len(children.read_text().split()) >= len(stuck))  # all at once
        states = {look["mountpoint"]: look["state"] for look in looks(rig.finish(looking))}
        assert {states[os.fspath(mounted.path)] for mounted in stuck} == {"stuck"}
    finally:
        for mounted in stuck:
            mounted.process.send_signal(signal.SIGCONT)


def test_refused_credentials_are_told_and_never_shown(rig: Rig, recordings: Path) -> None:
    wrong = "not-the-token-0123456789"
    credentials = {"CODEARTSFS_TOKEN": wrong}
    mounted = rig.mount(rig.emulator(recordings), credentials=credentials)
    mounted.permit_logged("EACCES|refuses our credentials")
    for number in range(3):
        rig.run("cat", mounted / log_of(number))
    outcome = status(rig, mounted.path)
    assert outcome.code == WRONG
    first, api, error, *_ = outcome.out.decode().splitlines()
    assert "the API refuses the credentials, mounted " in first
    assert "refused" in api
    assert "401" in error
    assert "asked again" in error
    [look] = looks(status(rig, mounted.path, "--json"))
    assert look["state"] == "refused"
    assert "401" in look["authentication"]["last_refusal"]
    shown = outcome.out + json.dumps(look).encode() + rig.run("cat", mounted / METRICS).out
    assert wrong.encode() not in shown
    assert TOKEN.encode() not in shown


def test_one_refusal_is_told_until_something_is_answered(
    rig: Rig, recordings: Path, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("of somebody else")
    credentials = {"CODEARTSFS_TOKEN_FILE": os.fspath(token)}
    mounted = rig.mount(rig.emulator(recordings), credentials=credentials)
    mounted.permit_logged("EACCES")
    rig.run("stat", mounted / log_of(0))
    outcome = status(rig, mounted.path)
    assert outcome.code == WRONG
    assert b"the API refuses the credentials, mounted " in outcome.out
    token.write_text(TOKEN)
    wait_until(lambda: rig.run("cat", mounted / log_of(0)).code == 0)
    outcome = status(rig, mounted.path)
    assert outcome.code == 0
    assert b"refuse" not in outcome.out.split(b"credentials")[1].splitlines()[0]


@needs_root
def test_a_mount_of_somebody_else_is_theirs_to_judge(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    nobody = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    named = rig.run(*nobody, *COMMAND, "status", mounted.path, "--json")
    assert [look["state"] for look in looks(named)] == ["private"]
    assert named.code == WRONG
    all_of_them = looks(rig.run(*nobody, *COMMAND, "status", "--json"))
    assert os.fspath(mounted.path) in {look["mountpoint"] for look in all_of_them}


@pytest.mark.parametrize("where", ["/proc", "missing"])
def test_where_nothing_is_mounted_is_told(shared: Rig, tmp_path: Path, where: str) -> None:
    outcome = status(shared, tmp_path / where)
    assert (outcome.code, outcome.out) == (NO_MOUNT, b"")
    assert outcome.err.decode() == f"Error: {tmp_path / where} is not a mount of codeartsfs\n"


def test_what_a_mount_point_is_called_does_not_reach_the_terminal(
    rig: Rig, recordings: Path
) -> None:
    mounted = dead(rig, rig.emulator(recordings))
    name = rig.folder / "\x1b[31mred"
    subprocess.run(["umount", "-l", mounted.path], check=True)
    mounted = rig.mount(rig.emulator(recordings), at=name.name)
    outcome = status(rig, mounted.path)
    assert b"\x1b" not in outcome.out
    assert b"%1B[31mred  ok, " in outcome.out


def test_json_can_be_watched_until_ctrl_c(shared: Rig, mounted: Mounted) -> None:
    watcher = shared.start(*COMMAND, "status", mounted.path, "--json", "--watch")
    assert watcher.stdout is not None
    lines = [json.loads(watcher.stdout.readline()) for _ in range(2)]
    watcher.send_signal(signal.SIGINT)
    assert shared.finish(watcher).code == OK
    assert lines[1][0]["at_s"] - lines[0][0]["at_s"] > 0.5


def test_watching_without_a_terminal_is_refused(shared: Rig, mounted: Mounted) -> None:
    outcome = status(shared, mounted.path, "--watch")
    assert (outcome.code, outcome.out) == (USAGE, b"")
    assert b"Error: --watch needs a terminal; for programs there is --json --watch" in outcome.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, OK), (signal.SIGTERM, 143)])
def test_watching_leaves_the_terminal_as_it_was(
    shared: Rig, mounted: Mounted, number: signal.Signals, code: int
) -> None:
    terminal, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    watcher = shared.start(*COMMAND, "status", mounted.path, "--watch", stdout=side)
    shown = b""
    while shown.count(b"credentials") < 2:  # it was drawn again
        shown += os.read(terminal, 65536)
    watcher.send_signal(number)
    assert shared.finish(watcher).code == code
    os.close(side)
    try:
        while more := os.read(terminal, 65536):
            shown += more
    except OSError:  # the end of a terminal
        pass
    os.close(terminal)
    assert shown.index(b"\x1b[?1049h") < shown.rindex(b"\x1b[?1049l")
    assert shown.rindex(b"\x1b[?25l") < shown.rindex(b"\x1b[?25h")


# The recipe.


def test_the_recipe_for_the_textfile_collector_works(rig: Rig, recordings: Path) -> None:
    mounted = rig.mount(rig.emulator(recordings))
    folder = rig.folder / "collector"
    folder.mkdir()
    [line] = re.findall(r"^    \* \* \* \* \* root (.*)$", RUNNING, re.MULTILINE)
    script = line.replace("/var/lib/prometheus/node-exporter", os.fspath(folder))
    script = script.replace("/mnt/builds", os.fspath(mounted.path))
    assert rig.run("sh", "-c", script).code == 0
    [file] = folder.iterdir()
    assert file.name == "codeartsfs.prom"
    assert list(text_string_to_metric_families(file.read_text()))
    mounted.kill()
    rig.run("sh", "-c", script)
    assert [file.name for file in folder.iterdir() if file.suffix == ".prom"] == []
