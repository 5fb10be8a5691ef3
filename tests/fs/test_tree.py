"""Names and listings, with a real catalog and store between in-memory neighbours."""

import os
import posixpath
import unicodedata
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from codeartsfs.builds.catalog import Catalog, RecordTimes
from codeartsfs.builds.index import open_index
from codeartsfs.builds.jobs import Jobs, Latest
from codeartsfs.errors import ApiUnavailable, BuildNotFound, Forbidden, LogNotFound, NotFound
from codeartsfs.fs.nodes import (
    ROOT,
    BuildLink,
    ControlDir,
    ControlFile,
    FailedLink,
    JobDir,
    JobsDir,
    LogFile,
    NameLink,
    NamesDir,
    Node,
    ProjectDir,
    RecordDir,
    RecordFile,
)
from codeartsfs.fs.tree import Tree
from codeartsfs.logs.store import LogStore
from codeartsfs.model import Job, StageRun
from codeartsfs.names import (
    CONTROL_DIR,
    METRICS_FILE,
    STATUS_FILE,
    LogKey,
    LogLevel,
    ProjectId,
    RecordId,
    Stage,
)
from tests.builds.test_catalog import FakeBuilds
from tests.builds.test_jobs import PROJECT, FakeJobs, build
from tests.logs.fakes import KEY, OVER, RECORD, RUNNING, World, content_of, key, landed

OTHER = RecordId("0" * 36)


