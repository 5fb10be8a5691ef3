"""kill -9 at any moment: what the next process finds is whole, consistent and within its limits.

Two ways to hit the moments that matter. Real mounts are killed at random ones, while they
download, save, evict, write their index or refresh what runs; and the disk tier and the index
are killed at every single one of their file operations, in processes of their own.
"""

import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from codeartsfs.builds import index as index_module
from codeartsfs.builds.index import Index, open_index
from codeartsfs.logs.disk import FOOTER_BYTES, DiskTier
from codeartsfs.model import LogNote
from codeartsfs.names import LogKey, LogLevel, RecordId
from tests.builds.test_index import RUN, TIMES
from tests.logs import test_power_loss as power_loss
from tests.logs.fakes import until
from tests.logs.test_disk import content_of

from .rig import COMMAND, Mounted, Rig, record_id, write_live_record, write_record

ROUNDS = int(os.environ.get("CODEARTSFS_CRASHES", "1"))
"""How often a mount is killed in each of the ways."""

FINISHED = 6  # records
LIVE, STATELESS = record_id(50), record_id(51)
LIMIT = 1 << 20


# At random moments of a real mount.


def _log(number: int, name: str) -> bytes:
    line = f"{number}/{name}: 编译 {{}} of this log and of no other\n"
    return "".join(map(line.format, range(4000 if name == "stage1.info.log" else 300))).encode()


LOGS = {
    f"{record_id(number)}/{name}": _log(number, name)
    for number in range(FINISHED)
    for name in ("stage1.info.log", "stage1.debug.log", "stage2.info.log")
}
GROWING = [f"{record}/stage1.info.log" for record in (LIVE, STATELESS)]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(FINISHED):
        logs = {path[37:]: log for path, log in LOGS.items() if path.startswith(record_id(number))}
        write_record(folder, number, logs)
    write_live_record(folder, 50)
    write_live_record(folder, 51)
    return folder


