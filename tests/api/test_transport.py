"""The transport against a server that does exactly what a test says."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from codeartsfs.api.transport import DirectTransport, SurplusBytes, proxy_for
from tests.api.scripted import (
    Asked,
    Hangup,
    Script,
    ScriptedServer,
    answer,
    chunked,
    cut,
    scripted,
    whole,
)
from tests.logs.fakes import until

_TLS_RECORD_BYTES = 16 << 10
BODY = b"".join(b"line %d\n" % n for n in range(100_000))


@asynccontextmanager
async def transport(
    most_idle: int = 4, idle_s: float = 30, ca_file: str | None = None
) -> AsyncIterator[DirectTransport]:
    async with DirectTransport(
        ssl.create_default_context(cafile=ca_file), most_idle=most_idle, idle_s=idle_s
    ) as opened:
        yield opened


async def send(
    opened: DirectTransport, server: ScriptedServer, content: bytes = b"", **timeouts: float
) -> httpx.Response:
    url = f"{server.endpoint}/x?y=%20"
    method = "POST" if content else "GET"
    extensions = {"timeout": timeouts}
    return await opened.handle_async_request(
        httpx.Request(method, url, content=content, extensions=extensions)
    )


async def body_of(response: httpx.Response) -> bytes:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return b"".join([chunk async for chunk in response.stream])


async def until_closed(asked: Asked) -> None:
    await asked.head()
    await asked.send(BODY)
    raise Hangup


async def after_news(asked: Asked) -> None:
    await asked.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    await whole(BODY)(asked)


async def nothing(asked: Asked) -> None:
    await asked.head(204)


async def too_much(asked: Asked) -> None:
    await asked.head(Content_Length=4)
    await asked.send("logsHTTP/1.1 200 Forged\r\nContent-Length: 0\r\n\r\n")


async def more_than_nothing(asked: Asked) -> None:
    await asked.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore")


async def closing_twice(asked: Asked) -> None:
    headers = f"Content-Length: {len(BODY)}\r\nConnection: close\r\nConnection: x\r\n\r\n"
    await asked.send(f"HTTP/1.1 200 OK\r\n{headers}", BODY)


async def old(asked: Asked) -> None:
    await asked.send(f"HTTP/1.0 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n", BODY)


@pytest.mark.parametrize(
    ("script", "body", "connections"),
    [
        (whole(BODY), BODY, 1),
        (whole(b""), b"", 1),
        (chunked(BODY), BODY, 1),
        (chunked(b""), b"", 1),
        (answer(404, b"no"), b"no", 1),
        (after_news, BODY, 1),
        (nothing, b"", 1),
        (whole(BODY, Connection="close"), BODY, 2),
        (whole(BODY, Connection="x, Close"), BODY, 2),
        (closing_twice, BODY, 2),
        (old, BODY, 2),
        (until_closed, BODY, 2),
    ],
)
async def test_bodies_come_whole_and_connections_are_used_again_where_they_may(
    script: Script, body: bytes, connections: int
) -> None:
    async with scripted(script) as server, transport() as opened:
        for _ in range(2):
            response = await send(opened, server)
            assert await body_of(response) == body
        assert server.connections == connections
        assert [asked.target for asked in server.asked] == ["/x?y=%20"] * 2


async def test_status_headers_and_what_is_posted_pass_unchanged() -> None:
    async with scripted(answer(429, b"later", X_Auth="a  b")) as server, transport() as opened:
        response = await send(opened, server, b'{"user": "us"}')
        assert response.status_code == 429
        assert response.reason_phrase == "Scripted"
        assert response.http_version == "HTTP/1.1"
        assert response.headers["X-Auth"] == "a  b"
        assert server.asked[0].headers["content-length"] == "14"
        assert await body_of(response) == b"later"


async def test_who_does_not_read_to_the_end_takes_the_connection_along() -> None:
    async with scripted(whole(BODY)) as server, transport() as opened:
        response = await send(opened, server)
        await response.aclose()
        assert await body_of(response) == b""
        await body_of(await send(opened, server))
        assert server.connections == 2


async def test_connections_in_use_are_nobody_elses() -> None:
    async with scripted(whole(BODY)) as server, transport(most_idle=1) as opened:
        responses = [await send(opened, server) for _ in range(3)]
        assert server.connections == 3
        for response in responses:
            assert await body_of(response) == BODY
        assert len(opened._idle) == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    async def goodbye(asked: Asked) -> None:
        await whole(BODY)(asked)
        raise Hangup

    async with scripted(goodbye) as server, transport() as opened:
        for _ in range(3):
            assert await body_of(await send(opened, server)) == BODY
            await until(lambda: not server.open_connections)
        assert server.connections == 3


async def test_connections_are_not_kept_for_ever() -> None:
    async with scripted(whole(BODY)) as server, transport(idle_s=0) as opened:
        for _ in range(2):
            assert await body_of(await send(opened, server)) == BODY
        assert server.connections == 2
        assert opened._idle == []


async def silent(asked: Asked) -> None:
    await trio.sleep_forever()


async def silent_midway(asked: Asked) -> None:
    await asked.head(Content_Length=10)
    await asked.send("12345")
    await trio.sleep_forever()


async def no_http(asked: Asked) -> None:
    await asked.send("SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def endless_head(asked: Asked) -> None:
    while True:
        await asked.send("X: " + "x" * 10_000)


async def two_lengths(asked: Asked) -> None:
    await asked.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12")


async def hang_up(asked: Asked) -> None:
    raise Hangup


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (silent, httpx.ReadTimeout, "nothing for 0.05 s"),
        (silent_midway, httpx.ReadTimeout, "nothing for 0.05 s"),
        (hang_up, httpx.RemoteProtocolError, "without an answer"),
        (no_http, httpx.RemoteProtocolError, "illegal status line"),
        (endless_head, httpx.RemoteProtocolError, "too long"),
        (cut(BODY, 100_000), httpx.RemoteProtocolError, r"\(100000 of 1088890 bytes came\)"),
        (cut(BODY, 0, reset=True), httpx.ReadError, "reset"),
        (too_much, SurplusBytes, "more bytes than the Content-Length says"),
        (more_than_nothing, SurplusBytes, "more bytes than the Content-Length says"),
        (two_lengths, httpx.RemoteProtocolError, "conflicting Content-Length"),
    ],
)
async def test_what_goes_wrong_is_told_as_httpx_does_and_the_connection_is_closed(
    script: Script, error: type[Exception], words: str
) -> None:
    async with scripted(script) as server, transport() as opened:
        patience_s = 0.05 if script in (silent, silent_midway) else 10
        with pytest.raises(error, match=words):
            await body_of(await send(opened, server, read=patience_s))
        assert opened._idle == []


async def in_two_records(asked: Asked) -> None:
    """What TLS packs for itself: first a proper answer, then another that nobody asked for."""
    head = "HTTP/1.1 200 OK\r\nContent-Length: {:5}\r\n\r\n"
    body = BODY[: _TLS_RECORD_BYTES - len(head.format(0))]
    first = head.format(len(body)).encode() + body
    assert len(first) == _TLS_RECORD_BYTES
    await asked.send(first + head.format(6).encode() + b"forged")


async def test_what_comes_behind_a_body_in_another_tls_record_is_noticed_too(
    certificate: tuple[str, str],
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with (
        scripted(in_two_records, whole(BODY), tls=tls) as server,
        transport(ca_file=certificate[0]) as opened,
    ):
        with pytest.raises(SurplusBytes):
            await body_of(await send(opened, server))
        for _ in range(2):
            assert await body_of(await send(opened, server)) == BODY
        assert server.connections == 2


async def test_nobody_there_is_an_error_of_connecting() -> None:
    async with transport() as opened:
        for url in ("http://127.0.0.1:1/", "http://nobody.invalid/"):
            with pytest.raises(httpx.ConnectError):
                await opened.handle_async_request(httpx.Request("GET", url))


@pytest.mark.parametrize(
    "proxy",
    ["http://me:s3cret#1@proxy:1", "me:s3cret/1@proxy", "http://me:4711?@proxy", "http://s3cret:x"],
)
def test_a_proxy_that_cannot_be_used_shows_no_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(httpx.UnsupportedProtocol, match="a proxy") as raised:
        proxy_for(("https", "api.test", 443))
    assert not re.search("s3cret|4711", str(raised.value))


@pytest.mark.parametrize("proxy", ["http://proxy:port", "socks5://proxy"])
async def test_a_proxy_that_cannot_be_used_is_an_error_of_httpx(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    async with transport() as opened:
        with pytest.raises(httpx.UnsupportedProtocol, match="a proxy"):
            await opened.handle_async_request(httpx.Request("GET", "https://build.example.com"))


async def test_a_header_that_would_begin_another_is_not_sent() -> None:
    async with scripted(whole(BODY)) as server, transport() as opened:
        request = httpx.Request("GET", server.endpoint, headers={"X-Auth-Token": "a\r\nX: b"})
        with pytest.raises(httpx.LocalProtocolError):
            await opened.handle_async_request(request)
        assert server.asked == []
