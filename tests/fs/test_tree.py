"""Names and listings, with a real catalog and store between in-memory neighbours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from trio.testing import MockClock

from codeartsfs.builds.catalog import Catalog
from codeartsfs.errors import ApiUnavailable, BuildNotFound, Forbidden, LogNotFound
from codeartsfs.fs.tree import (
    CONTROL_DIR,
    ROOT,
    STATUS_FILE,
    ControlDir,
    LogFile,
    Node,
    RecordDir,
    StatusFile,
    Tree,
)
from codeartsfs.logs.store import LogStore
from codeartsfs.model import StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from tests.builds.test_catalog import FakeBuilds
from tests.logs.fakes import KEY, OVER, RECORD, RUNNING, World, content_of, key, landed

OTHER = RecordId("0" * 36)


class Trees:
    """A tree, its neighbours, and a cache that outlives it."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.builds = FakeBuilds(OVER)

    @asynccontextmanager
    async def tree(self) -> AsyncIterator[tuple[Tree, LogStore]]:
        async with self.world.store() as store:
            yield Tree(Catalog(self.builds, refresh_s=1.0), store), store

    @property
    def calls(self) -> int:
        return len(self.builds.calls) + len(self.world.source.calls)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


IMPOSSIBLE = [".git", "stageX", "foo.swp", "", "stage1.info.log", "A" * 36, "a" * 35, ".Trash-0"]
IMPOSSIBLE_IN_RECORD = [".git", "stage0.info.log", "stage1.log", "stage1.INFO.log", ".codeartsfs"]


