"""LogStore: from a key to an open log, downloaded at most once at a time.

The way of a look-up: logs in use, then the memory tier, then the disk tier, then a
*flight*, which is one task of the store's nursery that asks the API. Whoever wants the
same log meanwhile boards the same flight. A reader that gives up only leaves: the
flight still lands, for the others and for the cache.

A log is *final* when its stage was over before its body was asked for, and had been for a
while; so final can be noticed late, never early. Final logs are kept for ever. Others are
looked at again when somebody opens, stats or reads their end: after ``refresh_s`` where the
API tells the stage's state (later where a look transfers all of a large log, or nothing has
come for long), else after a time that doubles from 30 s to a day as long as nothing changes.
"""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Protocol

import cachetools
import trio

from codeartsfs.errors import ApiUnavailable, CodeArtsError, LogRewritten, NotFound
from codeartsfs.logs.body import IN_MEMORY_BYTES, Body, MemoryBody
from codeartsfs.logs.disk import DiskTier, LogMeta, is_full, unnamed_file
from codeartsfs.logs.memory import MemoryTier
from codeartsfs.model import LogNote, LogPrefix, StageRun
from codeartsfs.names import LogKey, RecordId
from codeartsfs.priority import in_background
from codeartsfs.timing import Trail, recorded, spent_on

log = logging.getLogger(__name__)

ABSENCE_TTL_S = 5.0
PROBE_LINGER_S = 2.0
_REFRESH_PATIENCE_S = 5.0  # what is here already is shown after this long, whatever the API does
_FAILURE_TTL_S = 10.0  # what is here already is shown as it is after a look that failed
_QUIET_AFTER_S = 600.0  # without growth
_QUIET_REFRESH_S = 5.0
_WHOLE_BYTES_PER_S = 2 << 20  # of a log that comes whole at every look
_LONG_OVER_NS = 60 * 10**9  # what ended before that has been written out for sure
_FIRST_RECHECK_S = 30.0
_LAST_RECHECK_S = 86_400.0
_MOST_DOUBLINGS = 20
_IDLE_LOGS = 64
_IDLE_UNSAVED_BYTES = 256 << 20
_FOR_NOBODY_BYTES = 2 << 30  # of one log without a disk tier: what such a tier has by default
_REMEMBERED_LOGS = 100_000
_SCANNED_RECORDS = 20_000
_MOST_ERRORS = 1000
_TRAILS = 1000
_TAIL_BYTES = 4096
_QUEUED_CHUNKS = 8  # of up to 256 KiB, ahead of the disk; more fall out of the processor's cache