class Crashes:
    """A cache directory that mounts are killed on, one after the other."""

    def __init__(self, rig: Rig, recordings: Path, seed: int) -> None:
        self.rig = rig
        self.emulator = rig.emulator(recordings)
        self.cache = rig.folder / "cache"
        self.chance = random.Random(seed)
        for record in (LIVE, STATELESS):
            self.emulator.grow(record, stage="stage1", append="line 0\n")
        self.running = "line 0\n"

    def mount(self, program: Sequence[str] = COMMAND) -> Mounted:
        options = ["--cache-size", str(LIMIT), "--prefetch", "0", "--refresh", "0.1"]
        mounted = self.rig.mount(self.emulator, *options, program=program)
        mounted.permit_logged("WARNING .*not kept: nothing more can be evicted")
        return mounted

    def grow(self) -> None:
        line = f"line {len(self.running)} {'开' * self.chance.randrange(900)}\n"
        for record in (LIVE, STATELESS):
            self.emulator.grow(record, stage="stage1", append=line)
        self.running += line

    def contents(self, path: str) -> bytes:
        return self.running.encode() if path in GROWING else LOGS[path]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the footers of all entries, having checked each against what it should hold."""
        footers = {}
        for file in (self.cache / "v1").glob("*-*/*"):
            path = str(file.relative_to(self.cache / "v1"))
            stored = file.read_bytes()
            content, footer = stored[:-FOOTER_BYTES], json.loads(stored[-FOOTER_BYTES:-8])
            assert footer["size_bytes"] == len(content)
            assert self.contents(path).startswith(content), path
            assert content == self.contents(path) or not footer["final"], path
            footers[path] = footer
        return footers

    def check_what_is_left(self) -> None:
        self.entries()
        sizes = [file.stat().st_size for file in (self.cache / "v1").glob("*-*/*")]
        assert sum(sizes) <= LIMIT
        # A copy, so that it is the next mount which has to repair the original.
        with tempfile.TemporaryDirectory() as folder:
            for file in (self.cache / "v1").glob("builds.sqlite3*"):
                shutil.copy(file, folder)
            check_index(Path(folder) / "builds.sqlite3", self.contents)

    def check_what_is_shown(self, mounted: Mounted) -> None:
        """Every log is right, and what was here is not asked for again."""
        assert os.listdir(self.cache / "v1" / "tmp") == []
        here = [path for path, footer in self.entries().items() if footer["final"]]
        downloads = self.emulator.calls()
        for path in [*here, *LOGS]:
            if path == next(iter(LOGS)):
                assert self.emulator.calls() == downloads
            outcome = self.rig.run("cat", mounted / path)
            assert (outcome.code, outcome.out) == (0, LOGS[path]), path
        for path in GROWING:
            outcome = self.rig.run("cat", mounted / path)
            assert outcome.code == 0
            # Where the API tells no states, age decides when a log is looked at again.
            whole = self.contents(path)
            assert outcome.out == whole or (
                path[:36] == STATELESS and whole.startswith(outcome.out)
            )

    def crash(self, work: Callable[["Crashes", Mounted], None]) -> None:
        mounted = self.mount()
        for file in (self.cache / "v1").glob("*-*/*"):
            if self.chance.random() < 0.5:
                file.unlink()
        work(self, mounted)
        mounted.kill()
        for reader in list(self.rig.readers):
            with suppress(ProcessLookupError):
                os.killpg(reader.pid, signal.SIGKILL)
            self.rig.finish(reader)
        self.emulator.faults()
        self.check_what_is_left()

    def wait(self, most_s: float) -> None:
        time.sleep(self.chance.uniform(0, most_s))


def check_index(file: Path, contents: Callable[[str], bytes]) -> None:
    if not file.exists():
        return
    index = sqlite3.connect(file)
    try:
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if index.execute("PRAGMA user_version").fetchone() == (0,):
            return  # killed before it was made
        for record, name, size, final in index.execute(
            "SELECT record, file, size_bytes, final FROM logs"
        ):
            whole = len(contents(f"{record}/{name}"))
            assert size == whole or (not final and size < whole)
    finally:
        index.close()


def while_downloading(crashes: Crashes, mounted: Mounted) -> None:
    crashes.emulator.faults("task_log:slow=500000", "task_log:no-content-length")
    for path in crashes.chance.sample(sorted(LOGS), 4):
        crashes.rig.start("cat", mounted / path)
    crashes.wait(0.7)


def while_saving_and_evicting(crashes: Crashes, mounted: Mounted) -> None:
    paths = crashes.chance.sample(sorted(LOGS), len(LOGS))
    crashes.rig.start("cat", *(mounted / path for path in paths))
    crashes.rig.start("cat", *(mounted / path for path in reversed(paths)))
    crashes.wait(0.5)


def while_the_index_is_written(crashes: Crashes, mounted: Mounted) -> None:
    (crashes.cache / "v1" / "builds.sqlite3").unlink(missing_ok=True)
    crashes.rig.start("ls", *(mounted / record_id(number) for number in range(FINISHED)))
    time.sleep(0.5)  # answers are gathered for so long
    crashes.wait(0.2)


def while_running_logs_are_refreshed(crashes: Crashes, mounted: Mounted) -> None:
    script = 'for i in $(seq 1000); do cat "$1" || exit; done'
    crashes.rig.start("bash", "-c", script, "bash", mounted / GROWING[0])
    crashes.rig.start("tail", "-f", mounted / GROWING[0])
    for _ in range(crashes.chance.randrange(40)):
        crashes.grow()
    crashes.wait(0.1)


def while_a_log_without_state_is_looked_at_again(crashes: Crashes, mounted: Mounted) -> None:
    crashes.emulator.faults("no-stages")
    command = [sys.executable, "-m", "codeartsfs", "refresh", *[mounted / GROWING[1]] * 200]
    crashes.rig.start(*map(str, command))
    for _ in range(crashes.chance.randrange(20, 60)):
        crashes.grow()
        time.sleep(0.01)


@pytest.mark.fuse
@pytest.mark.parametrize(
    "work",
    [
        while_downloading,
        while_saving_and_evicting,
        while_the_index_is_written,
        while_running_logs_are_refreshed,
        while_a_log_without_state_is_looked_at_again,
    ],
)
def test_after_kill_9_every_log_is_right_and_what_was_kept_is_still_here(
    rig: Rig, recordings: Path, work: Callable[[Crashes, Mounted], None]
) -> None:
    crashes = Crashes(rig, recordings, seed=ROUNDS)
    for number in range(ROUNDS):
        crashes.crash(work)
        if number % 4 == 0 or number == ROUNDS - 1:  # crashes of mounts that found a crash, too
            mounted = crashes.mount()
            crashes.check_what_is_shown(mounted)
            mounted.stop()
            crashes.check_what_is_left()


MORTAL = """
import sys
from tests.mount.test_crashes import FaultPoint
FaultPoint(int(sys.argv[2]), [sys.argv[1]]).set_up()
from codeartsfs.cli import main
main(sys.argv[3:])
"""


@pytest.mark.fuse
@pytest.mark.parametrize("number", range(2, 2 + min(ROUNDS, 4)))
@pytest.mark.parametrize("operation", ["fsync", "link", "replace", "unlink", "ftruncate"])
def test_killed_before_it_does_what_only_saving_and_evicting_do_a_mount_leaves_right_logs(
    rig: Rig, recordings: Path, operation: str, number: int
) -> None:
    crashes = Crashes(rig, recordings, seed=number)
    mounted = crashes.mount([sys.executable, "-c", MORTAL, operation, str(number)])
    for path in LOGS:  # more than fit
        rig.run("cat", mounted / path)
        if mounted.process.poll() is not None:
            break
    assert mounted.process.wait(timeout=10) == -signal.SIGKILL
    assert os.listdir(crashes.cache / "v1" / "tmp") or operation != "replace"
    crashes.check_what_is_left()
    mounted = crashes.mount()
    crashes.check_what_is_shown(mounted)
    mounted.stop()
    crashes.check_what_is_left()


# At every single operation, in processes of their own.


_OPERATIONS = (
    *("open", "link", "replace", "mkdir", "rmdir", "unlink", "fsync"),
    *("chmod", "sendfile", "ftruncate", "utime", "dup2"),
)


class FaultPoint:
    """Kills its process before one of its file operations, or amid it where that is a write.

    What SQLite does is no Python; it is killed between any two steps of its own machine.
    """

    def __init__(self, fatal: int, only: Sequence[str] = ()) -> None:
        """``fatal`` counts from 1; ``only`` names the operations that count, if not all do."""
        self._fatal = fatal
        self._only = only
        self._done = 0
        self._write = os.pwrite

    def set_up(self) -> None:
        for name in self._only or _OPERATIONS:
            setattr(os, name, self._before(getattr(os, name)))
        if self._only:
            return
        writes = {
            "pwrite": self._amid_write,
            "pwritev": lambda fd, parts, offset: self._amid_write(fd, b"".join(parts), offset),
        }
        for name, write in writes.items():
            setattr(os, name, write)
        sqlite3.connect = self._connect(sqlite3.connect)

    def _is_due(self) -> bool:
        self._done += 1
        return self._done == self._fatal

    def _step(self) -> int:
        if self._is_due():
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self._step()
            return call(*args, **options)

        return counted

    def _amid_write(self, fd: int, content: bytes, offset: int) -> int:
        if self._is_due():
            self._write(fd, content[: len(content) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return self._write(fd, content, offset)

    def _connect(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*args, **options)
            connection.set_progress_handler(self._step, 1)
            return connection

        return watched


class Told(power_loss.Recording):
    """Says what is right in a file, where who looks after the crash finds it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._open = os.open  # the real one, and not counted

    def from_now_on(self, key: LogKey, *contents: bytes | None) -> None:
        super().from_now_on(key, *contents)
        whole = pickle.dumps(self.rules[-1][1])
        os.write(self._open(self._file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), whole)

    @staticmethod
    def found(file: Path) -> dict[LogKey, set[bytes | None]]:
        rules: dict[LogKey, set[bytes | None]] = {}
        if file.exists():
            with file.open("rb") as stream, suppress(EOFError):
                while True:
                    rules = pickle.load(stream)
        return rules


