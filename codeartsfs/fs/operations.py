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
from typing import Protocol

import cachetools
import pyfuse3
import trio

from codeartsfs.builds.catalog import RecordTimes
from codeartsfs.errors import CodeArtsError, CrawlerRefused, LogRewritten
from codeartsfs.fs import callers
from codeartsfs.fs.attributes import Attributes
from codeartsfs.fs.inodes import InodeTable
from codeartsfs.fs.nodes import (
    BuildLink,
    ControlFile,
    FailedLink,
    JobDir,
    LogFile,
    NameLink,
    Node,
    RecordDir,
    RecordFile,
)
from codeartsfs.fs.reply import (
    ignoring_unknown_inodes,
    no_attribute,
    no_entry,
    not_permitted,
    read_only,
    replies,
    unsupported,
)
from codeartsfs.fs.tree import Entries, Tree
from codeartsfs.fs.waits import Waits
from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.logs.store import LogStore, OpenLog

_BLOCK_BYTES = 4096
_LONG_S = 3600.0  # for what cannot change
_NEGATIVE_S = 60.0  # for names that can never exist
_NAME_S = 60.0
_FAILED_READS = 1000
_SAME_READ_S = 1.0  # what the kernel asks so soon after a failure belongs to what failed,
_SAME_READ_AT_MOST_S = 10.0  # and so does what it asks so soon after that
_OUR_ATTRIBUTES = b"user."
_ON_HANDLES = frozenset({"readdir", "releasedir", "read", "release"})
# Not listed: reading it is an order. What is mounted read-only takes no other.
REFRESH_ATTRIBUTE = b"user.codearts.refresh"
LOG_LEVEL_ATTRIBUTE = b"user.codearts.log_level."  # and a level
LOG_LEVELS = frozenset({"debug", "info", "warning", "error"})


class StatSize(Enum):
    """What stat says of a log whose size is not known yet."""

    AUTO = "auto"  # find it out, but not for programs that merely list
    PROBE = "probe"  # find it out
    ZERO = "zero"  # 0


