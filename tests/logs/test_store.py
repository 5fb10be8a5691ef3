"""The log store between an in-memory source and a real disk tier.

Time is trio's mock clock, moved by hand: worker threads take real time, which does not count.
"""

import hashlib
import os
import shutil
import time
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    BuildNotFound,
    CodeArtsError,
    LogNotFound,
    LogRewritten,
)
from codeartsfs.logs.body import IN_MEMORY_BYTES, Body
from codeartsfs.logs.disk import DiskTier, LogMeta
from codeartsfs.logs.store import LogStore, OpenLog, Provenance
from codeartsfs.model import LogNote, StageRun
from codeartsfs.names import LogKey, RecordId
from codeartsfs.priority import background
from tests.logs.fakes import (
    KEY,
    OVER,
    RECORD,
    RUNNING,
    World,
    content_of,
    key,
    landed,
    text,
    until,
)

LOG = text(10_000)
LARGE = text(100_000)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# One flight.


async def test_many_readers_share_one_download(world: World, mock_clock: MockClock) -> None:
    world.source.logs[KEY] = LOG
    got: list[bytes] = []
    async with world.store() as store:

        async def reader() -> None:
            got.append(await content_of(store))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(reader)
        await landed(store)
        assert store.statistics().downloads == 1
    assert got == [LOG] * 50
    assert len(world.source.calls) == 1


async def test_cancelled_first_reader_leaves_the_download_running(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.size_known = False
    world.source.stalls_at = 5000
    async with world.store() as store:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.open, KEY)
                await until(lambda: world.source.flying == 1)
                first.cancel()
        assert first.cancelled_caught
        world.source.go.set()
        await landed(store)
        assert await content_of(store) == LOG
    assert len(world.source.calls) == 1


async def test_what_is_too_large_to_be_kept_is_downloaded_for_readers_only(
    world: World, mock_clock: MockClock
) -> None:
    large = text(2 * IN_MEMORY_BYTES)
    world.disk_bytes = len(large) // 2
    world.source.logs = {KEY: large, key(2): large}
    world.source.stalls_at = 5000
    async with world.store() as store:
        left, stays = await store.open(KEY), await store.open(KEY)
        left.close()
        world.source.go.set()
        assert await stays.read(0, len(large)) == large
        stays.close()
        world.source.go = trio.Event()
        opened = await store.open(key(2))
        opened.close()
        world.source.go.set()
        await landed(store)
        assert "too large" in (await store.provenance(key(2))).last_error


