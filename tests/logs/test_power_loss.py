"""Loss of power at every moment: what was saved is whole, and what could be half is a miss.

File operations of the disk tier are recorded and played again on a platter that keeps nothing
but what was fsynced. After each of them the power fails, and of what was not fsynced survive
none, all, or some at random: names, whole writes, halves of writes, sizes without their bytes.
"""

import errno
import hashlib
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest

from codeartsfs.logs.disk import DiskTier
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from tests.logs.fakes import KEY, text
from tests.logs.test_disk import content_of, meta_of, save

OTHER = LogKey(RecordId("a" * 36), Stage("stage1"), LogLevel.INFO)
FIRST, GROWN = text(3000), text(5000)
LATER = text(4000, "later")
LIMIT = 12_000

ROOT = 0
Node = int  # a file or directory, by the order in which they were made; ROOT is the cache's own


@dataclass(frozen=True)
class Write:
    file: Node
    offset: int
    content: bytes


@dataclass(frozen=True)
class Truncate:
    file: Node
    size: int


@dataclass(frozen=True)
class Name:
    """Names change their meaning, all of them or none: (directory, name, what it means)."""

    changes: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True)
class Sync:
    node: Node


Op = Write | Truncate | Name | Sync


@dataclass
class Recording:
    """What was done to the files below a directory, and what had to be true of logs meanwhile.

    Attributes:
        directories: those of the nodes that are no files.
        rules: from which operation on which contents of logs are right; None is a miss.
    """

    ops: list[Op] = field(default_factory=list)
    directories: set[Node] = field(default_factory=lambda: {ROOT})
    rules: list[tuple[int, dict[LogKey, set[bytes | None]]]] = field(
        default_factory=lambda: [(0, {})]
    )

    def from_now_on(self, key: LogKey, *contents: bytes | None) -> None:
        self.rules.append((len(self.ops), self.rules[-1][1] | {key: set(contents)}))

    def right(self, position: int) -> dict[LogKey, set[bytes | None]]:
        return [right for first, right in self.rules if first <= position][-1]


