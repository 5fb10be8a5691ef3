"""The index: a memory of answers that never disturbs anybody, whatever happens to its file."""

import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import trio

from codeartsfs.builds import index as module
from codeartsfs.builds.index import Index, RecordTimes, open_index
from codeartsfs.model import BuildRecord, Job, LogNote, StageRun
from codeartsfs.names import LogKey, LogLevel, ProjectId, RecordId, Stage
from tests.logs.fakes import until

RECORD = RecordId("a" * 36)
OTHER = RecordId("b" * 36)
PROJECT = ProjectId("c" * 32)
TIMES = RecordTimes(5, final=True)
RUN = StageRun(Stage("stage1"), "构建 / \ud800", 1, "SUCCESS", 1, 2, 3, 4)
BUILD = BuildRecord(RECORD, 7, "p-1", "SUCCESS", 1, 2, 3, 4, "main", "abc", "PUSH")
JOB = Job("j" * 32, "web-app", "p-1", 9, "blue")
KEY = LogKey(RECORD, Stage("stage1"), LogLevel.INFO)
NOTE = LogNote(10, 11, True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "v1").mkdir()
    return tmp_path


def file_of(cache: Path) -> Path:
    return cache / "v1" / "builds.sqlite3"


def count(cache: Path, table: str) -> int:
    """Count rows as another process would; 0 as long as there is no such table."""
    file = sqlite3.connect(file_of(cache))
    try:
        return int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        file.close()


def tell(index: Index) -> None:
    index.keep_stages(RECORD, (RUN,), TIMES)
    index.keep_builds([BUILD])
    index.keep_log(KEY, NOTE)
    index.keep_jobs(PROJECT, (JOB,))


async def assert_known_of_record(index: Index) -> None:
    record = (await index.records_from(RECORD, 1))[RECORD]
    assert (record.stages, record.final, record.build) == ((RUN,), True, BUILD)
    assert record.logs == {KEY.file_name: NOTE}


async def assert_known(index: Index) -> None:
    await assert_known_of_record(index)
    assert await index.records() == {RECORD: TIMES}
    assert await index.builds("p-1", 10) == (BUILD,)
    assert await index.build("p-1", 7) == BUILD
    assert await index.jobs(PROJECT) == (JOB,)


async def assert_empty(index: Index) -> None:
    record = (await index.records_from(RECORD, 1))[RECORD]
    assert (record.stages, record.build, record.logs) == (None, None, {})
    assert await index.records() == {}
    assert await index.builds("p-1", 10) == ()
    assert await index.build("p-1", 7) is None
    assert await index.jobs(PROJECT) is None


@pytest.mark.parametrize("value", [RUN, BUILD, JOB])
def test_examples_have_no_field_left_at_its_default(value: StageRun | BuildRecord | Job) -> None:
    # Otherwise the tests below would not notice a field that gets lost.
    for field in fields(value):
        assert getattr(value, field.name) != field.default


async def test_what_was_told_a_moment_ago_is_known(cache: Path) -> None:
    async with open_index(cache) as index:
        tell(index)
        await assert_known(index)


async def test_what_was_told_survives_a_restart(cache: Path) -> None:
    async with open_index(cache) as index:
        tell(index)
    async with open_index(cache) as index:
        await assert_known(index)


async def test_what_was_told_reaches_the_disk_without_anybody_asking(cache: Path) -> None:
    async with open_index(cache) as index, open_index(cache) as another:
        tell(index)
        await until(lambda: count(cache, "records") > 0)
        await assert_known(another)


async def test_new_words_replace_old_ones_and_leave_the_rest(cache: Path) -> None:
    async with open_index(cache) as index:
        tell(index)
        await index.records()
        again = StageRun(Stage("stage1"), status="FAILURE")
        index.keep_stages(RECORD, (again,), RecordTimes(None, final=False))
        index.keep_log(KEY, None)
        record = (await index.records_from(RECORD, 1))[RECORD]
        assert (record.stages, record.final, record.build) == ((again,), False, BUILD)
        assert record.logs == {}


async def test_records_known_from_lists_of_builds_alone_are_not_listed(cache: Path) -> None:
    async with open_index(cache) as index:
        index.keep_builds([BUILD])
        assert await index.records() == {}
        assert await index.builds("p-1", 10) == (BUILD,)