async def disk_life(folder: Path) -> None:
    told = Told(folder.with_suffix(".told"))
    await power_loss.a_life(DiskTier(folder, power_loss.LIMIT), told)


RECORDS = [RecordId(f"{number:036}") for number in range(4)]


async def index_life(folder: Path) -> None:
    index_module._WRITE_AFTER_S = 0.0
    (folder / "v1").mkdir(parents=True)
    async with open_index(folder) as index:
        for record in RECORDS:
            tell(index, record)
            await until(lambda: not index._unwritten)
            await index.records()


def tell(index: Index, record: RecordId) -> None:
    for one in (record, twin_of(record)):
        index.keep_stages(one, (RUN,), TIMES)
        index.keep_log(LogKey(one, RUN.stage, LogLevel.INFO), LogNote(7, 8, True))


def twin_of(record: RecordId) -> RecordId:
    """Return the record that is told together with another."""
    return RecordId(record.replace("0", "f"))


def crash_everywhere(life: str, folder: str, first: str, step: str) -> None:
    """Live a life again and again, each time ended a step later, until it ends by itself."""
    fatal = int(first)
    while True:
        child = os.fork()
        if not child:
            FaultPoint(fatal).set_up()
            trio.run({"disk": disk_life, "index": index_life}[life], Path(folder) / str(fatal))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not ended:
            return
        assert ended == -signal.SIGKILL
        fatal += int(step)


