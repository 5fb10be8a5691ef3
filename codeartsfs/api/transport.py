"""HTTP/1.1 without detours, as a transport of httpx: the way all bytes of logs come in.

An answer is read by one task, once, from its beginning to its end. So h11 reads heads, and
bodies that come in chunks; a body whose length the head tells goes from the socket to its
reader as it is, which is what makes a large log cheap. Connections are kept for the next
request. There is no bound on their number here: whoever asks has one.
"""

import functools
import math
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import h11
import httpx
import trio

from codeartsfs.api.endpoints import is_loopback

_READ_BYTES = 256 << 10
_HEAD_BYTES = 100 << 10  # as much as httpcore takes
_PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class SurplusBytes(httpx.RemoteProtocolError):
    """A body goes on behind its Content-Length, which is therefore not that of the body.

    What counts characters, not bytes, announces too little, and what was announced would be taken
    for all there is. Only what has arrived with the last of it can be noticed.
    """


class DirectTransport(httpx.AsyncBaseTransport):
    """Connections to servers, through tunnels of proxies where the environment names them."""

    def __init__(self, trust: ssl.SSLContext, *, most_idle: int, idle_s: float) -> None:
        """Connect to nobody yet.

        Args:
            trust: Whose certificates are good.
            most_idle: Connections kept while nobody uses them.
            idle_s: How long they are kept.
        """
        self._trust = trust
        self._trust.set_alpn_protocols(["http/1.1"])
        self._most_idle = most_idle
        self._idle_s = idle_s
        self._idle: list[_Connection] = []  # the one used last at the end

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the answer to it, its body unread.

        Raises:
            httpx.TransportError: as the transport of httpx itself does.
        """
        connection = self._take(_origin(request.url)) or await self._connect(request)
        try:
            return await connection.exchange(request)
        except BaseException:
            connection.close()
            raise

    async def aclose(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _take(self, origin: Origin) -> "_Connection | None":
        now = trio.current_time()
        for connection in reversed(self._idle):
            if connection.origin == origin:
                self._idle.remove(connection)
                if now < connection.idle_until and not connection.ended:
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: "_Connection") -> None:
        now = trio.current_time()
        connection.idle_until = now + self._idle_s
        self._idle.append(connection)
        while self._idle and (self._idle[0].idle_until <= now or len(self._idle) > self._most_idle):
            self._idle.pop(0).close()

    async def _connect(self, request: httpx.Request) -> "_Connection":
        origin = scheme, host, port = _origin(request.url)
        proxy = proxy_for(origin)
        timeout_s = _timeout_s(request, "connect")
        with _within(timeout_s, httpx.ConnectTimeout, httpx.ConnectError):
            tcp = await trio.open_tcp_stream(*(_origin(proxy)[1:] if proxy else (host, port)))
            stream: trio.abc.Stream = tcp
            try:
                if proxy is not None:
                    if proxy.scheme == "https":
                        stream = await self._secured(stream, proxy.host)
                    await _tunnel(
                        stream, proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                    )
                if scheme == "https":
                    stream = await self._secured(stream, host)
            except BaseException:
                tcp.socket.close()
                raise
        return _Connection(self, origin, stream, tcp.socket)

    async def _secured(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        # Nothing is cut off unnoticed for want of a proper end of TLS: lengths tell.
        tls = trio.SSLStream(stream, self._trust, server_hostname=host, https_compatible=True)
        await tls.do_handshake()
        return tls


class _Connection:
    """One connection, and the one exchange on it."""

    def __init__(
        self,
        transport: DirectTransport,
        origin: Origin,
        stream: trio.abc.Stream,
        socket: trio.socket.SocketType,
    ) -> None:
        self.origin = origin
        self.idle_until = math.inf
        self._transport = transport
        self._stream = stream
        self._socket = socket

    @property
    def ended(self) -> bool:
        """Whether the other side closed it; nothing else can come while nothing is asked."""
        return self._socket.is_readable() or self._undeciphered

    def close(self) -> None:
        self._socket.close()

    def give_back(self) -> None:
        self._transport._give_back(self)

    @property
    def _undeciphered(self) -> bool:
        """Whether TLS, which is read record by record, holds what the socket has given already."""
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            if stream._incoming.pending:
                return True
            stream = stream.transport_stream
        return False

    def surplus(self) -> bytes:
        """Return the beginning of what TLS holds behind a body, which may be no more than news."""
        if isinstance(self._stream, trio.SSLStream) and self._undeciphered:
            with suppress(ssl.SSLError):
                return self._stream._ssl_object.read(1)
        return b""

    async def receive(self, request: httpx.Request) -> bytes:
        with _within(_timeout_s(request, "read"), httpx.ReadTimeout, httpx.ReadError):
            return bytes(await self._stream.receive_some(_READ_BYTES))

    async def exchange(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        with _errors_of_httpx():
            wire, question = _question(
                h11.Request(
                    method=request.method.encode(),
                    target=request.url.raw_path,
                    headers=request.headers.raw,
                ),
                content,
            )
        with _within(_timeout_s(request, "write"), httpx.WriteTimeout, httpx.WriteError):
            await self._stream.send_all(question)
        head = await _head(wire, functools.partial(self.receive, request))
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(self, request, wire, head),
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )


class _Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """The body of one answer, as it arrives.

    INVARIANT: at its end the connection is given back or closed, once.
    """

    def __init__(
        self,
        connection: _Connection,
        request: httpx.Request,
        wire: h11.Connection,
        head: h11.Response,
    ) -> None:
        self._connection = connection
        self._request = request
        self._wire = wire
        headers = httpx.Headers(list(head.headers))
        words = headers.get_list("Connection", split_commas=True)
        self._keep = head.http_version >= b"1.1" and "close" not in map(str.lower, words)
        self._ended = False
        # Where the length is known, h11 has read the head and what came with it, no more.
        known = "Transfer-Encoding" not in headers and head.status_code not in (204, 304)
        self._length = int(headers.get("Content-Length", -1)) if known else -1
        self._came = 0
        self._begin = wire.trailing_data[0]

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            chunk = await (self._parsed() if self._length < 0 else self._plain())
        except BaseException:
            await self.aclose()
            raise
        if not chunk and not self._ended:
            self._end()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._connection.close()

    def _end(self) -> None:
        self._ended = True
        if self._keep:
            self._connection.give_back()
        else:
            self._connection.close()

    async def _plain(self) -> bytes:
        """Return what comes next of a body of known length; nothing at its end."""
        left = self._length - self._came
        chunk, self._begin = self._begin, b""
        if not chunk and left:
            chunk = await self._connection.receive(self._request)
        if not chunk and left:
            raise httpx.RemoteProtocolError(
                "the connection was closed before the end of the body"
                f" ({self._came} of {self._length} bytes came)"
            )
        self._came += len(chunk)
        if len(chunk) > left or (len(chunk) == left and self._connection.surplus()):
            raise SurplusBytes("more bytes than the Content-Length says")
        if self._came == self._length:
            self._end()  # before it is asked for, so that nobody has to
        return chunk

    async def _parsed(self) -> bytes:
        """Return what comes next as h11 reads it; nothing at the end."""
        while True:
            with _errors_of_httpx():
                event = self._wire.next_event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if event is h11.NEED_DATA:
                self._wire.receive_data(await self._connection.receive(self._request))
            else:  # the end: of the message, or of the connection where nothing else tells it
                self._keep &= self._wire.their_state is h11.DONE
                self._keep &= self._wire.trailing_data == (b"", False)
                return b""


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme]


def proxy_for(origin: Origin) -> httpx.URL | None:
    """Return the proxy to a server, as the environment has it; none to this machine itself."""
    scheme, host, port = origin
    proxies = getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named or is_loopback(host) or proxy_bypass(f"{host}:{port}"):
        return None
    proxy: httpx.URL | None
    try:
        proxy = httpx.URL(named if "://" in named else f"http://{named}")
    except httpx.InvalidURL:  # which is no httpx.HTTPError
        proxy = None
    # A password with a # or / in it ends the host's name before its time, and is then taken for
    # the port, or for the host: nothing of such an address is shown.
    if proxy is None or "@" in proxy.path + unquote(proxy.query.decode()) + proxy.fragment:
        raise httpx.UnsupportedProtocol(
            "a proxy whose address is none (a password's #, /, ? and @ are written %23, %2F, ...)"
        )
    if proxy.scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"a proxy by {proxy.scheme} (http and https ones work)")
    return proxy


async def _tunnel(stream: trio.abc.Stream, proxy: httpx.URL, target: str) -> None:
    """Have a proxy connect a stream to a server.

    Raises:
        httpx.ProxyError: it does not want to.
    """
    headers = [("Host", target)]
    if proxy.username:
        who = b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {who}"))
    with _errors_of_httpx():
        wire, question = _question(h11.Request(method="CONNECT", target=target, headers=headers))
    await stream.send_all(question)
    head = await _head(wire, stream.receive_some)
    if not 200 <= head.status_code < 300:
        raise httpx.ProxyError(f"the proxy answers {head.status_code}")


def _question(head: h11.Request, content: bytes = b"") -> tuple[h11.Connection, bytes]:
    """Return what will read the answer to a request, and the request as it is sent."""
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    events = (head, h11.Data(data=content), h11.EndOfMessage())
    return wire, b"".join(wire.send(event) or b"" for event in events)


async def _head(
    wire: h11.Connection, receive: Callable[[], Awaitable[bytes | bytearray]]
) -> h11.Response:
    """Return the head of the answer to what was sent; what is news only is passed over."""
    while True:
        with _errors_of_httpx():
            event = wire.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            data = await receive()
            if not data:
                raise httpx.RemoteProtocolError("the server disconnected without an answer")
            wire.receive_data(bytes(data))


def _timeout_s(request: httpx.Request, what: str) -> float:
    timeout_s: float | None = request.extensions.get("timeout", {}).get(what)
    return math.inf if timeout_s is None else timeout_s


@contextmanager
def _within(
    timeout_s: float, late: type[httpx.TimeoutException], broken: type[httpx.NetworkError]
) -> Iterator[None]:
    """Bound what is awaited inside, and raise what httpx raises."""
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        raise late(f"nothing for {timeout_s:g} s") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise broken(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Say why there is no connection, of several tries why the first one failed."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    try:
        yield
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
