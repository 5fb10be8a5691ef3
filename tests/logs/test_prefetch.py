"""Fetching ahead: for who walks, for nobody else, and never more than once."""

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
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

    def __init__(
        self,
        world: World,
        store: LogStore,
        prefetcher: Prefetcher,
        given: dict[int, Sequence[LogKey | RecordId]],
    ) -> None:
        self.given = given  # the command lines of processes
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
        given: dict[int, Sequence[LogKey | RecordId]] = {}

        async def given_to(process: int) -> Sequence[LogKey | RecordId]:
            await trio.lowlevel.checkpoint()
            return given.get(process, ())

        prefetcher = Prefetcher(store, siblings or FakeSiblings(), given_to, nursery, most)
        yield Walkers(world, store, prefetcher, given)
        nursery.cancel_scope.cancel()


def infos(record: int) -> set[LogKey]:
    return {log(record, stage) for stage in range(1, STAGES + 1)}


async def test_what_cannot_be_fetched_ahead_is_nobodys_trouble(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1))
        world.source.failure = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        all_of_them._prefetcher.opened(log(0, 2), 1)
        await all_of_them.quiet()
        world.source.failure = None
        await all_of_them.read(log(0, 3))


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
        assert all_of_them.fetched == set().union(*map(infos, range(5)))


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


async def test_who_was_given_logs_gets_those_that_follow_at_once(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        given = [log(0, 2), log(3, 1, LogLevel.DEBUG), log(0, 4), log(2, 2)]
        all_of_them.given[1] = given
        await all_of_them.read(given[1])
        assert all_of_them.fetched == set(given[1:])
        await all_of_them.read(given[2], given[3])
        assert all_of_them.fetched == set(given[1:])


async def test_who_was_given_records_gets_their_logs_of_the_levels_it_reads(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        all_of_them.given[1] = [RECORDS[3], RECORDS[0], RECORDS[2]]
        await all_of_them.read(log(0, 1))
        assert all_of_them.fetched == infos(0) | infos(2)
        await all_of_them.read(log(0, 1, LogLevel.DEBUG))
        assert len(all_of_them.fetched) == 4 * STAGES


async def test_not_all_of_a_long_command_line_is_fetched_at_once(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world) as all_of_them:
        given = [log(0, stage) for stage in range(1, 101)]
        world.source.logs.update({key: text(100) for key in given})
        all_of_them.given[1] = given
        await all_of_them.read(given[0])
        assert all_of_them.fetched == set(given[:33])
        await all_of_them.read(given[10])
        assert set(given[:43]) <= all_of_them.fetched


async def test_two_who_walk_the_same_way_fetch_nothing_twice(
    world: World, mock_clock: MockClock
) -> None:
    async with walkers(world, log_bytes=2000) as all_of_them:
        all_of_them.given[1] = all_of_them.given[2] = [RECORDS[0], RECORDS[1]]
        for process in (1, 2):
            all_of_them._prefetcher.opened(log(0, 1), process)
        await all_of_them.quiet()
        assert all_of_them.fetched == infos(0) - {log(0, 1)} | infos(1)


async def test_what_goes_wrong_ahead_in_an_unforeseen_way_ends_nothing(
    world: World, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeSiblings):
        async def logs_of(self, record: RecordId) -> tuple[LogKey, ...]:
            raise RuntimeError("a mistake")

    async with walkers(world, Broken()) as all_of_them:
        await all_of_them.read(log(0, 1), log(0, 2))
    assert "RuntimeError: a mistake" in caplog.text


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


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), ValueError("a mistake")])
async def test_what_goes_wrong_ahead_of_a_walk_ends_nothing(
    world: World, mock_clock: MockClock, failure: Exception
) -> None:
    async with walkers(world) as all_of_them:
        await all_of_them.read(log(0, 1))
        world.source.fails = {log(0, 3): failure}
        await all_of_them.read(log(0, 2))
        world.source.fails = {}
        await all_of_them.read(log(0, 3), log(0, 4))
