"""The disk tier on a real directory: what goes in comes out whole, or not at all."""

import errno
import hashlib
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codeartsfs.logs import disk as disk_module
from codeartsfs.logs.body import Body
from codeartsfs.logs.disk import FOOTER_BYTES, CacheDirectoryError, DiskTier, LogMeta
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from tests.logs.fakes import KEY, RECORD, key, text, until

LOG = text(10_000)
LIMIT = 1 << 30
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")


def meta_of(content: bytes, *, final: bool = True, request_id: str = "req-1") -> LogMeta:
    return LogMeta(
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        final=final,
        modified_ns=1_700_000_000_123_456_789,
        checked_ns=1_700_000_001_000_000_000,
        unchanged=3,
        request_id=request_id,
    )


async def save(
    tier: DiskTier, key: LogKey, content: bytes, meta: LogMeta | None = None
) -> frozenset[LogKey]:
    body = Body(tier.new_file())
    await body.append([content])
    body.announce(len(content))
    try:
        return await tier.save(key, body, meta or meta_of(content))
    finally:
        body.close()


async def content_of(tier: DiskTier, key: LogKey = KEY) -> bytes | None:
    loaded = await tier.load(key)
    if loaded is None:
        return None
    body, meta = loaded
    content = bytes(await body.read(0, meta.size_bytes + 1))
    body.close()
    return content


def entry_of(cache: Path, key: LogKey = KEY) -> Path:
    return cache / "v1" / key.record / key.file_name


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("content", [b"", b"x", LOG, os.urandom(3 << 20)])
async def test_what_was_saved_is_loaded_by_a_later_tier(cache: Path, content: bytes) -> None:
    meta = meta_of(content)
    assert await save(DiskTier(cache, LIMIT), KEY, content, meta) == frozenset()
    tier = DiskTier(cache, LIMIT)
    loaded = await tier.load(KEY)
    assert loaded is not None
    body, found = loaded
    assert found == meta
    assert await body.read(0, len(content) + 1) == content
    body.close()
    assert await tier.meta(KEY) == meta
    assert await tier.records() == (RECORD,)
    assert await tier.logs(RECORD) == (KEY,)


async def test_log_that_was_never_saved_is_a_silent_miss(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, LIMIT)
    assert await tier.load(KEY) is None
    assert await tier.meta(KEY) is None
    assert await tier.logs(RECORD) == ()
    assert not caplog.records


async def test_log_that_may_grow_comes_back_with_its_hash(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG, meta_of(LOG, final=False))
    for _ in range(2):
        loaded = await tier.load(KEY)
        assert loaded is not None
        assert loaded[0].sha256.hexdigest() == hashlib.sha256(LOG).hexdigest()
        loaded[0].close()


