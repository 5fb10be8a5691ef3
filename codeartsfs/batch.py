"""Many logs at a time: found by their names, downloaded and kept, handed on one by one."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import trio

from codeartsfs.errors import CodeArtsError
from codeartsfs.logs.store import LogStat, LogStore, OpenLog
from codeartsfs.names import LogKey, LogLevel, RecordId
from codeartsfs.selection import Named, Selection, UnknownName

PERHAPS_NOT_ALL = "what is here may not be all of it"
_MOST_RECORDS = 64  # looked at ahead of the one that is handed on


@dataclass(eq=False, slots=True)
class Wanted:
    """One log that was asked for, or something named that leads to none.

    Attributes:
        log: the open log, from when its size is known until it was handed on.
        failure: why there is none; empty where there is.
        doubt: why there may be more of it than is here; empty where nothing says so.
        kept: it is in the cache on disk.
    """

    label: str
    key: LogKey | None = None
    log: OpenLog | None = None
    failure: str = ""
    doubt: str = ""
    kept: bool = False
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def stat(self) -> LogStat:
        assert self.log is not None
        return self.log.stat

    @property
    def received_bytes(self) -> int:
        return self.log.received_bytes if self.log else 0


Take = Callable[[Wanted], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Batch:
    """The logs of all that is named.

    Attributes:
        at_once: logs downloaded at the same time.
        on_record: called with each record before its logs are brought.
        found: logs found so far.
        coming: those of them that are being downloaded.
        finished: those of them that are here, or failed.
    """

    store: LogStore
    selection: Selection
    names: Sequence[str]
    levels: Collection[LogLevel]
    stages: Sequence[str] = ()
    builds: int = 1
    at_once: int = 1
    on_record: Callable[[RecordId], Awaitable[None]] | None = None
    found: int = 0
    finished: int = 0
    coming: list[Wanted] = field(default_factory=list)

    async def run(self, take: Take, *, in_order: bool = False) -> None:
        """Bring all logs.

        Args:
            take: called with each, done; its log is closed when that returns.
            in_order: in that of the names and of the stages, one after the other; else as
                they come.
        """
        slots = trio.CapacityLimiter(self.at_once)
        window = trio.CapacityLimiter(max(_MOST_RECORDS, 2 * self.at_once))
        seen: set[LogKey] = set()

        async def load(wanted: Sequence[Wanted], nursery: trio.Nursery) -> None:
            for each in wanted:  # a nursery alone would begin them in any order
                await slots.acquire_on_behalf_of(each)
                nursery.start_soon(self._load, each, slots, None if in_order else take)

        async def bring(named: "Named | Wanted", before: trio.Event, over: trio.Event) -> None:
            wanted = await self._logs(named)
            if not in_order:
                wanted = [each for each in wanted if each.key is None or each.key not in seen]
                seen.update(each.key for each in wanted if each.key)
            self.found += len(wanted)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load, wanted, nursery)
                if in_order:
                    await before.wait()
                    for each in wanted:
                        await each.done.wait()
                        await _hand_on(each, take)
            over.set()
            window.release_on_behalf_of(over)

        async with trio.open_nursery() as nursery:
            before = trio.Event()
            before.set()
            for name in self.names:
                for named in await self._named(name):
                    over = trio.Event()
                    await window.acquire_on_behalf_of(over)
                    nursery.start_soon(bring, named, before, over)
                    before = over

    async def _named(self, name: str) -> "list[Named | Wanted]":
        try:
            return list(await self.selection.named(name, self.builds))
        except (CodeArtsError, UnknownName) as failure:
            return [_nothing(name, failure)]

    async def _logs(self, named: "Named | Wanted") -> list[Wanted]:
        if isinstance(named, Wanted):
            return [named]
        try:
            logs = await self.selection.logs(named, self.levels, self.stages)
            if self.on_record is not None:
                await self.on_record(named.record)
        except (CodeArtsError, UnknownName, OSError) as failure:
            return [_nothing(named.label, failure)]
        found = [Wanted(label, key) for label, key in logs]
        doubt = self.selection.doubt(named, self.stages)
        return [*found, Wanted(named.label, failure=doubt)] if doubt else found

    async def _load(self, wanted: Wanted, slots: trio.CapacityLimiter, take: Take | None) -> None:
        if wanted.key is not None:
            self.coming.append(wanted)
            await self._bring(wanted, wanted.key)
            self.coming.remove(wanted)
        slots.release_on_behalf_of(wanted)
        self.finished += 1
        wanted.done.set()
        if take is not None:
            await _hand_on(wanted, take)

    async def _bring(self, wanted: Wanted, key: LogKey) -> None:
        try:
            wanted.log = await self.store.open(key)
            size_bytes = wanted.log.stat.size_bytes
            if size_bytes:  # what has to come before it is here then, too
                await wanted.log.read(size_bytes - 1, 1)
            wanted.kept = await wanted.log.kept()
            if doubt := wanted.log.doubt:
                wanted.doubt = f"{PERHAPS_NOT_ALL}: {doubt}"
        except (CodeArtsError, OSError) as failure:
            wanted.failure = str(failure)


async def _hand_on(wanted: Wanted, take: Take) -> None:
    try:
        await take(wanted)
    finally:
        if wanted.log is not None:
            wanted.log.close()


def _nothing(name: str, failure: Exception) -> Wanted:
    return Wanted(name, failure=str(failure))