class Recorder:
    """Listens to this process's file operations."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, nameless: bool) -> None:
        root.mkdir()
        self.recording = Recording()
        self._nodes = {root.stat().st_ino: ROOT}
        self._numbers = count(ROOT + 1)
        self._nameless = nameless
        self._real = {name: getattr(os, name) for name in dir(os)}
        for name in ("link", "replace", "mkdir", "rmdir", "unlink", "open", "fsync"):
            patch.setattr(os, name, getattr(self, f"_{name}"))
        for name in ("pwrite", "pwritev", "sendfile", "ftruncate"):
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def _add(self, op: Op) -> None:
        self.recording.ops.append(op)

    def _node(self, where: int | Path | str) -> Node:
        return self._nodes[os.stat(where).st_ino]

    def _new(self, where: int | Path | str) -> Node:
        # A number that the file system uses again is another file.
        node = self._nodes[os.stat(where).st_ino] = next(self._numbers)
        return node

    def _place(self, path: str | Path) -> tuple[Node, str]:
        return self._node(Path(path).parent), Path(path).name

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        tmpfile = flags & os.O_TMPFILE == os.O_TMPFILE
        if tmpfile and not self._nameless:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE here")
        fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if tmpfile:
            self._new(fd)
        elif flags & os.O_CREAT:
            place = self._place(path)
            self._add(Name(((*place, self._new(fd)),)))
        return fd

    def _mkdir(self, path: Path, mode: int = 0o777) -> None:
        self._real["mkdir"](path, mode)
        node = self._new(path)
        self.recording.directories.add(node)
        self._add(Name(((*self._place(path), node),)))

    def _link(self, source: str, path: Path, **options: Any) -> None:
        self._real["link"](source, path, **options)
        self._add(Name(((*self._place(path), self._node(path)),)))

    def _replace(self, source: Path, name: str, *, dst_dir_fd: int) -> None:
        node, place = self._node(source), self._place(source)
        self._real["replace"](source, name, dst_dir_fd=dst_dir_fd)
        self._add(Name(((*place, None), (self._node(dst_dir_fd), name, node))))

    def _unlink(self, path: Path) -> None:
        self._real["unlink"](path)
        self._add(Name(((*self._place(path), None),)))

    def _rmdir(self, path: Path) -> None:
        self._real["rmdir"](path)
        self._add(Name(((*self._place(path), None),)))

    def _pwrite(self, fd: int, content: bytes, offset: int) -> int:
        written: int = self._real["pwrite"](fd, content, offset)
        self._add(Write(self._node(fd), offset, bytes(content[:written])))
        return written

    def _pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return self._pwrite(fd, b"".join(buffers), offset)

    def _sendfile(self, target: int, source: int, offset: int, size: int) -> int:
        at = os.lseek(target, 0, os.SEEK_CUR)
        sent: int = self._real["sendfile"](target, source, offset, size)
        self._add(Write(self._node(target), at, os.pread(source, sent, offset)))
        return sent

    def _ftruncate(self, fd: int, size: int) -> None:
        self._real["ftruncate"](fd, size)
        self._add(Truncate(self._node(fd), size))

    def _fsync(self, fd: int) -> None:
        self._real["fsync"](fd)
        self._add(Sync(self._node(fd)))


Tree = dict[str, "bytes | Tree"]
Survives = Literal["none", "all", "some"]


class Platter:
    """A disk that keeps what was fsynced, and of the rest what it likes."""

    def __init__(self, directories: set[Node]) -> None:
        self._directories = directories
        self._files: defaultdict[Node, bytes] = defaultdict(bytes)
        self._unwritten: defaultdict[Node, list[Write | Truncate]] = defaultdict(list)
        self._names: defaultdict[Node, dict[str, Node | None]] = defaultdict(dict)
        self._unnamed: list[Name] = []

    def do(self, op: Op) -> None:
        match op:
            case Write() | Truncate():
                self._unwritten[op.file].append(op)
            case Name():
                self._unnamed.append(op)
            case Sync(node) if node in self._directories:
                due = _with_those_before(self._unnamed, lambda name: node in _directories(name))
                self._unnamed = [name for name in self._unnamed if name not in due]
                _rename(self._names, due)
            case Sync(node):
                self._files[node] = _written(self._files[node], self._unwritten.pop(node, []))

    def after_power_loss(self, names: Survives, bytes_: Survives, chance: random.Random) -> Tree:
        kept = defaultdict(dict, {node: dict(known) for node, known in self._names.items()})
        _rename(kept, _with_those_before(self._unnamed, lambda _: _lucky(names, chance)))

        def tree(node: Node) -> "bytes | Tree":
            if node in self._directories:
                found = kept[node].items()
                return {name: tree(child) for name, child in found if child is not None}
            return self._content(node, bytes_, chance)

        whole = tree(ROOT)
        assert isinstance(whole, dict)
        return whole

    def _content(self, node: Node, survives: Survives, chance: random.Random) -> bytes:
        before, unwritten = self._files[node], self._unwritten[node]
        if survives != "some":
            return _written(before, unwritten if survives == "all" else [])
        torn: list[Write | Truncate] = []
        for op in unwritten:
            match chance.choice(("lost", "kept", "half", "zeros")), op:
                case ("half", Write(file, offset, content)):
                    torn.append(Write(file, offset, content[: chance.randrange(len(content))]))
                case ("zeros", Write(file, offset, content)):
                    torn.append(Write(file, offset, bytes(len(content))))
                case (fate, _) if fate != "lost":
                    torn.append(op)
        return _written(before, torn)


def _lucky(survives: Survives, chance: random.Random) -> bool:
    return survives == "all" or (survives == "some" and chance.random() < 0.5)


def _directories(name: Name) -> set[Node]:
    return {directory for directory, _, _ in name.changes}


def _with_those_before(names: list[Name], chosen: Callable[[Name], bool]) -> list[Name]:
    """Choose changes, and what has to precede them: what is done in one directory has an order."""
    due: list[Name] = []
    touched: set[Node] = set()
    for name in reversed(names):
        if chosen(name) or _directories(name) & touched:
            due.insert(0, name)
            touched |= _directories(name)
    return due


def _rename(names: dict[Node, dict[str, Node | None]], ops: list[Name]) -> None:
    for op in ops:
        for directory, name, node in op.changes:
            names[directory][name] = node


def _written(content: bytes, ops: Sequence[Write | Truncate]) -> bytes:
    file = bytearray(content)
    for op in ops:
        end = op.offset + len(op.content) if isinstance(op, Write) else op.size
        file.extend(bytes(max(0, end - len(file))))
        if isinstance(op, Write):
            file[op.offset : end] = op.content
        else:
            del file[end:]
    return bytes(file)


def write_tree(tree: Tree, path: Path) -> None:
    path.mkdir(mode=0o700)
    for name, node in tree.items():
        if isinstance(node, bytes):
            (path / name).write_bytes(node)
        else:
            write_tree(node, path / name)


def read_tree(path: Path) -> Tree:
    return {
        child.name: read_tree(child) if child.is_dir() else child.read_bytes()
        for child in path.iterdir()
    }


async def grow(tier: DiskTier, key: LogKey, grown: bytes) -> None:
    """Bring a log up to date as a download does: a copy goes on where the entry ends."""
    loaded = await tier.load(key)
    assert loaded is not None
    body, meta = loaded
    await body.move_to(tier.new_file())
    await body.append([grown[meta.size_bytes :]])
    body.announce(len(grown))
    await tier.save(key, body, meta_of(grown))
    body.close()


async def a_life(tier: DiskTier, told: Recording) -> None:
    """Do all that a tier does, and say what may be found of each log from when on."""
    told.from_now_on(KEY, FIRST, None)
    await save(tier, KEY, FIRST, meta_of(FIRST, final=False))
    told.from_now_on(KEY, FIRST)
    told.from_now_on(OTHER, LATER, None)
    await save(tier, OTHER, LATER)
    told.from_now_on(OTHER, LATER)
    told.from_now_on(KEY, FIRST, None)  # its footer is written in its place
    await tier.touch(KEY, meta_of(FIRST))
    told.from_now_on(KEY, FIRST, GROWN, None)
    await grow(tier, KEY, GROWN)
    told.from_now_on(KEY, GROWN)
    told.from_now_on(OTHER, LATER, FIRST)  # always the one or the other
    await save(tier, OTHER, FIRST)
    told.from_now_on(OTHER, FIRST)
    told.from_now_on(OTHER, FIRST, None)
    await tier.remove(OTHER)
    told.from_now_on(OTHER, None)
    told.from_now_on(OTHER, GROWN + LATER, None)
    told.from_now_on(KEY, GROWN, None)  # it is evicted: there is no room for both
    await save(tier, OTHER, GROWN + LATER)
    told.from_now_on(OTHER, GROWN + LATER)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def record(
    cache: Path, live: Callable[[DiskTier, Recording], Any], *, nameless: bool = True
) -> Recording:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(cache, patch, nameless=nameless)
        tier = DiskTier(cache, LIMIT)
        for directory in (cache, cache / "v1"):  # of what is there at the start nothing is lost
            recorder.recording.ops.append(Sync(recorder._node(directory)))
        await live(tier, recorder.recording)
    return recorder.recording


_FATES: tuple[tuple[Survives, Survives], ...] = (
    ("none", "none"),
    ("none", "all"),
    ("all", "none"),
    ("all", "all"),
    *((("all", "some"), ("some", "all"), ("some", "some")) * 25),
)


def power_losses(recording: Recording) -> Iterator[tuple[int, Tree]]:
    """Yield what may be found after each operation; the number is how many were done."""
    chance = random.Random(1)
    seen: set[bytes] = set()
    platter = Platter(recording.directories)
    for done, op in enumerate(recording.ops, start=1):
        platter.do(op)
        for fate in _FATES:
            tree = platter.after_power_loss(*fate, chance)
            rules = repr((recording.right(done), tree)).encode()
            mark = hashlib.sha256(rules).digest()
            if mark not in seen:
                seen.add(mark)
                yield done, tree


async def first_wrong(recording: Recording, scratch: Path) -> str | None:
    """Let power fail at every moment; return what is found wrong first, None if nothing is."""
    for number, (done, tree) in enumerate(power_losses(recording)):
        found = scratch / str(number)
        write_tree(tree, found)
        tier = DiskTier(found, LIMIT)
        for key, right in recording.right(done).items():
            content = await content_of(tier, key)
            if content not in right:
                size = "nothing" if content is None else f"{len(content)} bytes"
                op = recording.ops[done - 1]
                return f"{size} of {key} after operation {done}, {op!r:.100}"
        if os.listdir(found / "v1" / "tmp"):
            return f"litter after operation {done}"
        shutil.rmtree(found)
    return None


def start_of(recording: Recording) -> int:
    """Return the first operation after those that make the directories."""
    return recording.rules[1][0]


@pytest.mark.parametrize("nameless", [True, False], ids=["O_TMPFILE", "no O_TMPFILE"])
async def test_the_recording_is_complete(cache: Path, nameless: bool) -> None:
    recording = await record(cache, a_life, nameless=nameless)
    platter = Platter(recording.directories)
    for op in recording.ops:
        platter.do(op)
    assert platter.after_power_loss("all", "all", random.Random(1)) == read_tree(cache)


@pytest.mark.parametrize("nameless", [True, False], ids=["O_TMPFILE", "no O_TMPFILE"])
async def test_after_a_loss_of_power_each_log_is_right_or_a_miss_and_what_was_saved_is_there(
    cache: Path, tmp_path: Path, nameless: bool
) -> None:
    recording = await record(cache, a_life, nameless=nameless)
    (tmp_path / "found").mkdir()
    assert await first_wrong(recording, tmp_path / "found") is None


async def test_no_fsync_could_be_left_out(cache: Path, tmp_path: Path) -> None:
    """Which is also what shows that the test above can fail."""
    recording = await record(cache, a_life)
    syncs = [
        number
        for number, op in enumerate(recording.ops)
        if isinstance(op, Sync) and number >= start_of(recording)
    ]
    assert len(syncs) > 8
    for number in syncs:
        shutil.rmtree(tmp_path / "found", ignore_errors=True)
        (tmp_path / "found").mkdir()
        ops = [*recording.ops[:number], Name(()), *recording.ops[number + 1 :]]
        without = Recording(ops, recording.directories, recording.rules)
        assert await first_wrong(without, tmp_path / "found"), recording.ops[number]


async def test_bytes_are_on_the_platter_before_they_have_a_name(cache: Path) -> None:
    async def save_two(tier: DiskTier, told: Recording) -> None:
        told.from_now_on(KEY, FIRST, None)
        await save(tier, KEY, FIRST)
        await save(tier, KEY, GROWN)

    recording = await record(cache, save_two)
    done = recording.ops[start_of(recording) :]
    kinds = [type(op).__name__ for op in done]
    written = ["Write", "Truncate", "Write", "Sync"]
    directory = ["Name", "Sync"]
    assert kinds == [*written, "Name", *directory, *directory, *written, "Name", *directory]
    for op in done:
        if isinstance(op, Name) and len(op.changes) == 2:
            node = op.changes[1][2]
            before = done[: done.index(op)]
            touching = [o for o in before if getattr(o, "file", getattr(o, "node", None)) == node]
            assert isinstance(touching[-1], Sync)
            after = done[done.index(op) + 1]
            assert after == Sync(op.changes[1][0])


def test_a_platter_keeps_what_was_fsynced_and_no_more() -> None:
    chance = random.Random(1)
    platter = Platter({ROOT})
    for op in (Write(1, 0, b"kept"), Sync(1), Name(((ROOT, "a", 1),)), Sync(ROOT)):
        platter.do(op)
    for op in (Write(1, 4, b" lost"), Write(2, 0, b"b"), Sync(2), Name(((ROOT, "b", 2),))):
        platter.do(op)
    assert platter.after_power_loss("none", "none", chance) == {"a": b"kept"}
    assert platter.after_power_loss("all", "none", chance) == {"a": b"kept", "b": b"b"}
    assert platter.after_power_loss("none", "all", chance) == {"a": b"kept lost"}
    torn = {repr(platter.after_power_loss("none", "some", chance)) for _ in range(100)}
    assert repr({"a": b"kept\0\0\0\0\0"}) in torn
    assert repr({"a": b"kept lo"}) in torn
