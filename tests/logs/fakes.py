"""The store's two neighbours, in memory: they do what a test tells them and count."""

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from codeartsfs.errors import ApiUnavailable, LogNotFound, LogRewritten
from codeartsfs.logs.disk import DiskTier
from codeartsfs.logs.store import LogAnswer, LogStore, open_log_store
from codeartsfs.model import LogNote, LogPrefix, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

RECORD = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
STAGE = Stage("stage1")
KEY = LogKey(RECORD, STAGE, LogLevel.INFO)
RUNNING = StageRun(STAGE, status="running")
OVER = StageRun(STAGE, status="success", finished_ns=1_700_000_000_000_000_000)


def key(number: int, level: LogLevel = LogLevel.INFO) -> LogKey:
    return LogKey(RECORD, Stage(f"stage{number}"), level)


def text(size_bytes: int, seed: str = "line") -> bytes:
    lines = b"".join(b"%s %d\n" % (seed.encode(), n) for n in range(size_bytes // 6 + 1))
    return lines[:size_bytes]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what worker threads bring about: they need real time, the mock clock stands still.

    An event cannot do it, since what is waited for is the state of the store itself.
    """
    for _ in range(10_000):
        if condition():
            return
        await trio.to_thread.run_sync(time.sleep, 0.001)
    raise AssertionError("it never came about")


class FakeStates:
    """Says the same of every stage, and logs that it was asked."""

    def __init__(self, run: StageRun | None, events: list[str]) -> None:
        self.run = run
        self.failure: Exception | None = None
        self.notes: dict[LogKey, LogNote | None] = {}
        self._events = events

    def log_note(self, key: LogKey) -> LogNote | None:
        return self.notes.get(key)

    def note_log(self, key: LogKey, note: LogNote | None) -> None:
        self.notes[key] = note

    async def stage(self, key: LogKey) -> StageRun | None:
        self._events.append("state")
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return self.run


@dataclass
class Call:
    """One call of ``task_log``: what of the log was here already, and how it was proven."""

    key: LogKey
    prefix_bytes: int
    tail_bytes: int


@dataclass
class FakeSource:
    """Serves ``logs`` in chunks.

    Attributes:
        size_known: tells the size up front.
        breaks_at: fails before the byte at this offset.
        stalls_at: waits at this offset until ``go`` is set.
        failure: raised at the start of every call.
        fails: raised at the start of calls for some logs.
        whole: says that all of it had to come again.
    """

    events: list[str] = field(default_factory=list)
    logs: dict[LogKey, bytes] = field(default_factory=dict)
    size_known: bool = True
    chunk_bytes: int = 1000
    breaks_at: int | None = None
    stalls_at: int | None = None
    failure: Exception | None = None
    fails: dict[LogKey, Exception] = field(default_factory=dict)
    whole: bool = False
    go: trio.Event = field(default_factory=trio.Event)
    calls: list[Call] = field(default_factory=list)
    flying: int = 0
    most_flying: int = 0

    def task_log(
        self,
        key: LogKey,
        after: LogPrefix | None,
        delivered: Callable[[int], Awaitable["hashlib._Hash"]],
    ) -> AbstractAsyncContextManager[LogAnswer]:
        return self._task_log(key, after)

    @asynccontextmanager
    async def _task_log(self, key: LogKey, after: LogPrefix | None) -> AsyncIterator[LogAnswer]:
        start = after.size_bytes if after else 0
        self.calls.append(Call(key, start, len(after.tail) if after else 0))
        self.events.append("body")
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            await trio.lowlevel.checkpoint()
            failure = self.failure or self.fails.get(key)
            if failure is not None:
                raise failure
            if key not in self.logs:
                raise LogNotFound(key, "it is not there")
            content = self.logs[key]
            if after is not None and not _continues(content, after):
                raise LogRewritten(key)
            answer = _Answer(self, content, start)
            try:
                yield answer
            finally:
                await answer.pieces.aclose()
        finally:
            self.flying -= 1


class _Answer:
    request_id = "req-1"

    def __init__(self, source: FakeSource, content: bytes, start: int) -> None:
        self._source = source
        self._content = content
        self._start = start
        self.size_bytes = len(content) if source.size_known else None
        self.whole = source.whole and start > 0
        self.pieces = self._pieces()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.pieces

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        source, offset = self._source, self._start
        while True:
            if offset == source.stalls_at:
                await source.go.wait()
            if offset == source.breaks_at:
                raise ApiUnavailable("it broke off")
            if offset == len(self._content):
                return
            await trio.lowlevel.checkpoint()
            stops = [source.breaks_at, source.stalls_at, len(self._content)]
            ahead = [stop for stop in stops if stop is not None and stop > offset]
            end = min(*ahead, offset + source.chunk_bytes)
            yield self._content[offset:end]
            offset = end


def _continues(content: bytes, after: LogPrefix) -> bool:
    beginning = content[: after.size_bytes]
    if len(beginning) < after.size_bytes:
        return False
    if after.tail:
        return beginning.endswith(after.tail)
    return hashlib.sha256(beginning).digest() == after.sha256.digest()


class World:
    """A store between its neighbours, on a cache directory that outlives it."""

    def __init__(self, directory: Path) -> None:
        self.events: list[str] = []
        self.source = FakeSource(self.events)
        self.states = FakeStates(OVER, self.events)
        self.cache = directory / "cache"
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self.disk_bytes: int | None = 1 << 30
        self.memory_bytes = 0
        self.tier = DiskTier

    @asynccontextmanager
    async def store(self) -> AsyncIterator[LogStore]:
        disk = self.tier(self.cache, self.disk_bytes) if self.disk_bytes else None
        async with open_log_store(
            self.source,
            self.states,
            memory_bytes=self.memory_bytes,
            disk=disk,
            scratch=self.scratch,
            refresh_s=1.0,
            settle_s=10.0,
        ) as store:
            yield store
            store.check_invariants()
        assert self.source.flying == 0


async def landed(store: LogStore) -> None:
    """Wait until no download runs any more, its saving included."""
    await until(lambda: store.statistics().downloading == 0)


async def content_of(store: LogStore, key: LogKey = KEY) -> bytes:
    """Open, read all and close, as cat(1) does."""
    opened = await store.open(key)
    try:
        return bytes(await opened.read(0, opened.stat.size_bytes))
    finally:
        opened.close()
