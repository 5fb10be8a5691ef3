"""An HTTP server that does exactly what a test says, byte by byte, broken or not."""

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass
class Asked:
    """One request as it came in, and the wire it came on."""

    target: str
    headers: dict[str, str]
    wire: trio.abc.Stream

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    async def send(self, *parts: bytes | str) -> None:
        for part in parts:
            await self.wire.send_all(part.encode() if isinstance(part, str) else part)

    async def head(self, status: object = 200, **headers: object) -> None:
        """Send a status line and headers; ``Content_Type=...`` is ``Content-Type``."""
        lines = [f"HTTP/1.1 {status} Scripted", "X-Request-Id: req-1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]))

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n", data, "\r\n")

    def reset(self) -> None:
        """Let the connection end with RST, so that the client sees a reset."""
        assert isinstance(self.wire, trio.SocketStream)
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Script = Callable[[Asked], Awaitable[None]]
"""Answers one request. The connection stays open after it unless it raises ``Hangup``."""


class Hangup(Exception):
    """Close the connection now, whatever was promised."""


@dataclass
class ScriptedServer:
    """Answers the n-th request with the n-th script, and with the last one from then on."""

    scripts: tuple[Script, ...]
    tls: ssl.SSLContext | None = None
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked.headers.get("range") for asked in self.asked]

    async def serve(self, tcp: trio.SocketStream) -> None:
        wire: trio.abc.Stream = tcp
        if self.tls is not None:
            wire = trio.SSLStream(tcp, self.tls, server_side=True)
        self.connections += 1
        self.open_connections += 1
        try:
            async with wire:
                while asked := await _read_request(wire):
                    self.asked.append(asked)
                    await self.scripts[min(len(self.asked), len(self.scripts)) - 1](asked)
        except (Hangup, trio.BrokenResourceError):
            pass
        finally:
            self.open_connections -= 1


async def _read_request(wire: trio.abc.Stream) -> Asked | None:
    """Read one request with its body, None where the client has gone."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        more = await wire.receive_some()
        if not more:
            return None
        data += more
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    request, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    left = int(headers.get("content-length", 0)) - len(body)
    while left > 0:
        left -= len(await wire.receive_some(left))
    return Asked(request.split(" ")[1], headers, wire)


@asynccontextmanager
async def scripted(
    *scripts: Script, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer(scripts, tls)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        try:
            yield server
        except Exception as error:
            failure = error  # raised outside the nursery, which would wrap it in a group
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def whole(body: bytes, **headers: object) -> Script:
    """Answer properly, with a Content-Length."""

    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=len(body), **headers)
        await asked.send(body)

    return script


def chunked(body: bytes, step: int = 1000, **headers: object) -> Script:
    """Answer properly, without saying how long it will be."""

    async def script(asked: Asked) -> None:
        await asked.head(Transfer_Encoding="chunked", **headers)
        for start in range(0, len(body), step):
            await asked.chunk(body[start : start + step])
        await asked.send("0\r\n\r\n")

    return script


def cut(body: bytes, at: int, *, reset: bool = False, **headers: object) -> Script:
    """Promise the whole body and break off after ``at`` bytes of it."""

    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=len(body), **headers)
        await asked.send(body[:at])
        if reset:
            # A reset may overtake bytes; without this pause the client might get none of them.
            await trio.sleep(0.05)
            asked.reset()
        raise Hangup

    return script


def ranged(body: bytes, **headers: object) -> Script:
    """Honour ``Range: bytes=N-``; the whole body without it."""

    async def script(asked: Asked) -> None:
        if "range" not in asked.headers:
            await whole(body, **headers)(asked)
            return
        first = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        total = len(body)
        await asked.head(
            206,
            Content_Length=total - first,
            Content_Range=f"bytes {first}-{total - 1}/{total}",
            **headers,
        )
        await asked.send(body[first:])

    return script


def answer(status: int, body: bytes = b"", **headers: object) -> Script:
    """Answer with a status of choice."""

    async def script(asked: Asked) -> None:
        await asked.head(status, Content_Length=len(body), **headers)
        await asked.send(body)

    return script
