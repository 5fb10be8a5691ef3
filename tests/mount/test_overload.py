"""More than anybody should ask for, all at once, and a daemon that is as before afterwards."""

import errno
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from .rig import Mounted, Rig, record_id, wait_until, write_record

pytestmark = pytest.mark.fuse

RECORDS, STAGES = 20, 25
IDLE_LOGS = 64  # kept open by the store after their last close, for who comes back
CONNECTIONS = 40  # and what else a daemon has open
LARGE = range(RECORDS, RECORDS + 4)  # their logs are too large to be read from memory
MIB = 1 << 20


def content(record: int, name: str) -> bytes:
    return b"".join(b"%d %s line %d\n" % (record, name.encode(), n) for n in range(300))


def logs(*records: int) -> list[str]:
    names = [f"stage{n}.{level}.log" for n in range(1, STAGES + 1) for level in ("info", "debug")]
    return [f"{record_id(record)}/{name}" for record in records for name in names]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for record in range(RECORDS):
        names = [log.partition("/")[2] for log in logs(record)]
        write_record(folder, record, {name: content(record, name) for name in names})
    for record in LARGE:
        names = [log.partition("/")[2] for log in logs(record)]
        write_record(folder, record, {name: 12 * content(record, name) for name in names})
    return folder


# Reads all logs at once and says how often what came was whole, wrong, or no more than an error.
READERS = """
import collections, json, os, sys, threading
mountpoint, recordings, *logs = sys.argv[1:]
threading.stack_size(256 << 10)
outcomes = collections.Counter()
start = threading.Barrier(len(logs))

def read(log):
    start.wait()
    try:
        with open(f"{mountpoint}/{log}", "rb") as file:
            got = file.read()
    except OSError as error:
        outcomes[os.strerror(error.errno)] += 1
    else:
        with open(f"{recordings}/{log}", "rb") as file:
            outcomes["whole" if got == file.read() else "wrong"] += 1

readers = [threading.Thread(target=read, args=(log,)) for log in logs]
for reader in readers:
    reader.start()
for reader in readers:
    reader.join()
print(json.dumps(outcomes))
"""

# Opens logs again and again without closing, reads a little of each, and tells when it has.
HOLDER = """
import os, resource, signal, sys
mountpoint, recordings, count, *logs = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(count) + 100, int(count) + 100))
handles = [os.open(f"{mountpoint}/{logs[n % len(logs)]}", os.O_RDONLY) for n in range(int(count))]
for n, handle in enumerate(handles):
    with open(f"{recordings}/{logs[n % len(logs)]}", "rb") as file:
        assert os.pread(handle, 100, n % 5000) == os.pread(file.fileno(), 100, n % 5000), n
print("held", flush=True)
signal.pause()
"""