async def test_open_returns_once_the_size_is_known_and_reads_wait_for_their_range(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.stalls_at = 6000
    async with world.store() as store:
        opened = await store.open(KEY)
        assert opened.stat.size_bytes == len(LOG)
        assert await opened.read(1000, 5000) == LOG[1000:6000]
        late: list[bytes] = []

        async def read_late() -> None:
            late.append(await opened.read(5999, 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_late)
            await wait_all_tasks_blocked()
            assert not late
            world.source.go.set()
        assert late == [LOG[5999:6001]]
        assert await opened.read(len(LOG) - 1, 100) == LOG[-1:]
        assert await opened.read(len(LOG), 100) == b""
        opened.close()
        await landed(store)


async def test_open_waits_for_the_end_where_no_size_is_told(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.size_known = False
    world.source.stalls_at = len(LOG)
    sizes: list[int] = []
    async with world.store() as store:

        async def opener() -> None:
            opened = await store.open(KEY)
            sizes.append(opened.stat.size_bytes)
            opened.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opener)
            await until(lambda: world.source.flying == 1)
            await wait_all_tasks_blocked()
            assert not sizes
            world.source.go.set()
        assert sizes == [len(LOG)]
        await landed(store)


@pytest.mark.parametrize("size_known", [True, False])
async def test_empty_log_is_opened_and_read(
    world: World, mock_clock: MockClock, size_known: bool
) -> None:
    world.source.logs[KEY] = b""
    world.source.size_known = size_known
    async with world.store() as store:
        assert await content_of(store) == b""
        await landed(store)
        assert await content_of(store) == b""
    assert len(world.source.calls) == 1


# Failures.


async def test_failure_reaches_everybody_aboard_and_nothing_is_cached(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.breaks_at = world.source.stalls_at = 4000
    failures: list[CodeArtsError] = []
    async with world.store() as store:
        handles = [await store.open(KEY) for _ in range(5)]

        async def reader(opened: OpenLog) -> None:
            try:
                await opened.read(3999, 2)
            except ApiUnavailable as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            for opened in handles:
                nursery.start_soon(reader, opened)
            await wait_all_tasks_blocked()
            world.source.go.set()
        assert len(failures) == 5
        assert len(world.source.calls) == 1
        for opened in handles:
            assert await opened.read(0, 4000) == LOG[:4000]  # what was served stays
            opened.close()
        await landed(store)
        assert await store.cached_logs(RECORD) == ()


async def test_reading_handle_resumes_where_a_broken_download_stopped(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.breaks_at = 4000
    async with world.store() as store:
        opened = await store.open(KEY)
        with pytest.raises(ApiUnavailable):
            await opened.read(0, len(LOG))
        await landed(store)
        world.source.breaks_at = None
        assert await opened.read(0, len(LOG)) == LOG
        opened.close()
        await landed(store)
        assert await content_of(store) == LOG
    assert [call.prefix_bytes for call in world.source.calls] == [0, 4000]


async def test_stat_of_a_broken_log_leaves_the_bytes_of_its_reader(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.source.breaks_at = 4000
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        world.source.breaks_at = None
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        mock_clock.jump(60)
        await wait_all_tasks_blocked()
        assert await opened.read(0, len(LOG)) == LOG
        opened.close()
        await landed(store)


async def test_resumed_download_that_is_gone_is_an_error_and_no_wait(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    world.source.breaks_at = 4000
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        del world.source.logs[KEY]
        with pytest.raises(LogNotFound):
            await opened.read(0, len(LOG))
        opened.close()


async def test_absence_is_remembered_for_five_seconds(world: World, mock_clock: MockClock) -> None:
    async with world.store() as store:
        for _ in range(3):
            with pytest.raises(LogNotFound):
                await store.open(KEY)
        assert len(world.source.calls) == 1
        assert store.absent(KEY)
        mock_clock.jump(4.999)
        with pytest.raises(LogNotFound):
            await store.stat(KEY)
        assert len(world.source.calls) == 1
        world.source.logs[KEY] = LOG
        mock_clock.jump(0.002)
        assert not store.absent(KEY)
        assert await content_of(store) == LOG
        await landed(store)


@pytest.mark.parametrize(
    "failure", [ApiUnavailable("down"), AccessDenied("no"), BadAnswer("html"), ValueError("bug")]
)
async def test_other_failures_are_not_remembered(
    world: World, mock_clock: MockClock, failure: Exception
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        world.source.failure = failure
        for _ in range(2):
            with pytest.raises(type(failure)):
                await store.open(KEY)
        assert not store.absent(KEY)
        world.source.failure = None
        assert await content_of(store) == LOG
        await landed(store)
    assert len(world.source.calls) == 3


# The tiers.


async def test_final_log_comes_from_memory_without_a_call(
    world: World, mock_clock: MockClock
) -> None:
    world.disk_bytes = None
    world.memory_bytes = 1 << 20
    world.source.logs.update({key(n): text(5000, str(n)) for n in range(1, 101)})
    async with world.store() as store:
        for n in range(1, 101):
            await content_of(store, key(n))
            await landed(store)
        # The first ones are no longer among the idle logs.
        assert await content_of(store, key(1)) == text(5000, "1")
        assert store.statistics().memory_hits == 1
    assert len(world.source.calls) == 100


async def test_final_log_comes_from_disk_after_a_restart_without_any_call(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
    world.events.clear()
    world.source.failure = world.states.failure = ApiUnavailable("no network")
    async with world.store() as store:
        assert await store.cached_records() == (RECORD,)
        assert await store.cached_logs(RECORD) == (KEY,)
        assert await content_of(store) == LOG
        stat = await store.stat(KEY)
        assert (stat.size_bytes, stat.modified_ns) == (len(LOG), OVER.finished_ns)
        assert stat.final
        assert store.statistics().disk_hits == 1
    assert world.events == []


async def test_memory_tier_of_no_size_keeps_nothing_and_fails_nothing(
    world: World, mock_clock: MockClock
) -> None:
    world.memory_bytes = 0
    world.source.logs[KEY] = b""
    async with world.store() as store:
        assert await content_of(store) == b""
        await landed(store)
        assert len(store.memory) == 0


async def test_failing_disk_never_fails_a_read(
    world: World, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        # A file where the record's directory belongs: mkdir fails, whoever we are.
        (world.cache / "v1" / RECORD).write_text("in the way")
        assert await content_of(store) == LOG
        await landed(store)
        assert await store.cached_logs(RECORD) == (KEY,)  # at hand, though not on disk
    assert "is not kept" in caplog.text


async def test_cache_directory_removed_under_the_store_fails_no_read(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs.update({key(1): LOG, key(2): LOG})
    async with world.store() as store:
        await content_of(store, key(1))
        await landed(store)
        shutil.rmtree(world.cache)
        assert await store.cached_records() == ()
        assert await content_of(store, key(2)) == LOG
        await landed(store)
        assert await store.cached_records() == (RECORD,)
        assert (world.cache / "v1").stat().st_mode & 0o777 == 0o700


async def test_cache_directory_that_cannot_come_back_fails_no_read(
    world: World, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        shutil.rmtree(world.cache)
        world.cache.write_text("no directory")
        assert await content_of(store) == LOG
        await landed(store)
        assert await content_of(store) == LOG
    assert "is not kept" in caplog.text
    assert len(world.source.calls) == 1


async def test_log_larger_than_the_cache_is_read_all_the_same(
    world: World, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.disk_bytes = 5000
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        assert await content_of(store) == LOG
        await landed(store)
    assert "larger than the whole cache" in caplog.text


async def test_evicted_log_stays_readable_while_it_is_open(
    world: World, mock_clock: MockClock
) -> None:
    world.disk_bytes = 25_000
    world.source.logs.update({key(n): text(10_000, str(n)) for n in range(1, 6)})
    async with world.store() as store:
        opened = await store.open(key(1))
        await landed(store)
        for n in range(2, 6):
            await content_of(store, key(n))
            await landed(store)
        assert not (world.cache / "v1" / RECORD / "stage1.info.log").exists()
        assert await opened.read(0, 10_000) == text(10_000, "1")
        opened.close()


async def test_idle_logs_let_go_of_their_files(world: World, mock_clock: MockClock) -> None:
    world.source.logs.update({key(n): text(100, str(n)) for n in range(1, 151)})
    before = open_files()
    async with world.store() as store:
        for n in range(1, 151):
            await content_of(store, key(n))
            await landed(store)
        assert open_files() - before <= 64
    assert open_files() == before


# Logs that grow.


async def test_running_log_is_refreshed_when_it_is_older_than_refresh_s(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        world.source.logs[KEY] = LOG + b"more\n"
        mock_clock.jump(0.999)
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        assert len(world.source.calls) == 1
        mock_clock.jump(0.001)
        assert (await store.stat(KEY)).size_bytes == len(LOG) + 5
        assert await opened.read(len(LOG), 100) == b"more\n"
        opened.close()
        assert await content_of(store) == LOG + b"more\n"
        await landed(store)
    assert [call.prefix_bytes for call in world.source.calls] == [0, len(LOG)]
    assert world.source.calls[1].tail_bytes == 4096  # its end is proof enough


async def test_failed_refresh_fails_an_open_but_no_stat(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        world.source.failure = ApiUnavailable("down")
        mock_clock.jump(2)
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        with pytest.raises(ApiUnavailable):
            await store.open(KEY)
        assert await opened.read(0, len(LOG)) == LOG
        opened.close()


async def test_growth_that_breaks_off_is_announced_only_as_far_as_it_is_here(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        world.source.logs[KEY] = text(20_000)
        world.source.breaks_at = 12_000
        mock_clock.jump(2)
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        assert await opened.read(0, 20_000) == LOG
        world.source.breaks_at = None
        mock_clock.jump(2)
        assert (await store.stat(KEY)).size_bytes == 20_000
        assert await opened.read(0, 20_000) == text(20_000)
        opened.close()
    assert [call.prefix_bytes for call in world.source.calls] == [0, 10_000, 12_000]


async def test_log_is_sealed_by_comparing_all_of_it(world: World, mock_clock: MockClock) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        assert not (await store.stat(KEY)).final
        assert not (world.cache / "v1" / RECORD).exists()  # only what is over enters the cache
        world.states.run = OVER
        mock_clock.jump(2)
        assert await content_of(store) == LOG
        await landed(store)
        assert (await store.stat(KEY)).final
        assert (await store.stat(KEY)).modified_ns == OVER.finished_ns
        assert (world.cache / "v1" / RECORD / KEY.file_name).exists()
        mock_clock.jump(1000)
        await content_of(store)
    calls = [(call.prefix_bytes, call.tail_bytes) for call in world.source.calls]
    assert calls == [(0, 0), (len(LOG), 0)]


async def test_state_is_asked_before_the_body(world: World, mock_clock: MockClock) -> None:
    world.source.logs[KEY] = LOG
    world.states.run = RUNNING
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        mock_clock.jump(2)
        await content_of(store)
        await landed(store)
    assert world.events == ["state", "body"] * 2


async def test_stage_that_ends_during_the_download_is_not_final_yet(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    world.source.stalls_at = 5000
    async with world.store() as store:
        opened = await store.open(KEY)
        world.states.run = OVER
        world.source.go.set()
        await landed(store)
        assert not opened.stat.final
        opened.close()


async def test_rewritten_log_is_another_file(world: World, mock_clock: MockClock) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        old = await store.open(KEY)
        await landed(store)
        world.source.logs[KEY] = text(12_000, "other")
        mock_clock.jump(2)
        assert store.generation(KEY) == 0
        assert await content_of(store) == text(12_000, "other")
        assert store.generation(KEY) == 1
        with pytest.raises(LogRewritten):
            await old.read(0, 10)
        old.close()
        await landed(store)


async def test_last_handle_of_a_rewritten_log_takes_nothing_from_its_successor(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = text(IN_MEMORY_BYTES + 1)
    other = text(IN_MEMORY_BYTES + 1, "other")
    before = open_files()
    async with world.store() as store:
        old = await store.open(KEY)
        await landed(store)
        world.source.logs[KEY] = other
        mock_clock.jump(2)
        await content_of(store)
        await landed(store)
        old.close()
        store.check_invariants()
        assert open_files() == before + 1
        assert await content_of(store) == other
    assert open_files() == before


async def test_log_rewritten_at_the_last_look_is_not_sealed_with_old_bytes(
    world: World, mock_clock: MockClock
) -> None:
    """A change before the tail is only seen by the comparison of everything."""
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    changed = b"X" + LOG[1:]
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        world.source.logs[KEY] = changed
        world.states.run = OVER
        mock_clock.jump(2)
        assert await content_of(store) == changed
        await landed(store)
    async with world.store() as store:
        assert await content_of(store) == changed


async def test_stage_that_has_not_written_yet_has_an_empty_log_that_grows(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    async with world.store() as store:
        opened = await store.open(KEY)
        assert opened.stat.size_bytes == 0
        assert await opened.read(0, 10) == b""
        world.source.logs[KEY] = LOG
        mock_clock.jump(2)
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        assert await opened.read(0, len(LOG)) == LOG
        opened.close()


async def test_stage_that_never_wrote_a_log_has_none_once_it_is_over(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    async with world.store() as store:
        assert await content_of(store) == b""
        await landed(store)
        world.states.run = OVER
        mock_clock.jump(2)
        with pytest.raises(LogNotFound):
            await store.open(KEY)
        assert not (world.cache / "v1" / RECORD).exists()


# Logs whose stage has no state.


async def put_on_disk(world: World, checked_ago_s: float, unchanged: int) -> None:
    """Leave a log without state in the cache, last looked at some time ago."""
    world.states.run = None
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
    disk = DiskTier(world.cache, 1 << 30)
    loaded = await disk.meta(KEY)
    assert loaded is not None
    assert not loaded.final
    checked_ns = time.time_ns() - int(checked_ago_s * 1e9)
    await disk.touch(KEY, replace(loaded, checked_ns=checked_ns, unchanged=unchanged))
    world.source.calls.clear()


@pytest.mark.parametrize(
    ("unchanged", "wait_s"),
    [(0, 30), (1, 60), (2, 120), (5, 960), (11, 61_440), (12, 86_400), (100_000, 86_400)],
)
async def test_log_without_state_is_looked_at_again_after_a_doubling_time(
    world: World, mock_clock: MockClock, unchanged: int, wait_s: int
) -> None:
    await put_on_disk(world, wait_s - 15, unchanged)
    async with world.store() as store:
        assert await content_of(store) == LOG
        assert world.source.calls == []
    await put_on_disk(world, wait_s + 1, unchanged)
    async with world.store() as store:
        assert await content_of(store) == LOG
        await landed(store)
        assert [call.prefix_bytes for call in world.source.calls] == [len(LOG)]
        assert store.disk is not None
        meta = await store.disk.meta(KEY)
        assert meta is not None
        assert meta.unchanged == unchanged + 1
        assert time.time_ns() - meta.checked_ns < 10 * 10**9


async def test_growth_of_a_log_without_state_starts_the_waiting_over(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 1000, 3)
    world.source.logs[KEY] = LOG + b"more\n"
    async with world.store() as store:
        assert await content_of(store) == LOG + b"more\n"
        await landed(store)
    disk = DiskTier(world.cache, 1 << 30)
    loaded = await disk.load(KEY)
    assert loaded is not None
    body, meta = loaded
    assert (meta.size_bytes, meta.unchanged) == (len(LOG) + 5, 0)
    assert await body.read(0, 20_000) == LOG + b"more\n"
    body.close()


async def test_log_that_loses_its_state_does_not_wait_for_a_day(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        for _ in range(20):  # a stage that runs, and is silent
            await content_of(store)
            await landed(store)
            mock_clock.jump(2)
        world.states.run = None
        await content_of(store)
        await landed(store)
        assert store.disk is not None
        meta = await store.disk.meta(KEY)
        assert meta is not None
        assert meta.unchanged == 0


@pytest.mark.parametrize("failure", [ApiUnavailable("down"), AccessDenied("no"), None])
async def test_cached_log_without_state_is_served_when_nobody_can_be_asked(
    world: World, mock_clock: MockClock, failure: CodeArtsError | None
) -> None:
    await put_on_disk(world, 100, 0)
    world.source.failure = world.states.failure = failure
    world.source.logs.clear()  # with no failure, the server forgot it
    async with world.store() as store:
        assert await content_of(store) == LOG
        await landed(store)
    async with world.store() as store:
        assert await content_of(store) == LOG
        await landed(store)


async def test_a_log_that_the_server_forgot_while_it_grew_stays_doubtful(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    world.states.run = RUNNING
    async with world.store() as store:
        opened = await store.open(KEY)
        await opened.kept()
        assert opened.doubt == ""
        world.source.logs.clear()
        world.states.run = OVER
        mock_clock.jump(2)
        await store.stat(KEY)
        await landed(store)
        opened.close()
    for _ in range(2):
        async with world.store() as store:
            opened = await store.open(KEY)
            assert await opened.read(0, len(LOG)) == LOG
            assert await opened.kept()
            assert "it is not there" in opened.doubt
            opened.close()


async def test_a_whole_log_that_the_server_forgot_is_not_doubted(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 100, 0)
    async with world.store() as store:
        opened = await store.open(KEY)
        await opened.kept()
        assert opened.doubt == ""
        opened.close()


async def test_cached_log_without_state_is_shown_though_the_api_hangs(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 100, 0)
    world.source.stalls_at = len(LOG)
    got: list[bytes] = []
    async with world.store() as store:

        async def reader() -> None:
            got.append(await content_of(store))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await until(lambda: world.source.flying == 1)
            await wait_all_tasks_blocked()
            assert not got
            mock_clock.jump(5)
        assert got == [LOG]
        world.source.go.set()
        await landed(store)


async def test_log_rewritten_since_it_was_cached_is_read_anew_once(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 100, 0)
    world.source.logs[KEY] = text(3000, "other")
    async with world.store() as store:
        assert await content_of(store) == text(3000, "other")
        await landed(store)
        assert len(world.source.calls) == 2
    async with world.store() as store:
        assert await content_of(store) == text(3000, "other")
    assert len(world.source.calls) == 2


async def test_record_that_is_gone_does_not_hide_its_cached_log(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 100, 0)
    world.source.failure = BuildNotFound(RECORD, "gone")
    async with world.store() as store:
        assert await content_of(store) == LOG
        await landed(store)
        assert not store.absent(KEY)


# Probes.


async def test_probe_that_nobody_follows_is_dropped_and_its_size_remembered(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LARGE
    world.source.stalls_at = 1000
    before = open_files()
    async with world.store() as store:
        assert (await store.stat(KEY)).size_bytes == len(LARGE)
        mock_clock.jump(1.999)
        await wait_all_tasks_blocked()
        assert world.source.flying == 1
        mock_clock.jump(0.001)
        await landed(store)
        assert world.source.flying == 0
        known = store.peek(KEY)
        assert known is not None
        assert known.size_bytes == len(LARGE)
        assert store.statistics().open_logs == 0
    assert open_files() == before
    assert len(world.source.calls) == 1


async def test_probe_of_a_small_log_takes_it_whole_and_holds_nothing_up(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        assert (await store.stat(KEY)).size_bytes == len(LOG)
        await landed(store)  # though the clock stands still
        assert await content_of(store) == LOG
    assert len(world.source.calls) == 1


async def test_open_after_a_probe_goes_on_with_its_download(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await store.stat(KEY)
        mock_clock.jump(1)
        assert await content_of(store) == LOG
        mock_clock.jump(60)
        await landed(store)
        assert await content_of(store) == LOG
    assert len(world.source.calls) == 1


async def test_open_after_a_dropped_probe_downloads_anew(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LARGE
    async with world.store() as store:
        await store.stat(KEY)
        mock_clock.jump(2)
        await landed(store)
        assert await content_of(store) == LARGE
        await landed(store)
    assert [call.prefix_bytes for call in world.source.calls] == [0, 0]


# The end.


async def test_store_closes_while_downloads_run(world: World, mock_clock: MockClock) -> None:
    world.source.logs.update({key(n): LOG for n in range(1, 11)})
    world.source.stalls_at = 5000
    before = open_files()
    async with world.store() as store:
        handles = [await store.open(key(n)) for n in range(1, 11)]
        assert world.source.flying == 10
    assert world.source.flying == 0
    assert open_files() == before
    for opened in handles:
        opened.close()
    store.check_invariants()
    assert not list((world.cache / "v1" / "tmp").iterdir())


class SlowDisk(DiskTier):
    """A disk tier that saves only when it is let."""

    saving = False
    go: trio.Event

    async def save(self, key: LogKey, body: Body, meta: LogMeta) -> frozenset[LogKey]:
        self.saving = True
        await self.go.wait()
        return await super().save(key, body, meta)


async def test_nothing_is_appended_to_a_log_that_is_being_saved(
    world: World, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    world.tier = SlowDisk
    world.states.run = None
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        assert isinstance(store.disk, SlowDisk)
        store.disk.go = trio.Event()
        opened = await store.open(KEY)
        await until(lambda: isinstance(store.disk, SlowDisk) and store.disk.saving)
        opened._log.checked_ns -= 3600 * 10**9  # as if its download had taken an hour
        world.source.logs[KEY] = LOG + b"more\n"
        assert await content_of(store) == LOG
        assert len(world.source.calls) == 1
        store.disk.go.set()
        await landed(store)
        assert await content_of(store) == LOG + b"more\n"
        await landed(store)
        opened.close()
    assert len(world.source.calls) == 2
    assert "damaged" not in caplog.text
    world.tier = DiskTier
    async with world.store() as store:
        assert await content_of(store) == LOG + b"more\n"
        await landed(store)
        assert store.statistics().disk_hits == 1


# What is remembered beyond the process.


async def test_sizes_of_final_and_stateless_logs_are_noted_but_not_of_running_ones(
    world: World, mock_clock: MockClock
) -> None:
    for run, noted in ((OVER, True), (None, True), (RUNNING, False)):
        world.states.run, world.states.notes = run, {}
        world.source.logs[KEY] = b"log\n"
        async with world.store() as store:
            await content_of(store)
            await landed(store)
            if world.disk_bytes:
                assert store.disk is not None
                await store.disk.remove(KEY)
        note = world.states.notes.get(KEY)
        assert (note is not None) == noted
        assert note is None or (note.size_bytes, note.final) == (4, run is OVER)


@pytest.mark.parametrize("final", [True, False])
async def test_what_an_earlier_process_noted_is_shown_without_a_call(
    world: World, mock_clock: MockClock, final: bool
) -> None:
    world.states.notes[KEY] = LogNote(77, 5, final)
    async with world.store() as store:
        stat = store.peek(KEY)
        assert stat is not None
        assert (stat.size_bytes, stat.modified_ns, stat.final) == (77, 5, final)
        assert stat.settled == final
        assert world.source.calls == []


@pytest.mark.parametrize("where", ["told", "not told", "on disk"])
@pytest.mark.parametrize(
    ("noted", "generation"),
    [
        (LogNote(77, 5, True), 1),
        (LogNote(2, 5, True), 1),
        (LogNote(77, 5, False), 1),
        (LogNote(2, 5, False), 0),
        (LogNote(4, 5, True), 0),
    ],
)
async def test_a_log_that_is_not_as_noted_and_did_not_just_grow_is_another_file(
    world: World, mock_clock: MockClock, noted: LogNote, generation: int, where: str
) -> None:
    # The kernel was told the noted size, and may believe it for long.
    world.source.logs[KEY] = b"log\n"
    world.source.size_known = where != "not told"
    if where == "on disk":
        async with world.store() as store:
            await content_of(store)
            await landed(store)
    world.states.notes[KEY] = noted
    async with world.store() as store:
        assert await content_of(store) == b"log\n"
        assert store.generation(KEY) == generation
        await landed(store)
    assert len(world.source.calls) == 1
    note = world.states.notes[KEY]
    assert note is None or note.size_bytes == 4 or not generation


async def test_a_note_is_forgotten_when_the_server_rewrote_the_log(
    world: World, mock_clock: MockClock
) -> None:
    await put_on_disk(world, 100, 0)
    noted = world.states.notes[KEY]
    assert noted is not None
    assert noted.size_bytes == len(LOG)
    world.source.logs[KEY] = text(3000, "other")
    world.source.size_known, world.source.stalls_at = False, 0
    async with world.store() as store, trio.open_nursery() as nursery:
        nursery.start_soon(content_of, store)
        await until(lambda: len(world.source.calls) == 2)  # the new log is on its way
        assert world.states.notes[KEY] is None
        assert store.peek(KEY) is None
        world.source.go.set()
    noted = world.states.notes[KEY]
    assert noted is not None
    assert noted.size_bytes == 3000


async def test_where_a_log_is_follows_it_from_the_api_to_disk(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LARGE
    world.source.stalls_at = 1000
    before_ns = time.time_ns()
    async with world.store() as store:
        assert await store.provenance(KEY) == Provenance("no", None, "", "", "")
        opened = await store.open(KEY)
        await until(lambda: world.source.flying == 1)
        assert (await store.provenance(KEY)).cached == "no"  # not all of it is here yet
        world.source.go.set()
        await landed(store)
        opened.close()
        assert (await store.provenance(KEY)).cached == "disk"
    world.source.failure = ApiUnavailable("down")
    async with world.store() as store:
        after = await store.provenance(KEY)
        assert (after.cached, after.request_id, after.last_error) == ("disk", "req-1", "")
        assert after.sha256 == hashlib.sha256(LARGE).hexdigest()
        assert after.fetched_ns is not None
        assert before_ns <= after.fetched_ns <= time.time_ns()
        assert len(world.source.calls) == 1


async def test_without_a_disk_tier_a_log_at_hand_is_in_memory(
    world: World, mock_clock: MockClock
) -> None:
    world.disk_bytes = None
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        where = await store.provenance(KEY)
        assert (where.cached, where.sha256) == ("memory", hashlib.sha256(LOG).hexdigest())


async def test_why_a_look_failed_is_told_until_one_succeeds(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        for failure, told in ((ApiUnavailable("down (request 7)"), "down (request 7)"), (None, "")):
            world.source.failure = failure
            mock_clock.jump(2)
            await store.stat(KEY)
            await landed(store)
            assert (await store.provenance(KEY)).last_error == told


async def test_the_disk_is_looked_through_once_for_a_record_nothing_is_noted_of(
    world: World, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        await content_of(store)
        await landed(store)
    world.states.notes = {}
    async with world.store() as store:
        assert store.disk is not None
        looks: list[RecordId] = []
        logs = store.disk.logs

        async def counted(record: RecordId) -> tuple[LogKey, ...]:
            looks.append(record)
            return await logs(record)

        monkeypatch.setattr(store.disk, "logs", counted)
        for _ in range(3):
            assert await store.recall(key(2)) is None
            stat = await store.recall(KEY)
            assert stat is not None
            assert stat.size_bytes == 4
        assert looks == [RECORD]


# Following.


async def looked_at_every(world: World, store: LogStore, clock: MockClock, seconds: int) -> int:
    """Stat a log ten times a second for a while, and return how often that reached the API."""
    before = len(world.source.calls)
    for _ in range(seconds * 10):
        await store.stat(KEY)
        await landed(store)
        clock.jump(0.1)
    return len(world.source.calls) - before


async def test_a_running_log_is_looked_at_once_a_refresh_however_often_somebody_looks(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        assert (await store.open(KEY)).stat.size_bytes == 4
        await landed(store)
        assert 9 <= await looked_at_every(world, store, mock_clock, 10) <= 10


async def test_a_quiet_log_is_looked_at_less_often_until_it_grows(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        mock_clock.jump(700)
        assert 2 <= await looked_at_every(world, store, mock_clock, 10) <= 3
        world.source.logs[KEY] += b"more\n"
        mock_clock.jump(5)
        await store.stat(KEY)
        await landed(store)
        assert opened.stat.size_bytes == 9
        assert 9 <= await looked_at_every(world, store, mock_clock, 10) <= 10
        opened.close()


async def test_looks_at_a_log_that_comes_whole_transfer_no_more_than_so_much_a_second(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = RUNNING
    world.source.whole = True
    world.source.chunk_bytes = 1 << 20
    size_bytes = 16 << 20
    world.source.logs[KEY] = bytes(size_bytes)
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        mock_clock.jump(2)
        await store.stat(KEY)  # shows that it comes whole
        await landed(store)
        looks = await looked_at_every(world, store, mock_clock, 20)
        assert looks * size_bytes <= 20 * (2 << 20)
        assert looks > 0
        opened.close()


async def test_a_log_is_sealed_only_a_while_after_its_stage_was_over(
    world: World, mock_clock: MockClock
) -> None:
    just_now = replace(OVER, finished_ns=time.time_ns())
    world.states.run = just_now
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        assert not opened.stat.final
        assert opened.stat.modified_ns >= just_now.finished_ns  # type: ignore[operator]
        # The service writes out what it still held.
        world.source.logs[KEY] += b"the last words\n"
        mock_clock.jump(5)
        await store.stat(KEY)
        await landed(store)
        assert (opened.stat.size_bytes, opened.stat.final) == (19, False)
        mock_clock.jump(6)
        await store.stat(KEY)
        await landed(store)
        assert (opened.stat.size_bytes, opened.stat.final) == (19, True)
        opened.close()
        calls = len(world.source.calls)
        assert await content_of(store) == b"log\nthe last words\n"
        assert len(world.source.calls) == calls
        # The look that sealed it compared all of it.
        assert (world.source.calls[-1].prefix_bytes, world.source.calls[-1].tail_bytes) == (19, 0)


async def test_a_log_whose_stage_was_over_long_ago_is_sealed_at_once(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        assert opened.stat.final
        opened.close()


async def test_a_stage_that_is_over_by_word_alone_is_waited_for_too(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = replace(RUNNING, status="ABORTED", started_ns=1)
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        opened = await store.open(KEY)
        await landed(store)
        assert not opened.stat.final
        mock_clock.jump(11)
        await store.stat(KEY)
        await landed(store)
        assert opened.stat.final
        opened.close()


async def test_a_look_can_be_ordered(world: World, mock_clock: MockClock) -> None:
    world.states.run = None  # the API does not tell: age would decide
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        world.source.logs[KEY] += b"more\n"
        assert await content_of(store) == b"log\n"
        stat = await store.refresh(KEY)
        assert (stat.size_bytes, stat.final) == (9, False)
        assert await content_of(store) == b"log\nmore\n"
        await landed(store)
        world.source.failure = ApiUnavailable("down")
        with pytest.raises(ApiUnavailable):
            await store.refresh(KEY)
        await landed(store)
        assert await content_of(store) == b"log\nmore\n"


async def test_an_order_costs_nothing_for_a_final_log(world: World, mock_clock: MockClock) -> None:
    world.source.logs[KEY] = b"log\n"
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        calls = len(world.source.calls)
        assert (await store.refresh(KEY)).final
        assert len(world.source.calls) == calls


async def test_refresh_of_a_log_that_was_run_again_tells_of_the_new_one(
    world: World, mock_clock: MockClock
) -> None:
    world.states.run = None
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        world.source.logs[KEY] = text(12_000, "other")
        assert (await store.refresh(KEY)).size_bytes == 12_000


@pytest.mark.parametrize("seen", [True, False])
async def test_a_stage_that_runs_again_settles_anew(
    world: World, mock_clock: MockClock, seen: bool
) -> None:
    """Nothing was written the first time, so nothing shows that this is another log."""
    now_ns = time.time_ns()
    world.states.run = StageRun(KEY.stage, status="success", finished_ns=now_ns)
    world.source.logs[KEY] = b""
    async with world.store() as store:
        opened = await store.open(KEY)
        mock_clock.jump(20)
        world.source.logs[KEY] = LOG
        if seen:
            world.states.run = RUNNING
            await store.refresh(KEY)
        else:
            now_ns += 1
        world.states.run = StageRun(KEY.stage, status="success", finished_ns=now_ns)
        assert not (await store.refresh(KEY)).final
        world.source.logs[KEY] = LOG + b"the last line\n"
        mock_clock.jump(10)
        assert (await store.refresh(KEY)).final
        assert await content_of(store) == LOG + b"the last line\n"
        opened.close()


# What it is doing.


async def test_opens_are_hits_unless_they_waited_for_the_api(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        await content_of(store)
        await landed(store)
        await content_of(store)
        await store.stat(KEY)  # opens nothing
        counts = store.statistics()
        assert (counts.hits, counts.misses) == (1, 1)
        assert (counts.memory_misses, counts.disk_misses, counts.received_bytes) == (1, 1, len(LOG))
    async with world.store() as store:  # from disk
        await content_of(store)
        counts = store.statistics()
        assert (counts.hits, counts.misses, counts.disk_hits) == (1, 0, 1)


async def test_what_is_fetched_ahead_is_neither_hit_nor_miss(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LOG
    async with world.store() as store:
        with background():
            await store.fetch(KEY, 1 << 20)
        counts = store.statistics()
        assert (counts.hits, counts.misses, counts.fetched_ahead) == (0, 0, 1)


async def test_a_flight_is_in_the_background_until_somebody_else_wants_it(
    world: World, mock_clock: MockClock
) -> None:
    world.source.logs[KEY] = LARGE
    world.source.stalls_at = 50_000
    async with world.store() as store, trio.open_nursery() as nursery:
        assert store.flights() == ()
        with background():
            nursery.start_soon(store.fetch, KEY, 1 << 20)
        await until(lambda: any(flight.landed_bytes == 50_000 for flight in store.flights()))
        [flight] = store.flights()
        assert (flight.size_bytes, flight.doing) == (len(LARGE), "bytes")
        assert (flight.waiters, flight.background) == (1, True)
        nursery.start_soon(content_of, store)
        await until(lambda: not store.flights()[0].background)
        await until(lambda: store.flights()[0].waiters == 2)
        world.source.go.set()
        await landed(store)
        assert store.flights() == ()