async def test_newer_version_replaces_the_older(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    await save(tier, KEY, LOG + b"more\n")
    assert await content_of(tier) == LOG + b"more\n"
    assert os.listdir(cache / "v1" / "tmp") == []


async def test_touch_rewrites_the_state_and_keeps_the_bytes(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG, meta_of(LOG, final=False))
    await tier.touch(KEY, meta_of(LOG, final=True))
    assert await tier.meta(KEY) == meta_of(LOG, final=True)
    assert await content_of(tier) == LOG


async def test_removed_log_is_gone_and_may_be_removed_again(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    await tier.remove(KEY)
    await tier.remove(KEY)
    assert await content_of(tier) is None


@pytest.mark.parametrize(
    "request_id", ["r" * 500, '"' * 500, "\\" * 500, "编号" * 100, "\t" * 64, ""]
)
async def test_request_id_of_any_kind_fits_the_footer(cache: Path, request_id: str) -> None:
    stage = Stage("stage9999")
    widest = LogKey(RECORD, stage, LogLevel.DEBUG)
    tier = DiskTier(cache, LIMIT)
    await save(tier, widest, LOG, meta_of(LOG, request_id=request_id))
    assert await content_of(tier, widest) == LOG


# What cannot be believed.


async def test_entry_under_another_name_is_a_miss(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    shutil.copy(entry_of(cache), entry_of(cache, key(2)))
    assert await tier.meta(key(2)) is None
    assert await content_of(tier, key(2)) is None
    assert not entry_of(cache, key(2)).exists()
    assert await content_of(tier) == LOG
    assert "damaged" in caplog.text


@pytest.mark.parametrize("final", [True, False])
async def test_no_flipped_bit_goes_unnoticed(
    cache: Path, caplog: pytest.LogCaptureFixture, final: bool
) -> None:
    content = text(700)
    await save(DiskTier(cache, LIMIT), KEY, content, meta_of(content, final=final))
    whole = entry_of(cache).read_bytes()
    assert len(whole) == len(content) + FOOTER_BYTES
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        entry_of(cache).write_bytes(damaged)
        assert await content_of(DiskTier(cache, LIMIT)) is None, offset
        assert not entry_of(cache).exists(), offset
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == len(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\0" * FOOTER_BYTES,
        b"\n{}".ljust(FOOTER_BYTES),
        b"[" * FOOTER_BYTES,
        os.urandom(5000),
    ],
)
async def test_foreign_file_is_a_miss_and_removed(
    cache: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    entry_of(cache).write_bytes(content)
    assert await content_of(tier) is None
    assert not entry_of(cache).exists()
    assert "damaged" in caplog.text


@pytest.mark.parametrize("lost_bytes", [1, 511, 512, 513, 5000])
async def test_truncated_entry_is_a_miss_and_removed(
    cache: Path, caplog: pytest.LogCaptureFixture, lost_bytes: int
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    os.truncate(entry_of(cache), len(LOG) + FOOTER_BYTES - lost_bytes)
    assert await content_of(tier) is None
    assert not entry_of(cache).exists()
    assert "damaged" in caplog.text


async def test_symlink_or_directory_in_the_place_of_an_entry_is_a_miss(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    entry_of(cache).rename(tmp_path / "elsewhere")
    entry_of(cache).symlink_to(tmp_path / "elsewhere")
    entry_of(cache, key(2)).mkdir()
    assert await content_of(tier) is None
    assert await content_of(tier, key(2)) is None
    assert (tmp_path / "elsewhere").exists()
    assert len(caplog.records) == 2


async def test_a_pipe_in_the_place_of_an_entry_is_a_miss_that_makes_nobody_wait(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    os.mkfifo(entry_of(cache, key(2)))
    with trio.fail_after(5):
        assert await tier.meta(key(2)) is None
        assert await content_of(tier, key(2)) is None
    await save(tier, key(2), LOG)
    assert await content_of(tier, key(2)) == LOG
    assert "damaged" in caplog.text


async def test_a_link_in_the_place_of_a_record_is_not_followed(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, 15_000)
    await save(tier, KEY, LOG)
    elsewhere = tmp_path / "elsewhere"
    (cache / "v1" / RECORD).rename(elsewhere)
    (cache / "v1" / RECORD).symlink_to(elsewhere)
    before = (elsewhere / KEY.file_name).read_bytes()
    assert await tier.records() == ()
    assert await content_of(tier) is None
    with pytest.raises(OSError, match="Not a directory"):
        await save(tier, KEY, LOG + b"more\n")
    with pytest.raises(OSError, match="Not a directory"):
        await tier.touch(KEY, meta_of(LOG, final=False))
    other = LogKey(RecordId("a" * 36), Stage("stage1"), LogLevel.INFO)
    await save(tier, other, LOG)  # which needs all the room there is
    assert (elsewhere / KEY.file_name).read_bytes() == before


async def test_foreign_names_are_no_records_and_no_logs(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    (cache / "v1" / "README").write_text("")
    (cache / "v1" / ("f" * 36)).write_text("")
    (cache / "v1" / RECORD / "notes.txt").write_text("")
    assert await tier.logs(RECORD) == (KEY,)
    assert await tier.logs(RecordId("f" * 36)) == ()
    assert await tier.records() == (RECORD,)


# Room.


def age(cache: Path, key: LogKey, seconds: int) -> None:
    os.utime(entry_of(cache, key), (0, seconds))


async def test_least_recently_opened_logs_go_first(cache: Path) -> None:
    entry_bytes = 10_000 + FOOTER_BYTES
    tier = DiskTier(cache, 4 * entry_bytes)
    for n in range(1, 5):
        assert await save(tier, key(n), LOG) == frozenset()
        age(cache, key(n), 1000 + n)
    assert await content_of(tier, key(1)) == LOG  # opened, and so the last to go
    assert await save(tier, key(5), LOG) == {key(2), key(3)}  # down to the low-water mark
    assert sorted(await tier.logs(RECORD), key=str) == [key(1), key(4), key(5)]
    assert tier.used_bytes == 3 * entry_bytes


async def test_logs_opened_at_the_same_moment_are_evicted_all_the_same(cache: Path) -> None:
    tier = DiskTier(cache, 25_000)
    for n in (1, 2):
        await save(tier, key(n), LOG)
        age(cache, key(n), 1000)
    assert len(await save(tier, key(3), LOG)) == 1


async def test_nothing_is_evicted_while_everything_fits(cache: Path) -> None:
    entry_bytes = 10_000 + FOOTER_BYTES
    for n in range(1, 11):  # a new tier each time: what others saved counts
        assert await save(DiskTier(cache, 10 * entry_bytes), key(n), LOG) == frozenset()
    assert len(await DiskTier(cache, LIMIT).logs(RECORD)) == 10


async def test_replacing_a_log_evicts_no_other_that_fits_beside_it(cache: Path) -> None:
    tier = DiskTier(cache, 40_000)
    await save(tier, key(1), text(20_000))
    await save(tier, key(2), LOG)
    assert await save(tier, key(1), text(22_000)) == frozenset()
    assert len(await tier.logs(RECORD)) == 2
    assert tier.used_bytes == 22_000 + 10_000 + 2 * FOOTER_BYTES


async def test_logs_saved_at_the_same_moment_keep_the_limit_together(cache: Path) -> None:
    limit = 100_000
    tier = DiskTier(cache, limit)
    for n in range(1, 10):
        await save(tier, key(n), LOG)
    async with trio.open_nursery() as nursery:
        for n in range(10, 18):
            nursery.start_soon(save, tier, key(n), LOG)
    sizes = {n: path.stat().st_size for n, path in enumerate((cache / "v1" / RECORD).iterdir())}
    assert sum(sizes.values()) <= limit
    assert sum(sizes.values()) == tier.used_bytes


async def test_nobody_leaves_while_a_thread_of_another_saves_his_log(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, go_on, flush = DiskTier(cache, LIMIT), threading.Semaphore(0), os.fsync
    flushing: list[int] = []

    def wait_and_flush(fd: int) -> None:
        flushing.append(fd)
        go_on.acquire()
        flush(fd)

    monkeypatch.setattr(os, "fsync", wait_and_flush)
    scope, bodies = trio.CancelScope(), [Body(tier.new_file) for _ in range(3)]

    async def save_in_memory(number: int) -> None:
        body = bodies[number]
        await body.append([LOG])
        body.announce(len(LOG))
        with scope if number == 2 else trio.CancelScope():
            await tier.save(key(number + 1), body, meta_of(LOG))
        body.close()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(save_in_memory, number)
            await until(lambda: bool(flushing))
            await wait_all_tasks_blocked()
        try:
            for _ in range(3):  # the first log, its record and the root of both
                go_on.release()
            await until(lambda: not bodies[2].in_memory)  # in the hands of the second's thread
            scope.cancel()
            await wait_all_tasks_blocked()
            assert not bodies[2].in_memory  # as it is again when it was closed
        finally:
            for _ in range(20):
                go_on.release()
    assert await content_of(tier, key(3)) == LOG


async def test_mounts_that_share_a_directory_keep_its_limit_together(cache: Path) -> None:
    limit = 1_000_000
    tiers = [DiskTier(cache, limit) for _ in range(3)]
    most_bytes = 0
    for n in range(1, 301):
        await save(tiers[n % 3], key(n), LOG)
        logs = (cache / "v1" / RECORD).iterdir()
        most_bytes = max(most_bytes, sum(path.stat().st_size for path in logs))
    assert 0.8 * limit < most_bytes < 1.2 * limit


async def test_what_cannot_be_evicted_is_passed_over(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(cache, 25_000)
    await save(tier, key(1), LOG)
    (cache / "v1" / RECORD / key(2).file_name).mkdir()
    age(cache, key(2), 1000)
    await save(tier, key(3), LOG)
    assert await save(tier, key(4), LOG) == {key(1)}
    assert await content_of(tier, key(4)) == LOG


async def test_a_record_whose_directory_another_mount_removes_just_now_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(cache, LIMIT)
    replace = os.replace

    def late(source: Path, target: str, *, dst_dir_fd: int) -> None:
        monkeypatch.setattr(os, "replace", replace)
        (cache / "v1" / RECORD).rmdir()
        replace(source, target, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", late)
    await save(tier, KEY, LOG)
    assert await content_of(tier) == LOG


async def test_logs_are_counted_along_with_their_bytes(cache: Path) -> None:
    tier = DiskTier(cache, 10 * (len(LOG) + FOOTER_BYTES))
    for number in range(12):
        await save(tier, key(number + 1), LOG)
    assert tier.log_count == sum(1 for _ in (cache / "v1").rglob("*.log"))
    assert tier.log_count + tier.evicted_logs == 12
    assert tier.evicted_logs > 0


async def test_a_survey_counts_what_an_earlier_tier_has_saved(cache: Path) -> None:
    for number in range(3):
        await save(DiskTier(cache, LIMIT), key(number + 1), LOG)
    tier = DiskTier(cache, LIMIT)
    assert (tier.log_count, tier.used_bytes) == (None, None)
    await tier.survey()
    assert (tier.log_count, tier.used_bytes) == (3, 3 * (len(LOG) + FOOTER_BYTES))
    await save(tier, key(4), LOG)
    assert tier.log_count == 4


async def test_what_was_counted_is_not_counted_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    monkeypatch.setattr(tier, "entries", lambda: pytest.fail("the cache was scanned"))
    await tier.survey()
    assert tier.log_count == 1


async def test_emptied_record_leaves_no_directory(cache: Path) -> None:
    other = LogKey(RecordId("a" * 36), Stage("stage1"), LogLevel.INFO)
    tier = DiskTier(cache, 15_000)
    await save(tier, other, LOG)
    assert await save(tier, KEY, LOG) == {other}
    assert await tier.records() == (RECORD,)


async def test_log_larger_than_the_limit_is_not_kept_and_displaces_nothing(cache: Path) -> None:
    tier = DiskTier(cache, 15_000)
    await save(tier, key(1), LOG)
    with pytest.raises(OSError, match="larger than the whole cache") as failure:
        await save(tier, key(2), text(15_000))
    assert failure.value.errno == errno.EFBIG
    assert await tier.logs(RECORD) == (key(1),)


# The directory.


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes_below(directory: Path) -> dict[str, int]:
    paths = [directory, *directory.rglob("*")]
    return {str(path.relative_to(directory)): path.stat().st_mode & 0o777 for path in paths}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
async def test_everything_is_private_whatever_the_umask(cache: Path, mask: int) -> None:
    with umask(mask):
        await save(DiskTier(cache, LIMIT), KEY, LOG)
    assert modes_below(cache) == {
        ".": 0o700,
        "v1": 0o700,
        "v1/tmp": 0o700,
        f"v1/{RECORD}": 0o700,
        f"v1/{RECORD}/{KEY.file_name}": 0o600,
    }


def test_directory_of_ours_keeps_its_mode_and_its_contents_are_private(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o755)
    DiskTier(cache, LIMIT)
    assert cache.stat().st_mode & 0o777 == 0o755
    assert (cache / "v1").stat().st_mode & 0o777 == 0o700


@needs_root
def test_directory_of_another_user_is_refused(cache: Path) -> None:
    cache.mkdir()
    os.chown(cache, 12345, 12345)
    with pytest.raises(CacheDirectoryError, match="belongs to uid 12345"):
        DiskTier(cache, LIMIT)


def test_file_or_link_in_its_place_is_refused(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(CacheDirectoryError, match="cannot create the cache directory"):
        DiskTier(cache, LIMIT)
    with pytest.raises(CacheDirectoryError):
        DiskTier(cache / "below", LIMIT)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(CacheDirectoryError, match="is not a directory"):
        DiskTier(link, LIMIT)


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "wb")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def test_only_litter_of_the_dead_is_removed(cache: Path, tmp_path: Path) -> None:
    DiskTier(cache, LIMIT)
    tmp = cache / "v1" / "tmp"
    (tmp / "a log of one that was killed").write_bytes(LOG)
    (tmp / "link").symlink_to(tmp_path)
    os.mkfifo(tmp / "pipe")
    (tmp / "directory").mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, tmp / "live"], stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        DiskTier(cache, LIMIT)
        assert sorted(os.listdir(tmp)) == ["directory", "live"]
        other.kill()
    DiskTier(cache, LIMIT)
    assert os.listdir(tmp) == ["directory"]


def test_a_link_in_place_of_the_directory_for_what_comes_in_is_refused(
    cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a file").touch()
    (cache / "v1").mkdir(parents=True)
    (cache / "v1" / "tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheDirectoryError, match="is not a directory"):
        DiskTier(cache, LIMIT)
    assert (tmp_path / "elsewhere" / "a file").exists()


async def test_a_cache_directory_that_is_gone_is_made_again_by_the_next_download(
    cache: Path,
) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    shutil.rmtree(cache)
    assert await content_of(tier) is None
    await save(tier, KEY, LOG)
    assert await content_of(tier) == LOG
    assert {mode & 0o077 for mode in modes_below(cache).values()} == {0}


@needs_root
def test_a_directory_that_somebody_else_made_meanwhile_is_not_used(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    shutil.rmtree(cache)
    cache.mkdir()
    os.chown(cache, 12345, 12345)
    with pytest.raises(CacheDirectoryError, match="belongs to uid 12345"):
        tier.new_file()


# On the platter.


async def test_file_system_without_nameless_files_gets_a_copy(cache: Path) -> None:
    """Such a download lives in a file whose name was removed: linkat(2) cannot bring it back."""
    tier = DiskTier(cache, LIMIT)
    fd, name = tempfile.mkstemp(dir=cache / "v1" / "tmp")
    os.unlink(name)
    body = Body(fd)
    await body.append([LOG])
    body.announce(len(LOG))
    await tier.save(KEY, body, meta_of(LOG))
    body.close()
    assert await content_of(DiskTier(cache, LIMIT)) == LOG
    assert entry_of(cache).stat().st_mode & 0o777 == 0o600
    assert os.listdir(cache / "v1" / "tmp") == []


async def test_save_that_fails_leaves_no_trace(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    (cache / "v1" / RECORD).write_text("in the way")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        await save(tier, KEY, LOG)
    assert os.listdir(cache / "v1" / "tmp") == []


def test_magic_names_the_layout() -> None:
    """Who changes what a footer means must change this, or old caches are misread."""
    assert disk_module._MAGIC == "codeartsfs-log-1"


# Pins.


async def test_a_part_takes_no_place_of_a_log_that_another_process_has_whole(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(DiskTier(cache, LIMIT), KEY, LOG)
    await save(tier, KEY, LOG[:5000], replace(meta_of(LOG[:5000], final=False), running=True))
    kept = await tier.meta(KEY)
    assert kept is not None
    assert (kept.final, kept.size_bytes) == (True, len(LOG))
    assert os.listdir(cache / "v1" / "tmp") == []


async def test_what_another_process_pinned_is_not_evicted(cache: Path) -> None:
    tier = DiskTier(cache, 2 * (len(LOG) + FOOTER_BYTES))
    other = RecordId("00000000-0000-4000-8000-000000000001")
    unpinned = [LogKey(other, Stage(f"stage{n}"), LogLevel.INFO) for n in (1, 2)]
    await save(tier, KEY, LOG)
    DiskTier(cache, LIMIT).pin(RECORD)
    await save(tier, unpinned[0], LOG)
    assert await save(tier, unpinned[1], LOG) == {unpinned[0]}
    assert await content_of(tier) == LOG


async def test_nothing_is_evicted_for_what_pins_leave_no_room_for(cache: Path) -> None:
    tier = DiskTier(cache, 3 * (len(LOG) + FOOTER_BYTES))
    other = RecordId("00000000-0000-4000-8000-000000000001")
    small, large = (LogKey(other, Stage(f"stage{n}"), LogLevel.INFO) for n in (1, 2))
    await save(tier, KEY, LOG)
    tier.pin(RECORD)
    await save(tier, small, LOG)
    for _ in range(2):
        with pytest.raises(OSError, match=r"cache|evicted"):
            await save(tier, large, LOG * 3)
    assert await tier.logs(other) == (small,)
    assert await save(tier, large, LOG) == frozenset()


@pytest.mark.parametrize("kind", ["mark", "directory"])
async def test_a_link_in_the_place_of_a_pin_is_none_and_not_followed(
    cache: Path, tmp_path: Path, kind: str
) -> None:
    tier = DiskTier(cache, LIMIT)
    target = tmp_path / "elsewhere"
    pins = cache / "v1" / "pins"
    if kind == "mark":
        target.touch()
        pins.mkdir(mode=0o700)
        (pins / RECORD).symlink_to(target)
    else:
        target.mkdir()
        (target / RECORD).touch()
        pins.symlink_to(target)
    assert tier.pinned_records() == ()
    with pytest.raises(OSError, match=r".*"):
        tier.pin(RECORD)


async def test_marks_are_private_and_survive_a_restart(cache: Path) -> None:
    DiskTier(cache, LIMIT).pin(RECORD)
    mark = cache / "v1" / "pins" / RECORD
    assert (mark.stat().st_mode & 0o777, mark.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    tier = DiskTier(cache, LIMIT)
    assert tier.pinned_records() == (RECORD,)
    assert (tier.unpin(RECORD), tier.unpin(RECORD)) == (True, False)


async def test_nothing_is_evicted_while_pins_cannot_be_listed(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    await save(tier, KEY, LOG)
    tier.pin(RECORD)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 10, before[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        os.close(taken.pop())  # listing takes two
        with pytest.raises(OSError, match="Too many open files"):
            tier.evict(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)
    assert [entry.key for entry in tier.entries()] == [KEY]


async def test_who_pins_waits_for_an_eviction_under_way(cache: Path) -> None:
    tier = DiskTier(cache, LIMIT)
    pinned = trio.Event()

    async def pin() -> None:
        await trio.to_thread.run_sync(DiskTier(cache, LIMIT).pin, RECORD)
        pinned.set()

    async with trio.open_nursery() as nursery:
        with tier._nobody_pins():
            nursery.start_soon(pin)
            await until(lambda: tier.pinned_records() == (RECORD,))
            await trio.sleep(0.05)
            assert not pinned.is_set()
        await pinned.wait()
