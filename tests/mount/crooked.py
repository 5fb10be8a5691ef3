"""A server that stands between a mount and an emulator and spoils what it is told to spoil.

It works on the bare socket: resets, half bodies, wrong lengths and the like are what no HTTP
library would send. What is not to be spoiled passes unchanged.
"""

import gzip
import http.client
import itertools
import re
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import urlsplit

_REQUEST_LIMIT_BYTES = 256 << 10
_BLOCK_BYTES = 256 << 10
HUGE_BYTES = 10 << 30
FILLER = b"[INFO] one of very many lines\n\n\n"  # 32 bytes, so that it fits everywhere
_HUGE_BYTES_PER_S = 20 << 20  # behind the first 32 MiB: a test's disk is small
_DRIP_EVERY_S = 0.2
_JSON = "application/json;charset=UTF-8"


class _HungUp(Exception):
    """The connection is over."""


@dataclass(eq=False)
class Rule:
    """Requests whose target matches are spoiled, until it is over.

    Attributes:
        times: how many of them, None for all.
        struck: how many were spoiled so far.
        held: whether a request was, see `hold_half_way`.
    """

    pattern: str
    spoil: "Callable[[Exchange], None]"
    times: int | None = None
    struck: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Answer:
    """What the emulator answers to one request."""

    status: int
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request, the emulator's answer to it, and the means to spoil that."""

    def __init__(
        self, server: "CrookedServer", connection: socket.socket, head: bytes, rule: Rule | None
    ) -> None:
        self.server = server
        self._connection = connection
        self.head = head
        self._rule = rule
        self._answer: Answer | None = None
        self.target = head.split(b" ")[1].decode()

    @property
    def rule(self) -> Rule:
        assert self._rule is not None
        return self._rule

    @property
    def over(self) -> threading.Event:
        return self.rule.over

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            self._answer = self.server.ask(self.head)
        return self._answer

    @property
    def whole(self) -> bytes:
        """All of what a part was asked of."""
        return self.server.ask(re.sub(rb"\r\nRange: [^\r]*", b"", self.head, flags=re.I)).body

    @property
    def half(self) -> int:
        """How much of the body comes before the middle of the whole, but at least a byte."""
        first = re.match(r"bytes (\d+)-", self.answer.headers.get("Content-Range", ""))
        half = (int(first[1]) if first else 0) + len(self.answer.body)
        return max(1, half // 2 - (int(first[1]) if first else 0))

    def begin(
        self,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send a head: the emulator's, where nothing else is said; no ``length`` means: its own."""
        if headers is None:
            headers = self.answer.headers | {"Content-Length": str(len(self.answer.body))}
        if length is not None:
            headers = {**headers, "Content-Length": str(length)}
        status = status or self.answer.status
        reason = http.client.responses[status]
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{n}: {v}" for n, v in headers.items())]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def begin_half(self) -> None:
        self.begin()
        self.send(self.answer.body[: self.half])

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def send_chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def pass_on(self) -> None:
        self.begin()
        self.send(self.answer.body)

    def hang_up(self) -> None:
        raise _HungUp

    def reset(self) -> None:
        """End the connection with RST, not FIN."""
        linger = struct.pack("ii", 1, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raise _HungUp

    def stall(self) -> None:
        self.over.wait()
        self.hang_up()

    def blocks(self) -> Iterator[int]:
        """Say when to send the next block of something huge, until it is over."""
        for number in itertools.count():
            fast = number < 32 * (1 << 20) // _BLOCK_BYTES
            if self.over.wait(0 if fast else _BLOCK_BYTES / _HUGE_BYTES_PER_S):
                return
            yield number

    def drip(self) -> None:
        """Go on behind the first half, slowly, and never come to the end."""
        for byte in self.answer.body[self.half : -1]:
            if self.over.wait(_DRIP_EVERY_S):
                break
            self.send(bytes([byte]))
        self.hang_up()

    def go_wrong(self) -> None:
        """After the first half was held back: be spoiled as the rules say now."""
        self._rule = self.server.rule_for(self.target)
        how = self._rule and _MIDWAY.get(self._rule.spoil)
        (how or Exchange.hang_up)(self)


# Ways to spoil an answer.


def reset_at_once(exchange: Exchange) -> None:
    exchange.reset()


def reset_half_way(exchange: Exchange) -> None:
    exchange.begin_half()
    time.sleep(0.05)  # else the reset overtakes what was sent before it
    exchange.reset()


def short_body(exchange: Exchange) -> None:
    exchange.begin_half()
    exchange.hang_up()


def stall_before_headers(exchange: Exchange) -> None:
    exchange.stall()


def stall_half_way(exchange: Exchange) -> None:
    exchange.begin_half()
    exchange.stall()


def slow_drip(exchange: Exchange) -> None:
    exchange.begin_half()
    exchange.drip()


_MIDWAY: dict[Callable[[Exchange], None], Callable[[Exchange], None]] = {
    reset_at_once: Exchange.reset,
    reset_half_way: Exchange.reset,
    stall_half_way: Exchange.stall,
    slow_drip: Exchange.drip,
}


def hold_half_way(exchange: Exchange) -> None:
    """Send half, and decide about the rest when this rule is over."""
    exchange.begin_half()
    exchange.rule.held.set()
    exchange.over.wait()
    exchange.go_wrong()


def length_too_small(exchange: Exchange) -> None:
    exchange.begin(length=exchange.half)
    exchange.send(exchange.answer.body)


def length_too_large(exchange: Exchange) -> None:
    exchange.begin(length=len(exchange.answer.body) + 1000)
    exchange.send(exchange.answer.body)
    exchange.stall()


def broken_gzip(exchange: Exchange) -> None:
    packed = bytearray(gzip.compress(exchange.answer.body))
    packed[len(packed) // 2 :] = b"\0" * (len(packed) - len(packed) // 2)
    headers = {**exchange.answer.headers, "Content-Encoding": "gzip"}
    headers.pop("Content-Range", None)
    exchange.begin(200, headers, len(packed))
    exchange.send(bytes(packed))


def gzip_bomb(exchange: Exchange) -> None:
    """Go on behind the end with a few kilobytes that become gigabytes."""
    headers = {
        "Content-Type": exchange.answer.headers["Content-Type"],
        "Content-Encoding": "gzip",
        "Transfer-Encoding": "chunked",
    }
    exchange.begin(200, headers)
    packer = zlib.compressobj(9, wbits=31)
    exchange.send_chunk(packer.compress(exchange.whole) + packer.flush(zlib.Z_FULL_FLUSH))
    # Each of these is the same: a full flush forgets what was before it.
    block = packer.compress(FILLER * (_BLOCK_BYTES // len(FILLER)))
    block += packer.flush(zlib.Z_FULL_FLUSH)
    for _ in exchange.blocks():
        exchange.send_chunk(block)
    exchange.hang_up()


def huge_body(exchange: Exchange) -> None:
    """Go on behind the end, up to ten gigabytes, which exist nowhere."""
    whole = exchange.whole
    asked = re.search(rb"\r\nRange: bytes=(\d+)-", exchange.head, re.IGNORECASE)
    offset = int(asked[1]) if asked else 0
    headers = {"Content-Type": exchange.answer.headers["Content-Type"]}
    if asked:
        headers["Content-Range"] = f"bytes {offset}-{HUGE_BYTES - 1}/{HUGE_BYTES}"
    exchange.begin(206 if asked else 200, headers, HUGE_BYTES - offset)
    exchange.send(whole[offset:])
    shift = max(0, offset - len(whole)) % len(FILLER)
    piece = (FILLER * (_BLOCK_BYTES // len(FILLER) + 1))[shift:][:_BLOCK_BYTES]
    for _ in exchange.blocks():
        exchange.send(piece)
    exchange.hang_up()


def reply(
    status: int,
    body: str,
    *,
    kind: str = _JSON,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Exchange], None]:
    """Return a way to spoil an answer: another one, with a body of its own."""

    def send(exchange: Exchange) -> None:
        head = {"Content-Type": kind, "X-Request-Id": "0123456789abcdef", **headers}
        exchange.begin(status, head, len(body.encode()))
        exchange.send(body.encode())

    return send


def redirect(exchange: Exchange) -> None:
    """Send to the other host, which serves the same to everybody."""
    location = exchange.server.other.url + exchange.target
    exchange.begin(302, {"Location": location}, 0)


def redirect_nowhere(exchange: Exchange) -> None:
    exchange.begin(302, {"Location": f"https://no-such-host.invalid{exchange.target}"}, 0)


class CrookedServer:
    """Listens on a port of its own for as long as the block of ``crooked_server`` lasts.

    Attributes:
        other: where ``redirect`` leads.
        heads: the heads of all requests so far.
    """

    def __init__(
        self, upstream: str, host: str, tls: ssl.SSLContext | None, extra: Mapping[str, str]
    ) -> None:
        address = urlsplit(upstream)
        self._upstream = address.netloc
        self._host = host
        self._extra = dict(extra)
        self.tls = tls
        self.other = self
        self.heads: list[bytes] = []
        self._rules: list[Rule] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._port = 0
        self.listen()
        name = "localhost" if tls else host
        self.url = f"{'https' if tls else 'http'}://{name}:{self._port}"

    # What tests say.

    def spoil(
        self, pattern: str, how: Callable[[Exchange], None], times: int | None = None
    ) -> Rule:
        """Spoil answers to requests whose target a regular expression is found in."""
        rule = Rule(pattern, how, times)
        with self._lock:
            self._rules.insert(0, rule)
        return rule

    def relent(self, *rules: Rule) -> None:
        """Spoil nothing more by these rules, or any; what hangs is hung up."""
        with self._lock:
            ended = rules or tuple(self._rules)
            self._rules = [rule for rule in self._rules if rule not in ended]
        for rule in ended:
            rule.over.set()

    def listen(self) -> None:
        """Accept connections, again on the same port."""
        listener = socket.create_server((self._host, self._port), backlog=512)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Accept no connections, and end those there are."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            self._listener.close()
            self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        with self._lock:
            connections = tuple(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def ask(self, head: bytes) -> Answer:
        """Return the emulator's answer to a request."""
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        upstream = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            headers = dict(line.split(": ", 1) for line in lines if line)
            for name, value in (headers | self._extra).items():
                upstream.putheader(name, value)
            upstream.endheaders()
            reply = upstream.getresponse()
            kept = {"Content-Type", "Content-Range", "X-Request-Id", "Accept-Ranges"}
            headers = {name.title(): value for name, value in reply.getheaders()}
            return Answer(
                reply.status, {n: headers[n] for n in kept & headers.keys()}, reply.read()
            )
        finally:
            upstream.close()

    # What connections do.

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        raw = connection
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                with self._lock:  # the bare one is good for nothing any more
                    self._connections.discard(raw)
                    self._connections.add(connection)
            while head := _read_head(connection):
                self.heads.append(head)
                rule = self.rule_for(head.split(b" ")[1].decode())
                exchange = Exchange(self, connection, head, rule)
                if rule is None:
                    exchange.pass_on()
                else:
                    rule.spoil(exchange)
        except (_HungUp, OSError, http.client.HTTPException):
            pass
        finally:
            with self._lock:
                self._connections -= {raw, connection}
            connection.close()

    def rule_for(self, target: str) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if re.search(rule.pattern, target) and rule.struck != rule.times:
                    rule.struck += 1
                    return rule
        return None


def _read_head(connection: socket.socket) -> bytes:
    """Return the head of the next request, nothing where there is none; bodies do not come."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(_REQUEST_LIMIT_BYTES)
        if not piece:
            return b""
        if piece.startswith(b"\x16\x03"):  # TLS, which is not spoken here (just now)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return b""
        head += piece
    return head.removesuffix(b"\r\n\r\n")


@contextmanager
def crooked_server(
    upstream: str,
    host: str = "127.0.0.1",
    *,
    tls: ssl.SSLContext | None = None,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[CrookedServer]:
    """Serve what another server does; ``extra`` headers are added to all requests."""
    server = CrookedServer(upstream, host, tls, extra)
    try:
        yield server
    finally:
        server.relent()
        server.refuse()