class Trees:
    """A tree, its neighbours, and a cache that outlives it."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.builds = FakeBuilds(OVER)
        self.jobs = FakeJobs(build(2, "FAILURE"), build(1))
        self.projects: tuple[ProjectId, ...] = ()
        self.indexed = False

    @asynccontextmanager
    async def tree(self) -> AsyncIterator[tuple[Tree, LogStore]]:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(self.world.store())
            opened = open_index(self.world.cache) if self.indexed else None
            index = await stack.enter_async_context(opened) if opened else None
            nursery = await stack.enter_async_context(trio.open_nursery())
            catalog = Catalog(self.builds, nursery, index)
            jobs = Jobs(self.jobs, catalog, self.projects, nursery, builds_per_job=100, index=index)
            yield Tree(catalog, jobs, store), store
            nursery.cancel_scope.cancel()

    @property
    def calls(self) -> int:
        return len(self.builds.calls) + len(self.jobs.calls) + len(self.world.source.calls)


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
        for parent in (ControlDir(), ControlFile(STATUS_FILE), LogFile(KEY)):
            assert tree.child(parent, "x") is None
            assert tree.impossible(parent, "x")
    assert trees.calls == 0


async def test_names_that_could_exist_are_believed(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        assert tree.child(ROOT, OTHER) == RecordDir(OTHER)
        assert tree.child(ROOT, CONTROL_DIR) == ControlDir()
        assert tree.child(ControlDir(), STATUS_FILE) == ControlFile(STATUS_FILE)
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
        assert [name for name, _, _ in entries] == [
            *(
                f"{stage}.{level}.log"
                for stage in ("stage1", "stage2", "stage10")
                for level in ("info", "debug")
            ),
            "record.json",
            "by-name",
        ]
        assert all(tree.child(RecordDir(RECORD), name) == node for name, node, _ in entries)
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
        told = RecordTimes(OVER.finished_ns, final=True)
        assert await tree.entries(ROOT) == (
            (OTHER, RecordDir(OTHER), told),
            (RECORD, RecordDir(RECORD), None),
        )
        assert await tree.entries(ControlDir()) == tuple(
            (name, ControlFile(name), None) for name in (STATUS_FILE, METRICS_FILE)
        )


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
            assert entries == ((KEY.file_name, LogFile(KEY), None),)
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
        assert await tree.entries(RecordDir(RECORD)) == ((KEY.file_name, node, None),)


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


# Jobs and builds.

JOB_DIR = JobDir(PROJECT, "web-app")


@pytest.fixture(params=[1, 2], ids=["one project", "two projects"])
def shelf(trees: Trees, request: pytest.FixtureRequest) -> Trees:
    trees.projects = (PROJECT, ProjectId("d" * 32))[: request.param]
    return trees


def path_of(tree: Tree, node: Node) -> str:
    """Return where a node is in the mount, by the names its parents know it by."""
    if node == ROOT:
        return "/"
    name = getattr(node, "name", None) or str(node).rpartition("/")[2]
    return posixpath.join(path_of(tree, tree.parent(node)), name)


async def found(tree: Tree, path: str) -> Node | None:
    """Walk from the root as the kernel does."""
    node: Node | None = ROOT
    for name in path.strip("/").split("/"):
        node = await tree.lookup(node, name) if node else None
    return node


async def test_names_that_no_directory_of_jobs_can_have_cost_nothing(
    shelf: Trees, mock_clock: MockClock
) -> None:
    numbers = ["", "0", "01", "-1", " 1", "1.0", "2147483648", "１"]
    impossible: dict[Node, list[str]] = {
        JOB_DIR: [*numbers, "Latest", "latest-", "latest.log", "web-app"],
        ProjectDir(PROJECT): ["", ".", "..", ".git"],
        BuildLink(JOB_DIR, 1): ["1", "stage1.info.log"],
    }
    several = ["web-app", "e" * 32, "C" * 32]
    impossible[JobsDir()] = ["", ".git", *(several if len(shelf.projects) > 1 else [])]
    async with shelf.tree() as (tree, _):
        for parent, names in impossible.items():
            for name in names:
                assert tree.impossible(parent, name), (parent, name)
                assert tree.child(parent, name) is None
                assert await tree.lookup(parent, name) is None
        for name in ("1", "2147483647", *(latest.value for latest in Latest)):
            link = await tree.lookup(JOB_DIR, name)
            assert isinstance(link, BuildLink)
            assert link.name == name
        for name in ("web-app", "a b", "%2Egit", "latest", "工作~1"):
            parent = tree.parent(JOB_DIR)
            assert await tree.lookup(parent, name) == JobDir(PROJECT, name)
    assert shelf.calls == 0


async def test_names_that_no_record_or_stage_can_have_cost_nothing(
    trees: Trees, mock_clock: MockClock
) -> None:
    impossible: dict[Node, list[str]] = {
        RecordDir(RECORD): ["record.jso", "by-names", "failed.debug.log", "failed.log", "", ".."],
        NamesDir(RECORD): [
            *("", ".git", "x.info.log", "1-x.info.log", "00-x.info.log", "00001-x.info.log"),
            *("01-.info.log", "01-x.log", "01-x.trace.log", "01-x.info.log~", "stage1.info.log"),
        ],
        RecordFile(RECORD): ["x"],
        FailedLink(RECORD): ["x"],
        NameLink(KEY, "01-x.info.log"): ["x"],
    }
    async with trees.tree() as (tree, _):
        for parent, names in impossible.items():
            for name in names:
                assert tree.impossible(parent, name), (parent, name)
                assert await tree.lookup(parent, name) is None
        for number, level in ((1, LogLevel.INFO), (9999, LogLevel.DEBUG)):
            name = f"{number:02}-a\n执.{level.value.lower()}.log"
            assert await tree.lookup(NamesDir(RECORD), name) == NameLink(key(number, level), name)
    assert trees.calls == 0


async def test_without_projects_there_is_no_by_job(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        assert tree.impossible(ROOT, "by-job")
        assert await tree.lookup(ROOT, "by-job") is None
        assert await tree.entries(ROOT) == ()


async def test_every_entry_is_found_by_its_path_and_every_link_leads_somewhere(
    shelf: Trees, mock_clock: MockClock
) -> None:
    failed = replace(OVER, status="FAILURE", display_name="执行 a/b")
    shelf.builds.runs = (failed, StageRun(Stage("stage2"), status="ABORTED"))
    async with shelf.tree() as (tree, _):
        todo: list[Node] = [ROOT, RecordDir(build(1).record)]
        links = 0
        while todo:
            directory = todo.pop()
            for name, node, _ in await tree.entries(directory):
                assert await tree.lookup(directory, name) == node
                assert tree.parent(node) == directory
                path = path_of(tree, node)
                assert await found(tree, path) == node
                if isinstance(node, BuildLink | FailedLink | NameLink):
                    links += 1
                    target = await tree.target(node)
                    assert len(target) == tree.target_bytes(node)
                    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
                    assert isinstance(await found(tree, end), RecordDir | LogFile), end
                elif isinstance(node, JobsDir | ProjectDir | JobDir | NamesDir):
                    todo.append(node)
        assert links == len(shelf.projects) * 5 + 3


async def test_a_job_lists_its_latest_builds_then_all_by_number(
    shelf: Trees, mock_clock: MockClock
) -> None:
    async with shelf.tree() as (tree, _):
        names = [name for name, _, _ in await tree.entries(JOB_DIR)]
        assert names == ["latest", "latest-failed", "latest-success", "2", "1"]
        assert shelf.jobs.calls == ["jobs", "builds"]
        await tree.entries(JOB_DIR)
        assert shelf.jobs.calls == ["jobs", "builds"]
        mock_clock.jump(6)
        await tree.entries(JOB_DIR)
        assert shelf.jobs.calls == ["jobs", "builds", "builds"]


async def test_names_are_believed_until_somebody_wants_more(
    shelf: Trees, mock_clock: MockClock
) -> None:
    async with shelf.tree() as (tree, _):
        parent = tree.parent(JOB_DIR)
        typo = await tree.lookup(parent, "typo")
        assert typo == JobDir(PROJECT, "typo")
        link = await tree.lookup(typo, "latest")
        assert link == BuildLink(JobDir(PROJECT, "typo"), Latest.ANY)
        assert await tree.lookup(RecordDir(RECORD), "failed.info.log") == FailedLink(RECORD)
        assert await tree.lookup(NamesDir(RECORD), "01-x.info.log") == NameLink(
            KEY, "01-x.info.log"
        )
        assert shelf.calls == 0
        believed: tuple[Node, ...] = (
            JobDir(PROJECT, "typo"),
            BuildLink(JobDir(PROJECT, "typo"), Latest.ANY),
            BuildLink(JOB_DIR, 77),
            BuildLink(JOB_DIR, Latest.RUNNING),
            FailedLink(RECORD),
            NameLink(KEY, "01-x.info.log"),
        )
        assert not any(tree.certain(node) for node in believed)
        for node in believed:
            with pytest.raises(NotFound):
                await tree.confirm(node)
        for good in (JOB_DIR, BuildLink(JOB_DIR, 1), BuildLink(JOB_DIR, Latest.FAILED)):
            await tree.confirm(good)
            assert tree.certain(good)
        # Now that it is known, the name itself is no longer believed.
        assert await tree.lookup(parent, "typo") is None
        assert await tree.lookup(JOB_DIR, "latest-running") is None
        assert await tree.lookup(RecordDir(RECORD), "failed.info.log") is None


async def test_names_stay_believed_while_nobody_can_be_asked(
    shelf: Trees, mock_clock: MockClock
) -> None:
    shelf.jobs.failure = shelf.builds.failure = ApiUnavailable("down")
    async with shelf.tree() as (tree, _):
        believed: tuple[Node, ...] = (
            JOB_DIR,
            BuildLink(JOB_DIR, Latest.ANY),
            BuildLink(JOB_DIR, 77),
            RecordFile(RECORD),
            NamesDir(RECORD),
            NameLink(KEY, "01-x.info.log"),
        )
        for node in believed:
            with pytest.raises(ApiUnavailable):
                await tree.confirm(node)
        for node in (*believed, RecordDir(RECORD), LogFile(KEY)):
            name = posixpath.basename(path_of(tree, node))
            assert await tree.lookup(tree.parent(node), name) == node


async def test_an_older_build_is_believed_then_asked_for_once(
    shelf: Trees, mock_clock: MockClock
) -> None:
    shelf.jobs.older = {77: build(77)}
    link = BuildLink(JOB_DIR, 77)
    async with shelf.tree() as (tree, _):
        assert await tree.lookup(JOB_DIR, "77") == link
        assert shelf.calls == 0
        for _ in range(3):
            await tree.confirm(link)
            target = await tree.target(link)
            mock_clock.jump(80)
        assert target.endswith("/" + build(77).record)
        assert len(target) == tree.target_bytes(link)
        assert tree.build(link) == build(77)
        assert tree.certain(link)
        assert shelf.jobs.calls == ["jobs", "number"]
        assert shelf.builds.calls == []


async def test_a_finished_record_costs_one_call_whatever_is_asked_of_it(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.builds.runs = (replace(OVER, status="FAILURE", display_name="build"),)
    async with trees.tree() as (tree, _):
        for _ in range(3):
            for directory in (RecordDir(RECORD), NamesDir(RECORD)):
                for name, node, _ in await tree.entries(directory):
                    assert await tree.lookup(directory, name) == node
                    if isinstance(node, FailedLink | NameLink):
                        await tree.confirm(node)
                        await tree.target(node)
            mock_clock.jump(80_000)
    assert trees.calls == 1


async def test_after_a_restart_what_is_over_costs_nothing_and_the_rest_needs_no_api(
    shelf: Trees, mock_clock: MockClock
) -> None:
    shelf.indexed = True
    shelf.jobs.builds_told, shelf.jobs.older = (build(92, "FAILURE"), build(91)), {77: build(77)}
    shelf.builds.runs = (replace(OVER, status="FAILURE", display_name="build"),)
    records = (RecordDir(RECORD), NamesDir(RECORD))
    links = tuple(BuildLink(JOB_DIR, which) for which in (Latest.ANY, Latest.FAILED, 91, 77))
    async with shelf.tree() as (tree, _):
        jobs = (ROOT, tree.parent(JOB_DIR), JOB_DIR)
        of_records = [await tree.entries(directory) for directory in records]
        of_jobs = [await tree.entries(directory) for directory in jobs]
        targets = [await tree.target(link) for link in links]
        document = await tree.document(RECORD)
    calls = shelf.calls
    async with shelf.tree() as (tree, _):
        assert [await tree.entries(directory) for directory in records] == of_records
        assert await tree.target(FailedLink(RECORD)) == "stage1.info.log"
        assert await tree.document(RECORD) == document
        assert shelf.calls == calls
        shelf.jobs.failure = ApiUnavailable("down")
        *directories, listed = [await tree.entries(directory) for directory in jobs]
        assert directories == of_jobs[:-1]
        assert listed[:-2] == of_jobs[-1]
        assert [name for name, _, _ in listed[-2:]] == ["77", "7"]  # which were met one by one
        assert [await tree.target(link) for link in links] == targets


async def test_jobs_of_any_name_are_directories_below_by_job(
    shelf: Trees, mock_clock: MockClock
) -> None:
    names = ["", ".", "..", "../../etc", "a/b", "%2F", "x" * 400, "工" * 200, "twin", "twin"]
    names += ["a\x00\n\x1b[31m\x7f\u202e\u2028", "\ud800", "latest", "~" + "1" * 32]
    shelf.jobs.jobs_told = tuple(Job(f"{n:032}", name, f"p-{n}") for n, name in enumerate(names))
    async with shelf.tree() as (tree, _):
        parent = tree.parent(JOB_DIR)
        entries = await tree.entries(parent)
        assert len({name for name, _, _ in entries}) == len(names)
        for name, node, _ in entries:
            assert isinstance(node, JobDir)
            assert 0 < len(os.fsencode(name)) <= 255
            assert "/" not in name
            assert not name.startswith(".")
            assert not any(unicodedata.category(character)[0] in "CZ" for character in name)
            assert await tree.lookup(parent, name) == node
            await tree.confirm(node)
            assert await tree.target(BuildLink(node, Latest.ANY)) == (
                tree._up_from(JOB_DIR) + build(2).record
            )


async def test_what_was_told_is_shown_while_the_api_is_down(
    shelf: Trees, mock_clock: MockClock
) -> None:
    async with shelf.tree() as (tree, _):
        directories = (tree.parent(JOB_DIR), JOB_DIR, RecordDir(RECORD), NamesDir(RECORD))
        before = [await tree.entries(directory) for directory in directories]
        document = await tree.document(RECORD)
        shelf.jobs.failure = shelf.builds.failure = ApiUnavailable("down")
        mock_clock.jump(100)
        assert [await tree.entries(directory) for directory in directories] == before
        assert await tree.target(BuildLink(JOB_DIR, Latest.ANY)) == (
            tree._up_from(JOB_DIR) + build(2).record
        )
        assert await tree.document(RECORD) == document
        with pytest.raises(ApiUnavailable):
            await tree.entries(RecordDir(OTHER))
        with pytest.raises(ApiUnavailable):
            await tree.document(OTHER)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Maven build", "01-Maven build.info.log"),
        ("执行shell命令", "01-执行shell命令.info.log"),
        (".NET", "01-.NET.info.log"),
        ("../../x", "01-..%2F..%2Fx.info.log"),
        ("a\nb", "01-a%0Ab.info.log"),
        ("..", "01-...info.log"),
        ("a\x00\x1b[31m\u202e", "01-a%00%1B[31m%E2%80%AE.info.log"),
        ("", "01-stage1.info.log"),
        ("执" * 200, "01-" + "执" * 80 + "~.info.log"),
        ("x" * 400, "01-" + "x" * 242 + "~.info.log"),
    ],
)
async def test_stages_go_by_their_display_names(
    trees: Trees, mock_clock: MockClock, name: str, file: str
) -> None:
    trees.builds.runs = (replace(OVER, display_name=name),)
    async with trees.tree() as (tree, _):
        [info, debug] = await tree.entries(NamesDir(RECORD))
        assert info == (file, NameLink(KEY, file), None)
        assert debug[0][:4] == file[:4]
        assert debug[0].endswith(".debug.log")
        assert await tree.target(NameLink(KEY, file)) == "../stage1.info.log"
        assert len(info[0].encode()) <= 255


async def test_record_json_is_as_big_as_it_says(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        assert tree.document_bytes(RECORD) == 0
        text = await tree.document(RECORD)
        assert tree.document_bytes(RECORD) == len(text)
        assert tree.certain(RecordFile(RECORD))
        calls = trees.calls
        assert await tree.document(RECORD) == text
        assert trees.calls == calls == 2


async def test_record_json_that_is_not_rendered_yet_as_it_is_now_has_no_size(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.builds.runs = (RUNNING,)
    async with trees.tree() as (tree, _):
        before = await tree.document(RECORD)
        mock_clock.jump(6)
        trees.builds.runs = (OVER,)
        assert tree.document_bytes(RECORD) == len(before)
        await tree.entries(RecordDir(RECORD))
        assert tree.document_bytes(RECORD) == 0
        after = await tree.document(RECORD)
        assert tree.document_bytes(RECORD) == len(after) != len(before)


async def test_record_json_of_what_does_not_exist_is_absent(
    trees: Trees, mock_clock: MockClock
) -> None:
    async with trees.tree() as (tree, _):
        for failure in (BuildNotFound(RECORD, "gone"), Forbidden("no")):
            trees.builds.failure = failure
            with pytest.raises(BuildNotFound):
                await tree.document(RECORD)
            mock_clock.jump(60)


# What comes next.


async def test_records_follow_in_the_order_of_the_listing_or_of_look_ups(
    trees: Trees, mock_clock: MockClock
) -> None:
    records = [RecordId(f"{number:036}") for number in range(5)]
    async with trees.tree() as (tree, _):
        assert tree.records_after(records[0], 2) == ()
        for record in (records[3], records[1], records[4]):
            await tree.lookup(ROOT, record)
        assert tree.records_after(records[3], 2) == (records[1], records[4])
        assert tree.records_after(records[4], 2) == ()
        for record in records[:4]:
            await tree.entries(RecordDir(record))
        await tree.entries(ROOT)
        assert tree.records_after(records[0], 2) == (records[1], records[2])
        assert tree.records_after(records[3], 2) == ()


async def test_logs_and_the_failed_one_are_known_to_who_fetches_ahead(
    trees: Trees, mock_clock: MockClock
) -> None:
    trees.builds.runs = (OVER, StageRun(Stage("stage2"), status="FAILURE", finished_ns=1))
    async with trees.tree() as (tree, _):
        assert tree.failed_log(RECORD) is None
        assert await tree.logs_of(RECORD) == tuple(
            key(stage, level) for stage in (1, 2) for level in LogLevel
        )
        assert tree.failed_log(RECORD) == key(2)


async def test_paths_lead_to_records_and_logs_through_links(
    shelf: Trees, mock_clock: MockClock
) -> None:
    shelf.builds.runs = (replace(OVER, status="FAILURE", display_name="Build"),)
    async with shelf.tree() as (tree, _):
        job = path_of(tree, JOB_DIR).strip("/")
        newest, oldest = build(2).record, build(1).record
        info, debug = (LogKey(newest, Stage("stage1"), level) for level in LogLevel)
        to_somewhere = {
            newest: newest,
            debug.file_name: None,
            f"{newest}/{debug.file_name}": debug,
            f"{job}/latest": newest,
            f"{job}/99": None,
            f"{job}/1/{info.file_name}": replace(info, record=oldest),
            f"{job}/2/by-name/01-Build.info.log": info,
            f"{job}/2/failed.info.log": info,
            f"{job}/2/record.json": None,
            f"{CONTROL_DIR}/{STATUS_FILE}": None,
            job: None,
            "": None,
        }
        places = tuple(filter(None, to_somewhere.values()))
        assert await tree.places(to_somewhere) == places


@pytest.mark.parametrize("runs", [(), (StageRun(Stage("stage1"), status="ABORTED"),)])
async def test_names_of_stages_may_come_to_a_record_that_had_none(
    trees: Trees, mock_clock: MockClock, runs: tuple[StageRun, ...]
) -> None:
    trees.builds.runs = runs
    async with trees.tree() as (tree, _):
        await tree.entries(RecordDir(RECORD))
        assert await tree.lookup(RecordDir(RECORD), "by-name") is None
        trees.builds.runs = (OVER,)
        mock_clock.jump(1000)
        assert await tree.lookup(RecordDir(RECORD), "by-name") == NamesDir(RECORD)


async def test_a_stage_may_get_another_name(trees: Trees, mock_clock: MockClock) -> None:
    trees.builds.runs = (StageRun(Stage("stage1"), status="RUNNING"),)
    async with trees.tree() as (tree, _):
        await tree.entries(RecordDir(RECORD))
        trees.builds.runs = (replace(OVER, display_name="Build"),)
        link = NameLink(KEY, "01-Build.info.log")
        assert await tree.lookup(NamesDir(RECORD), link.name) is None
        mock_clock.jump(1000)
        assert await tree.lookup(NamesDir(RECORD), link.name) == link
        assert await tree.target(link) == "../stage1.info.log"


@pytest.mark.parametrize("number", [0, -1, 2**31])
async def test_a_build_whose_number_no_name_can_mean_is_not_listed(
    shelf: Trees, mock_clock: MockClock, number: int
) -> None:
    shelf.jobs = FakeJobs(replace(build(1), build_no=number))
    async with shelf.tree() as (tree, _):
        names = [name for name, _, _ in await tree.entries(JOB_DIR)]
        assert names == ["latest", "latest-success"]


async def test_names_of_stages_have_plain_numbers(trees: Trees, mock_clock: MockClock) -> None:
    async with trees.tree() as (tree, _):
        for name in ("٠١-x.info.log", "0001-x.info.log", "00-x.info.log", "1-x.info.log"):
            assert tree.impossible(NamesDir(RECORD), name)
        assert not tree.impossible(NamesDir(RECORD), "100-x.info.log")
