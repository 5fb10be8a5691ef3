"""Listings as the kernel reads them: in pieces, again, and while things change."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pyfuse3
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import Index, RecordTimes, open_index
from codeartsfs.builds.jobs import Jobs
from codeartsfs.fs.attributes import Attributes
from codeartsfs.fs.callers import Callers
from codeartsfs.fs.operations import Operations, Shown, StatSize
from codeartsfs.fs.tree import Tree
from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.names import RecordId
from tests.builds.test_catalog import FakeBuilds
from tests.builds.test_jobs import FakeJobs
from tests.logs.fakes import OVER, World

ROOT = pyfuse3.ROOT_INODE
NOBODY = cast(pyfuse3.RequestContext, type("Context", (), {"pid": 0, "uid": 0, "gid": 0}))
LONG_AGO = RecordTimes(OVER.finished_ns, final=True)


def record(number: int) -> RecordId:
    return RecordId(f"{number:036}")


class Silent:
    """A mount that says nothing of itself."""

    def size_bytes(self, name: str) -> int:
        return 0

    async def text(self, name: str) -> bytes:
        return b""


async def nothing_given(process: int) -> tuple[RecordId, ...]:
    return ()


@asynccontextmanager
async def operations_of(
    world: World, builds: FakeBuilds, index: Index | None = None
) -> AsyncIterator[tuple[Operations, Catalog]]:
    async with world.store() as store, trio.open_nursery() as nursery:
        catalog = Catalog(builds, nursery, index)
        jobs = Jobs(FakeJobs(), catalog, (), nursery, builds_per_job=100)
        tree = Tree(catalog, jobs, store)
        yield (
            Operations(
                tree,
                store,
                Attributes(catalog, jobs, store),
                Prefetcher(store, tree, nothing_given, nursery, 0),
                Callers(60.0),
                control=Silent(),
                shown=Shown(uid=0, gid=0, file_mode=0o444, directory_mode=0o555),
                stat_size=StatSize.AUTO,
                refresh_s=1.0,
                set_log_level=str,
            ),
            catalog,
        )
        nursery.cancel_scope.cancel()


class Kernel:
    """Reads directories with a buffer of some entries, and counts its look-ups."""

    def __init__(self, operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
        self._operations = operations
        self._room = 0
        self._taken: list[tuple[str, pyfuse3.EntryAttributes, int]] = []
        self.lookups: dict[int, int] = {}
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(
        self, token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int
    ) -> bool:
        if self._room == 0:
            return False
        self._room -= 1
        self._taken.append((os.fsdecode(name), attributes, next_id))
        return True

    async def read(
        self, fh: pyfuse3.FileHandleT, start: int, room: int
    ) -> list[tuple[str, pyfuse3.EntryAttributes, int]]:
        self._room, self._taken = room, []
        await self._operations.readdir(fh, start, cast(pyfuse3.ReaddirToken, None))
        for name, attributes, _ in self._taken:
            if name not in (".", ".."):
                self._count(attributes.st_ino)
        return self._taken

    async def look_up(self, name: str) -> None:
        attributes = await self._operations.lookup(ROOT, pyfuse3.FileNameT(name.encode()), NOBODY)
        self._count(attributes.st_ino)

    async def forget(self, inode: int) -> None:
        await self._operations.forget([(pyfuse3.InodeT(inode), self.lookups.pop(inode))])

    def agrees(self) -> None:
        inodes = self._operations.inodes
        inodes.check_invariants()
        counts = {int(inode): known.lookups for inode, known in inodes._inodes.items()}
        assert counts == {int(ROOT): 1, **self.lookups}

    def _count(self, inode: int) -> None:
        self.lookups[inode] = self.lookups.get(inode, 0) + 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 7)),
        st.tuples(st.just("rewind"), st.integers(0, 20)),
        st.tuples(st.just("appear"), st.integers(0, 40)),
        st.tuples(st.just("vanish"), st.integers(0, 40)),
        st.tuples(st.just("look up"), st.integers(0, 40)),
        st.tuples(st.just("forget"), st.integers(0, 100)),
    ),
    max_size=25,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(known=st.sets(st.integers(0, 40), max_size=20), steps=STEPS)
def test_a_listing_shows_each_entry_once_whatever_happens_meanwhile(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    known: set[int],
    steps: list[tuple[str, int]],
) -> None:
    async def scenario() -> None:
        world = World(tmp_path_factory.mktemp("world"))
        async with operations_of(world, FakeBuilds(OVER)) as (operations, catalog):
            kernel = Kernel(operations, monkeypatch)
            for number in known:
                await catalog.stages(record(number))
            fh = await operations.opendir(ROOT, NOBODY)
            expected = [".", "..", *map(record, sorted(known))]
            seen: dict[int, str] = {}  # by position
            position = 0
            for what, number in steps:
                if what == "read":
                    for name, _, next_id in await kernel.read(fh, position, number):
                        assert seen.setdefault(position, name) == name
                        position = next_id
                elif what == "rewind":
                    position = min(position, number)
                elif what == "appear":
                    await catalog.stages(record(number))
                elif what == "vanish":  # from memory, as what was not used for long does
                    catalog._records.pop(record(number), None)
                elif what == "look up":
                    await kernel.look_up(record(number))
                elif kernel.lookups:
                    await kernel.forget(sorted(kernel.lookups)[number % len(kernel.lookups)])
                kernel.agrees()
            while taken := await kernel.read(fh, position, 5):
                for name, _, next_id in taken:
                    assert seen.setdefault(position, name) == name
                    position = next_id
            assert [seen[place] for place in sorted(seen)] == expected
            await operations.releasedir(fh)
            for inode in list(kernel.lookups):
                await kernel.forget(inode)
            kernel.agrees()
            assert len(operations.inodes) == 1

    trio.run(scenario)


async def test_a_hundred_thousand_known_records_are_listed_once_each_with_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    (tmp_path / "index/v1").mkdir(parents=True)
    builds = FakeBuilds(OVER)
    async with (
        open_index(tmp_path / "index") as index,
        operations_of(world, builds, index) as (operations, _),
    ):
        kernel = Kernel(operations, monkeypatch)
        for number in range(100_000):
            index.keep_stages(record(number), (OVER,), LONG_AGO)
        fh = await operations.opendir(ROOT, NOBODY)
        position, names = 0, []
        while taken := await kernel.read(fh, position, 1000):
            names += [name for name, _, _ in taken]
            times = {attributes.st_mtime_ns for name, attributes, _ in taken if name[0] != "."}
            assert times == {LONG_AGO.modified_ns}
            position = taken[-1][2]
        assert names == [".", "..", *map(record, range(100_000))]
        kernel.agrees()
        await operations.releasedir(fh)
        assert builds.calls == []
