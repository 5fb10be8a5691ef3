"""The bytes of one log: written once at the end, read anywhere, kept in a file.

A file-backed body keeps memory use independent of log size, lets the kernel's page
cache do the caching, and becomes the disk cache's entry without being copied. What is
small has no file before it needs one: it costs less to copy than to open a file for.
"""

import hashlib
import heapq
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import trio

IN_MEMORY_BYTES = 64 << 10
_IOV_MAX = 1024


class Body:
    """The bytes of one log in a file that only grows, and only at its end.

    ``size_bytes`` is what readers are told, ``landed_bytes`` what is in the file.
    A read of announced bytes that have not landed yet waits for them.

    INVARIANT: ``size_bytes`` never goes down, and bytes once landed never change.
    """

    def __init__(
        self,
        file: int | Callable[[], int],
        complete_bytes: int | None = None,
        sha256: "hashlib._Hash | None" = None,
    ) -> None:
        """Begin with nothing, or take over an open file that already holds a whole log.

        Args:
            file: a file open for reading and writing, or what opens an empty one when the bytes
                are too many for memory or are to be kept; closed by ``close``.
            complete_bytes: size of the log that is already there.
            sha256: its hash, needed only where more may be appended.
        """
        # INVARIANT: where there is _content, it is all that landed; without a file there is some.
        self._fd = file if isinstance(file, int) else -1
        self._open_file = file if callable(file) else None
        self._content = None if isinstance(file, int) else bytearray()
        self._landed = complete_bytes or 0
        self._size = complete_bytes
        self._failure: Exception | None = None
        self._sha256 = sha256 or hashlib.sha256()
        self._waiting: list[tuple[int, int, trio.Event]] = []  # heap of (wanted end, tie, wake-up)
        self._ties = count()

    def __repr__(self) -> str:
        return f"<Body {self._landed}/{self._size} bytes{' failed' if self._failure else ''}>"

    @property
    def size_bytes(self) -> int | None:
        """The announced size; None until it is known."""
        return self._size

    @property
    def landed_bytes(self) -> int:
        return self._landed

    @property
    def waiting(self) -> int:
        """How many reads wait for bytes that have not landed."""
        return len(self._waiting)

    @property
    def sha256(self) -> "hashlib._Hash":
        """The running hash of the landed bytes; a copy, free to go on with."""
        return self._sha256.copy()

    @property
    def in_memory(self) -> bool:
        """Whether there is no file yet."""
        return self._fd < 0

    def to_file(self) -> int:
        """Return the file with all that landed, in a worker thread: disks are slow.

        Raises:
            OSError: there is no room for it; nothing has changed.
        """
        if self._fd < 0:
            assert self._open_file is not None
            self._fill(self._open_file())
        return self._fd

    def _fill(self, fd: int) -> None:
        assert self._content is not None
        try:
            _write_all(fd, [self._content], 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def free_memory(self) -> None:
        """Read from the file from here on, if there is one."""
        if self._fd >= 0:
            self._content = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def announce(self, size_bytes: int) -> None:
        """Tell readers the size. Bytes between landed and size are promised, not there."""
        assert self._size is None or size_bytes >= self._size
        self._size = size_bytes

    def fail(self, failure: Exception) -> None:
        """Announced bytes that have not landed never will: their readers get ``failure``."""
        self._failure = failure
        self._wake()

    def recover(self) -> None:
        """A new download is about to deliver what the last one could not."""
        self._failure = None

    async def append(self, chunks: Sequence[bytes]) -> None:
        """Take chunks, hash them and wake the readers they serve; files grow in worker threads."""
        size_bytes = sum(map(len, chunks))
        if self.in_memory and self._landed + size_bytes <= IN_MEMORY_BYTES:
            assert self._content is not None
            for chunk in chunks:
                self._content += chunk
                self._sha256.update(chunk)
        else:
            await trio.to_thread.run_sync(self._write, chunks)
            self.free_memory()
        self._landed += size_bytes
        self._wake()

    async def move_to(self, fd: int) -> None:
        """Go on in another, empty file with a copy of the bytes, leaving the old file as it is."""
        await trio.to_thread.run_sync(self._move, fd)

    def _move(self, fd: int) -> None:
        if self._fd < 0:
            self._fill(fd)
            return
        try:
            offset = 0
            while offset < self._landed:
                sent = os.sendfile(fd, self._fd, offset, self._landed - offset)
                if not sent:
                    raise OSError(f"the cache file ends {self._landed - offset} bytes early")
                offset += sent
            os.dup2(fd, self._fd, inheritable=False)  # atomic for readers in other threads
        finally:
            os.close(fd)

    async def read(self, offset: int, size: int) -> bytes:
        """Return exactly the announced bytes of a range, waiting for those that must still land.

        Raises:
            CodeArtsError: the download failed before they landed.
        """
        if self._size is None:
            raise AssertionError("read before the size was announced")
        end = min(offset + size, self._size)
        if end <= offset:
            return b""
        if end > self._landed:
            await self._wait_until_landed(end)
        return await self._pread(offset, end - offset)

    async def hash_at(self, size_bytes: int) -> "hashlib._Hash":
        """Return the running hash of the landed bytes once these are ``size_bytes``.

        Raises:
            Exception: they will never land, and why.
        """
        await self.landed(size_bytes)
        assert self._landed == size_bytes
        return self.sha256

    async def landed(self, size_bytes: int) -> None:
        """Wait until so many bytes are here; raises as ``read`` does."""
        await self._wait_until_landed(size_bytes)

    async def tail(self, size: int) -> bytes:
        """Return the last landed bytes, at most ``size``."""
        size = min(size, self._landed)
        return await self._pread(self._landed - size, size)

    async def _wait_until_landed(self, end: int) -> None:
        while self._landed < end:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            wake_up = trio.Event()
            heapq.heappush(self._waiting, (end, next(self._ties), wake_up))
            await wake_up.wait()

    def _wake(self) -> None:
        while self._waiting and (self._failure or self._waiting[0][0] <= self._landed):
            heapq.heappop(self._waiting)[2].set()

    def _write(self, chunks: Sequence[bytes]) -> None:
        _write_all(self.to_file(), chunks, self._landed)
        for chunk in chunks:
            self._sha256.update(chunk)

    async def _pread(self, offset: int, size: int) -> bytes:
        if self._content is not None:
            return bytes(self._content[offset : offset + size])
        buffer = bytearray(size)
        view = memoryview(buffer)
        got = 0
        with suppress(OSError):  # not in memory, or a file system that cannot say
            # Page cache first: a worker thread costs more than copying what is in memory.
            got = os.preadv(self._fd, [view], offset, os.RWF_NOWAIT)
        if got < size:
            await trio.to_thread.run_sync(self._pread_rest, view[got:], offset + got)
        return buffer  # type: ignore[return-value]  # nobody else holds it; saves a copy

    def _pread_rest(self, view: memoryview, offset: int) -> None:
        while view:
            got = os.preadv(self._fd, [view], offset)
            if got == 0:
                raise OSError(f"the cache file ends {len(view)} bytes early")
            view = view[got:]
            offset += got


def _write_all(fd: int, chunks: Sequence[bytes | bytearray], offset: int) -> None:
    for first in range(0, len(chunks), _IOV_MAX):
        batch = chunks[first : first + _IOV_MAX]
        wanted = sum(map(len, batch))
        written = os.pwritev(fd, batch, offset)
        if written < wanted:  # a signal or a nearly full disk: finish in the plain way
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                written = os.pwrite(fd, rest, offset + wanted - len(rest))
                rest = rest[written:]
        offset += wanted


class MemoryBody:
    """The bytes of one small, final log, in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    async def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def close(self) -> None:
        pass