class LogAnswer(Protocol):
    """A log on its way: the bytes after the prefix already here, whole or an error."""

    @property
    def size_bytes(self) -> int | None:
        """Size of the whole log where the answer tells it up front."""

    @property
    def request_id(self) -> str: ...

    @property
    def whole(self) -> bool:
        """Whether all of it had to come again, though a part of it was here already."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class LogSource(Protocol):
    """Where logs come from."""

    def task_log(
        self,
        key: LogKey,
        after: LogPrefix | None,
        delivered: Callable[[int], Awaitable["hashlib._Hash"]],
    ) -> AbstractAsyncContextManager[LogAnswer]:
        """Open a log, of which ``after`` is here already.

        ``delivered`` tells the hash of the first so many bytes, once they have been taken and
        written: what breaks off may have to be compared with what comes again.
        """


class StageStates(Protocol):
    """Who knows whether a stage is over, and remembers what its logs looked like."""

    async def stage(self, key: LogKey) -> StageRun | None:
        """Return the stage of a log, as it is now; None where the API gives no state.

        Raises:
            CodeArtsError: it could not be asked this time.
        """

    def log_note(self, key: LogKey) -> LogNote | None:
        """Return what was noted of a log, by this process or an earlier one."""

    def note_log(self, key: LogKey, note: LogNote | None) -> None:
        """Note a log beyond this process; None forgets it."""


@dataclass(frozen=True, slots=True)
class LogStat:
    """What ``stat`` shows of a log.

    Attributes:
        settled: it need not be looked at again just now.
        stateless: the API does not tell whether it can still grow.
    """

    size_bytes: int
    modified_ns: int
    final: bool
    settled: bool
    stateless: bool = False


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a log can be read from, and where it came from.

    Attributes:
        cached: ``memory`` or ``disk``; ``no`` where the next open asks the API.
        fetched_ns: when the API last confirmed it; None unless it is cached.
        last_error: why the last look failed; empty where it did not.
    """

    cached: str
    fetched_ns: int | None
    sha256: str
    request_id: str
    last_error: str


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts since the start.

    Attributes:
        hits: opens that were served without the API.
        misses: opens that waited for it.
        memory_misses: logs that were looked up in memory and not found there; so for the disk.
        received_bytes: of logs; what came twice counts once.
        fetched_ahead: logs downloaded before anybody opened them.
        fetched_in_vain: those of them that nobody has opened so far.
    """

    downloads: int
    boarded: int
    memory_hits: int
    disk_hits: int
    downloading: int
    open_logs: int
    hits: int
    misses: int
    memory_misses: int
    disk_misses: int
    received_bytes: int
    fetched_ahead: int = 0
    fetched_in_vain: int = 0


@dataclass(frozen=True, slots=True)
class FlightStatus:
    """One look at the API for a log, under way.

    Attributes:
        doing: what it waits for just now.
        landed_bytes: of the log; with what was here before.
        bytes_per_s: since its first byte came.
        waiters: how many opens and reads wait for it, fetching ahead among them.
        background: nobody but fetching ahead has asked for it.
    """

    key: LogKey
    doing: str
    landed_bytes: int
    size_bytes: int | None
    bytes_per_s: float
    age_s: float
    waiters: int
    background: bool


@dataclass(eq=False, slots=True)
class _Flight:
    """One look at the API for one log, and everybody who waits for it."""

    background: bool  # fetching ahead alone has asked for it
    trail: Trail = field(default_factory=lambda: Trail("disk"))
    begun_at: float = field(default_factory=monotonic)
    first_byte_at: float | None = None  # by the same clock
    found_bytes: int = 0  # of the log, when its first byte came
    wanted: trio.Event = field(default_factory=trio.Event)  # somebody reads, not just stats
    sized: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)  # and what it brought is kept
    asked: bool = False  # the API, not only the disk
    failure: Exception | None = None


@dataclass(eq=False, slots=True)
class _Log:
    """One log while the store has its body at hand.

    INVARIANT: at most one flight; ``body`` is closed by the store, and only when there is
    neither flight nor user; a saved body is an entry of the disk tier and never written again.
    """

    key: LogKey
    body: Body | MemoryBody | None = None
    final: bool = False
    stateless: bool = False
    part: bool = False  # it still grew when it was seen last
    saved: bool = False
    rewritten: bool = False
    modified_ns: int = 0
    checked_ns: int = 0
    checked_at: float = -float("inf")  # trio's clock
    unchanged: int = 0
    grown_at: float = -float("inf")  # trio's clock
    over_at: float | None = None  # trio's clock: the stage was seen to be over
    over_ns: int | None = None  # since when, as the API has it
    whole: bool = False  # the last look transferred all of it
    retry_at: float = -float("inf")  # trio's clock: the last look failed
    request_id: str = ""
    received_bytes: int = 0
    flight: _Flight | None = None
    users: int = 0

    @property
    def size_bytes(self) -> int | None:
        return self.body.size_bytes if self.body else None

    @property
    def complete(self) -> bool:
        """Whether all announced bytes are here."""
        if isinstance(self.body, Body):
            return self.body.size_bytes is not None and self.body.size_bytes <= (
                self.body.landed_bytes
            )
        return self.body is not None

    def apply(self, meta: LogMeta) -> None:
        self.final = meta.final
        self.stateless = not meta.final
        self.part = meta.running
        self.modified_ns = meta.modified_ns
        self.checked_ns = 0 if meta.running else meta.checked_ns  # what ran has grown since
        self.unchanged = meta.unchanged
        self.request_id = meta.request_id


class OpenLog:
    """A log in the hands of one reader; ``close`` it."""

    def __init__(self, store: "LogStore", entry: _Log) -> None:
        """Take over one use of the entry."""
        self._store = store
        self._log = entry
        self._flight = entry.flight  # what brings the rest of it

    @property
    def key(self) -> LogKey:
        return self._log.key

    @property
    def stat(self) -> LogStat:
        return self._store._stat_of(self._log)

    @property
    def received_bytes(self) -> int:
        """How many bytes of it came from the API since the store has it at hand."""
        return self._log.received_bytes

    @property
    def landed_bytes(self) -> int:
        body = self._log.body
        return body.landed_bytes if isinstance(body, Body) else self.stat.size_bytes

    async def kept(self) -> bool:
        """Wait until nothing more of it is coming; return whether the disk tier has it then.

        Raises:
            CodeArtsError: what came turned out not to be the log.
        """
        if self._flight is not None:
            await self._flight.over.wait()
            if self._flight.failure is not None and self.received_bytes:
                raise self._flight.failure.with_traceback(None)
        if self._log.rewritten:
            raise LogRewritten(self.key)
        return self._log.saved

    @property
    def doubt(self) -> str:
        """Why there may be more of it than can be read just now; empty where nothing says so."""
        return "" if self._log.final else self._store._last_errors.get(self.key, "")

    def landed(self, offset: int, size: int) -> bool:
        """Whether all announced bytes of a range are here."""
        body = self._log.body
        return (
            not isinstance(body, Body) or self._log.complete or (offset + size <= body.landed_bytes)
        )

    async def read(self, offset: int, size: int) -> bytes:
        """Return exactly the bytes of a range, shorter only at the end of the log.

        Raises:
            LogRewritten: the server replaced the log since it was opened.
            CodeArtsError: bytes that were announced cannot be had.
        """
        entry = self._log
        if entry.rewritten:
            raise LogRewritten(entry.key)
        body = entry.body
        assert body is not None
        if not entry.complete and entry.flight is None:
            self._store._board(entry, wanted=True)  # the last download failed: go on with it
        elif offset >= (body.size_bytes or 0) and not self.stat.settled:
            await self._store.stat(entry.key)  # at the end of a running log: is there more?
            if entry.rewritten:
                raise LogRewritten(entry.key)
        return await body.read(offset, size)

    def close(self) -> None:
        self._store._release(self._log)


class LogStore:
    """All logs: in use, in memory, on disk, or on their way."""

    def __init__(
        self,
        source: LogSource,
        states: StageStates,
        nursery: trio.Nursery,
        *,
        memory: MemoryTier,
        disk: DiskTier | None,
        scratch: Path,
        refresh_s: float,
        settle_s: float,
        keeps_running: bool = False,
    ) -> None:
        self._source = source
        self._states = states
        self._nursery = nursery
        self.memory = memory
        self.disk = disk
        self._scratch = scratch
        self._refresh_s = refresh_s
        self._settle_s = settle_s
        self._keeps_running = keeps_running
        self._logs: dict[LogKey, _Log] = {}
        self._idle: OrderedDict[LogKey, _Log] = OrderedDict()
        self._generations: dict[LogKey, int] = {}
        self._remembered: cachetools.LRUCache[LogKey, tuple[LogStat, float]] = cachetools.LRUCache(
            _REMEMBERED_LOGS
        )
        # Records whose entries on disk were looked through: what came later is remembered anyway.
        self._scanned: cachetools.LRUCache[RecordId, None] = cachetools.LRUCache(_SCANNED_RECORDS)
        self._last_errors: cachetools.LRUCache[LogKey, str] = cachetools.LRUCache(_MOST_ERRORS)
        self._absent: cachetools.TTLCache[LogKey, NotFound] = cachetools.TTLCache(
            10_000, ABSENCE_TTL_S, timer=trio.current_time
        )
        self._ahead: set[LogKey] = set()  # fetched, and not opened yet
        self._fetched_ahead = self._of_use_ahead = 0
        self._trails: cachetools.LRUCache[LogKey, Trail] = cachetools.LRUCache(_TRAILS)
        self._downloads = self._boarded = self._received_bytes = 0
        self._hits = self._misses = 0
        self._memory_hits = self._memory_misses = self._disk_hits = self._disk_misses = 0

    # What others ask. Plain methods never wait.

    async def open(self, key: LogKey) -> OpenLog:
        """Return one log, opened, downloading it at most once at a time.

        Returns:
            An open log of known size in bytes; not final ones are at most ``refresh_s``
            seconds old, or as old as the download that is still bringing them. Its bytes may
            still be landing: reads wait for them.

        Raises:
            NotFound: the API has no such record, stage or level.
            AccessDenied: the API refuses us.
            ApiUnavailable: no answer, retries included.
            BadAnswer: an answer that is no log.
        """
        opened = OpenLog(self, await self._current(key, wanted=True))
        if key in self._ahead:
            self._ahead.discard(key)
            self._of_use_ahead += 1
        return opened

    async def fetch(self, key: LogKey, most_bytes: int) -> None:
        """Have a log in the cache that somebody may want soon, unless it is larger than that.

        Raises as ``open`` does.
        """
        entry = self._logs.get(key)
        if (entry is not None and (entry.users or entry.flight)) or await self.here(key):
            return
        if (await self.stat(key)).size_bytes > most_bytes:
            return
        entry = await self._current(key, wanted=True)
        try:
            self._ahead.add(key)
            self._fetched_ahead += 1
            if isinstance(entry.body, Body):
                await entry.body.landed(entry.body.size_bytes or 0)
        finally:
            self._release(entry)

    async def stat(self, key: LogKey) -> LogStat:
        """Return size and times of a log, asking the API where they are not known.

        Where nobody opens the log soon after, the download that told the size is dropped.
        Raises as ``open`` does.
        """
        known = self.peek(key)
        if known is not None and known.settled:
            return known
        try:
            self._release(await self._current(key, wanted=False))
        except CodeArtsError:
            if known is None:
                raise
        stat = self.peek(key) or known
        assert stat is not None
        return stat

    async def refresh(self, key: LogKey) -> LogStat:
        """Look at the API now, unless the log is final or on its way; raises as ``open`` does."""
        opened = await self.open(key)
        try:
            entry = opened._log
            if not entry.final:
                flight = self._board(entry, wanted=True)
                await flight.sized.wait()
                if flight.failure is not None:
                    raise flight.failure.with_traceback(None)
        finally:
            opened.close()
        if entry.rewritten:
            return await self.refresh(key)  # the name has another log now
        stat = self.peek(key)
        return stat or opened.stat

    def peek(self, key: LogKey) -> LogStat | None:
        """Return what is known of a log at hand, None where that is nothing."""
        entry = self._logs.get(key)
        if entry is not None and entry.size_bytes is not None:
            return self._stat_of(entry)
        cached = self.memory.get(key)
        if cached is not None:
            meta = cached[1]
            return LogStat(meta.size_bytes, meta.modified_ns, meta.final, settled=True)
        return self._told(key)

    def _told(self, key: LogKey) -> LogStat | None:
        """Return what was said of a log before, here or by an earlier process."""
        remembered = self._remembered.get(key)
        if remembered is not None:
            stat, settled_until = remembered
            return replace(stat, settled=trio.current_time() < settled_until)
        note = self._states.log_note(key)
        if note is None:
            return None
        return LogStat(note.size_bytes, note.modified_ns, note.final, settled=note.final)

    async def recall(self, key: LogKey) -> LogStat | None:
        """Return what is known of a log, looking on disk too, never asking the API."""
        known = self.peek(key)
        if known is None and key.record not in self._scanned:
            self._scanned[key.record] = None
            await self.cached_logs(key.record)
            known = self.peek(key)
        return known

    async def cached_logs(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the logs of a record that can be read without the API; ``peek`` knows them."""
        keys = {log.key for log in self._logs.values() if log.key.record == record and log.body}
        if self.disk:
            keys.update(await self.disk.logs(record))
        for key in keys:
            if self.peek(key) is None and self.disk is not None:
                meta = await self.disk.meta(key)
                if meta is not None:
                    self._remember(key, meta.size_bytes, meta.modified_ns, final=meta.final)
        return tuple(keys)

    async def here(self, key: LogKey) -> bool:
        """Whether all of a log can be read without the API, for good."""
        stat = await self.recall(key)
        return stat is not None and stat.final and (await self.provenance(key)).cached != "no"

    async def provenance(self, key: LogKey) -> Provenance:
        """Return where a log is and came from, never asking the API."""
        last_error = self._last_errors.get(key, "")
        entry, cached = self._logs.get(key), self.memory.get(key)
        meta = cached[1] if cached else await self.disk.meta(key) if self.disk else None
        if meta is not None:
            tier = "memory" if cached else "disk"
            return Provenance(tier, meta.checked_ns, meta.sha256, meta.request_id, last_error)
        if entry is not None and isinstance(entry.body, Body) and entry.complete:
            # Of a body that came from disk nobody has the hash but the entry that is gone.
            digest = "" if entry.saved else entry.body.sha256.hexdigest()
            return Provenance("memory", entry.checked_ns, digest, entry.request_id, last_error)
        return Provenance("no", None, "", "", last_error)

    async def cached_records(self) -> tuple[RecordId, ...]:
        return await self.disk.records() if self.disk else ()

    def absent(self, key: LogKey) -> bool:
        """Whether the API said within the last seconds that there is no such log."""
        return key in self._absent

    def generation(self, key: LogKey) -> int:
        """Count how often the server has rewritten a log: each time it is another file."""
        return self._generations.get(key, 0)

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            downloads=self._downloads,
            boarded=self._boarded,
            memory_hits=self._memory_hits,
            disk_hits=self._disk_hits,
            downloading=sum(entry.flight is not None for entry in self._logs.values()),
            open_logs=sum(entry.users > 0 for entry in self._logs.values()),
            hits=self._hits,
            misses=self._misses,
            memory_misses=self._memory_misses,
            disk_misses=self._disk_misses,
            received_bytes=self._received_bytes,
            fetched_ahead=self._fetched_ahead,
            fetched_in_vain=self._fetched_ahead - self._of_use_ahead,
        )

    def flights(self) -> tuple[FlightStatus, ...]:
        """Return what is under way, in the order in which it began."""
        told = (
            _flight_status(entry, entry.flight)
            for entry in self._logs.values()
            if entry.flight is not None
        )
        return tuple(sorted(told, key=lambda status: -status.age_s))

    def trail(self, key: LogKey) -> Trail | None:
        """Return what the last look at a log spends its time on; None of one long ago."""
        return self._trails.get(key)

    def check_invariants(self) -> None:
        for key, entry in self._logs.items():
            assert entry.key == key
            assert not entry.rewritten
            assert (key in self._idle) == (entry.users == 0 and entry.flight is None), entry
        for key in self._idle:
            assert self._logs[key].complete

    def close(self) -> None:
        """Let go of all files. Saved logs stay on disk."""
        for entry in self._logs.values():
            if entry.body:
                entry.body.close()
        self._logs.clear()
        self._idle.clear()

    # Deciding: no await from a look-up to its claim.

    async def _current(self, key: LogKey, *, wanted: bool) -> _Log:
        """Return a log that is up to date, for the caller to ``_release``."""
        counted = wanted and not in_background()
        while True:
            entry = self._entry(key)
            entry.users += 1  # it must not retire before we wake up
            try:
                if entry.flight is None and entry.complete and self._fresh(entry):
                    self._hits += counted
                    return entry
                flight = self._board(entry, wanted)
                # A running log must be fresh to be opened, one that ran when it was seen last must
                # be looked at: it may be a part. Any other that is here may be used.
                usable = entry.complete and (not wanted or (entry.stateless and not entry.part))
                with trio.move_on_after(_REFRESH_PATIENCE_S if usable else float("inf")):
                    await flight.sized.wait()
                self._misses += counted and flight.asked
                if flight.failure is not None and not usable:
                    raise flight.failure.with_traceback(None)
                here = flight.asked and (entry.body is not None or not wanted)
                if here and not entry.rewritten:
                    return entry  # else decide anew: what came from disk may be too old
            except BaseException:
                self._release(entry)
                raise
            self._release(entry)

    def _entry(self, key: LogKey) -> _Log:
        entry = self._logs.get(key)
        if entry is None:
            absence = self._absent.get(key)
            if absence is not None:
                raise absence.with_traceback(None)
            entry = self._logs[key] = _Log(key)
            cached = self.memory.get(key)
            if cached is not None:
                self._memory_hits += 1
                entry.body, meta = cached
                entry.saved = True
                entry.apply(meta)
            else:
                self._memory_misses += 1
        self._idle.pop(key, None)
        return entry

    def _fresh(self, entry: _Log) -> bool:
        if entry.final:
            return True
        if not entry.stateless:
            return trio.current_time() - entry.checked_at < self._refresh_every_s(entry)
        if trio.current_time() < entry.retry_at and not entry.part:
            return True
        age_s = (time.time_ns() - entry.checked_ns) / 1e9
        doublings = min(entry.unchanged, _MOST_DOUBLINGS)
        return 0 <= age_s < min(_FIRST_RECHECK_S * 2.0**doublings, _LAST_RECHECK_S)

    def _refresh_every_s(self, entry: _Log) -> float:
        """Return how old a running log may be.

        A log that comes whole at every look is looked at in proportion to its size, so that all
        looks together transfer no more than a multiple of it, not its square.
        """
        every_s = self._refresh_s
        if entry.whole:
            every_s = max(every_s, (entry.size_bytes or 0) / _WHOLE_BYTES_PER_S)
        if trio.current_time() - entry.grown_at > _QUIET_AFTER_S:
            every_s = max(every_s, _QUIET_REFRESH_S)
        return every_s

    def _over(self, entry: _Log, run: StageRun) -> bool:
        """Whether a stage has been over for long enough that its last lines are there to be had."""
        if not run.final:
            entry.over_at = None  # should it have been over before, it was run again
            return False
        if run.finished_ns is not None and time.time_ns() - run.finished_ns > _LONG_OVER_NS:
            return True
        if entry.over_at is None or entry.over_ns != run.finished_ns:
            entry.over_at, entry.over_ns = trio.current_time(), run.finished_ns
        # Counted here, not from the finish time: clocks differ.
        return trio.current_time() - entry.over_at >= self._settle_s

    def _board(self, entry: _Log, wanted: bool) -> _Flight:
        self._idle.pop(entry.key, None)
        if entry.flight is None:
            entry.flight = _Flight(background=in_background())
            self._trails[entry.key] = entry.flight.trail
            if isinstance(entry.body, Body):
                entry.body.recover()
            self._nursery.start_soon(self._fly, entry, entry.flight, name=f"flight of {entry.key}")
        else:
            self._boarded += 1
            entry.flight.background &= in_background()
        if wanted:
            entry.flight.wanted.set()
        return entry.flight

    def _release(self, entry: _Log) -> None:
        """End one use of a log; without any, keep it at hand for a while or let go of it."""
        entry.users -= 1
        if entry.users or entry.flight is not None:
            return
        if not entry.complete or self._logs.get(entry.key) is not entry:
            self._drop(entry)
            return
        self._idle[entry.key] = entry
        self._idle.move_to_end(entry.key)
        while len(self._idle) > _IDLE_LOGS:
            self._drop(next(iter(self._idle.values())))
        if not entry.saved:
            self._drop_unsaved()

    def _drop_unsaved(self) -> None:
        """Let go of what takes space that no limit of the disk tier knows of; not of the last."""
        unsaved = [log for log in self._idle.values() if not log.saved]
        unsaved_bytes = sum(log.size_bytes or 0 for log in unsaved)
        for oldest in unsaved[:-1]:
            if unsaved_bytes <= _IDLE_UNSAVED_BYTES:
                break
            unsaved_bytes -= oldest.size_bytes or 0
            self._drop(oldest)

    def _drop(self, entry: _Log) -> None:
        if self._logs.get(entry.key) is entry:  # not so after a rewrite: the key is another's
            del self._logs[entry.key]
            self._idle.pop(entry.key, None)
        if entry.body is not None:
            entry.body.close()

    def _stat_of(self, entry: _Log) -> LogStat:
        assert entry.size_bytes is not None
        failed = trio.current_time() < entry.retry_at
        settled = failed or self._fresh(entry) or not entry.complete  # the latter was told just now
        return LogStat(entry.size_bytes, entry.modified_ns, entry.final, settled, entry.stateless)

    def _remember(
        self,
        key: LogKey,
        size_bytes: int,
        modified_ns: int,
        *,
        final: bool,
        running: bool = False,
        ttl_s: float = 0,
    ) -> None:
        """Keep size and times of a log that is not at hand; final ones for ever."""
        settled_until = float("inf") if final else trio.current_time() + ttl_s
        self._remembered[key] = LogStat(size_bytes, modified_ns, final, True), settled_until
        if final or not running:  # what runs is another size in a moment
            self._states.note_log(key, LogNote(size_bytes, modified_ns, final))

    # Flying: tasks of the store's nursery.

    async def _fly(self, entry: _Log, flight: _Flight) -> None:
        keep = False
        entry.users += 1
        try:
            with recorded(flight.trail):
                keep = await self._look(entry, flight)
        except LogRewritten as rewritten:
            log.warning(
                "the server rewrote %s, which is another file from now on; who has it open gets"
                " ESTALE",
                entry.key,
            )
            if self.disk:  # else the next flight would find the old log there
                await self.disk.remove(entry.key)
            self._replace(entry, rewritten)
        except Exception as failure:
            if not isinstance(failure, CodeArtsError | OSError):
                log.exception("%s cannot be loaded", entry.key)
            elif entry.users == 1:  # this flight; who waits for it gets the failure, and a line
                log.info("%s cannot be loaded, and nobody waits any more: %s", entry.key, failure)
            if isinstance(failure, NotFound):
                self._absent[entry.key] = failure
            flight.failure = failure
            self._last_errors[entry.key] = str(failure)
            pause_s = _FAILURE_TTL_S if entry.stateless else self._refresh_s
            entry.retry_at = trio.current_time() + pause_s
            if entry.flight is flight and isinstance(entry.body, Body):
                entry.body.fail(failure)
        flight.sized.set()
        try:
            if keep:  # still in flight: nothing may be appended to what is being saved
                flight.trail.turn_to("save")
                await self._keep(entry)
        finally:
            flight.trail.turn_to("")
            if entry.flight is flight:
                entry.flight = None
            flight.over.set()
            self._release(entry)

    async def _look(self, entry: _Log, flight: _Flight) -> bool:
        """Bring a log up to date. Return whether it is new to the cache tiers."""
        if entry.body is None and await self._load(entry):
            return False  # whoever waits decides whether it is fresh enough
        flight.asked = True
        flight.trail.turn_to("first_byte")
        # INVARIANT: the state is asked before the body, so that final is never early.
        asked_ns, asked_at = time.time_ns(), trio.current_time()
        stateless = entry.stateless if entry.body else True
        run: StageRun | None = None
        try:
            with spent_on("stages"):
                run = await self._states.stage(entry.key)
            stateless = run is None
        except CodeArtsError as failure:
            log.info("no state for %s just now: %s", entry.key, failure)
        over = run is not None and self._over(entry, run)
        before = entry.size_bytes if entry.complete else None
        missed = ""
        try:
            if not await self._download(entry, flight, run, over=over):
                return False
        except NotFound as failure:
            running = run is not None and not over
            broken_off = entry.body is not None and not entry.complete
            if broken_off or (not before and not running):
                raise
            # Either the stage has not written anything yet, or the server forgot a log
            # that is still here. A log that was cut off by forgetting is not the final one.
            if entry.body is None:
                entry.body = self._new_body()
                entry.body.announce(0)
                entry.modified_ns = asked_ns
            if not running:
                run, over, stateless = None, False, True
                missed = str(failure) if entry.part else ""
        assert isinstance(entry.body, Body)
        if entry.body.size_bytes is not None and not entry.complete:
            raise LogRewritten(entry.key)  # it ends before the size that readers were told
        if entry.body.size_bytes is None or entry.body.landed_bytes > entry.body.size_bytes:
            entry.body.announce(entry.body.landed_bytes)
        if before is None:
            self._compare_with_told(entry.key, entry.body.landed_bytes)
        grown = entry.body.size_bytes != before
        # Looks at a stage that runs say nothing about how long to wait without its state.
        entry.unchanged = entry.unchanged + 1 if entry.stateless and not grown else 0
        if grown:
            entry.grown_at = trio.current_time()
        if grown and before is not None:
            entry.modified_ns = time.time_ns()
        entry.final = over
        if entry.final and not entry.body.size_bytes:
            # The service may answer with nothing before a log is there: look again some day.
            entry.final, stateless = False, True
        entry.stateless = stateless
        entry.checked_ns, entry.checked_at = asked_ns, asked_at
        if over and run is not None and run.finished_ns is not None:
            entry.modified_ns = run.finished_ns
        assert entry.size_bytes is not None
        self._last_errors.pop(entry.key, None)
        if missed:
            self._last_errors[entry.key] = missed
        running = not (entry.final or entry.stateless)
        if run is not None:  # else nobody says that it has ended
            entry.part = running
        self._remember(
            entry.key, entry.size_bytes, entry.modified_ns, final=entry.final, running=running
        )
        return not running or self._keeps_running

    async def _load(self, entry: _Log) -> bool:
        if self.disk is None:
            return False
        loaded = await self.disk.load(entry.key)
        if loaded is None:
            self._disk_misses += 1
            return False
        self._disk_hits += 1
        entry.body, meta = loaded
        self._compare_with_told(entry.key, meta.size_bytes)
        entry.saved = True
        entry.apply(meta)
        return True

    async def _download(
        self, entry: _Log, flight: _Flight, run: StageRun | None, *, over: bool
    ) -> bool:
        """Download what is not here yet. Return False where only the size was wanted."""
        body = entry.body
        assert not isinstance(body, MemoryBody)  # these are final
        prefix = None
        if body is not None and body.landed_bytes:
            # The last look at a log compares all of it; before that its end is enough.
            last = over and entry.complete
            tail = b"" if last else await body.tail(_TAIL_BYTES)
            promised = (body.size_bytes or 0) > body.landed_bytes
            prefix = LogPrefix(body.landed_bytes, body.sha256, tail, promised)

        async def delivered(size_bytes: int) -> "hashlib._Hash":
            assert isinstance(entry.body, Body)
            return await entry.body.hash_at(size_bytes)

        async with self._source.task_log(entry.key, prefix, delivered) as answer:
            self._downloads += 1
            entry.request_id = answer.request_id
            new = body is None
            if body is None:
                body = self._new_body()
                entry.body = body
                entry.modified_ns = (run.finished_ns if run else None) or time.time_ns()
            if new and answer.size_bytes is not None:
                self._compare_with_told(entry.key, answer.size_bytes)
            if body.size_bytes is None and answer.size_bytes is not None:
                body.announce(answer.size_bytes)
                # What it is does not wait for its bytes.
                entry.final = over
                entry.stateless = run is None
                self._remember(
                    entry.key,
                    answer.size_bytes,
                    entry.modified_ns,
                    final=over,
                    running=run is not None and not over,
                    ttl_s=self._refresh_s if run else _FIRST_RECHECK_S,
                )
            if body.size_bytes is not None and not entry.complete:
                flight.sized.set()
                small = (body.size_bytes or 0) <= IN_MEMORY_BYTES  # here as soon as its size is
                if new and not small and not await self._wanted(flight):
                    # Whoever wants it from here on needs another flight.
                    entry.flight = None
                    entry.body = None
                    body.close()
                    return False
            flight.trail.turn_to("bytes")
            flight.first_byte_at, flight.found_bytes = monotonic(), body.landed_bytes
            await self._receive(entry, body, answer)
            entry.whole = answer.whole
        return True

    async def _wanted(self, flight: _Flight) -> bool:
        """Hold a download whose size was all that was asked for, until somebody reads."""
        with trio.move_on_after(PROBE_LINGER_S):
            await flight.wanted.wait()
        return flight.wanted.is_set()

    async def _receive(self, entry: _Log, body: Body, answer: LogAnswer) -> None:
        """Write what comes, the network and the disk each at its own pace."""
        if answer.size_bytes is not None and answer.size_bytes <= IN_MEMORY_BYTES:
            async for chunk in answer:
                await self._append(entry, body, [chunk])
            return
        send, receive = trio.open_memory_channel[bytes](_QUEUED_CHUNKS)
        failure: Exception | None = None

        async def write() -> None:
            nonlocal failure
            async with receive:
                try:
                    async for chunk in receive:
                        batch = [chunk]
                        with suppress(trio.WouldBlock, trio.EndOfChannel):
                            while True:
                                batch.append(receive.receive_nowait())
                        await self._append(entry, body, batch)
                except OSError as error:
                    failure = error
                    body.fail(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            async with send:
                try:
                    async for chunk in answer:
                        await send.send(chunk)
                        self._check_worth(entry, body)
                except trio.BrokenResourceError:
                    pass  # the writer has failed and says why
                except (CodeArtsError, OSError) as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    async def _append(self, entry: _Log, body: Body, chunks: Sequence[bytes]) -> None:
        """Take what came; where the cache's disk is full, make room or go on elsewhere."""
        count_bytes = sum(map(len, chunks))
        self._received_bytes += count_bytes
        entry.received_bytes += count_bytes
        if entry.saved:  # leave the disk tier's file as it was verified
            await body.move_to(self._new_fd())
            entry.saved = False
        try:
            return await body.append(chunks)
        except OSError as failure:
            if self.disk is None or not is_full(failure):
                raise
        wanted = max((body.size_bytes or 0) - body.landed_bytes, sum(map(len, chunks)))
        try:
            self._let_go(await self.disk.make_room(wanted, entry.key))
            return await body.append(chunks)
        except OSError as failure:
            log.warning("cache: no room for %s: %s", entry.key, failure)
        await body.move_to(unnamed_file(self._scratch))
        return await body.append(chunks)

    def _check_worth(self, entry: _Log, body: Body) -> None:
        """End a download that nobody waits for and that is too large to be kept.

        Raises:
            ApiUnavailable: it is.
        """
        limit = self.disk.limit_bytes if self.disk else _FOR_NOBODY_BYTES
        if entry.users == 1 and max(body.size_bytes or 0, body.landed_bytes) > limit:
            raise ApiUnavailable(f"{entry.key} is too large to be kept for nobody")

    def _new_fd(self) -> int:
        if self.disk:
            try:
                return self.disk.new_file()
            except OSError as failure:
                log.warning("cache: unusable just now: %s", failure)
        return unnamed_file(self._scratch)

    def _new_body(self) -> Body:
        return Body(self._new_fd)

    def _replace(self, entry: _Log, rewritten: LogRewritten) -> None:
        """The server rewrote a log: its name gets a new file, its handles an error."""
        entry.rewritten = True
        if isinstance(entry.body, Body):
            entry.body.fail(rewritten)
        key = entry.key
        if self._logs.get(key) is entry:
            del self._logs[key]
        self._idle.pop(key, None)
        self._become_another_file(key)

    def _compare_with_told(self, key: LogKey, size_bytes: int) -> None:
        """Make a log another file if it is not as was told before: so was the kernel, for long."""
        told = self._told(key)
        if told is None or told.size_bytes == size_bytes:
            return
        if told.final or told.size_bytes > size_bytes:
            log.info("%s has %d bytes, not %d as was told", key, size_bytes, told.size_bytes)
            self._become_another_file(key)

    def _become_another_file(self, key: LogKey) -> None:
        self._remembered.pop(key, None)
        self._states.note_log(key, None)
        self._generations[key] = self._generations.get(key, 0) + 1

    async def _keep(self, entry: _Log) -> None:
        """Put a complete log into the tiers. A failure costs speed later, nothing now."""
        body = entry.body
        assert isinstance(body, Body)
        assert body.size_bytes is not None
        meta = LogMeta(
            size_bytes=body.size_bytes,
            sha256=body.sha256.hexdigest(),
            final=entry.final,
            modified_ns=entry.modified_ns,
            checked_ns=entry.checked_ns,
            unchanged=entry.unchanged,
            request_id=entry.request_id,
            running=entry.part,
        )
        try:
            if entry.final and meta.size_bytes <= self.memory.largest_bytes:
                self.memory.put(entry.key, await body.read(0, meta.size_bytes), meta)
            if self.disk is None:
                return
            if entry.saved:
                await self.disk.touch(entry.key, meta)
                return
            evicted = await self.disk.save(entry.key, body, meta)
            body.free_memory()
        except OSError as failure:
            log.warning("cache: %s is not kept: %s", entry.key, failure)
            return
        except Exception:  # such as no thread to be had: slower later, but nothing lost
            log.exception("cache: %s is not kept", entry.key)
            return
        entry.saved = True
        self._let_go(evicted)

    def _let_go(self, evicted: Iterable[LogKey]) -> None:
        for key in evicted:
            if key in self._idle:
                self._drop(self._idle[key])  # its open file would go on using the space


def _flight_status(entry: _Log, flight: _Flight) -> FlightStatus:
    now = monotonic()
    body = entry.body if isinstance(entry.body, Body) else None
    landed_bytes = body.landed_bytes if body else 0
    took_s = now - flight.first_byte_at if flight.first_byte_at is not None else 0.0
    waiting = flight.sized.statistics().tasks_waiting + (body.waiting if body else 0)
    return FlightStatus(
        entry.key,
        doing=flight.trail.doing,
        landed_bytes=landed_bytes,
        size_bytes=entry.size_bytes,
        bytes_per_s=(landed_bytes - flight.found_bytes) / took_s if took_s else 0.0,
        age_s=now - flight.begun_at,
        waiters=waiting,
        background=flight.background,
    )


@asynccontextmanager
async def open_log_store(
    source: LogSource,
    states: StageStates,
    *,
    memory_bytes: int,
    disk: DiskTier | None,
    scratch: Path,
    refresh_s: float,
    settle_s: float,
    keeps_running: bool = False,
) -> AsyncIterator[LogStore]:
    """Run a store. Its downloads end when the block is left.

    Args:
        memory_bytes: limit of the memory tier.
        disk: the disk tier, None for none.
        scratch: a directory for downloads where there is no disk tier.
        refresh_s: how old a running log may be when it is opened.
        settle_s: how long the last lines of a log may come after its stage was over.
        keeps_running: logs that still grow are put on disk, too, as far as they are.
    """
    store: LogStore | None = None
    try:
        async with trio.open_nursery() as nursery:
            store = LogStore(
                source,
                states,
                nursery,
                memory=MemoryTier(memory_bytes),
                disk=disk,
                scratch=scratch,
                refresh_s=refresh_s,
                settle_s=settle_s,
                keeps_running=keeps_running,
            )
            yield store
            nursery.cancel_scope.cancel()
    finally:
        if store is not None:
            store.close()  # after the last download let go of its file
