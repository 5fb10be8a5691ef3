"""Bodies of replies: bytes in files, sent in pieces, whole or as badly as a fault asks.

Nothing here holds a body in memory, so that a log of any size costs the emulator the same.
"""

import gzip
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import trio

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COPY_BYTES = 1 << 20
PIECE_BYTES = 1 << 19

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Body(Protocol):
    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes, at least one before the end."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TextBody:
    """A body that is in memory anyway."""

    text: bytes

    @property
    def size(self) -> int:
        return len(self.text)

    def read(self, offset: int, size: int) -> bytes:
        return self.text[offset : offset + size]

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class LogBody:
    """The bytes of one or several logs in a row, as they are now; close it after use.

    A log that grows afterwards does not change it: sizes are taken once, when it is opened.
    """

    segments: tuple[tuple[BinaryIO, int], ...]

    @staticmethod
    def of(files: Sequence[BinaryIO]) -> "LogBody":
        return LogBody(tuple((file, os.fstat(file.fileno()).st_size) for file in files))

    @property
    def size(self) -> int:
        return sum(size for _, size in self.segments)

    def read(self, offset: int, size: int) -> bytes:
        for file, length in self.segments:
            if offset < length:
                return os.pread(file.fileno(), min(size, length - offset), offset)
            offset -= length
        return b""

    def close(self) -> None:
        for file, _ in self.segments:
            file.close()


async def gzipped(body: Body) -> LogBody:
    """Return a body compressed with gzip; closes the one given."""

    def pack(target: BinaryIO) -> None:
        with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1, mtime=0) as packed:
            _copy(body, packed)

    return await _repacked(body, pack)


async def zipped(body: Body, name: str) -> LogBody:
    """Return a zip archive with a body as its only member; closes the one given."""

    def pack(target: BinaryIO) -> None:
        with (
            zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(name, "w", force_zip64=True) as member,
        ):
            _copy(body, member)

    return await _repacked(body, pack)


async def _repacked(body: Body, pack: Callable[[BinaryIO], None]) -> LogBody:
    try:
        return LogBody.of([await trio.to_thread.run_sync(nameless_file, pack)])
    finally:
        body.close()


def nameless_file(fill: Callable[[BinaryIO], object]) -> BinaryIO:
    """Return a temporary file, filled and open for reading by position.

    It has no name from the start, so that nothing stays behind however the process ends.
    """
    with tempfile.TemporaryFile() as target:
        fill(target)
        target.flush()
        return os.fdopen(os.dup(target.fileno()), "rb")


def _copy(body: Body, target: "SupportsWrite[bytes]") -> None:
    shutil.copyfileobj(_Reader(body), target, COPY_BYTES)


class _Reader:
    def __init__(self, body: Body) -> None:
        self._body, self._offset = body, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._body.read(self._offset, size)
        self._offset += len(piece)
        return piece


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return (first, end) of a Range header with one range, None where it is to be ignored.

    ``first`` is beyond ``size`` or equal to it where the range cannot be satisfied.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (text or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return (max(0, size - int(match[2])) if int(match[2]) else size, size)
    first = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    return None if match[2] and int(match[2]) < first else (first, end)


@dataclass(frozen=True, slots=True)
class BodyReply:
    """An HTTP reply, as an ASGI application, that sends one body and closes it.

    Attributes:
        window: first byte to send and the byte to stop before.
        declare_length: send Content-Length; else the body is chunked.
        half: stop after half of the bytes; then ``"cut"`` the connection or let it ``"stall"``.
        bytes_per_s: pace of the body, None for as fast as it goes.
        on_sent: told the number of bytes of each piece that was sent.
    """

    status: int
    headers: Mapping[str, str]
    body: Body
    window: tuple[int, int]
    declare_length: bool = True
    half: str | None = None
    bytes_per_s: int | None = None
    on_sent: Callable[[int], None] = lambda count: None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        first, end = self.window
        headers = dict(self.headers)
        if self.declare_length:
            headers["Content-Length"] = str(end - first)
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
                await send({"type": "http.response.start", "status": self.status, "headers": pairs})
                await self._send_bytes(
                    send, first, first + (end - first) // 2 if self.half else end
                )
                if self.half == "stall":
                    await trio.sleep_forever()
                if self.half is None:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                # Without that last message the server closes the connection: a cut.
                nursery.cancel_scope.cancel()
        finally:
            self.body.close()

    async def _send_bytes(self, send: Send, offset: int, end: int) -> None:
        piece_bytes = PIECE_BYTES
        if self.bytes_per_s:
            # Ten pieces a second: slow, yet moving.
            piece_bytes = min(PIECE_BYTES, max(1, self.bytes_per_s // 10))
        while offset < end:
            # Read in this task, since the pages are in memory; a thread would double the cost.
            piece = self.body.read(offset, min(piece_bytes, end - offset))
            if not piece:
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.on_sent(len(piece))
            offset += len(piece)
            if self.bytes_per_s:
                await trio.sleep(len(piece) / self.bytes_per_s)


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