class Control(Protocol):
    """What the mount says of itself, by the names of its files."""

    def size_bytes(self, name: str) -> int:
        """Return about how much that is, from memory."""

    async def text(self, name: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """Whose everything is and what may be done with it; the kernel decides by that."""

    uid: int
    gid: int
    file_mode: int
    directory_mode: int


@dataclass(slots=True)
class _LogHandle:
    log: OpenLog
    node: LogFile
    inode: pyfuse3.InodeT
    pid: int  # who opened it; read requests do not tell
    opened_at: float  # trio's clock


@dataclass(frozen=True, slots=True)
class _FailedRead:
    failure: Exception
    at: float  # trio's clock


@dataclass(slots=True)
class _TextHandle:
    """What is made up at open: what is read fits together, whatever changes meanwhile."""

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
        extended: Attributes,
        prefetcher: Prefetcher,
        watched: callers.Callers,
        *,
        control: Control,
        shown: Shown,
        stat_size: StatSize,
        refresh_s: float,
        set_log_level: Callable[[str], str],
    ) -> None:
        super().__init__()
        self.inodes = InodeTable()
        self._tree = tree
        self._store = store
        self._extended = extended
        self._prefetcher = prefetcher
        self._callers = watched
        self._control = control
        self._stat_size = stat_size
        self._refresh_s = refresh_s
        self._set_log_level = set_log_level
        self._handles: dict[int, _LogHandle | _TextHandle | _DirHandle] = {}
        self._next_handle = count(1)
        self._failed_reads: cachetools.TTLCache[pyfuse3.InodeT, _FailedRead] = cachetools.TTLCache(
            _FAILED_READS, _SAME_READ_S, timer=trio.current_time
        )
        self._shown = shown
        self._mounted_by = os.geteuid(), os.getegid()
        self._mounted_ns = time.time_ns()
        self.reads = self.opens = self.read_bytes = 0
        self.waits = Waits(store)

    # Names and attributes. Nothing here waits for the network, but getattr of an unknown size.

    @replies
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.inodes.node(parent_inode)
        text = os.fsdecode(name)
        node = parent if text == "." else self._tree.parent(parent) if text == ".." else None
        node = node or await self._tree.lookup(parent, text)
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
            known = self._store.peek(node.key)
            self.inodes.tell_bytes(inode, known.size_bytes if known else 0)
        elif not self._tree.certain(node):
            # Like the size of a log, what record.json holds is not worth a call to who lists.
            lists = isinstance(node, RecordFile) and callers.lists_only(ctx.pid)
            if not lists and not self._callers.crawls(ctx.pid):
                with self._callers.waiting(ctx.pid):
                    await self._tree.confirm(node)
        elif isinstance(node, RecordFile) and not self._tree.document_bytes(node.record):
            await self._tree.document(node.record)  # from memory, so that its size is known
        return self._attributes(node)

    async def _learn_size(self, node: LogFile, pid: int) -> None:
        known = self._store.peek(node.key)
        if known is not None and known.settled:
            return
        lists = self._stat_size is StatSize.AUTO and callers.lists_only(pid)
        if lists or self._callers.crawls(pid):
            await self._store.recall(node.key)
            return
        with self.waits.timed("stat", node, pid), self._callers.waiting(pid):
            await self._store.stat(node.key)

    # Directories.

    @replies
    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        node = self.inodes.node(inode)
        if self._callers.crawls(ctx.pid) and not await self._tree.listed(node):
            raise CrawlerRefused(f"{callers.program(ctx.pid)} may not list {node}")
        with self.waits.timed("list", node, ctx.pid), self._callers.waiting(ctx.pid):
            entries = await self._tree.entries(node)
        dots: Entries = ((".", node, None), ("..", self._tree.parent(node), None))
        return self._handle(_DirHandle(dots + entries))

    @replies
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        handle = self._handles[fh]
        assert isinstance(handle, _DirHandle)
        for position in range(start_id, len(handle.entries)):
            name, node, times = handle.entries[position]
            attributes = self._attributes(node, times)
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

    # Links.

    @replies
    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> bytes:
        node = self.inodes.node(inode)
        assert isinstance(node, BuildLink | FailedLink | NameLink)
        with self._callers.waiting(ctx.pid):
            return os.fsencode(await self._tree.target(node))

    # Extended attributes. Answered from what is here, never from the API.

    @replies
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> bytes:
        if not name.startswith(_OUR_ATTRIBUTES):
            raise unsupported()  # (rule 14) so ls asks once, not once per file
        if name == REFRESH_ATTRIBUTE:
            with self._callers.waiting(ctx.pid):
                return (await self._refresh(self.inodes.node(inode))).encode()
        if name.startswith(LOG_LEVEL_ATTRIBUTE):
            level = os.fsdecode(name.removeprefix(LOG_LEVEL_ATTRIBUTE))
            if ctx.uid not in (0, self._mounted_by[0]):
                raise not_permitted()
            if level in LOG_LEVELS:
                return self._set_log_level(level).encode()
        value = (await self._extended.of(self.inodes.node(inode))).get(name)
        if value is None:
            raise no_attribute()
        return value

    @replies
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[bytes]:
        return tuple(await self._extended.of(self.inodes.node(inode)))

    async def _refresh(self, node: Node) -> str:
        """Look at the API now, whatever is known and however new it is; say what came of it."""
        if not isinstance(node, LogFile):
            await self._tree.refresh(node)
            return "listed anew"
        before = self._store.peek(node.key)
        after = await self._store.refresh(node.key)
        if before is not None and before.final and after.final:
            return f"{after.size_bytes} bytes, final"
        grown_bytes = after.size_bytes - (before.size_bytes if before else 0)
        final = ", now final" if after.final else ""
        return f"{after.size_bytes} bytes, {grown_bytes} new{final}"

    # Files. No flush: its absence is told once (ENOSYS), and then the kernel asks at no close.

    @replies
    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise read_only()
        node = self.inodes.node(inode)
        if self._callers.crawls(ctx.pid) and not await self._here(node):
            raise CrawlerRefused(f"{callers.program(ctx.pid)} may not download {node}")
        if not isinstance(node, LogFile):
            with self._callers.waiting(ctx.pid):
                text = await self._text(node)
            return pyfuse3.FileInfo(fh=self._handle(_TextHandle(text)), direct_io=True)
        self.opens += 1
        with self.waits.timed("open", node, ctx.pid), self._callers.waiting(ctx.pid):
            opened = await self._store.open(node.key)
        try:
            self._check_generation(node)
            self._tell_size(inode, opened.stat.size_bytes)
        except BaseException:
            opened.close()
            raise
        process = callers.process_of(ctx.pid)
        self._prefetcher.opened(node.key, process)
        fh = self._handle(_LogHandle(opened, node, inode, process, trio.current_time()))
        # The kernel fills the last page of a file up with zeros, and when it hears of growth it
        # shows them for a moment before it drops that page. So what runs stays out of its cache.
        known = opened.stat
        running = not (known.final or known.stateless)
        return pyfuse3.FileInfo(fh=fh, keep_cache=known.final, direct_io=running)

    async def _here(self, node: Node) -> bool:
        if isinstance(node, LogFile):
            return await self._store.here(node.key)
        return self._tree.certain(node)

    async def _text(self, node: Node) -> bytes:
        if isinstance(node, RecordFile):
            return await self._tree.document(node.record)
        assert isinstance(node, ControlFile)
        return await self._control.text(node.name)

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
        if isinstance(handle, _TextHandle):
            return handle.text[off : off + size]
        assert isinstance(handle, _LogHandle)
        self.reads += 1
        self._fail_with_others(handle, off, size)
        try:
            with (
                self.waits.timed("read", handle.node, handle.pid),
                self._callers.waiting(handle.pid),
            ):
                content = await handle.log.read(off, size)
        except (CodeArtsError, callers.DeadlineExceeded) as failure:
            self._failed_reads[handle.inode] = _FailedRead(failure, trio.current_time())
            raise
        self.read_bytes += len(content)
        self._announce(handle.inode, off + len(content))
        return content

    def _fail_with_others(self, handle: _LogHandle, offset: int, size: int) -> None:
        """Raise at once what a read has just failed with, if this one has waited as long.

        (rule 16) What the kernel could not read ahead it asks for again, page by page, and who
        else reads the same page is in its queue. Each waiting, or trying, anew would add up.
        """
        failed = self._failed_reads.get(handle.inode)
        if failed is None or handle.opened_at >= failed.at:
            return
        if trio.current_time() - failed.at < _SAME_READ_AT_MOST_S:
            self._failed_reads[handle.inode] = failed  # for another second from here
        if not handle.log.landed(offset, size):
            raise failed.failure.with_traceback(None)

    def _announce(self, inode: pyfuse3.InodeT, end: int) -> None:
        """Let nobody be given bytes of a growing log behind the size that stat shows of it.

        BusyBox's tail takes a size below its position for a truncated file and begins anew.
        Dropping attributes is safe from the event loop, pages are not touched (rule 10).
        """
        if end > self.inodes.told_bytes(inode):
            self.inodes.tell_bytes(inode, end)
            with ignoring_unknown_inodes():
                pyfuse3.invalidate_inode(inode, attr_only=True)

    @replies
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, _LogHandle):
            handle.log.close()

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

    def about(self, operation: str, number: int) -> Node | str:
        """Return what a request of the kernel is about, for the log."""
        if operation not in _ON_HANDLES:
            return self.inodes.node(pyfuse3.InodeT(number))
        handle = self._handles[number]
        match handle:
            case _LogHandle():
                return self.inodes.node(handle.inode)
            case _DirHandle():
                return handle.entries[0][1]
            case _TextHandle():
                return "text"

    def _handle(self, handle: _LogHandle | _TextHandle | _DirHandle) -> pyfuse3.FileHandleT:
        number = pyfuse3.FileHandleT(next(self._next_handle))
        self._handles[number] = handle
        return number

    def _attributes(self, node: Node, times: RecordTimes | None = None) -> pyfuse3.EntryAttributes:
        """Describe a node from memory; ``times`` are those of a record that is not there."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = self.inodes.number(node)
        attributes.st_uid, attributes.st_gid = self._shown.uid, self._shown.gid
        attributes.st_blksize = _BLOCK_BYTES
        attributes.entry_timeout = attributes.attr_timeout = _LONG_S
        attributes.st_nlink = 1
        match node:
            case LogFile():
                self._describe_log(attributes, node)
            case RecordFile(record):
                told = self._tree.times(record)
                size_bytes = self._tree.document_bytes(record)
                modified_ns = told.modified_ns if told else None
                self._describe_file(attributes, self._shown.file_mode, size_bytes, modified_ns)
            case ControlFile(name):
                self._describe_file(attributes, 0o400, self._control.size_bytes(name), None)
                # For who mounted, whoever the rest is shown to belong to.
                attributes.st_uid, attributes.st_gid = self._mounted_by
            case BuildLink() | FailedLink() | NameLink():
                self._describe_link(attributes, node)
            case _:
                self._describe_directory(attributes, node, times)
        return attributes

    def _describe_directory(
        self, attributes: pyfuse3.EntryAttributes, node: Node, times: RecordTimes | None
    ) -> None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFDIR | self._shown.directory_mode)
        attributes.st_nlink = 2
        modified_ns = None
        if isinstance(node, RecordDir):
            times = times or self._tree.times(node.record)
            modified_ns = times.modified_ns if times else None
            if times is None or not times.final:
                attributes.attr_timeout = self._refresh_s if times else 0
        elif isinstance(node, JobDir):
            modified_ns = self._tree.last_build_ns(node)
            attributes.attr_timeout = self._refresh_s if self._tree.certain(node) else 0
            attributes.entry_timeout = self._refresh_s
        elif not self._tree.certain(node):
            attributes.attr_timeout = attributes.entry_timeout = 0
        _set_times(attributes, modified_ns or self._mounted_ns)

    def _describe_link(
        self, attributes: pyfuse3.EntryAttributes, node: BuildLink | FailedLink | NameLink
    ) -> None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFLNK | 0o777)
        attributes.st_size = self._tree.target_bytes(node)
        modified_ns, final = None, False
        if isinstance(node, BuildLink):
            build = self._tree.build(node)
            if build is not None:
                modified_ns, final = build.modified_ns(time.time_ns()), build.final
                final = final and isinstance(node.which, int)  # a latest one may soon be another
        else:
            record = node.record if isinstance(node, FailedLink) else node.key.record
            times = self._tree.times(record)
            if times is not None:
                modified_ns, final = times.modified_ns, times.final
        if not final:
            certain = self._tree.certain(node)
            attributes.attr_timeout = attributes.entry_timeout = self._refresh_s if certain else 0
        _set_times(attributes, modified_ns or self._mounted_ns)

    def _describe_file(
        self,
        attributes: pyfuse3.EntryAttributes,
        mode: int,
        size_bytes: int,
        modified_ns: int | None,
    ) -> None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | mode)
        attributes.st_size = size_bytes
        attributes.st_blocks = _blocks(size_bytes)
        attributes.attr_timeout = 0
        _set_times(attributes, modified_ns or time.time_ns())

    def _describe_log(self, attributes: pyfuse3.EntryAttributes, node: LogFile) -> None:
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFREG | self._shown.file_mode)
        attributes.entry_timeout = _NAME_S
        known, run = self._store.peek(node.key), self._tree.run(node.key)
        if known is None:  # (rule 2) 0, asked again at every look
            attributes.attr_timeout = 0
            running = run is not None and run.running
            finished_ns = run.finished_ns if run else None
            _set_times(attributes, time.time_ns() if running else finished_ns or self._mounted_ns)
            return
        attributes.st_size = known.size_bytes
        attributes.st_blocks = _blocks(known.size_bytes)
        _set_times(attributes, known.modified_ns)
        if known.final:
            attributes.entry_timeout = _LONG_S
        else:
            # A look at a running log must reach us soon: that look is what refreshes it.
            attributes.attr_timeout = self._refresh_s / 2 if known.settled else 0
            attributes.entry_timeout = self._refresh_s


def _blocks(size_bytes: int) -> int:
    """Return what a local file of a size takes, in units of 512 bytes."""
    return -(-size_bytes // _BLOCK_BYTES) * 8


def _negative_entry() -> pyfuse3.EntryAttributes:
    """A 'no' that the kernel may remember: git, editors and shells ask for the same names on."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = pyfuse3.InodeT(0)
    attributes.entry_timeout = _NEGATIVE_S
    return attributes


def _set_times(attributes: pyfuse3.EntryAttributes, time_ns: int) -> None:
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = time_ns
