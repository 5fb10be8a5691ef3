"""Response bodies: read to their true end or not at all.

``Chunks`` reads one response. ``LogBody`` reads one log, over as many responses as it takes:
what breaks off is taken up again where it stopped, and what was delivered once is compared
with what comes the second time.
"""

import hashlib
import re
import ssl
import zlib
from collections.abc import Awaitable, Callable, Mapping

import httpx
import trio

from codeartsfs.api.health import NotAsked
from codeartsfs.api.pace import Pace, Permit, TemporaryFailure
from codeartsfs.api.pages import LogAccess, LogPages
from codeartsfs.api.transport import SurplusBytes
from codeartsfs.api.wire import ApiMessage, api_error_in
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    CodeArtsError,
    LogNotFound,
    LogRewritten,
)
from codeartsfs.model import LogPrefix
from codeartsfs.names import LogKey

ENVELOPE_LIMIT_BYTES = 64 << 10
_OVERLAP_BYTES = 4 << 10
_INFLATE_STEP_BYTES = 256 << 10
_UNWIND_S = 1.0
RECEIVED = "received"  # the extension of a response that is told how many bytes of it came

Delivered = Callable[[int], Awaitable["hashlib._Hash"]]
"""Returns the hash of the first so many bytes of a log, once whoever reads it has them."""

_INFLATED = frozenset({"gzip", "x-gzip", "deflate"})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)


def trouble(error: httpx.HTTPError, what: str) -> Exception:
    """Return what an exception of httpx means: worth another try, or not."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | SurplusBytes):
        return BadAnswer(f"{what}: {error}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ApiUnavailable(f"{what}: certificate not trusted: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return TemporaryFailure(f"{what}: {_TIMEOUTS[type(error)]}")
    # What the parser quotes are the server's bytes, which may be our own headers come back.
    words = re.split(r"bytearray\(|b['\"]", str(error))[0].strip(" :(")
    return TemporaryFailure(f"{what}: {words or type(error).__name__}")


_TIMEOUTS: Mapping[type[httpx.HTTPError], str] = {
    httpx.ConnectTimeout: "no connection in time",
    httpx.ReadTimeout: "the server fell silent",
    httpx.WriteTimeout: "the request could not be sent in time",
    httpx.PoolTimeout: "no free connection in time",
}


def _nobody(count: int) -> None:
    pass


class Chunks:
    """The decoded body of one response, piece by piece as it arrives; memory stays flat.

    Args:
        response: A streamed response of which nothing was read.
        what: Begins the message of every failure.
    """

    def __init__(self, response: httpx.Response, what: str) -> None:
        self._response = response
        self._what = what
        # Not response.aiter_raw(), which refuses what a transport without a network has read.
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._raw = aiter(response.stream)
        self._received: Callable[[int], None] = response.extensions.get(RECEIVED, _nobody)
        self._begun = False
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        self.identity = encoding in {"", "identity"}
        self._encoding = encoding
        self._inflate = _Inflate(gzip=encoding != "deflate") if encoding in _INFLATED else None

    async def next(self) -> bytes:
        """Return what has arrived, waiting for at least a byte; nothing at the proper end.

        Raises:
            TemporaryFailure: the body broke off, fell silent or is corrupt.
            BadAnswer: its content encoding is none we know.
        """
        inflate = self._inflate
        self._begun = True
        try:
            if inflate is None:
                self.check_encoding()
                return await self._arrived()
            while not (chunk := inflate.output()):
                inflate.feed(await self._arrived())
            return chunk
        except StopAsyncIteration:
            if inflate is not None and not inflate.complete:
                raise TemporaryFailure(f"{self._what}: the compressed body broke off") from None
            return b""
        except zlib.error as error:
            raise TemporaryFailure(f"{self._what}: corrupt compressed body: {error}") from error
        except httpx.HTTPError as error:
            raise trouble(error, self._what) from error

    async def _arrived(self) -> bytes:
        while not (chunk := await self._raw.__anext__()):
            pass
        self._received(len(chunk))
        return chunk

    def check_encoding(self) -> None:
        """Raise BadAnswer where the body is encoded in a way that nothing here can read."""
        if not self.identity and self._inflate is None:
            raise BadAnswer(f"{self._what}: unknown encoding {self._encoding[:40]!r}")

    async def aclose(self) -> None:
        """Close the response; its connection survives only where the body was read to the end."""
        try:
            await self._response.aclose()
        finally:
            # The generators inside httpx must end here, by the error that reading a closed
            # response is. Left to the garbage collector, trio would warn about each of them.
            with trio.move_on_after(_UNWIND_S, shield=True):
                try:
                    while self._begun:
                        await self._raw.__anext__()
                except (StopAsyncIteration, httpx.HTTPError):
                    pass


class _Inflate:
    """gzip or deflate, decoded in steps of bounded size."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._stream = zlib.decompressobj(31 if gzip else 15)
        self._pending = b""
        self._begun = False

    @property
    def complete(self) -> bool:
        return self._stream.eof or not self._begun

    def feed(self, data: bytes) -> None:
        self._pending += data

    def output(self) -> bytes:
        while self._pending:
            if self._stream.eof:
                if not self._gzip or not self._pending.strip(b"\0"):
                    self._pending = b""  # padding after the end
                    break
                self._stream = zlib.decompressobj(31)  # the next member
            if not self._begun and not self._gzip and self._pending[0] & 0x0F != 8:
                self._stream = zlib.decompressobj(-15)  # "deflate" without the zlib header
            self._begun = True
            out = self._stream.decompress(self._pending, _INFLATE_STEP_BYTES)
            self._pending = self._stream.unconsumed_tail or self._stream.unused_data
            if out:
                return out
        return b""


