"""The inode table against a plain model of what the kernel knows."""

import pyfuse3
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from codeartsfs.builds.jobs import Latest
from codeartsfs.fs.inodes import InodeTable
from codeartsfs.fs.nodes import (
    CONTROL_FILES,
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
from codeartsfs.names import LogKey, LogLevel, ProjectId, RecordId, Stage
from tests.scale import scaled

RECORDS = [RecordId(letter * 36) for letter in "abc"]
PROJECTS = [ProjectId(letter * 32) for letter in "cd"]
JOB, TWIN = (JobDir(project, "web-app") for project in PROJECTS)
KEY = LogKey(RECORDS[0], Stage("stage1"), LogLevel.INFO)
NODES: list[Node] = [
    *(kind() for kind in (ControlDir, JobsDir)),
    *(ControlFile(name) for name in CONTROL_FILES),
    *(ProjectDir(project) for project in PROJECTS),
    JOB,
    TWIN,
    BuildLink(TWIN, 1),
    *(NameLink(KEY, name) for name in ("01-build.info.log", "01-test.info.log")),
    *(kind(RECORDS[0]) for kind in (RecordFile, FailedLink, NamesDir)),
    *(BuildLink(JOB, which) for which in (Latest.ANY, Latest.FAILED, 1)),
    *(RecordDir(record) for record in RECORDS),
    *(LogFile(LogKey(record, Stage("stage1"), LogLevel.INFO)) for record in RECORDS),
    *(LogFile(LogKey(record, Stage("stage1"), LogLevel.INFO), 1) for record in RECORDS),
]


class Kernel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable()
        self.known: dict[Node, tuple[pyfuse3.InodeT, int]] = {}
        self.given_out: set[int] = {int(pyfuse3.ROOT_INODE)}
        self.told: dict[pyfuse3.InodeT, tuple[bool, int]] = {}  # sized, bytes

    def _number(self, node: Node) -> pyfuse3.InodeT:
        number = self.table.number(node)
        if node in self.known:
            assert number == self.known[node][0]
        else:
            assert number not in self.given_out
            self.given_out.add(number)
        assert self.table.node(number) == node
        return number

    @rule(node=st.sampled_from(NODES))
    def entry_reply(self, node: Node) -> None:
        number = self._number(node)
        self.table.looked_up(number)
        _, lookups = self.known.get(node, (number, 0))
        self.known[node] = (number, lookups + 1)

    @rule(node=st.sampled_from(NODES))
    def reply_that_the_kernel_did_not_take(self, node: Node) -> None:
        self.table.drop_unknown(self._number(node))

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if not self.known:
            return
        node = data.draw(st.sampled_from([node for node in NODES if node in self.known]))
        number, lookups = self.known[node]
        forgotten = data.draw(st.integers(1, lookups))
        self.table.forget(number, forgotten)
        if forgotten == lookups:
            del self.known[node]
            with pytest.raises(KeyError):
                self.table.node(number)
        else:
            self.known[node] = (number, lookups - forgotten)

    @rule(data=st.data(), size_bytes=st.integers(0, 2**40), sized=st.booleans())
    def size_reply(self, data: st.DataObject, size_bytes: int, sized: bool) -> None:
        if not self.known:
            return
        node = data.draw(st.sampled_from([node for node in NODES if node in self.known]))
        number, _ = self.known[node]
        was_sized, _ = self.told.get(number, (False, 0))
        if sized:
            assert self.table.claim_sizing(number) == (not was_sized)
        self.table.tell_bytes(number, size_bytes)
        self.told[number] = (sized or was_sized, size_bytes)

    @rule()
    def root_stays(self) -> None:
        self.table.drop_unknown(pyfuse3.ROOT_INODE)
        assert self.table.number(ROOT) == pyfuse3.ROOT_INODE

    @invariant()
    def agrees(self) -> None:
        self.table.check_invariants()
        assert len(self.table) == len(self.known) + 1
        for node, (number, _) in self.known.items():
            assert self.table.node(number) == node
            # What the kernel was told of an inode dies with it: its number never comes again.
            assert self.table.told_bytes(number) == self.told.get(number, (False, 0))[1]


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=scaled(60), stateful_step_count=40, deadline=None)


def test_nodes_of_different_kinds_are_different_whatever_they_hold() -> None:
    assert len(set(NODES)) == len(NODES)


def test_forgetting_more_than_was_looked_up_is_a_bug_that_shows() -> None:
    table = InodeTable()
    number = table.number(NODES[0])
    table.looked_up(number)
    with pytest.raises(AssertionError, match="more often"):
        table.forget(number, 2)


def test_size_is_told_once_per_life_of_an_inode() -> None:
    table = InodeTable()
    number = table.number(NODES[0])
    table.looked_up(number)
    assert [table.claim_sizing(number) for _ in range(3)] == [True, False, False]
    table.forget(number, 1)
    assert table.claim_sizing(table.number(NODES[0]))
