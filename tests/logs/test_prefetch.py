"""Fetching ahead: for who walks, for nobody else, and never more than once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.logs.store import LogStore
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from tests.logs.fakes import World, content_of, landed, text, until

RECORDS = [RecordId(f"{number:036}") for number in range(5)]
STAGES = 4


def log(record: int, stage: int, level: LogLevel = LogLevel.INFO) -> LogKey:
    return LogKey(RECORDS[record], Stage(f"stage{stage}"), level)


class FakeSiblings:
    """All records have the same logs."""

    def __init__(self) -> None:
        self.failed: LogKey | None = None

    async def logs_of(self, record: RecordId) -> tuple[LogKey, ...]:
        await trio.lowlevel.checkpoint()
        return tuple(
            LogKey(record, Stage(f"stage{number}"), level)
            for number in range(1, STAGES + 1)
            for level in LogLevel
        )

    def failed_log(self, record: RecordId) -> LogKey | None:
        return self.failed if self.failed and self.failed.record == record else None

    def records_after(self, record: RecordId, most: int) -> tuple[RecordId, ...]:
        after = RECORDS.index(record) + 1
        return tuple(RECORDS[after : after + most])


class Walkers:
    """A store with a prefetcher, and processes that read."""

    def __init__(self, world: World, store: LogStore, prefetcher: Prefetcher) -> None:
        self._world = world
        self._store = store
        self._prefetcher = prefetcher

    async def read(self, *keys: LogKey, process: int = 1) -> None:
        for key in keys:
            await content_of(self._store, key)
            self._prefetcher.opened(key, process)
            await self.quiet()

    async def quiet(self) -> None:
        """Wait until nothing is fetched any more."""
        await until(lambda: not self._prefetcher._busy)
        await landed(self._store)

    @property
    def fetched(self) -> set[LogKey]:
        """What was downloaded. Nothing may be twice."""
        keys = [call.key for call in self._world.source.calls]
        assert len(keys) == len(set(keys))
        return set(keys)


@asynccontextmanager
async def walkers(
    world: World, siblings: FakeSiblings | None = None, most: int = 4, log_bytes: int = 100
) -> AsyncIterator[Walkers]:
    for record in range(len(RECORDS)):
        for stage in range(1, STAGES + 1):
            for level in LogLevel:
                world.source.logs[log(record, stage, level)] = text(log_bytes)
    async with world.store() as store, trio.open_nursery() as nursery:
        prefetcher = Prefetcher(store, siblings or FakeSiblings(), nursery, most)
        yield Walkers(world, store, prefetcher)
        nursery.cancel_scope.cancel()


def infos(record: int) -> set[LogKey]:
    return {log(record, stage) for stage in range(1, STAGES + 1)}


async def test_one_open_is_no_walk(world: World, mock_clock: MockClock) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1))
        assert all_of_them.fetched == {log(0, 1)}


async def test_the_second_open_brings_the_rest_of_its_level(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1), log(0, 2))
        assert all_of_them.fetched == infos(0)
        await all_of_them.read(log(0, 3), log(0, 4))
        assert all_of_them.fetched == infos(0)


async def test_who_reads_both_levels_gets_both(world: World, mock_clock: MockClock) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1), log(0, 1, LogLevel.DEBUG))
        assert len(all_of_them.fetched) == 2 * STAGES


async def test_who_walked_through_a_record_gets_the_next_ones(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(*sorted(infos(0), key=str), log(1, 1))
        assert all_of_them.fetched == infos(0) | infos(1) | infos(2) | infos(3)


async def test_opens_of_different_processes_are_no_walk(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        for stage in (1, 2, 3):
            await all_of_them.read(log(0, stage), process=stage)
        assert all_of_them.fetched == {log(0, 1), log(0, 2), log(0, 3)}


async def test_opens_far_apart_are_no_walk(world: World, mock_clock: MockClock) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1))
        mock_clock.jump(6)
        await all_of_them.read(log(0, 2))
        assert all_of_them.fetched == {log(0, 1), log(0, 2)}


async def test_fetching_stops_when_the_walk_stops(world: World, mock_clock: MockClock) -> None:
    async with walkers(world, most=1, log_bytes=2000) as all_of_them:
        await all_of_them.read(log(0, 1))
        world.source.stalls_at = 1000
        all_of_them._prefetcher.opened(log(0, 2), 1)
        await until(lambda: len(world.source.calls) == 2)
        mock_clock.jump(6)
        world.source.go.set()
        await all_of_them.quiet()
        assert len(all_of_them.fetched) == 2


async def test_the_log_that_tells_why_a_build_failed_comes_with_any_other(
    world: World, mock_clock: MockClock
) -> None:
    siblings = FakeSiblings()
    siblings.failed = log(0, 3)
    async with walkers(world, siblings) as all_of_them:
        await all_of_them.read(log(0, 1))
        assert all_of_them.fetched == {log(0, 1), log(0, 3)}
        await all_of_them.read(log(1, 1), process=2)
        assert all_of_them.fetched == {log(0, 1), log(0, 3), log(1, 1)}


async def test_no_more_than_so_many_at_once(world: World, mock_clock: MockClock) -> None:
    async with walkers(world, most=2, log_bytes=2000) as all_of_them:
        await all_of_them.read(log(0, 1))
        await all_of_them.read(log(0, 1, LogLevel.DEBUG))
        assert len(all_of_them.fetched) == 2 * STAGES
        assert world.source.most_flying <= 2


async def test_none_at_all_if_so_wanted(world: World, mock_clock: MockClock) -> None:
    async with walkers(world, most=0) as all_of_them:
        await all_of_them.read(log(0, 1), log(0, 2))
        assert all_of_them.fetched == {log(0, 1), log(0, 2)}


async def test_what_was_fetched_in_vain_is_counted(world: World, mock_clock: MockClock) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1), log(0, 2))
        counts = all_of_them._store.statistics()
        assert (counts.fetched_ahead, counts.fetched_in_vain) == (2, 2)
        await all_of_them.read(log(0, 3))
        counts = all_of_them._store.statistics()
        assert (counts.fetched_ahead, counts.fetched_in_vain) == (2, 1)


async def test_a_failure_ahead_is_nobodys(world: World, mock_clock: MockClock) -> None:
    async with walkers(world) as all_of_them:
        del world.source.logs[log(0, 3)]
        await all_of_them.read(log(0, 1), log(0, 2))
        assert log(0, 4) in all_of_them.fetched
