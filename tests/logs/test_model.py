"""The store and its tiers against a plain model: what the server had, and when.

The machine opens, reads, stats, refreshes and fetches ahead in any order, while the server's logs
grow, end, vanish and are run again, answers stall and break off, caches are too small, entries are
damaged and deleted, and the store is restarted. Waiting operations stay waiting over many steps.

The model knows of each version of a log what it held at every moment. What is read must be
the bytes of one version as of a moment that the promises allow, or an error that they document.
"""

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.errors import ApiUnavailable, CodeArtsError, LogNotFound, LogRewritten, NotFound
from codeartsfs.logs import store as store_module
from codeartsfs.logs.disk import DiskTier
from codeartsfs.logs.store import ABSENCE_TTL_S, LogAnswer, OpenLog, open_log_store
from codeartsfs.model import LogNote, LogPrefix, StageRun
from codeartsfs.names import LogKey
from tests.logs.fakes import _continues as continues
from tests.logs.fakes import key, text
from tests.scale import scaled

T = TypeVar("T")

KEYS = [key(number) for number in range(1, 4)]
REFRESH_S = 1.0
SETTLE_S = 10.0
QUIET_S = 600.0
QUIET_REFRESH_S = 5.0
EPOCH_NS = 1_700_000_000 * 10**9
MOST_BYTES = 200_000
ABANDONED_S = 2.0
LONG_OVER_S = 61.0

keys = st.sampled_from(KEYS)
sizes = st.sampled_from([0, 1, 500, 1500, 4096, 30_000, 70_000])


