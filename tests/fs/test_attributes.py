"""Extended attributes: what is known, and only that, at no cost."""

import errno
import hashlib
from pathlib import Path

import pyfuse3
import pytest
from trio.testing import MockClock

from codeartsfs.errors import ApiUnavailable
from codeartsfs.fs.nodes import FailedLink, LogFile, RecordDir
from codeartsfs.logs.store import LogStore
from codeartsfs.model import StageRun
from codeartsfs.names import Stage
from tests.builds.test_catalog import FakeBuilds
from tests.logs.fakes import KEY, OVER, RECORD, World, content_of, landed

from .test_listing import NOBODY, operations_of


async def attributes_of(world: World, *, opened: bool, told: bool) -> dict[str, str]:
    """Return the attributes of a log by their names after ``user.codearts.``."""
    builds = FakeBuilds(OVER)
    async with operations_of(world, builds) as (operations, catalog):
        if told:
            await catalog.stages(RECORD)
        if opened:
            store: LogStore = operations._store
            await content_of(store)
            await landed(store)
        before = len(builds.calls) + len(world.source.calls)
        inode = operations.inodes.number(LogFile(KEY))
        operations.inodes.looked_up(inode)
        names = await operations.listxattr(inode, NOBODY)
        values = {
            name.decode().removeprefix("user.codearts."): (
                await operations.getxattr(inode, name, NOBODY)
            ).decode()
            for name in names
        }
        assert len(builds.calls) + len(world.source.calls) == before
        return values


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.source.logs[KEY] = b"log\n"
    return world


async def test_a_log_nobody_opened_tells_its_stage(world: World, mock_clock: MockClock) -> None:
    assert await attributes_of(world, opened=False, told=True) == {
        "stage": "stage1",
        "status": "success",
        "final": "true",
        "cached": "no",
    }


async def test_a_log_of_which_nothing_is_known_tells_that(
    world: World, mock_clock: MockClock
) -> None:
    assert await attributes_of(world, opened=False, told=False) == {
        "stage": "stage1",
        "cached": "no",
    }


@pytest.mark.parametrize("tier", ["disk", "memory"])
async def test_a_log_that_was_read_tells_where_it_is_and_came_from(
    world: World, mock_clock: MockClock, tier: str
) -> None:
    world.memory_bytes = 1 << 20 if tier == "memory" else 0
    values = await attributes_of(world, opened=True, told=False)
    assert values.pop("fetched_at").startswith("20")
    assert values == {
        "stage": "stage1",
        "final": "true",
        "cached": tier,
        "sha256": hashlib.sha256(b"log\n").hexdigest(),
        "request_id": "req-1",
    }


async def test_a_log_that_could_not_be_had_tells_why_until_it_can(
    world: World, mock_clock: MockClock
) -> None:
    async with operations_of(world, FakeBuilds(OVER)) as (operations, _):
        world.source.failure = ApiUnavailable("down (request 7)")
        with pytest.raises(ApiUnavailable):
            await operations._store.open(KEY)
        log = operations._extended
        assert (await log.of(LogFile(KEY)))[b"user.codearts.last_error"] == b"down (request 7)"
        world.source.failure = None
        mock_clock.jump(20)
        await content_of(operations._store)
        await landed(operations._store)
        assert b"user.codearts.last_error" not in await log.of(LogFile(KEY))


async def test_a_record_tells_what_lists_and_stages_said(
    world: World, mock_clock: MockClock
) -> None:
    failed = StageRun(Stage("stage1"), status="FAILURE", finished_ns=1)
    async with operations_of(world, FakeBuilds(failed)) as (operations, catalog):
        of = operations._extended.of
        assert await of(RecordDir(RECORD)) == {}
        await catalog.stages(RECORD)
        await catalog.build(RECORD)
        assert await of(RecordDir(RECORD)) == {
            b"user.codearts.status": b"SUCCESS",
            b"user.codearts.final": b"true",
            b"user.codearts.failed_stage": b"stage1",
            b"user.codearts.build_number": b"7",
        }
        assert await of(FailedLink(RECORD)) == {}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"user.foo", errno.ENODATA),
        (b"user.codearts.nothing", errno.ENODATA),
        (b"security.selinux", errno.EOPNOTSUPP),
        (b"system.posix_acl_access", errno.EOPNOTSUPP),
    ],
)
async def test_other_attributes_are_not_there(
    world: World, mock_clock: MockClock, name: bytes, number: int
) -> None:
    async with operations_of(world, FakeBuilds(OVER)) as (operations, _):
        inode = operations.inodes.number(LogFile(KEY))
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.getxattr(inode, name, NOBODY)
        assert refused.value.errno == number