def crash_sites(life: str, folder: Path, step: int) -> list[Path]:
    """Return the directories that lives left behind which were ended by force."""
    code = (
        "import sys; from tests.mount.test_crashes import crash_everywhere as do; do(*sys.argv[1:])"
    )
    first = 1 + ROUNDS % step
    subprocess.run([sys.executable, "-c", code, life, folder, str(first), str(step)], check=True)
    return sorted(folder.glob("*[0-9]"), key=lambda path: int(path.name))


async def test_killed_at_any_file_operation_the_disk_tier_has_right_logs_or_none(
    tmp_path: Path,
) -> None:
    sites = crash_sites("disk", tmp_path, 1)
    assert len(sites) > 60
    for site in sites:
        tier = DiskTier(site, power_loss.LIMIT)
        assert os.listdir(site / "v1" / "tmp") == []
        for key, right in Told.found(site.with_suffix(".told")).items():
            assert await content_of(tier, key) in right, (site.name, key)
        sizes = [file.stat().st_size for file in (site / "v1").glob("*-*/*")]
        assert sum(sizes) <= power_loss.LIMIT


async def test_killed_at_any_step_the_index_is_whole_and_remembers_all_or_nothing_of_a_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = crash_sites("index", tmp_path, 1 if ROUNDS > 1 else 13)
    assert len(sites) > 60
    remembered = set()
    for site in sites:
        (site / "v1").mkdir(parents=True, exist_ok=True)
        async with open_index(site) as index:
            records = await index.records()
            remembered.add(len(records))
            assert set(records.values()) <= {TIMES}
            for record in RECORDS:
                pair = (record, twin_of(record))
                found = [(await index.records_from(one, 1))[one] for one in pair]
                assert found[0].stages == found[1].stages
                assert found[0].logs == found[1].logs
                assert bool(found[0].stages) == bool(found[0].logs)
            tell(index, RECORDS[0])
        check_index(site / "v1" / "builds.sqlite3", lambda path: b"1234567")
        assert {file.name for file in (site / "v1").iterdir()} == {"builds.sqlite3"}
    assert remembered == {0, 2, 4, 6, 8}
    assert "begun anew" not in caplog.text


def test_killed_at_random_moments_of_writing_the_index_is_whole(tmp_path: Path) -> None:
    """Amid a commit there are no steps to count."""
    (tmp_path / "v1").mkdir()
    code = """
import itertools, sys
from pathlib import Path
from codeartsfs.builds.index import Index
from tests.mount.test_crashes import RecordId, tell
index = Index(Path(sys.argv[1]))
for number in itertools.count():
    tell(index, RecordId(f"{number:036}"))
    index._write_now(index._unwritten)
    print(number, flush=True)
"""
    file = tmp_path / "v1" / "builds.sqlite3"
    chance = random.Random(ROUNDS)
    for _ in range(3 * ROUNDS):
        writer = subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE)
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
            writer.kill()
            written = writer.stdout.read().split()
        check_index(file, lambda path: b"1234567")
        index = sqlite3.connect(file)
        [(records,)] = index.execute("SELECT count(*) FROM records")
        [(logs,)] = index.execute("SELECT count(*) FROM logs")
        index.close()
        assert records == logs >= 2 * len(written)