class Loop:
    """A trio loop in a thread of its own, whose clock stands still unless it is pushed."""

    def __init__(self) -> None:
        self.clock = MockClock()
        self._stop = trio.Event()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as self.nursery:
                started.set()
                await self._stop.wait()

        trio.run(main, clock=self.clock)

    def do(self, what: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Do something and return once nothing moves any more, worker threads included."""

        async def and_settle() -> T:
            result = await what(*arguments)
            await settled()
            return result

        return trio.from_thread.run(and_settle, trio_token=self._token)

    def close(self) -> None:
        async def stop() -> None:
            self._stop.set()

        trio.from_thread.run(stop, trio_token=self._token)
        self._thread.join()


async def settled() -> None:
    patient = trio.CapacityLimiter(1)
    while True:
        await wait_all_tasks_blocked()
        if not trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            return
        await trio.to_thread.run_sync(time.sleep, 0.0002, limiter=patient)


@dataclass(eq=False)
class Version:
    """One run of a stage: its log only grows, and ends."""

    content: bytes
    sizes: list[tuple[float, int]]
    over_at: float | None = None
    finished_ns: int | None = None
    replaced_at: float = float("inf")

    @property
    def size(self) -> int:
        return self.sizes[-1][1]

    def size_at(self, when: float) -> int:
        return next((size for at, size in reversed(self.sizes) if at <= when), self.sizes[0][1])


@dataclass
class Server:
    """The API's logs and stages, the store's two neighbours in one."""

    versions: dict[LogKey, list[Version]] = field(default_factory=dict)
    absent_at: dict[LogKey, float] = field(default_factory=dict)  # the last moment without a log
    gone: set[LogKey] = field(default_factory=set)
    notes: dict[LogKey, LogNote | None] = field(default_factory=dict)
    mute: bool = False  # tells no states
    states_down: bool = False
    down: bool = False
    held: bool = False  # answers move only when they are pushed
    breaks_after: int | None = None  # chunks
    size_known: bool = True
    chunk_bytes: int = 4096
    calls: Counter[LogKey] = field(default_factory=Counter)
    flying: Counter[LogKey] = field(default_factory=Counter)
    called_at: dict[LogKey, float] = field(default_factory=dict)
    asking: int = 0
    broken: int = 0
    lot: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    @property
    def troubled(self) -> bool:
        return self.down or self.held or self.breaks_after is not None

    def current(self, key: LogKey) -> Version | None:
        return None if key in self.gone else self.versions[key][-1] if self.versions[key] else None

    # Who knows the stages.

    def log_note(self, key: LogKey) -> LogNote | None:
        return self.notes.get(key)

    def note_log(self, key: LogKey, note: LogNote | None) -> None:
        self.notes[key] = note

    async def stage(self, key: LogKey) -> StageRun | None:
        if self.states_down:
            raise ApiUnavailable("no states")
        if self.mute:
            return None
        last = self.versions[key][-1] if self.versions[key] else None
        over = last is not None and last.over_at is not None
        finished_ns = last.finished_ns if last else None
        told = StageRun(key.stage, status="success" if over else "running", finished_ns=finished_ns)
        self.asking += 1
        try:
            if self.held:
                await self.lot.park()
        finally:
            self.asking -= 1
        return told

    # Where logs come from.

    def task_log(
        self, key: LogKey, after: LogPrefix | None, delivered: object
    ) -> AbstractAsyncContextManager[LogAnswer]:
        return self._task_log(key, after)

    @asynccontextmanager
    async def _task_log(self, key: LogKey, after: LogPrefix | None) -> AsyncIterator[LogAnswer]:
        self.calls[key] += 1
        self.flying[key] += 1
        self.called_at[key] = trio.current_time()
        assert self.flying[key] == 1, "two downloads of one log at once"
        try:
            if self.down:
                raise ApiUnavailable("down")
            version = self.current(key)
            if version is None:
                raise LogNotFound(key, "it is not there")
            if after is not None and not continues(version.content[: version.size], after):
                raise LogRewritten(key)
            yield Answer(self, version, after.size_bytes if after else 0)
        finally:
            self.flying[key] -= 1


class Answer:
    request_id = "req-1"
    whole = False

    def __init__(self, server: Server, version: Version, start: int) -> None:
        self._server, self._version, self._offset = server, version, start
        self._chunks = 0
        self.size_bytes = version.size if server.size_known else None

    def __aiter__(self) -> "Answer":
        self._broken = self._server.broken
        return self

    async def __anext__(self) -> bytes:
        server, offset = self._server, self._offset
        if server.held:
            await server.lot.park()
        await trio.lowlevel.checkpoint()
        if server.broken != self._broken or self._chunks == server.breaks_after:
            raise ApiUnavailable("it broke off")
        end = self._version.size if self.size_bytes is None else self.size_bytes
        if offset >= end:
            raise StopAsyncIteration
        self._offset = min(end, offset + server.chunk_bytes)
        self._chunks += 1
        return self._version.content[offset : self._offset]


@dataclass(eq=False)
class Handle:
    """A log that somebody has open, and which versions of it that can be."""

    key: LogKey
    opened: OpenLog
    versions: list[Version]


@dataclass(eq=False)
class Operation:
    """Something under way, maybe for long."""

    key: LogKey
    begun_step: int
    begun_at: float
    boards: bool  # a download that is on its way, and so as old as that
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: bool = False
    surprise: BaseException | None = None


class Logs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="codeartsfs-model-"))
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(store_module, "_IDLE_LOGS", 2)
        self.patches.setattr(store_module, "time", SimpleNamespace(time_ns=self._time_ns))
        self.loop = Loop()
        self.descriptors = count_descriptors()
        self.server = Server()
        self.handles: list[Handle] = []
        self.operations: list[Operation] = []
        self.step = self.troubled_step = self.begun = 0
        self.now = 0.0
        self.restarted = False
        self.damaged: set[str] = set()  # and not opened since

    def _time_ns(self) -> int:
        return EPOCH_NS + int(self.loop.clock.current_time() * 1e9)

    @initialize(
        memory=st.sampled_from([0, 20_000]),
        disk=st.sampled_from([None, 8_000, 90_000, 1 << 30]),
        begun=st.lists(sizes, max_size=len(KEYS)),
        over=st.integers(0, len(KEYS)),
    )
    def begin(self, memory: int, disk: int | None, begun: list[int], over: int) -> None:
        self.memory_bytes, self.disk_bytes = memory, disk
        (self.folder / "scratch").mkdir()
        for each in KEYS:
            self.server.versions[each] = []
            self.server.absent_at[each] = 0.0
        for each, size in zip(KEYS, begun, strict=False):
            self._writes(each, size)
        for each in KEYS[:over]:
            self._ends(each, at_once=True)
        self.loop.do(self._start)

    # The store's life.

    async def _start(self) -> None:
        self.life = trio.Event()
        self.dead = trio.Event()
        await self.loop.nursery.start(self._live)

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        disk = DiskTier(self.folder / "cache", self.disk_bytes) if self.disk_bytes else None
        async with open_log_store(
            self.server,
            self.server,
            memory_bytes=self.memory_bytes,
            disk=disk,
            scratch=self.folder / "scratch",
            refresh_s=REFRESH_S,
            settle_s=SETTLE_S,
        ) as self.store:
            task_status.started()
            await self.life.wait()
        self.dead.set()

    async def _end(self) -> None:
        for operation in self.operations:
            operation.scope.cancel()
        await wait_all_tasks_blocked()
        for handle in self.handles:
            handle.opened.close()
        self.handles.clear()
        self.life.set()
        await self.dead.wait()

    @rule(
        damaged=st.none() | st.integers(0, 10**6),
        forgets=st.booleans(),
    )
    def restart(self, damaged: int | None, forgets: bool) -> None:
        self.loop.do(self._end)
        self._collect()
        assert self.descriptors == count_descriptors()
        entries = self._entries()
        if damaged is not None and entries:
            entry = entries[damaged % len(entries)]
            damage(entry, damaged)
            self.damaged.add(entry.name)
        if forgets:
            self.server.notes.clear()
        self.restarted = True
        self.loop.do(self._start)

    @rule(which=st.none() | st.integers(0, 99))
    def cache_entries_are_deleted(self, which: int | None) -> None:
        self._step()
        if which is None:
            shutil.rmtree(self.folder / "cache/v1", ignore_errors=True)
        elif entries := self._entries():
            entries[which % len(entries)].unlink()

    def _entries(self) -> list[Path]:
        return sorted((self.folder / "cache").glob("v1/*-*/*.log"))

    # The server's life.

    @rule(
        key=keys,
        what=st.sampled_from(["writes", "writes", "ends", "ended", "again", "vanishes"]),
        size=sizes,
    )
    def stage(self, key: LogKey, what: str, size: int) -> None:
        self._step()
        match what:
            case "writes":
                self._writes(key, size)
            case "ends" | "ended":
                self._ends(key, at_once=what == "ended")
            case "again":
                self._runs_again(key, size)
            case "vanishes":  # or is back
                self._note_absences()
                self.server.gone ^= {key}

    def _writes(self, key: LogKey, size: int) -> None:
        now, versions = self._now(), self.server.versions[key]
        if not versions:
            versions.append(self._version(key, size))
        last = versions[-1]
        # The last lines may come late, but not later than it takes to settle.
        if last.over_at is None or now < last.over_at + SETTLE_S:
            last.sizes.append((now, min(last.size + size, MOST_BYTES)))

    def _ends(self, key: LogKey, at_once: bool) -> None:
        """End a stage; ``at_once`` if it ended long ago, as far as anybody can tell."""
        versions = self.server.versions[key]
        if versions and versions[-1].over_at is None:
            versions[-1].over_at = self._now() - (LONG_OVER_S if at_once else 0)
            if at_once or size_is_even(versions[-1]):
                versions[-1].finished_ns = EPOCH_NS + int(versions[-1].over_at * 1e9)

    def _runs_again(self, key: LogKey, size: int) -> None:
        # That a stage was over and what its log holds are two requests: what runs again just
        # between them no client can tell.
        versions = self.server.versions[key]
        if versions and versions[-1].over_at is not None and not self.server.asking:
            versions[-1].replaced_at = self._now()
            versions.append(self._version(key, size))

    @rule(
        fault=st.sampled_from(
            ["none", "none", "none", "down", "mute", "states down", "break off", "stall", "stall"]
        ),
        chunks=st.integers(0, 3),
        chunk_bytes=st.sampled_from([100, 4096, 100_000]),
        size_known=st.booleans(),
    )
    def fault(self, fault: str, chunks: int, chunk_bytes: int, size_known: bool) -> None:
        self._step()
        server = self.server
        server.size_known, server.chunk_bytes = size_known, chunk_bytes
        match fault:
            case "none":
                server.down = server.mute = server.states_down = server.held = False
                server.breaks_after = None
                self.loop.do(self._push)
            case "down":
                server.down = True
            case "mute":
                server.mute = True
            case "states down":
                server.states_down = True
            case "break off":
                server.breaks_after = chunks
            case "stall":
                server.held = True

    @precondition(lambda self: self.server.held)
    @rule(how=st.sampled_from(["one chunk", "all", "break off"]))
    def stalled_answers_move(self, how: str) -> None:
        self._step()
        if how == "break off":
            self.server.broken += 1
        self.server.held = how != "all"
        self.loop.do(self._push)

    async def _push(self) -> None:
        self.server.lot.unpark_all()

    @rule(seconds=st.sampled_from([0.3, 1.1, 2.1, 5.1, 10.1, 31.0, 61.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self._step()

        async def jump() -> None:
            self._note_absences()
            self.loop.clock.jump(seconds)

        self.loop.do(jump)

    # What is asked of the store.

    @rule(key=keys)
    def open(self, key: LogKey) -> None:
        self._do(self._open, key)

    async def _open(self, operation: Operation) -> None:
        opened = await self.store.open(operation.key)
        try:
            handle = Handle(operation.key, opened, self._possible(operation, opened))
        except BaseException:
            opened.close()
            raise
        self.handles.append(handle)

    def _possible(self, operation: Operation, opened: OpenLog) -> list[Version]:
        """Return which versions may just have been opened, by what was said of them."""
        self.damaged.discard(operation.key.file_name)
        stat, now = opened.stat, self._now()
        if not stat.size_bytes:
            return []  # what was empty becomes whatever is run again
        if stat.final:
            return self._sealed(operation.key, stat.size_bytes)
        versions = self.server.versions[operation.key]
        if stat.stateless:
            possible = [version for version in versions if version.size >= stat.size_bytes]
        else:
            slow = self.restarted or now > QUIET_S
            since = operation.begun_at - (QUIET_REFRESH_S if slow else REFRESH_S)
            if operation.boards:
                since = min(since, self.server.called_at[operation.key])
            gone = operation.key in self.server.gone
            if gone or self.server.absent_at[operation.key] >= since:
                since = -float("inf")  # while the server does not have it, what is here is shown
            possible = [
                version
                for version in versions
                if version.replaced_at >= since
                and version.size_at(since) <= stat.size_bytes <= version.size
            ]
        assert possible, "it never was of this size, or that is long ago"
        return possible

    def _sealed(self, key: LogKey, size_bytes: int) -> list[Version]:
        """Return the versions of a log that may be held for final."""
        now = self._now()
        sealed = [
            version
            for version in self.server.versions[key]
            if version.over_at is not None
            and now >= version.over_at + SETTLE_S
            and version.size == size_bytes
        ]
        assert sealed, f"{key} is said to be final too early"
        return sealed

    @rule(key=keys)
    def cat(self, key: LogKey) -> None:
        self._do(self._cat, key)

    async def _cat(self, operation: Operation) -> None:
        opened = await self.store.open(operation.key)
        try:
            handle = Handle(operation.key, opened, self._possible(operation, opened))
            await self._read(operation, handle, 0, opened.stat.size_bytes)
        finally:
            opened.close()

    @rule(key=keys)
    def stat(self, key: LogKey) -> None:
        self._do(self._stat, key)

    async def _stat(self, operation: Operation) -> None:
        await self.store.stat(operation.key)

    @rule(key=keys)
    def refresh(self, key: LogKey) -> None:
        self._do(self._refresh, key)

    async def _refresh(self, operation: Operation) -> None:
        stat = await self.store.refresh(operation.key)
        version = self.server.current(operation.key)
        excused = operation.boards or self._troubled_since(operation)
        if not stat.final and version is not None and not excused:
            assert stat.size_bytes >= version.size_at(operation.begun_at)

    @rule(key=keys, most_bytes=sizes)
    def fetch_ahead(self, key: LogKey, most_bytes: int) -> None:
        self._do(self._fetch, key, most_bytes)

    async def _fetch(self, operation: Operation, most_bytes: int) -> None:
        await self.store.fetch(operation.key, most_bytes)

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 99), offset=st.integers(0, 80_000), size=sizes)
    def read(self, which: int, offset: int, size: int) -> None:
        handle = self.handles[which % len(self.handles)]
        self._do(self._read, handle.key, handle, offset, size)

    async def _read(self, operation: Operation, handle: Handle, offset: int, size: int) -> None:
        before = handle.opened.stat.size_bytes
        offset %= before + 2
        got = bytes(await handle.opened.read(offset, size))
        after = handle.opened.stat.size_bytes
        assert before <= after
        assert min(size, max(0, before - offset)) <= len(got) <= max(0, after - offset)
        # One handle shows one version, whichever and however far it has come.
        end = offset + len(got)
        if got:
            versions = handle.versions or self.server.versions[handle.key]
            handle.versions = [
                version
                for version in versions
                if end <= version.size and version.content[offset:end] == got
            ]
            assert handle.versions, "these bytes are not the log's"

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        self._step()
        handle = self.handles[which % len(self.handles)]
        busy = any(not operation.done for operation in self.operations)
        if busy:  # the kernel releases nothing that it is reading
            return
        self.handles.remove(handle)

        async def release() -> None:
            handle.opened.close()

        self.loop.do(release)

    @precondition(lambda self: self.operations)
    @rule(which=st.integers(0, 99))
    def somebody_gives_up(self, which: int) -> None:
        self._step()

        async def cancel() -> None:
            self.operations[which % len(self.operations)].scope.cancel()

        self.loop.do(cancel)

    @rule(key=keys)
    def what_is_known_is_told_without_asking(self, key: LogKey) -> None:
        self._step()
        calls = self.server.calls.total()

        async def ask() -> None:
            await self.store.recall(key)
            await self.store.provenance(key)
            await self.store.cached_logs(key.record)

        self.loop.do(ask)
        assert self.server.calls.total() == calls

    # Around every operation.

    def _do(self, what: Callable[..., Awaitable[None]], key: LogKey, *arguments: Any) -> None:
        self._step()
        operation = Operation(key, self.step, self._now(), self.server.flying[key] > 0)
        free = self.loop.do(self._costs_nothing, key)
        alone = not self.operations and not self.server.flying.total()
        before = self.server.calls[key]
        self.begun += 1
        self.operations.append(operation)

        async def start() -> None:
            self.loop.nursery.start_soon(self._run, operation, what, *arguments)

        self.loop.do(start)
        calls = self.server.calls[key] - before
        if alone:  # what was run again is asked for again
            assert calls <= (0 if free else 3 if what == self._refresh else 2), f"{calls} calls"

    async def _costs_nothing(self, key: LogKey) -> bool:
        """Whether a log is here for good, so that nothing of it has to be asked for."""
        return key.file_name not in self.damaged and await self.store.here(key)

    async def _run(
        self, operation: Operation, what: Callable[..., Awaitable[None]], *arguments: Any
    ) -> None:
        with operation.scope:
            try:
                await what(operation, *arguments)
            except CodeArtsError as error:
                if not self._documented(error, operation):
                    operation.surprise = error
            except Exception as error:
                operation.surprise = error
        operation.done = True

    def _documented(self, error: CodeArtsError, operation: Operation) -> bool:
        match error:
            case NotFound():
                absent = self.server.current(operation.key) is None
                lately = operation.begun_at - ABSENCE_TTL_S <= self.server.absent_at[operation.key]
                return absent or lately
            case LogRewritten():
                return len(self.server.versions[operation.key]) > 1
            case ApiUnavailable():
                return self._troubled_since(operation)
        return False

    def _troubled_since(self, operation: Operation) -> bool:
        return self.troubled_step >= operation.begun_step

    def _version(self, key: LogKey, size: int) -> Version:
        self._note_absences()
        number = len(self.server.versions[key])
        return Version(text(MOST_BYTES, f"{number} {key.stage}"), [(self._now(), size)])

    def _now(self) -> float:
        return self.loop.clock.current_time()

    def _note_absences(self) -> None:
        for each in KEYS:
            if self.server.current(each) is None:
                self.server.absent_at[each] = self._now()

    def _step(self) -> None:
        if self.server.troubled:
            self.troubled_step = self.step
        self.step += 1
        if self.server.troubled:
            self.troubled_step = self.step
        self._collect()

    def _collect(self) -> None:
        for operation in self.operations:
            if operation.surprise is not None:
                raise operation.surprise
        self.operations = [operation for operation in self.operations if not operation.done]

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "store"):
            self.loop.do(self._check)
            self._collect()
            assert self.server.calls.total() <= 2 * self.begun

    async def _check(self) -> None:
        self.store.check_invariants()
        for each in KEYS:
            known = self.store.peek(each)
            if known is not None and known.final:
                self._sealed(each, known.size_bytes)

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self._finish()
        finally:
            self.loop.close()
            self.patches.undo()
            shutil.rmtree(self.folder)

    def _finish(self) -> None:
        try:
            self.fault("none", 0, 4096, True)
            for _ in range(3):
                self.time_passes(10.1)
            assert not self.operations, "somebody waits for ever"
            for which in range(len(self.handles)):
                self.read(which, 0, MOST_BYTES)
            self._collect()
            while self.handles:
                self.close(0)
            self.time_passes(ABANDONED_S + 0.1)
            counts = self.store.statistics()
            assert (counts.open_logs, counts.downloading) == (0, 0)
        finally:
            self.loop.do(self._end)
        assert self.descriptors == count_descriptors()


def size_is_even(version: Version) -> bool:
    return version.size % 2 == 0


def damage(entry: Path, where: int) -> None:
    content = bytearray(entry.read_bytes() or b"?")
    if where % 3 == 0:
        content = content[: where % len(content)]
    else:
        content[where % len(content)] ^= 1
    used = entry.stat()
    entry.write_bytes(content)
    with suppress(OSError):
        os.utime(entry, ns=(used.st_atime_ns, used.st_mtime_ns))


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


TestLogs = Logs.TestCase
TestLogs.settings = settings(
    max_examples=scaled(60),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
