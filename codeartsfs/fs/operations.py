"""What the kernel asks and how it is answered. No policy: that lives in tree and store.

Rules that come from measuring what real tools need are marked (rule N); the list is in
docs/design.md.
"""

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count

import pyfuse3

from codeartsfs.errors import LogRewritten
from codeartsfs.fs import callers
from codeartsfs.fs.inodes import InodeTable
from codeartsfs.fs.reply import no_entry, read_only, replies
from codeartsfs.fs.tree import ControlDir, Entries, LogFile, Node, RecordDir, RootDir, Tree
from codeartsfs.logs.store import LogStat, LogStore, OpenLog

_BLOCK_BYTES = 4096
_LONG_S = 3600.0  # for what cannot change
_NEGATIVE_S = 60.0  # for names that can never exist
_NAME_S = 60.0


class StatSize(Enum):
    """What stat says of a log whose size is not known yet."""

    AUTO = "auto"  # find it out, but not for programs that merely list
    PROBE = "probe"  # find it out
    ZERO = "zero"  # 0


@dataclass(slots=True)
class _LogHandle:
    log: OpenLog
    pid: int  # who opened it; read requests do not tell


@dataclass(slots=True)
class _StatusHandle:
    text: bytes


@dataclass(slots=True)
class _DirHandle:
    """A listing as it was when the directory was opened: re-reads see no changes."""

    entries: Entries


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    def __init__(
        self,
        tree: Tree,
        store: LogStore,
        watched: callers.Callers,
        *,
        status: Callable[[], bytes],
        stat_size: StatSize,
        refresh_s: float,
    ) -> None:
        super().__init__()
        self.inodes = InodeTable()
        self._tree = tree
        self._store = store
        self._callers = watched
        self._status = status
        self._stat_size = stat_size
        self._refresh_s = refresh_s
        self._handles: dict[int, _LogHandle | _StatusHandle | _DirHandle] = {}
        self._next_handle = count(1)
        self._uid, self._gid = os.getuid(), os.getgid()
        self._mounted_ns = time.time_ns()
        self.reads = self.opens = 0

    # Names and attributes. Nothing here waits for the network, but getattr of an unknown size.

    @replies
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.inodes.node(parent_inode)
        text = os.fsdecode(name)
        node = parent if text == "." else self._tree.parent(parent) if text == ".." else None
        node = node or self._tree.child(parent, text)
        if node is None:
            if self._tree.impossible(parent, text):
                return _negative_entry()
            raise no_entry()
        attributes = self._attributes(node)
        self.inodes.looked_up(attributes.st_ino)
        return attributes

    @replies
    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self.inodes.forget(inode, lookups)

    @replies
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self.inodes.node(inode)
        if isinstance(node, LogFile):
            if self._stat_size is not StatSize.ZERO:
                await self._learn_size(node, ctx.pid)
            self._check_generation(node)
        return self._attributes(node)

    async def _learn_size(self, node: LogFile, pid: int) -> None:
        known = self._store.peek(node.key)
        if known is not None and known.settled:
            return
        with self._callers.waiting(pid):
            if self._stat_size is StatSize.AUTO and callers.lists_only(pid):
                await self._store.recall(node.key)
            else:
                await self._store.stat(node.key)

    # Directories.

    @replies
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        node = self.inodes.node(inode)
        with self._callers.waiting(ctx.pid):
            entries = await self._tree.entries(node)
        dots: Entries = ((".", node), ("..", self._tree.parent(node)))
        return self._handle(_DirHandle(dots + entries))

    @replies
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        handle = self._handles[fh]
        assert isinstance(handle, _DirHandle)
        for position in range(start_id, len(handle.entries)):
            name, node = handle.entries[position]
            attributes = self._attributes(node)
            taken = pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(os.fsencode(name)), attributes, position + 1
            )
            if taken and position >= 2:  # the kernel does not count . and ..
                self.inodes.looked_up(attributes.st_ino)
            else:
                self.inodes.drop_unknown(attributes.st_ino)
            if not taken:
                break

    @replies
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        del self._handles[fh]

    # Files.

    @replies
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise read_only()
        node = self.inodes.node(inode)
        if not isinstance(node, LogFile):
            return pyfuse3.FileInfo(fh=self._handle(_StatusHandle(self._status())), direct_io=True)
        self.opens += 1
        with self._callers.waiting(ctx.pid):
            opened = await self._store.open(node.key)
        try:
            self._check_generation(node)
            self._tell_size(inode, opened.stat.size_bytes)
        except BaseException:
            opened.close()
            raise
        fh = self._handle(_LogHandle(opened, callers.process_of(ctx.pid)))
        # The kernel fills the last page of a file up with zeros, and when it hears of growth it
        # shows them for a moment before it drops that page. So what runs stays out of its cache.
        known = opened.stat
        running = not (known.final or known.stateless)
        return pyfuse3.FileInfo(fh=fh, keep_cache=known.final, direct_io=running)

    def _tell_size(self, inode: pyfuse3.InodeT, size_bytes: int) -> None:
        """Make the kernel's own idea of the size right, once, before the first open reply.

        (rule 4) sendfile, splice and mmap never ask for attributes. Storing any last byte sets
        the size, dropping the page again leaves no false byte. Only here is that safe from the
        event loop: no page of an inode can be under read before its first open is answered.
        INVARIANT: no await between the claim and the end.
        """
        if self.inodes.claim_sizing(inode) and size_bytes:
            pyfuse3.notify_store(inode, size_bytes - 1, b"\n")
            pyfuse3.invalidate_inode(inode)

    def _check_generation(self, node: LogFile) -> None:
        """Make the kernel look the name up again where it now means another file."""
        if node.generation != self._store.generation(node.key):
            raise LogRewritten(node.key)

    @replies
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        if isinstance(handle, _StatusHandle):
            return handle.text[off : off + size]
        assert isinstance(handle, _LogHandle)
        self.reads += 1
        with self._callers.waiting(handle.pid):
            return await handle.log.read(off, size)

    @replies
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, _LogHandle):
            handle.log.close()

    @replies
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    # The file system itself: its size is that of its cache.

    @replies
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        tier = self._store.disk or self._store.memory
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK_BYTES
        data.f_blocks = tier.limit_bytes // _BLOCK_BYTES
        data.f_bfree = data.f_bavail = (
            max(0, tier.limit_bytes - (tier.used_bytes or 0)) // _BLOCK_BYTES
        )
        data.f_files = len(self.inodes)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    # Inside.

    def _handle(self, handle: _LogHandle | _StatusHandle | _DirHandle) -> pyfuse3.FileHandleT:
        number = pyfuse3.FileHandleT(next(self._next_handle))
        self._handles[number] = handle
        return number

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = self.inodes.number(node)
        attributes.st_uid, attributes.st_gid = self._uid, self._gid
        attributes.st_blksize = _BLOCK_BYTES
        attributes.entry_timeout = attributes.attr_timeout = _LONG_S
        match node:
            case RootDir() | ControlDir() | RecordDir():
                attributes.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555)
                attributes.st_nlink = 2
                _set_times(attributes, self._mounted_ns)
            case LogFile(key):
                self._describe_log(attributes, self._store.peek(key))
            case _:
                attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o400)
                attributes.st_nlink = 1
                attributes.st_size = len(self._status())
                attributes.attr_timeout = 0
                _set_times(attributes, time.time_ns())
        return attributes

    def _describe_log(self, attributes: pyfuse3.EntryAttributes, known: LogStat | None) -> None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o444)
        attributes.st_nlink = 1
        attributes.entry_timeout = _NAME_S
        if known is None:  # (rule 2) 0, asked again at every look
            attributes.attr_timeout = 0
            _set_times(attributes, self._mounted_ns)
            return
        attributes.st_size = known.size_bytes
        attributes.st_blocks = -(-known.size_bytes // _BLOCK_BYTES) * 8
        _set_times(attributes, known.modified_ns)
        if known.final:
            attributes.entry_timeout = _LONG_S
        else:
            # A look at a running log must reach us soon: that look is what refreshes it.
            attributes.attr_timeout = self._refresh_s / 2 if known.settled else 0
            attributes.entry_timeout = self._refresh_s


def _negative_entry() -> pyfuse3.EntryAttributes:
    """A 'no' that the kernel may remember: git, editors and shells ask for the same names on."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(0)
    attributes.entry_timeout = _NEGATIVE_S
    return attributes


def _set_times(attributes: pyfuse3.EntryAttributes, time_ns: int) -> None:
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = time_ns
