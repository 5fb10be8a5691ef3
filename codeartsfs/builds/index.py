"""The index: what is known of builds, on disk, so that a restart asks nothing again.

One SQLite file in the cache directory. It holds only what the API has told, so losing it costs
calls, never truth: a file that is damaged or of another version is replaced by an empty one,
and a disk that cannot be written makes the index forgetful, with one line in the log.

Writing is lazy: rows are gathered and written together a moment later, and stay known here
until they are written. Reading never waits for writing, not even for that of another mount.
SQLite does not notice flipped bits; so each answer carries a checksum of itself and its owner.
Everything that touches the file runs in worker threads.
"""

import json
import logging
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from codeartsfs.model import BuildRecord, Job, LogNote, StageRun
from codeartsfs.names import (
    CACHE_FORMAT,
    INDEX_FILE,
    LogKey,
    ProjectId,
    RecordId,
    Stage,
    parse_record_id,
)

log = logging.getLogger(__name__)

INDEX_VERSION = 2
_WRITE_AFTER_S = 0.5
_RETRY_AFTER_S = 5.0
_MOST_UNWRITTEN = 20_000  # rows that wait for a file that cannot be written
_BUSY_TIMEOUT_S = 5.0  # another mount that shares the cache directory writes just now
_READ_TIMEOUT_S = 0.5
_MOST_RECORDS = 200_000
_KEEP_SHARE = 0.9
_PRUNE_EVERY_ROWS = 10_000
# What says nothing about the contents of the file, and may pass.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)

_SCHEMA = """
CREATE TABLE records (
    record TEXT PRIMARY KEY,
    told_s INTEGER NOT NULL,     -- when the API last said something of it, seconds since the epoch
    final INTEGER NOT NULL,      -- whether its stages can no longer change
    modified_ns INTEGER,         -- of its newest stage
    stages TEXT,                 -- sealed: a row of StageRun's fields per stage; null: never told
    build TEXT,                  -- sealed: BuildRecord's fields; null: never told
    build_project TEXT,
    build_no INTEGER
) WITHOUT ROWID;
CREATE INDEX builds ON records (build_project, build_no) WHERE build_project IS NOT NULL;
CREATE INDEX ages ON records (told_s);
CREATE TABLE logs (
    record TEXT, file TEXT, size_bytes INTEGER NOT NULL, modified_ns INTEGER NOT NULL,
    final INTEGER NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (record, file)
) WITHOUT ROWID;
CREATE TABLE projects (project TEXT PRIMARY KEY, jobs TEXT NOT NULL) WITHOUT ROWID;
"""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RecordTimes:
    """What a listing shows of a record.

    Attributes:
        modified_ns: the time of its newest stage, None where unknown.
        final: whether that can no longer change.
    """

    modified_ns: int | None
    final: bool


@dataclass(frozen=True, slots=True)
class IndexedRecord:
    """What the index knows of one record; ``stages`` and ``build`` are None where never told."""

    stages: tuple[StageRun, ...] | None
    final: bool
    build: BuildRecord | None
    logs: dict[str, LogNote]