async def test_builds_come_newest_first_and_no_more_than_asked_for(cache: Path) -> None:
    builds = [BuildRecord(RecordId(f"{n:036}"), n, "p-1") for n in range(1, 30)]
    async with open_index(cache) as index:
        index.keep_builds(builds)
        assert [build.build_no for build in await index.builds("p-1", 3)] == [29, 28, 27]
        assert await index.builds("p-2", 3) == ()


async def test_records_that_follow_come_along(cache: Path) -> None:
    records = [RecordId(f"{n:036}") for n in range(10)]
    async with open_index(cache) as index:
        for record in records:
            index.keep_stages(record, (RUN,), TIMES)
            index.keep_log(LogKey(record, RUN.stage, LogLevel.INFO), NOTE)
    async with open_index(cache) as index:
        found = await index.records_from(records[3], 4)
        assert sorted(found) == records[3:7]
        assert all(one.logs == {KEY.file_name: NOTE} for one in found.values())


async def test_the_file_is_private_whatever_the_umask(cache: Path) -> None:
    before = os.umask(0)
    try:
        async with open_index(cache) as index:
            tell(index)
            await index.records()
            modes = {stat.S_IMODE(path.stat().st_mode) for path in file_of(cache).parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _set_version(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()


def _drop_table(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("DROP TABLE records")
    file.close()


def _garbage_in_rows(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("UPDATE records SET stages = 'no JSON', build = '[1, 2]'")
    file.close()


DAMAGE: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b"garbage " * 1000),
    lambda path: path.write_bytes(b""),
    _cut,
    _set_version,
    _drop_table,
    _garbage_in_rows,
]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_is_begun_anew(
    cache: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_index(cache) as index:
        tell(index)
    damage(file_of(cache))
    async with open_index(cache) as index:
        await index.records_from(RECORD, 1)
        tell(index)
        await assert_known(index)
    async with open_index(cache) as index:
        await assert_known(index)


async def test_flipped_bits_cost_answers_never_errors(cache: Path) -> None:
    async with open_index(cache) as index:
        for number in range(200):
            index.keep_stages(RecordId(f"{number:036}"), (RUN,), TIMES)
    whole = file_of(cache).read_bytes()
    chance = random.Random(1)
    for _ in range(40):
        spoilt = bytearray(whole)
        for _ in range(20):
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        file_of(cache).write_bytes(spoilt)
        async with open_index(cache) as index:
            await index.records()
            await index.records_from(RecordId(f"{chance.randrange(200):036}"), 64)
            tell(index)
            await index.builds("p-1", 10)


async def test_a_flipped_bit_costs_answers_and_never_changes_one(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_index(cache) as index:
        tell(index)
    whole = file_of(cache).read_bytes()
    used = [offset for offset, byte in enumerate(whole) if byte]
    chance = random.Random(1)
    for offset in chance.sample(used, 200):
        spoilt = bytearray(whole)
        spoilt[offset] ^= 1 << chance.randrange(8)
        file_of(cache).write_bytes(spoilt)
        async with open_index(cache) as index:
            record = (await index.records_from(RECORD, 1))[RECORD]
            assert (record.stages, record.final) in (((RUN,), True), (None, False)), offset
            assert record.build in (BUILD, None), offset
            assert record.logs in ({KEY.file_name: NOTE}, {}), offset
            assert await index.builds("p-1", 10) in ((BUILD,), ()), offset
            assert await index.build("p-1", 7) in (BUILD, None), offset
            assert await index.jobs(PROJECT) in ((JOB,), None), offset
            assert {type(times.modified_ns) for times in (await index.records()).values()} <= {
                int,
                type(None),
            }
    assert "is not what was written" in caplog.text


async def test_where_nothing_can_be_written_what_was_told_is_known_for_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_index(tmp_path / "gone") as index:
        await assert_empty(index)
        tell(index)
        await assert_known(index)
    warnings = [line for line in caplog.records if line.levelname == "WARNING"]
    assert len(warnings) == 1  # once, not for every look
    async with open_index(tmp_path / "gone") as index:
        await assert_empty(index)


def _directory(cache: Path) -> None:
    file_of(cache).mkdir(parents=True)


def _file_in_place_of_the_directory(cache: Path) -> None:
    (cache / "v1").write_text("")


def below(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


@pytest.mark.parametrize("obstruct", [_directory, _file_in_place_of_the_directory])
async def test_what_is_in_the_way_makes_forgetful_and_is_left_alone(
    tmp_path: Path, obstruct: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    obstruct(tmp_path)
    before = below(tmp_path)
    async with open_index(tmp_path) as index:
        tell(index)
        await assert_known(index)
    assert below(tmp_path) == before
    assert "cannot be used just now" in caplog.text


async def test_what_could_not_be_written_is_written_when_it_can_be(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.01)
    file_of(cache).mkdir()
    async with open_index(cache) as index:
        tell(index)
        await until(lambda: "cannot be used just now" in caplog.text)
        file_of(cache).rmdir()
        await until(lambda: file_of(cache).exists() and count(cache, "records") > 0)
        await assert_known(index)


async def test_what_is_told_during_a_write_that_fails_is_newer_than_what_was_to_be_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_AFTER_S", 0.01)
    async with open_index(cache) as index:
        index.keep_stages(RECORD, (StageRun(RUN.stage, status="RUNNING"),), TIMES)
        index.keep_log(KEY, None)
        write = index._write_now

        def fail(rows: module._Rows) -> bool:
            monkeypatch.setattr(index, "_write_now", write)
            trio.from_thread.run_sync(tell, index)
            trio.from_thread.run(assert_known, index)
            return False

        monkeypatch.setattr(index, "_write_now", fail)
        await until(lambda: count(cache, "records") > 0)
    async with open_index(cache) as index:
        await assert_known(index)


async def test_what_waits_to_be_written_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MOST_UNWRITTEN", 3)
    async with open_index(tmp_path / "gone") as index:
        tell(index)
        index.keep_builds([BuildRecord(OTHER, 8, "p-1")])
        await until(lambda: len(index._unwritten) == 0)


async def test_rows_that_cannot_be_stored_harm_no_others(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_index(cache) as index:
        tell(index)
        await until(lambda: count(cache, "records") > 0)
        index.keep_stages(OTHER, (RUN,), RecordTimes(2**70, final=True))
        await until(lambda: "were not kept" in caplog.text)
        await assert_known(index)
        index.keep_builds([BuildRecord(OTHER, 2**31 - 1, "\ud800")])
        assert await index.build("\ud800", 2**31 - 1) is not None
    async with open_index(cache) as index:
        await assert_known(index)
        assert await index.build("\ud800", 2**31 - 1) is not None
    assert "begun anew" not in caplog.text


async def test_a_file_that_was_removed_is_made_again(cache: Path) -> None:
    async with open_index(cache) as index:
        tell(index)
        await until(lambda: len(index._unwritten) == 0)
        for path in file_of(cache).parent.iterdir():
            path.unlink()
        await assert_empty(index)
        tell(index)
        await until(lambda: count(cache, "records") > 0)


async def test_a_link_in_place_of_the_file_is_not_followed(cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()  # which SQLite would take for a new database
    file_of(cache).symlink_to(target)
    async with open_index(cache) as index:
        await assert_empty(index)
        tell(index)
    assert target.read_bytes() == b""


async def test_a_locked_file_is_waited_for_and_then_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.0)
    async with open_index(cache) as index:
        tell(index)
        await index.records()
        with sqlite3.connect(file_of(cache), isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            index.keep_log(LogKey(OTHER, RUN.stage, LogLevel.INFO), NOTE)
            await assert_known(index)  # what is there can be read all the same
            other.execute("ROLLBACK")
        other.close()


async def test_a_lock_costs_what_is_on_disk_and_nothing_that_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0.0)
    monkeypatch.setattr(module, "_READ_TIMEOUT_S", 0.0)
    async with open_index(cache) as index:
        tell(index)
    other = sqlite3.connect(file_of(cache), isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE records SET told_s = told_s")
    async with open_index(cache) as index:
        index.keep_builds([BuildRecord(OTHER, 8, "p-1")])
        assert [build.build_no for build in await index.builds("p-1", 10)] == [8]
        other.close()
        assert "cannot be used just now" in caplog.text
        await assert_known_of_record(index)  # it was not taken for damaged
        assert [build.build_no for build in await index.builds("p-1", 10)] == [8, 7]


async def test_many_may_tell_and_ask_at_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_index(cache) as index:
        tell(index)
        await index.records()

        async def tell_and_ask(number: int) -> None:
            index.keep_builds([BuildRecord(RecordId(f"{number:036}"), number, "p-2")])
            await assert_known(index)

        async with trio.open_nursery() as askers:
            for number in range(1, 51):
                askers.start_soon(tell_and_ask, number)
        assert len(await index.builds("p-2", 100)) == 50
    assert not caplog.records  # nothing was begun anew


async def test_two_mounts_share_one_file(cache: Path) -> None:
    async with open_index(cache) as one, open_index(cache) as two:
        tell(one)
        await until(lambda: count(cache, "records") == 1)
        await assert_known(two)
        two.keep_stages(OTHER, (RUN,), TIMES)
        await until(lambda: count(cache, "records") == 2)
        assert set(await one.records()) == {RECORD, OTHER}


LOOK = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1])
file.execute("SELECT count(*) FROM records").fetchall()
"""


async def test_another_process_that_comes_and_goes_takes_nothing_away(cache: Path) -> None:
    # Who closes a file last removes its log of writes, and locks tell who is last.
    wal = file_of(cache).with_name("builds.sqlite3-wal")
    async with open_index(cache) as index:
        tell(index)
        await until(lambda: not index._unwritten)
        await assert_known(index)
        before = wal.stat()
        await trio.run_process([sys.executable, "-c", LOOK, os.fspath(file_of(cache))])
        assert os.path.samestat(wal.stat(), before)


REPLACED = """
import subprocess, sys
from pathlib import Path
from codeartsfs.builds import index as module
from codeartsfs.builds.index import Index
from tests.builds.test_index import LOOK, tell
path = Path(sys.argv[1])
index = Index(path)
def write():
    tell(index)
    assert index._write_now(index._unwritten)
def read():
    return index._read_now(module._records, None)
write()
read()
hold = LOOK + "print(flush=True); input()"
with subprocess.Popen([sys.executable, "-c", hold, path], stdin=-1, stdout=-1) as other:
    other.stdout.readline()
    path.unlink()  # and nothing beside it
    write()
    read()
    other.kill()
subprocess.run([sys.executable, "-c", LOOK, path])
for _ in range(3):
    write()
    print(len(read()))
"""


def test_an_index_that_is_removed_in_part_ends_no_process(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, file_of(cache)], stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"1\n" * 3)


async def test_what_was_told_longest_ago_goes_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_RECORDS", 100)
    monkeypatch.setattr(module, "_PRUNE_EVERY_ROWS", 50)
    now = 1000
    monkeypatch.setattr("time.time", lambda: now)
    for batch in range(30):
        now += 1
        async with open_index(cache) as index:
            for number in range(batch * 10, batch * 10 + 10):
                record = RecordId(f"{number:036}")
                index.keep_stages(record, (RUN,), TIMES)
                index.keep_log(LogKey(record, RUN.stage, LogLevel.INFO), NOTE)
        assert count(cache, "records") <= 110
    async with open_index(cache) as index:
        known = await index.records()
    assert max(known) == f"{299:036}"
    assert min(known) > f"{100:036}"
    assert count(cache, "logs") == count(cache, "records")


async def test_what_is_written_while_somebody_reads_is_not_missed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_index(cache) as index:
        await assert_empty(index)
        read = index._read_now

        def slowly(query: object, nothing: object) -> object:
            result = read(query, nothing)  # type: ignore[arg-type]
            while trio.from_thread.run_sync(lambda: len(index._unwritten)):
                time.sleep(0.01)  # until what was told is on disk, and nowhere else
            return result

        monkeypatch.setattr(index, "_read_now", slowly)
        tell(index)
        assert await index.builds("p-1", 9) == (BUILD,)
        tell(index)
        assert await index.records() == {RECORD: TIMES}