class Scales:
    """What a daemon uses, from outside."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted
        self._folder = Path(f"/proc/{mounted.process.pid}")

    def descriptors(self) -> int:
        return len(os.listdir(self._folder / "fd"))

    def files(self) -> int:
        """Count the open files of logs, whether they have a name in the cache or not."""
        count = 0
        for fd in (self._folder / "fd").iterdir():
            with suppress(FileNotFoundError):
                target = os.readlink(fd)
                count += "/cache/v1/" in target and "sqlite" not in target
        return count

    def rss_bytes(self) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    def idle(self) -> bool:
        now = self._mounted.status()["logs"]
        return (now["open_logs"], now["downloading"]) == (0, 0)


def read_all(rig: Rig, mounted: Mounted, recordings: Path, wanted: list[str]) -> dict[str, int]:
    outcome = rig.run(
        sys.executable, "-c", READERS, mounted.path, recordings, *wanted, timeout_s=60
    )
    assert outcome.err == b"", outcome.err
    outcomes: dict[str, int] = json.loads(outcome.out)
    return outcomes


def used_mount(rig: Rig, recordings: Path, *options: str) -> Mounted:
    """Mount, and read so much that it holds as many idle logs as it ever will."""
    mounted = rig.mount(rig.emulator(recordings), "--memory-cache", "0", *options)
    assert read_all(rig, mounted, recordings, logs(0, 1)) == {"whole": 100}
    wait_until(Scales(mounted).idle)
    assert Scales(mounted).files() == IDLE_LOGS
    return mounted


def test_a_thousand_readers_of_a_thousand_logs_at_once_get_them_whole_with_one_call_each(
    rig: Rig, recordings: Path
) -> None:
    mounted = used_mount(rig, recordings)
    emulator, scales = rig.emulators[0], Scales(mounted)
    with emulator.costs(task_log=1000 - 100, full_stages=RECORDS - 2):
        outcomes = read_all(rig, mounted, recordings, logs(*range(RECORDS)))
    assert outcomes == {"whole": 1000}
    wait_until(scales.idle)
    assert scales.files() == IDLE_LOGS
    assert scales.descriptors() <= IDLE_LOGS + CONNECTIONS
    assert scales.rss_bytes() < 80 * MIB
    # Logs, records, and the root.
    assert mounted.status()["kernel"]["inodes"] <= 1000 + RECORDS + 10


def test_two_hundred_stuck_readers_hold_up_nobody_and_leave_nothing_behind(
    rig: Rig, recordings: Path
) -> None:
    mounted = used_mount(rig, recordings, "--max-downloads", "250")
    emulator, scales = rig.emulators[0], Scales(mounted)
    stuck, others = logs(2, 3, 4, 5), logs(6, 7)
    mounted.permit_logged("WARNING codeartsfs.api.health: the API does not answer")
    emulator.faults("task_log:stall=200")
    readers = rig.start(sys.executable, "-c", READERS, mounted.path, recordings, *stuck)
    wait_until(lambda: mounted.status()["logs"]["downloading"] == len(stuck))
    assert read_all(rig, mounted, recordings, others) == {"whole": 100}
    assert read_all(rig, mounted, recordings, logs(0)) == {"whole": 50}
    assert len(rig.run("ls", mounted / record_id(8)).out.splitlines()) == 52
    assert readers.poll() is None
    readers.send_signal(signal.SIGKILL)
    # Seconds are the point: without our care it would take until --deadline, a minute.
    assert readers.wait(timeout=10) == -signal.SIGKILL
    rig.take_down(emulator)  # else the downloads would go on for who comes next
    wait_until(scales.idle)
    assert scales.files() == IDLE_LOGS
    assert scales.rss_bytes() < 80 * MIB


def test_ten_thousand_open_handles_read_right_and_are_all_given_back(
    rig: Rig, recordings: Path
) -> None:
    mounted = used_mount(rig, recordings)
    scales = Scales(mounted)
    rss_bytes = scales.rss_bytes()
    held = logs(0, 1)
    with rig.emulators[0].costs():
        holder = rig.start(sys.executable, "-c", HOLDER, mounted.path, recordings, "10000", *held)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n", holder.communicate()
    assert mounted.status()["logs"]["open_logs"] == 100
    assert read_all(rig, mounted, recordings, logs(0)) == {"whole": 50}
    holder.send_signal(signal.SIGKILL)
    rig.finish(holder)
    wait_until(scales.idle)
    assert scales.files() == IDLE_LOGS
    assert scales.rss_bytes() < rss_bytes + 16 * MIB


def test_a_daemon_out_of_descriptors_gives_errors_and_recovers(rig: Rig, recordings: Path) -> None:
    mounted = used_mount(rig, recordings)
    mounted.expect_logged("WARNING codeartsfs.fs.reply: .*: EIO: .*Too many open files")
    mounted.permit_logged("WARNING .*Too many open files")
    scales = Scales(mounted)
    few = scales.descriptors() + 20
    resource.prlimit(mounted.process.pid, resource.RLIMIT_NOFILE, (few, few))
    wanted = logs(*LARGE)
    holder = rig.run(sys.executable, "-c", HOLDER, mounted.path, recordings, "200", *wanted)
    assert os.strerror(errno.EIO).encode() in holder.err
    outcomes = read_all(rig, mounted, recordings, wanted)
    assert outcomes.keys() <= {"whole", os.strerror(errno.EIO)}
    wait_until(scales.idle)
    assert read_all(rig, mounted, recordings, logs(10)) == {"whole": 50}