async def test_names_that_cannot_exist_cost_nothing(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        for name in IMPOSSIBLE:
            assert tree.child(ROOT, name) is None
            assert tree.impossible(ROOT, name)
        for name in IMPOSSIBLE_IN_RECORD:
            assert tree.child(RecordDir(RECORD), name) is None
            assert tree.impossible(RecordDir(RECORD), name)
        for parent in (ControlDir(), StatusFile(), LogFile(KEY)):
            assert tree.child(parent, "x") is None
            assert tree.impossible(parent, "x")
    assert trees.calls == 0


async def test_names_that_could_exist_are_believed(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        assert tree.child(ROOT, OTHER) == RecordDir(OTHER)
        assert tree.child(ROOT, CONTROL_DIR) == ControlDir()
        assert tree.child(ControlDir(), STATUS_FILE) == StatusFile()
        assert tree.child(RecordDir(RECORD), "stage9.debug.log") == LogFile(key(9, LogLevel.DEBUG))
        assert not tree.impossible(ROOT, OTHER)
        assert not tree.impossible(ROOT, CONTROL_DIR)
        assert not tree.impossible(RecordDir(RECORD), "final.info.log")
    assert trees.calls == 0


async def test_child_and_parent_are_inverse(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        pairs: list[tuple[Node, str]] = [
            (ROOT, CONTROL_DIR),
            (ROOT, RECORD),
            (ControlDir(), STATUS_FILE),
            (RecordDir(RECORD), "stage1.info.log"),
        ]
        for parent, name in pairs:
            child = tree.child(parent, name)
            assert child is not None
            assert tree.parent(child) == parent
            assert str(child).rpartition("/")[2] == name
        assert tree.parent(ROOT) == ROOT


async def test_listing_has_a_pair_per_stage_in_running_order(
    trees: Trees, mock_clock: MockClock
) -> None:
    names = ["final", "stage10", "stage2", "stage1", "initial"]
    trees.builds.runs = tuple(StageRun(Stage(name), status="running") for name in names)
    async with trees.tree() as (tree, _):
        entries = await tree.entries(RecordDir(RECORD))
        assert [name for name, _ in entries] == [
            f"{stage}.{level}.log"
            for stage in ("stage1", "stage2", "stage10")
            for level in ("info", "debug")
        ]
        assert all(tree.child(RecordDir(RECORD), name) == node for name, node in entries)
        # Not listed, since the API documents no logs of them; but who names them may try.
        assert tree.child(RecordDir(RECORD), "final.info.log") is not None
        assert tree.child(RecordDir(RECORD), "stage3.info.log") is None


async def test_root_lists_what_is_known_and_not_the_control_directory(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.world.source.logs[KEY] = b"log\n"
    async with trees.tree() as (tree, store):
        assert await tree.entries(ROOT) == ()
        await tree.entries(RecordDir(OTHER))
        await content_of(store)
        await landed(store)
        assert await tree.entries(ROOT) == ((OTHER, RecordDir(OTHER)), (RECORD, RecordDir(RECORD)))
        assert await tree.entries(ControlDir()) == ((STATUS_FILE, StatusFile()),)


async def test_cached_record_is_listed_with_sizes_when_the_api_is_down_or_forgot_it(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.world.source.logs[KEY] = b"log\n"
    async with trees.tree() as (_, store):
        await content_of(store)
        await landed(store)
    for failure in (ApiUnavailable("down"), BuildNotFound(RECORD, "gone")):
        trees.builds.failure = failure
        async with trees.tree() as (tree, store):
            entries = await tree.entries(RecordDir(RECORD))
            assert entries == ((KEY.file_name, LogFile(KEY)),)
            known = store.peek(KEY)
            assert known is not None
            assert (known.size_bytes, known.final) == (4, True)


async def test_cached_record_can_still_be_looked_up_right_after_the_api_forgot_it(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.world.source.logs[KEY] = b"log\n"
    async with trees.tree() as (_, store):
        await content_of(store)
        await landed(store)
    trees.builds.failure = BuildNotFound(RECORD, "gone")
    async with trees.tree() as (tree, _):
        await tree.entries(RecordDir(RECORD))
        assert tree.child(ROOT, RECORD) == RecordDir(RECORD)


async def test_unknown_record_is_an_error_and_absent_for_a_while(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.builds.failure = BuildNotFound(RECORD, "gone")
    async with trees.tree() as (tree, _):
        with pytest.raises(BuildNotFound):
            await tree.entries(RecordDir(RECORD))
        assert tree.child(ROOT, RECORD) is None
        assert not tree.impossible(ROOT, RECORD)
        mock_clock.jump(5)
        assert tree.child(ROOT, RECORD) == RecordDir(RECORD)


async def test_missing_log_is_absent_for_a_while(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, store):
        with pytest.raises(LogNotFound):
            await store.open(KEY)
        assert tree.child(RecordDir(RECORD), KEY.file_name) is None
        mock_clock.jump(5)
        assert tree.child(RecordDir(RECORD), KEY.file_name) == LogFile(KEY)


async def test_without_stages_from_the_api_logs_are_there_by_name(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.builds.failure = Forbidden("no")
    trees.world.source.logs[KEY] = b"log\n"
    async with trees.tree() as (tree, store):
        assert await tree.entries(RecordDir(RECORD)) == ()
        node = tree.child(RecordDir(RECORD), KEY.file_name)
        assert node == LogFile(KEY)
        await content_of(store)
        await landed(store)
        assert await tree.entries(RecordDir(RECORD)) == ((KEY.file_name, node),)


async def test_rewritten_log_is_another_node(trees: Trees, mock_clock: MockClock) -> None:
    trees.world.states.run = RUNNING
    trees.world.source.logs[KEY] = b"old\n"
    async with trees.tree() as (tree, store):
        before = tree.child(RecordDir(RECORD), KEY.file_name)
        await content_of(store)
        await landed(store)
        trees.world.source.logs[KEY] = b"new\n"
        mock_clock.jump(2)
        assert await content_of(store) == b"new\n"
        await landed(store)
        after = tree.child(RecordDir(RECORD), KEY.file_name)
        assert after != before
        assert after == LogFile(LogKey(RECORD, Stage("stage1"), LogLevel.INFO), 1)