@dataclass(slots=True)
class _Rows:
    """What was told and is not in the file yet."""

    stages: dict[RecordId, tuple[tuple[StageRun, ...], RecordTimes]] = field(default_factory=dict)
    builds: dict[RecordId, BuildRecord] = field(default_factory=dict)
    logs: dict[LogKey, LogNote | None] = field(default_factory=dict)
    projects: dict[ProjectId, tuple[Job, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stages) + len(self.builds) + len(self.logs) + len(self.projects)

    def under(self, newer: "_Rows") -> "_Rows":
        return _Rows(
            self.stages | newer.stages,
            self.builds | newer.builds,
            self.logs | newer.logs,
            self.projects | newer.projects,
        )


class Index:
    """The index file of one cache directory; opened by ``open_index``.

    No method raises for what is wrong with the file: reads find nothing, writes are put off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = _File(path, _READ_TIMEOUT_S)
        self._writer = _File(path, _BUSY_TIMEOUT_S)
        self._told = _Rows()
        self._being_written = _Rows()
        self._something = trio.Event()
        self._warned = False
        self._unpruned_rows = _PRUNE_EVERY_ROWS  # once after the start

    # Remembering: at once in memory, soon on disk.

    def keep_stages(
        self, record: RecordId, stages: tuple[StageRun, ...], times: RecordTimes
    ) -> None:
        self._told.stages[record] = (stages, times)
        self._something.set()

    def keep_builds(self, builds: Iterable[BuildRecord]) -> None:
        self._told.builds.update((build.record, build) for build in builds)
        self._something.set()

    def keep_log(self, key: LogKey, note: LogNote | None) -> None:
        """Remember a log; None forgets it."""
        self._told.logs[key] = note
        self._something.set()

    def keep_jobs(self, project: ProjectId, jobs: tuple[Job, ...]) -> None:
        self._told.projects[project] = jobs
        self._something.set()

    # Recalling: from the file, and over that what is not in it yet.

    async def records_from(self, first: RecordId, limit: int) -> dict[RecordId, IndexedRecord]:
        """Return what is known of a record and of those that follow in the order of ids."""
        nothing: dict[RecordId, IndexedRecord] = {}
        before = self._unwritten  # it may be written, and gone from here, while we read
        found = await self._read(lambda file: _records_from(file, first, limit), nothing)
        found.setdefault(first, IndexedRecord(None, False, None, {}))
        told = before.under(self._unwritten)
        for record, indexed in found.items():
            if record in told.stages:
                stages, times = told.stages[record]
                indexed = replace(indexed, stages=stages, final=times.final)
            if record in told.builds:
                indexed = replace(indexed, build=told.builds[record])
            found[record] = indexed
        for key, note in told.logs.items():
            if key.record in found:
                found[key.record].logs.pop(key.file_name, None)
                if note is not None:
                    found[key.record].logs[key.file_name] = note
        return found

    async def records(self) -> dict[RecordId, RecordTimes]:
        """Return all records whose stages were ever told."""
        nothing: dict[RecordId, RecordTimes] = {}
        before = self._unwritten
        found = await self._read(_records, nothing)
        told = before.under(self._unwritten).stages
        return found | {record: times for record, (_, times) in told.items()}

    async def builds(self, build_project_id: str, limit: int) -> tuple[BuildRecord, ...]:
        """Return the known builds of a job, newest first."""
        nothing: tuple[BuildRecord, ...] = ()
        before = self._unwritten
        found = await self._read(lambda file: _builds(file, build_project_id, limit), nothing)
        told = before.under(self._unwritten).builds.values()
        builds = {build.record: build for build in found} | {
            build.record: build for build in told if build.build_project_id == build_project_id
        }
        newest_first = sorted(builds.values(), key=lambda build: -(build.build_no or 0))
        return tuple(newest_first[:limit])

    async def build(self, build_project_id: str, build_no: int) -> BuildRecord | None:
        for build in self._unwritten.builds.values():
            if (build.build_project_id, build.build_no) == (build_project_id, build_no):
                return build
        return await self._read(lambda file: _build(file, build_project_id, build_no), None)

    async def jobs(self, project: ProjectId) -> tuple[Job, ...] | None:
        told = self._unwritten.projects.get(project)
        if told is not None:
            return told
        return await self._read(lambda file: _jobs(file, project), None)

    async def all_jobs(self) -> tuple[Job, ...]:
        """Return the jobs of all projects that were ever told."""
        return await self._read(_all_jobs, ())

    @property
    def _unwritten(self) -> _Rows:
        return self._being_written.under(self._told)

    async def _read(self, query: Callable[[sqlite3.Connection], _T], nothing: _T) -> _T:
        return await trio.to_thread.run_sync(self._read_now, query, nothing)

    # Writing.

    async def run(self) -> None:
        """Write what is to be remembered, for ever."""
        while True:
            await self._something.wait()
            await trio.sleep(_WRITE_AFTER_S)
            self._something = trio.Event()
            self._being_written, self._told = self._told, _Rows()
            written = await trio.to_thread.run_sync(self._write_now, self._being_written)
            rows, self._being_written = self._being_written, _Rows()
            if not written and len(rows) + len(self._told) <= _MOST_UNWRITTEN:
                self._told = rows.under(self._told)
                self._something.set()
                await trio.sleep(_RETRY_AFTER_S)

    def close(self) -> None:
        self._write_now(self._unwritten)
        self._let_go()

    # Everything below runs in worker threads (or after the event loop's time).

    def _read_now(self, query: Callable[[sqlite3.Connection], _T], nothing: _T) -> _T:
        for _ in range(2):
            try:
                return self._use(self._reader, query)
            except _Unusable as trouble:
                self._warn(trouble)
                return nothing
            except Exception as error:  # a damaged file may have anything in it
                self._begin_anew(error)
        return nothing

    def _write_now(self, rows: _Rows) -> bool:
        """Write rows. Return whether there is no need to try again."""
        if not rows:
            return True
        for _ in range(2):
            try:
                self._use(self._writer, lambda file: _write(file, rows))
                self._unpruned_rows += len(rows)
                if self._unpruned_rows >= _PRUNE_EVERY_ROWS:
                    self._unpruned_rows = 0
                    self._use(self._writer, _prune)
            except _Unusable as trouble:
                self._warn(trouble)
                return False
            except sqlite3.Error as error:
                self._begin_anew(error)
            except Exception as error:
                # Something in the rows, not in the file: they are not worth more than it.
                log.warning("cache: %d answers were not kept in the index: %s", len(rows), error)
                return True
            else:
                return True
        return True

    def _use(self, file: "_File", task: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._reader.was_replaced() or self._writer.was_replaced():
            self._let_go()
        return file.use(task)

    def _let_go(self) -> None:
        """Close both connections, none without the other.

        A process that closes a file loses all its locks on it, whatever else has it open. SQLite
        knows, but not of files that were replaced: where one connection went on with what belonged
        to both, another process would truncate it, and the next access ends this one (SIGBUS).
        """
        with self._reader.in_use, self._writer.in_use:
            self._reader.close()
            self._writer.close()

    def _begin_anew(self, error: Exception) -> None:
        log.warning("cache: the index is damaged and was begun anew: %s", error)
        self._let_go()
        with suppress(OSError):
            _remove(self._path)

    def _warn(self, trouble: Exception) -> None:
        level = logging.INFO if self._warned else logging.WARNING
        log.log(level, "cache: the index cannot be used just now: %s", trouble)
        self._warned = True


class _Unusable(Exception):
    """The file cannot be used for a reason that says nothing about its contents, and may pass."""


class _File:
    """One connection to the file, for one thread at a time, opened when it is needed."""

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self.in_use = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def use(self, task: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run a task with the connection.

        Raises:
            _Unusable: the file is busy, full, not permitted, not there.
            sqlite3.Error: its contents are wrong.
        """
        with self.in_use:
            try:
                if self._connection is None:
                    self._connection = _open(self._path, self._busy_timeout_s)
                    self._identity = self._identity_on_disk()
                return task(self._connection)
            except OSError as error:
                raise _Unusable(str(error)) from error
            except sqlite3.Error as error:
                # The low byte is the kind of error, the others say more about it.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                    raise _Unusable(str(error)) from error
                raise

    def close(self) -> None:
        """Close the connection; only while it is kept from being used."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def was_replaced(self) -> bool:
        """Whether somebody emptied the cache directory: what is open has no name any more.

        Where others began anew, SQLite may have taken the log of writes of one file for another's.
        """
        return self._connection is not None and self._identity != self._identity_on_disk()

    def _identity_on_disk(self) -> tuple[int, int]:
        try:
            log_of_writes = self._path.with_name(self._path.name + "-wal")
            return os.stat(self._path).st_ino, os.stat(log_of_writes).st_ino
        except FileNotFoundError:
            return (0, 0)


@asynccontextmanager
async def open_index(cache_dir: Path) -> AsyncIterator[Index]:
    """Run the index of a cache directory; what it was told is on disk when the block is left."""
    index = Index(cache_dir / CACHE_FORMAT / INDEX_FILE)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(index.run)
            yield index
            nursery.cancel_scope.cancel()
    finally:
        index.close()


def _open(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    # SQLite gives its side files the mode of the main one, whatever the umask. One that is there
    # is not opened here: with its closing, SQLite's other connection would lose its locks.
    if not os.path.lexists(path):
        _remove(path)  # what belonged to one that is gone
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError("something that is no file is in its place") from None
    for _ in range(2):
        file = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            version = file.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _create(file)
                version = file.execute("PRAGMA user_version").fetchone()[0]
            if version == INDEX_VERSION:
                file.execute("PRAGMA journal_mode = WAL")
                file.execute("PRAGMA synchronous = NORMAL")
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        log.info("cache: the index is of version %d and was begun anew", version)
        _remove(path)
    raise sqlite3.OperationalError("it is of another version again and again")


def _create(file: sqlite3.Connection) -> None:
    with _transaction(file):
        # Another mount may have been quicker.
        if file.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";\n"):
                file.execute(statement)
            file.execute(f"PRAGMA user_version = {INDEX_VERSION}")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
        file.execute("COMMIT")
    except BaseException:
        if file.in_transaction:  # some errors end it by themselves
            file.execute("ROLLBACK")
        raise


def _write(file: sqlite3.Connection, rows: _Rows) -> None:
    now_s = int(time.time())
    with _transaction(file):
        file.executemany(
            "INSERT INTO records (record, told_s, final, modified_ns, stages)"
            " VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET told_s = excluded.told_s, final = excluded.final,"
            " modified_ns = excluded.modified_ns, stages = excluded.stages",
            [
                (record, now_s, times.final, times.modified_ns, _stages_text(record, stages, times))
                for record, (stages, times) in rows.stages.items()
            ],
        )
        file.executemany(
            "INSERT INTO records (record, told_s, final, build, build_project, build_no)"
            " VALUES (?, ?, 0, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET told_s = excluded.told_s, build = excluded.build,"
            " build_project = excluded.build_project, build_no = excluded.build_no",
            [
                (
                    build.record,
                    now_s,
                    _sealed(astuple(build), build.record),
                    _bindable(build.build_project_id) or None,
                    build.build_no,
                )
                for build in rows.builds.values()
            ],
        )
        for key, note in rows.logs.items():
            if note is None:
                file.execute(
                    "DELETE FROM logs WHERE record = ? AND file = ?", (key.record, key.file_name)
                )
            else:
                row = (key.record, key.file_name, note.size_bytes, note.modified_ns, note.final)
                file.execute(
                    "INSERT OR REPLACE INTO logs VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, _checksum(*row)),
                )
        file.executemany(
            "INSERT OR REPLACE INTO projects VALUES (?, ?)",
            [
                (project, _sealed([astuple(job) for job in jobs], project))
                for project, jobs in rows.projects.items()
            ],
        )


def _prune(file: sqlite3.Connection) -> None:
    """Forget what was told longest ago where there is too much."""
    [(count,)] = file.execute("SELECT count(*) FROM records INDEXED BY ages")
    if count <= _MOST_RECORDS:
        return
    surplus = count - int(_MOST_RECORDS * _KEEP_SHARE)
    oldest = "SELECT record FROM records ORDER BY told_s LIMIT ?"
    with _transaction(file):
        file.execute(f"DELETE FROM records WHERE record IN ({oldest})", (surplus,))
        file.execute("DELETE FROM logs WHERE record NOT IN (SELECT record FROM records)")


def _bindable(text: str) -> str:
    """Return text that SQLite takes: JSON may bring lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def _stages_text(record: RecordId, stages: tuple[StageRun, ...], times: RecordTimes) -> str:
    rows = [(run.stage.name, *astuple(run)[1:]) for run in stages]
    return _sealed(rows, record, times.final)


def _checksum(*values: object) -> int:
    return zlib.crc32(repr(values).encode())


def _sealed(document: object, *owner: object) -> str:
    text = json.dumps(document, ensure_ascii=True)
    return f"{_checksum(text, *owner):08x}{text}"


def _unsealed(stored: str, *owner: object) -> Any:
    checksum, text = stored[:8], stored[8:]
    if checksum != f"{_checksum(text, *owner):08x}":
        raise ValueError("an answer is not what was written")
    return json.loads(text)


def _records_from(
    file: sqlite3.Connection, first: RecordId, limit: int
) -> dict[RecordId, IndexedRecord]:
    rows = file.execute(
        "SELECT record, final, stages, build FROM records WHERE record >= ?"
        " ORDER BY record LIMIT ?",
        (first, limit),
    ).fetchall()
    found = {
        RecordId(record): IndexedRecord(
            stages=None if stages is None else _stages(stages, record, bool(final)),
            final=stages is not None and bool(final),
            build=None if build is None else _build_record(build, record),
            logs={},
        )
        for record, final, stages, build in rows
    }
    last = max(found, default=first)
    logs = file.execute(
        "SELECT record, file, size_bytes, modified_ns, final, checksum FROM logs"
        " WHERE record BETWEEN ? AND ?",
        (first, last),
    )
    for record, name, size_bytes, modified_ns, final, checksum in logs:
        if checksum != _checksum(record, name, size_bytes, modified_ns, bool(final)):
            raise ValueError("what is said of a log is not what was written")
        indexed = found.setdefault(RecordId(record), IndexedRecord(None, False, None, {}))
        indexed.logs[name] = LogNote(size_bytes, modified_ns, bool(final))
    return found


def _stages(stored: str, record: str, final: bool) -> tuple[StageRun, ...]:
    return tuple(map(_stage_run, _unsealed(stored, record, final)))


def _stage_run(row: list[object]) -> StageRun:
    name, *rest = row
    stage = Stage.parse(str(name))
    if stage is None:
        raise ValueError(f"{name!r} is no stage")
    return StageRun(stage, *rest)  # type: ignore[arg-type]


def _build_record(stored: str, record: str) -> BuildRecord:
    return BuildRecord(*_unsealed(stored, record))


def _records(file: sqlite3.Connection) -> dict[RecordId, RecordTimes]:
    rows = file.execute(
        "SELECT record, modified_ns, final FROM records WHERE stages IS NOT NULL ORDER BY record"
    )
    return {
        RecordId(record): RecordTimes(modified_ns and int(modified_ns), bool(final))
        for record, modified_ns, final in rows
        if parse_record_id(record)
    }


def _builds(file: sqlite3.Connection, build_project_id: str, limit: int) -> tuple[BuildRecord, ...]:
    rows = file.execute(
        "SELECT build, record FROM records WHERE build_project = ? AND build IS NOT NULL"
        " ORDER BY build_no DESC LIMIT ?",
        (_bindable(build_project_id), limit),
    )
    return tuple(_build_record(build, record) for build, record in rows)


def _build(file: sqlite3.Connection, build_project_id: str, build_no: int) -> BuildRecord | None:
    row = file.execute(
        "SELECT build, record FROM records"
        " WHERE build_project = ? AND build_no = ? AND build IS NOT NULL",
        (_bindable(build_project_id), build_no),
    ).fetchone()
    return None if row is None else _build_record(*row)


def _jobs(file: sqlite3.Connection, project: ProjectId) -> tuple[Job, ...] | None:
    row = file.execute("SELECT jobs FROM projects WHERE project = ?", (project,)).fetchone()
    return None if row is None else tuple(Job(*job) for job in _unsealed(row[0], project))


def _all_jobs(file: sqlite3.Connection) -> tuple[Job, ...]:
    rows = file.execute("SELECT project, jobs FROM projects")
    return tuple(Job(*job) for project, jobs in rows for job in _unsealed(jobs, project))