async def read_at_most(chunks: Chunks, limit_bytes: int) -> bytes:
    """Return the beginning of a body, up to a little more than ``limit_bytes``."""
    data = bytearray()
    while len(data) <= limit_bytes and (chunk := await chunks.next()):
        data += chunk
    return bytes(data)


class LogBody:
    """The bytes of one log, contiguous from its first byte (or a prefix) to its true end.

    Iterate over it once. A break is mended behind the reader's back; what cannot be mended is
    an error, never a shorter log. A log that grew meanwhile ends at the size announced first.

    Attributes:
        size_bytes: Length of the whole log, None until its end where no answer tells it.
        request_id: ``X-Request-Id`` of the response last opened.
        whole: Whether all of it had to come again, though a part of it was here already.

    Raises (when iterating):
        LogRewritten: what was delivered is not what the server has now.
        ApiUnavailable: no progress in all attempts.
        LogNotFound, AccessDenied, BadAnswer: as the API says.
    """

    def __init__(
        self,
        key: LogKey,
        pace: Pace,
        send: Callable[[Mapping[str, str]], Awaitable[httpx.Response]],
        judge: Callable[[ApiMessage, httpx.Response], Exception],
        access: LogAccess,
        pages: Callable[[int, bytes], Awaitable[LogPages | None]],
        after: LogPrefix | None = None,
        delivered: Delivered | None = None,
    ) -> None:
        """Read a log.

        Args:
            send: Opens it, called with extra headers.
            judge: Names errors.
            access: What the server was seen to offer; learned from here.
            pages: Opens what follows an offset, called with it and the bytes before it.
            after: What is here already.
            delivered: Who hashes what is delivered; None to do so here.
        """
        self.size_bytes: int | None = None
        self.request_id = ""
        self.whole = False
        self._key = key
        self._pace = pace
        self._send = send
        self._judge = judge
        self._attempts = pace.start()
        self._permit: Permit | None = None
        self._response: httpx.Response | None = None
        self._chunks: Chunks | LogPages | None = None
        self._access = access
        self._pages = pages if after is not None and after.tail else None
        # Until the server shows that it does not honour them.
        self._ranges = after is None or (bool(after.tail) and access.ranges is not False)
        self._promised = after is not None and after.promised
        self._etag = ""
        self._peeked = b""
        self._may_be_envelope = False
        self._delivered = delivered
        # INVARIANT: _hash, _tail and _offset describe exactly the bytes delivered so far.
        self._hash = after.sha256.copy() if after else hashlib.sha256()
        self._tail = after.tail if after else b""
        self._offset = after.size_bytes if after else 0
        self._ended = False
        self._begun_at = self._offset
        self._unframed = False
        self._confirmed = -1

    def __aiter__(self) -> "LogBody":
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                chunk = await self._next()
            except TemporaryFailure as failure:
                await self.aclose()
                await self._attempts.after(failure)
                continue
            except NotAsked as refusal:  # readers have a part already: worth waiting for
                await self.aclose()
                later = TemporaryFailure(str(refusal), retry_after_s=refusal.for_s)
                await self._attempts.after(later)
                continue
            if chunk:
                return self._deliver(chunk)
            if self._unframed and self._confirmed != self._offset:
                self._confirmed = self._offset
                await self.aclose()
                continue  # nothing tells this end from a break: ask once more
            self._ended = True
            self.size_bytes = self._offset
            await self.aclose()
        raise StopAsyncIteration

    async def start(self) -> None:
        """Open the log, so that what is wrong with it shows before anybody reads."""
        while True:
            try:
                await self._open()
            except TemporaryFailure as failure:
                await self.aclose()
                await self._attempts.after(failure)
            else:
                return

    async def aclose(self) -> None:
        """Close the response and give the permit back; reading on would open a new one."""
        chunks, self._chunks = self._chunks, None
        permit, self._permit = self._permit, None
        self._peeked = b""
        try:
            if chunks is not None:
                await chunks.aclose()
        finally:
            if permit is not None:
                permit.release()

    async def _next(self) -> bytes:
        if self._chunks is None:
            await self._open()
        if self._may_be_envelope:
            await self._peek()
        chunk = self._peeked
        self._peeked = b""
        if not chunk and self._chunks is not None:
            chunk = await self._chunks.next()
        if self.size_bytes is not None:
            left = self.size_bytes - self._offset
            if not chunk and left:
                raise TemporaryFailure(f"log {self._key} ended {left} bytes early")
            if len(chunk) > left:
                return chunk[:left]
        return chunk

    def _deliver(self, chunk: bytes) -> bytes:
        self._offset += len(chunk)
        if self._delivered is None:
            self._hash.update(chunk)
        if len(chunk) >= _OVERLAP_BYTES:
            self._tail = chunk  # kept whole: cutting it at every chunk would copy
        else:
            self._tail = (self._tail + chunk)[-_OVERLAP_BYTES:]
        self._attempts.progressed()
        return chunk

    async def _open(self) -> None:
        """Open the log at its beginning, or where delivery stopped."""
        self._permit = await self._pace.download_permit()
        offset = self._offset
        while offset and self._ranges:
            if await self._open_range(offset):
                return
        if self._pages is not None and await self._open_pages(offset):
            return
        await self._open_whole(offset)

    async def _open_pages(self, offset: int) -> bool:
        """Take up a growing log by pages; False (and no more pages) where these are of no use."""
        assert self._pages is not None
        pages = await self._pages(offset, self._tail)
        self._pages = None  # should they break off, the whole log mends it
        self._chunks = pages
        self._may_be_envelope = self._unframed = False
        return pages is not None

    async def _open_range(self, offset: int) -> bool:
        """Take up the log at ``offset``; False (and no more ranges) where the server won't."""
        overlap = self._tail[-min(_OVERLAP_BYTES, offset) :]
        first = offset - len(overlap)
        headers = {"Range": f"bytes={first}-"}
        if self._etag:
            headers["If-Range"] = self._etag
        self._ranges = False
        try:
            response = await self._send(headers)
        except (AccessDenied, NotAsked, TemporaryFailure):
            self._ranges = True
            raise
        except CodeArtsError:
            return False  # a server may well dislike the range; the whole log will tell
        chunks = self._adopt(response)
        if response.status_code == 200:
            self.whole = True
            await self._skip(chunks, offset, response)
            # It is the log, not an error in disguise. What was honoured once is not given up.
            if self._access.ranges is None and chunks.identity:
                self._access.ranges = False
            return True
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if (
            response.status_code != 206
            or not chunks.identity
            or match is None
            or match[3] == "*"
            or int(match[1]) != first
        ):
            self._chunks = None
            await chunks.aclose()
            return False
        self._ranges = self._access.ranges = True
        total = int(match[3])
        if total < offset or (self.size_bytes is not None and total < self.size_bytes):
            raise LogRewritten(self._key)
        seen = bytearray()
        while len(seen) < len(overlap):
            chunk = await chunks.next()
            if not chunk:
                raise TemporaryFailure(f"log {self._key} broke off again")
            seen += chunk
        if seen[: len(overlap)] != overlap:
            raise LogRewritten(self._key)
        self._peeked = bytes(seen[len(overlap) :])
        self._announce(total)
        return True

    async def _open_whole(self, offset: int) -> None:
        self.whole = offset > 0
        response = await self._send({})
        chunks = self._adopt(response)
        if response.status_code != 200:
            raise BadAnswer(f"log {self._key}: HTTP {response.status_code} for a whole log")
        if not offset:
            etag = response.headers.get("ETag", "").strip()
            self._etag = etag if etag.startswith('"') and chunks.identity else ""
            self._ranges = chunks.identity
        await self._skip(chunks, offset, response)

    def _adopt(self, response: httpx.Response) -> Chunks:
        self._response = response
        self.request_id = response.headers.get("X-Request-Id", "")
        self._chunks = Chunks(response, f"log {self._key}")
        self._chunks.check_encoding()
        framed = {"Content-Length", "Transfer-Encoding"} & {*map(str.title, response.headers)}
        self._unframed = not framed and response.http_version.startswith("HTTP/1")
        return self._chunks

    async def _skip(self, chunks: Chunks, offset: int, response: httpx.Response) -> None:
        """Pass over what was delivered already, while making sure that it is still the same."""
        if (self._promised or self.size_bytes is not None) and not chunks.identity:
            # Whether it was packed properly shows at its end, which is too late for readers.
            raise TemporaryFailure(f"log {self._key} goes on compressed")
        length = _length_of(response, chunks)
        self._may_be_envelope = length is None or length <= ENVELOPE_LIMIT_BYTES
        # Where the length is unknown, nobody learns more from waiting for the first byte here.
        if offset or length is not None or self._looks_like_json:
            await self._peek()
        needed = offset if self.size_bytes is None else self.size_bytes
        if offset and length == 0:
            raise self._empty()
        if length is not None and length < needed:
            raise LogRewritten(self._key)
        again = hashlib.sha256()
        left = offset
        while left:
            chunk = self._peeked or await chunks.next()
            self._peeked = b""
            if not chunk and left == offset:
                raise self._empty()
            if not chunk and self._unframed:
                raise TemporaryFailure(f"log {self._key} broke off again")
            if not chunk:
                raise LogRewritten(self._key)
            if len(chunk) > left:
                self._peeked = chunk[left:]
                chunk = chunk[:left]
            again.update(chunk)
            left -= len(chunk)
        if offset and again.digest() != (await self._hash_of(offset)).digest():
            raise LogRewritten(self._key)
        self._announce(length)

    async def _hash_of(self, offset: int) -> "hashlib._Hash":
        """Return the hash of all that was delivered, which ends at ``offset``."""
        if self._delivered is None or offset == self._begun_at:
            return self._hash
        return await self._delivered(offset)

    def _empty(self) -> Exception:
        """Nothing, where there was something, is no log yet, or none any more; not another log."""
        if self._offset == self._begun_at:
            return LogNotFound(self._key, "what was there came empty")
        return TemporaryFailure(f"log {self._key} came empty")

    def _announce(self, size_bytes: int | None) -> None:
        """Take the first size that belongs to a log for good; an error's body has one too."""
        if self.size_bytes is None:
            self.size_bytes = size_bytes

    @property
    def _looks_like_json(self) -> bool:
        kind = self._response.headers.get("Content-Type", "") if self._response else ""
        return "json" in kind.lower()

    async def _peek(self) -> None:
        """Hold back a body that may be an error in disguise until it shows what it is."""
        if not self._may_be_envelope or self._chunks is None:
            return
        held = bytearray(self._peeked)
        ended = False
        while len(held) <= ENVELOPE_LIMIT_BYTES and _could_be_object(held):
            chunk = await self._chunks.next()
            if not chunk:
                ended = True
                break
            held += chunk
        message = api_error_in(bytes(held)) if ended else None
        if message is not None and self._response is not None:
            raise self._judge(message, self._response)
        self._may_be_envelope = False
        self._peeked = bytes(held)


def _could_be_object(beginning: bytearray) -> bool:
    text = beginning.lstrip()
    return not text or text.startswith(b"{")


def _length_of(response: httpx.Response, chunks: Chunks) -> int | None:
    """The body's length in bytes, where the response says so and it can be believed."""
    length = response.headers.get("Content-Length", "").strip()
    if not chunks.identity or "Transfer-Encoding" in response.headers:
        return None
    return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
