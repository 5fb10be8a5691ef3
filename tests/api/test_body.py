import gzip
import hashlib
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from codeartsfs.api.auth import TokenAuth
from codeartsfs.api.client import ApiClient, LogBody, open_client
from codeartsfs.api.pace import Pace
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    CodeArtsError,
    LogNotFound,
    LogRewritten,
)
from codeartsfs.model import LogPrefix
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

from .scripted import (
    Asked,
    Hangup,
    Script,
    ScriptedServer,
    answer,
    chunked,
    cut,
    ranged,
    scripted,
    whole,
)

KEY = LogKey(RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c"), Stage("stage1"), LogLevel.INFO)
LOG = b"".join(b"[2025/03/04 05:06:07.089 GMT+08:00] [INFO] line %d\n" % n for n in range(4000))
FAIL = b'{"status":"fail","error":{"code":"%s","reason":"why"},"result":null}'


@asynccontextmanager
async def client_of(
    server: ScriptedServer, pace: Pace | None = None, idle_timeout_s: float = 15
) -> AsyncIterator[ApiClient]:
    async with open_client(
        endpoint=server.endpoint,
        credentials=TokenAuth(lambda: "token-1"),
        pace=pace or Pace(requests_per_second=0, random=lambda: 0.0),
        idle_timeout_s=idle_timeout_s,
    ) as client:
        yield client


async def read_all(body: LogBody) -> bytes:
    return b"".join([chunk async for chunk in body])


async def fetch(*scripts: Script, idle_timeout_s: float = 15) -> tuple[bytes, ScriptedServer]:
    """Read one log from a server with these scripts; what comes is checked against its hash."""
    pace = Pace(requests_per_second=0, random=lambda: 0.0)
    async with scripted(*scripts) as server, client_of(server, pace, idle_timeout_s) as client:
        async with client.task_log(KEY) as body:
            data = await read_all(body)
            assert body.size_bytes == len(data)
            assert pace.downloads_open == 0  # given back at the end, not when the reader leaves
        return data, server


# --- plain ------------------------------------------------------------------------------------


async def test_a_log_with_content_length_has_its_size_at_once() -> None:
    held = trio.Event()

    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=len(LOG))
        await held.wait()
        await asked.send(LOG)

    async with scripted(script) as server, client_of(server) as client:
        async with client.task_log(KEY) as body:
            assert body.size_bytes == len(LOG)
            assert body.request_id == "req-1"
            held.set()
            assert await read_all(body) == LOG
        assert server.asked[0].target == (
            f"/v4/{KEY.record}/task-log?log_level=INFO&task_name=stage1"
        )
        assert server.asked[0].headers["x-auth-token"] == "token-1"
        assert server.asked[0].headers["accept-encoding"] == "identity"
        assert client.statistics.logs_opened == 1


async def test_a_chunked_log_learns_its_size_at_the_end() -> None:
    async with (
        scripted(chunked(LOG)) as server,
        client_of(server) as client,
        client.task_log(KEY) as body,
    ):
        assert body.size_bytes is None
        assert await read_all(body) == LOG
        assert body.size_bytes == len(LOG)


@pytest.mark.parametrize("script", [whole(b""), chunked(b"")])
async def test_an_empty_log_is_empty(script: Script) -> None:
    data, server = await fetch(script)
    assert data == b""
    assert len(server.asked) == 1


async def test_a_first_line_does_not_wait_for_the_second() -> None:
    read = trio.Event()

    async def script(asked: Asked) -> None:
        await asked.head(Transfer_Encoding="chunked")
        await asked.chunk(b"first\n")
        await read.wait()
        await asked.chunk(b"second\n")
        await asked.send("0\r\n\r\n")

    async with (
        scripted(script) as server,
        client_of(server) as client,
        client.task_log(KEY) as body,
    ):
        assert await body.__anext__() == b"first\n"
        read.set()
        assert await read_all(body) == b"second\n"


async def test_connections_are_used_again() -> None:
    async with scripted(whole(LOG)) as server, client_of(server) as client:
        for _ in range(3):
            async with client.task_log(KEY) as body:
                assert await read_all(body) == LOG
        assert server.connections == 1


# --- compressed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(LOG)),
        ("gzip", gzip.compress(LOG[:5000]) + gzip.compress(LOG[5000:])),
        ("x-gzip", gzip.compress(LOG) + b"\0" * 100),
        ("deflate", zlib.compress(LOG)),
        ("deflate", zlib.compress(LOG)[2:-4]),
        ("gzip", b""),
    ],
)
async def test_a_compressed_log_is_decoded(encoding: str, packed: bytes) -> None:
    async with (
        scripted(whole(packed, Content_Encoding=encoding)) as server,
        client_of(server) as client,
        client.task_log(KEY) as body,
    ):
        assert body.size_bytes is None  # the length counts encoded bytes
        assert await read_all(body) == (LOG if packed else b"")


async def test_a_compressed_log_cut_inside_whole_framing_is_fetched_again() -> None:
    packed = gzip.compress(LOG)
    short = chunked(packed[:-20], Content_Encoding="gzip")
    data, server = await fetch(short, chunked(packed, Content_Encoding="gzip"))
    assert data == LOG
    assert server.ranges == [None, None]  # offsets of the decoded bytes mean nothing there


async def test_a_corrupt_compressed_log_is_fetched_again() -> None:
    packed = gzip.compress(LOG)
    corrupt = packed[: len(packed) // 2] + b"\xff" * 50 + packed[len(packed) // 2 + 50 :]
    data, server = await fetch(
        whole(corrupt, Content_Encoding="gzip"), whole(packed, Content_Encoding="gzip")
    )
    assert data == LOG
    assert len(server.asked) == 2


async def test_an_unknown_encoding_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match="'br'"):
        await fetch(whole(LOG, Content_Encoding="br"))


async def test_a_decompression_bomb_does_not_fill_the_memory() -> None:
    packed = gzip.compress(b"\0" * (100 << 20), compresslevel=9)
    async with (
        scripted(whole(packed, Content_Encoding="gzip")) as server,
        client_of(server) as client,
        client.task_log(KEY) as body,
    ):
        tracemalloc.start()
        try:
            size = 0
            async for chunk in body:
                size += len(chunk)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size == 100 << 20
    assert peak_bytes < 4 << 20


# --- resumed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
async def test_a_break_is_resumed_by_range_with_an_overlap(reset: bool) -> None:
    data, server = await fetch(cut(LOG, 50_000, reset=reset, ETag='"v1"'), ranged(LOG, ETag='"v1"'))
    assert data == LOG
    assert server.ranges == [None, f"bytes={50_000 - 4096}-"]
    assert server.asked[1].headers["if-range"] == '"v1"'
    assert server.asked[1].headers["accept-encoding"] == "identity"


async def test_a_short_beginning_overlaps_as_far_as_it_goes() -> None:
    data, server = await fetch(cut(LOG, 100), ranged(LOG))
    assert data == LOG
    assert server.ranges == [None, "bytes=0-"]
    assert "if-range" not in server.asked[1].headers


async def test_a_weak_etag_is_no_reason_to_trust_a_range() -> None:
    _, server = await fetch(cut(LOG, 10_000, ETag='W/"v1"'), ranged(LOG))
    assert "if-range" not in server.asked[1].headers


async def test_many_breaks_are_fine_as_long_as_bytes_come() -> None:
    async def some(asked: Asked) -> None:
        first = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        status = 206 if "range" in asked.headers else 200
        end = len(LOG) - 1
        where = {"Content_Range": f"bytes {first}-{end}/{len(LOG)}"} if status == 206 else {}
        await asked.head(status, Content_Length=len(LOG) - first, **where)
        await asked.send(LOG[first : first + 12_000])
        if first + 12_000 < len(LOG):
            raise Hangup

    data, server = await fetch(some)
    assert data == LOG
    assert len(server.asked) > 20


async def test_a_server_without_ranges_is_asked_for_the_whole_log_again() -> None:
    data, server = await fetch(cut(LOG, 50_000), cut(LOG, 90_000), whole(LOG))
    assert data == LOG
    assert server.ranges == [None, "bytes=45904-", None]  # once was enough to learn it


@pytest.mark.parametrize("status", [400, 416, 405, 200])
async def test_a_server_that_dislikes_ranges_gets_none(status: int) -> None:
    refusal = answer(status) if status != 200 else whole(LOG, Content_Type="text/html")
    data, server = await fetch(cut(LOG, 50_000), refusal, whole(LOG))
    assert data == LOG
    assert server.ranges[2] is None


@pytest.mark.parametrize(
    "content_range", ["bytes 0-9/10", "bytes 45904-187999/*", "items 1-2/3", None]
)
async def test_a_206_that_is_not_what_was_asked_for_is_not_used(
    content_range: str | None,
) -> None:
    headers = {"Content_Range": content_range} if content_range else {}
    data, _ = await fetch(cut(LOG, 50_000), answer(206, LOG[:10], **headers), whole(LOG))
    assert data == LOG


async def test_a_chunked_log_that_breaks_is_resumed_too() -> None:
    async def script(asked: Asked) -> None:
        await asked.head(Transfer_Encoding="chunked")
        await asked.chunk(LOG[:30_000])
        raise Hangup

    data, server = await fetch(script, ranged(LOG))
    assert data == LOG
    assert server.ranges == [None, "bytes=25904-"]


async def test_a_stall_is_a_break() -> None:
    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=len(LOG))
        await asked.send(LOG[:70_000])
        await trio.sleep_forever()

    # Real sockets, so real time: a stall has to last as long as the timeout under test. The
    # limit around it tells that timeout from the one for the first byte, a minute.
    with trio.fail_after(20):
        data, server = await fetch(script, ranged(LOG), idle_timeout_s=0.1)
    assert data == LOG
    assert server.ranges == [None, f"bytes={70_000 - 4096}-"]


async def test_slow_but_moving_is_no_stall() -> None:
    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=10)
        for _ in range(10):
            await asked.send(b"x")
            await trio.sleep(0.05)  # half a timeout; five timeouts in all

    data, server = await fetch(script, idle_timeout_s=0.25)
    assert data == b"x" * 10
    assert len(server.asked) == 1


@pytest.mark.parametrize("again", [whole, ranged, chunked])
async def test_a_log_that_grew_ends_at_the_size_announced(
    again: object,
) -> None:
    grown = LOG + b"more\n" * 100
    assert callable(again)
    data, _ = await fetch(cut(LOG, 50_000), again(grown))
    assert data == LOG


async def test_a_log_of_unknown_size_that_grew_ends_where_it_ends_now() -> None:
    async def script(asked: Asked) -> None:
        await asked.head(Transfer_Encoding="chunked")
        await asked.chunk(LOG[:30_000])
        raise Hangup

    grown = LOG + b"more\n"
    assert (await fetch(script, ranged(grown)))[0] == grown
    assert (await fetch(script, chunked(grown)))[0] == grown


REWRITTEN = LOG[:47_000] + b"#" + LOG[47_001:]


@pytest.mark.parametrize(
    "again",
    [
        ranged(REWRITTEN),
        whole(REWRITTEN),
        chunked(REWRITTEN),
        whole(LOG[:100] + b"#" + LOG[101:]),
        ranged(LOG[:49_000]),
        whole(LOG[:60_000]),
        chunked(LOG[:49_000]),
    ],
)
async def test_a_log_that_does_not_match_what_was_delivered_is_rewritten(again: Script) -> None:
    with pytest.raises(LogRewritten):
        await fetch(cut(LOG, 50_000), again)


async def test_a_log_that_vanishes_midway_is_an_error_and_not_an_end() -> None:
    with pytest.raises(LogNotFound):
        await fetch(cut(LOG, 50_000), answer(404))


async def test_access_lost_midway_is_access_denied() -> None:
    with pytest.raises(AccessDenied):
        await fetch(cut(LOG, 50_000), answer(403))


async def test_an_error_envelope_midway_is_that_error_and_no_rewriting() -> None:
    with pytest.raises(AccessDenied, match="why"):
        await fetch(cut(LOG, 50_000), whole(FAIL % b"APIGW.0302"))


async def test_breaks_without_progress_end_after_all_attempts() -> None:
    async with scripted(cut(LOG, 50_000)) as server, client_of(server) as client:
        async with client.task_log(KEY) as body:
            received = bytearray()

            async def read() -> None:
                async for chunk in body:
                    received.extend(chunk)

            with pytest.raises(ApiUnavailable, match="gave up after 5 attempts"):
                await read()
            assert received == LOG[:50_000]
        # The first one made progress, and its break is the first failure of five.
        assert len(server.asked) == 5
        assert client.statistics.retries == 4


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_breaks_the_bytes_are_the_same(seed: int) -> None:
    dice = random.Random(seed)
    log = dice.randbytes(dice.randrange(1, 200_000))

    async def any_trouble(asked: Asked) -> None:
        if dice.random() < 0.4:
            scripts = [whole(log), chunked(log, dice.randrange(500, 50_000)), ranged(log)]
            scripts.append(whole(gzip.compress(log, 1), Content_Encoding="gzip"))
            await dice.choice(scripts)(asked)
        elif dice.random() < 0.3:
            await answer(dice.choice([500, 502, 503, 429]))(asked)
        elif "range" in asked.headers and dice.random() < 0.7:
            first = int(asked.headers["range"].removeprefix("bytes=").rstrip("-"))
            total = len(log)
            where = f"bytes {first}-{total - 1}/{total}"
            await asked.head(206, Content_Length=total - first, Content_Range=where)
            await asked.send(log[first : first + dice.randrange(total)][: total - first - 1])
            raise Hangup
        else:
            await cut(log, dice.randrange(len(log)))(asked)

    pace = Pace(requests_per_second=0, random=lambda: 0.0, attempts=1000)
    async with (
        scripted(any_trouble) as server,
        client_of(server, pace) as client,
        client.task_log(KEY) as body,
    ):
        assert await read_all(body) == log


# --- errors in disguise -----------------------------------------------------------------------


@pytest.mark.parametrize("script", [whole, chunked])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (b"CB.00060200", LogNotFound),
        (b"APIGW.0302", AccessDenied),
        (b"APIGW.0301", AccessDenied),
        (b"UNKNOWN.1", ApiUnavailable),
    ],
)
async def test_a_fail_envelope_with_http_200_is_the_error_it_says(
    script: object, code: bytes, error: type[CodeArtsError]
) -> None:
    assert callable(script)
    with pytest.raises(error, match=r"why") as caught:
        await fetch(script(FAIL % code, Content_Type="application/octet-stream"))
    assert code.decode() in str(caught.value)
    assert "req-1" in str(caught.value)


async def test_a_busy_envelope_with_http_200_is_tried_again() -> None:
    data, server = await fetch(whole(FAIL % b"CB.00060211"), whole(LOG))
    assert data == LOG
    assert len(server.asked) == 2


async def broken_at_once(asked: Asked) -> None:
    await asked.head(Transfer_Encoding="chunked")
    raise Hangup


async def broken_chunks(asked: Asked) -> None:
    await asked.head(Transfer_Encoding="chunked")
    await asked.chunk(LOG[:30_000])
    raise Hangup


@pytest.mark.parametrize("first", [broken_at_once, broken_chunks])
@pytest.mark.parametrize("last", [whole(LOG), chunked(LOG), ranged(LOG)])
async def test_the_length_of_an_error_never_becomes_that_of_the_log(
    first: Script, last: Script
) -> None:
    data, server = await fetch(first, whole(FAIL % b"CB.00060211"), last)
    assert data == LOG
    assert len(server.asked) == 3


async def test_an_error_of_known_size_shows_when_the_log_is_opened() -> None:
    async with scripted(whole(FAIL % b"CB.00060200")) as server, client_of(server) as client:
        with pytest.raises(LogNotFound):
            await client.task_log(KEY).__aenter__()


@pytest.mark.parametrize("script", [whole, chunked])
@pytest.mark.parametrize(
    "log",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b"{\n  no json at all\n",
        b"  \n\n",
        b"{" * (200 << 10),
        FAIL + b"\nand more\n",
        b'{"x": "' + b"y" * (64 << 10) + b'"}',
    ],
)
async def test_a_log_that_begins_with_a_brace_is_a_log(script: object, log: bytes) -> None:
    assert callable(script)
    assert (await fetch(script(log)))[0] == log


@pytest.mark.parametrize("content_type", ["text/html", "text/html; charset=utf-8", "Text/HTML"])
async def test_a_web_page_is_no_log(content_type: str) -> None:
    with pytest.raises(BadAnswer, match="HTTP 200"):
        await fetch(whole(b"<html>login</html>", Content_Type=content_type))


# --- wrongly measured -------------------------------------------------------------------------


def understated(body: bytes, length: int, **headers: object) -> Script:
    """Send a body and call it shorter than it is."""

    async def script(asked: Asked) -> None:
        await asked.head(Content_Length=length, **headers)
        await asked.send(body)

    return script


@pytest.mark.parametrize("length", [1, 3000, len(LOG) - 1])
async def test_a_log_longer_than_its_content_length_is_no_shorter_log(length: int) -> None:
    # What counts characters instead of bytes announces too little.
    got: list[bytes] = []

    async def read(client: ApiClient) -> None:
        async with client.task_log(KEY) as body:
            async for chunk in body:
                got.append(chunk)

    async with scripted(understated(LOG, length)) as server, client_of(server) as client:
        with pytest.raises(BadAnswer, match="more bytes than the Content-Length says"):
            await read(client)
    # Who has all that was announced takes it for the end.
    assert sum(map(len, got)) < length


async def test_surplus_bytes_of_one_answer_do_not_begin_the_next() -> None:
    async with scripted(understated(LOG, 3000), whole(LOG)) as server, client_of(server) as client:
        with pytest.raises(BadAnswer):
            async with client.task_log(KEY) as body:
                await read_all(body)
        async with client.task_log(KEY) as body:
            assert await read_all(body) == LOG
    assert client.statistics.retries == 0


# --- after what is here already ---------------------------------------------------------------


def prefix(size_bytes: int, tail_bytes: int = 4096) -> LogPrefix:
    begins = LOG[:size_bytes]
    return LogPrefix(
        size_bytes, hashlib.sha256(begins), begins[-tail_bytes:] if tail_bytes else b""
    )


async def test_what_readers_wait_for_does_not_come_compressed() -> None:
    # That it was packed wrongly would show at its end, after they have read it.
    packed = gzip.compress(LOG)
    data, server = await fetch(
        cut(LOG, 50_000), whole(packed, Content_Encoding="gzip"), ranged(LOG)
    )
    assert data == LOG
    promised = replace(prefix(50_000), promised=True)
    data, server = await fetch_after(promised, whole(packed, Content_Encoding="gzip"), ranged(LOG))
    assert data == LOG[50_000:]
    assert len(server.asked) == 2


async def test_an_error_in_answer_to_a_range_says_nothing_of_ranges() -> None:
    error = b'{"status":"fail","error":{"code":"CB.00060101","reason":"x"},"result":null}'
    async with (
        scripted(whole(error, Content_Type="application/json"), ranged(LOG)) as server,
        client_of(server) as client,
    ):
        async with client.task_log(KEY, prefix(50_000)) as body:
            assert await read_all(body) == LOG[50_000:]
        assert client.honours_ranges
        async with client.task_log(KEY, prefix(50_000)) as body:
            assert await read_all(body) == LOG[50_000:]
    assert server.ranges[-1] is not None


async def fetch_after(after: LogPrefix, *scripts: Script) -> tuple[bytes, ScriptedServer]:
    hash_before = after.sha256.hexdigest()
    async with (
        scripted(*scripts) as server,
        client_of(server) as client,
        client.task_log(KEY, after) as body,
    ):
        data = await read_all(body)
        assert body.size_bytes == after.size_bytes + len(data)
    assert after.sha256.hexdigest() == hash_before
    return data, server


@pytest.mark.parametrize("script", [ranged(LOG), whole(LOG), chunked(LOG), cut(LOG, 80_000)])
@pytest.mark.parametrize("tail_bytes", [4096, 10, 0])
@pytest.mark.parametrize("size_bytes", [1, 50_000, len(LOG)])
async def test_a_prefix_is_compared_and_only_what_follows_is_delivered(
    size_bytes: int, tail_bytes: int, script: Script
) -> None:
    data, server = await fetch_after(prefix(size_bytes, tail_bytes), script, whole(LOG))
    assert data == LOG[size_bytes:]
    assert (server.ranges[0] is None) == (tail_bytes == 0)


@pytest.mark.parametrize("script", [ranged(LOG), whole(LOG)])
async def test_the_size_of_the_whole_log_is_known_before_the_rest_is_read(
    script: Script,
) -> None:
    async with (
        scripted(script) as server,
        client_of(server) as client,
        client.task_log(KEY, prefix(50_000)) as body,
    ):
        assert body.size_bytes == len(LOG)


@pytest.mark.parametrize("tail_bytes", [4096, 0])
@pytest.mark.parametrize(
    "script",
    [
        ranged(REWRITTEN),
        whole(REWRITTEN),
        chunked(REWRITTEN),
        whole(LOG[:40_000]),
        chunked(LOG[:40_000]),
    ],
)
async def test_a_log_that_no_longer_begins_with_the_prefix_is_rewritten(
    script: Script, tail_bytes: int
) -> None:
    with pytest.raises(LogRewritten):
        await fetch_after(prefix(50_000, tail_bytes), script)


@pytest.mark.parametrize("tail_bytes", [4096, 0])
@pytest.mark.parametrize("script", [whole(b""), chunked(b"")])
async def test_nothing_where_there_was_something_is_no_log_not_another_one(
    script: Script, tail_bytes: int
) -> None:
    with pytest.raises(LogNotFound):
        await fetch_after(prefix(50_000, tail_bytes), script)


# --- leaving early ----------------------------------------------------------------------------


async def test_a_reader_that_leaves_early_frees_permit_and_connection() -> None:
    pace = Pace(max_downloads=1, requests_per_second=0)
    async with scripted(whole(LOG * 100)) as server, client_of(server, pace) as client:
        for _ in range(3):
            async with client.task_log(KEY) as body:
                await body.__anext__()
                assert pace.downloads_open == 1
            assert pace.downloads_open == 0
        async with client.task_log(KEY) as body:
            assert await read_all(body) == LOG * 100
        assert len(server.asked) == 4


async def silent(asked: Asked) -> None:
    await trio.sleep_forever()


async def silent_after_head(asked: Asked) -> None:
    await asked.head(Content_Length=len(LOG))
    await trio.sleep_forever()


async def silent_in_envelope(asked: Asked) -> None:
    await asked.head(Content_Length=100)
    await asked.send(b'{"error')
    await trio.sleep_forever()


async def silent_midway(asked: Asked) -> None:
    await asked.head(Content_Length=len(LOG))
    await asked.send(LOG[:100_000])
    await trio.sleep_forever()


@pytest.mark.parametrize("script", [silent, silent_after_head, silent_in_envelope, silent_midway])
async def test_a_cancelled_download_leaves_nothing_behind(script: Script) -> None:
    pace = Pace(max_downloads=1, requests_per_second=0)
    async with scripted(script, whole(LOG)) as server, client_of(server, pace) as client:
        # The server waits on a real socket, so this is real time.
        with trio.move_on_after(0.1) as scope:
            async with client.task_log(KEY) as body:
                await read_all(body)
        assert scope.cancelled_caught
        assert pace.downloads_open == 0
        async with client.task_log(KEY) as body:
            assert await read_all(body) == LOG
        assert len(client._http._transport._idle) == 1  # type: ignore[attr-defined]


async def test_a_download_cancelled_while_it_waits_to_retry_leaves_nothing_behind() -> None:
    pace = Pace(max_downloads=1, requests_per_second=0, random=lambda: 1.0)
    async with scripted(cut(LOG, 1000), whole(LOG)) as server, client_of(server, pace) as client:
        with trio.move_on_after(0.1) as scope:
            async with client.task_log(KEY) as body:
                await read_all(body)
        assert scope.cancelled_caught
        assert pace.downloads_open == 0
        async with client.task_log(KEY) as body:
            assert await read_all(body) == LOG


async def test_no_permit_is_held_while_waiting_to_retry() -> None:
    waiting = trio.Event()

    def longest() -> float:
        waiting.set()
        return 1.0

    pace = Pace(max_downloads=1, requests_per_second=0, random=longest)
    async with (
        scripted(cut(LOG, 1000), whole(LOG)) as server,
        client_of(server, pace) as client,
        client.task_log(KEY) as slow,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(read_all, slow)
        await waiting.wait()
        async with client.task_log(KEY) as body:
            assert await read_all(body) == LOG
            assert len(server.asked) == 2


@pytest.mark.parametrize("again", [LOG, LOG.replace(b"line 7", b"LINE 7")])
async def test_who_has_the_bytes_tells_their_hash_where_all_comes_again(again: bytes) -> None:
    asked: list[int] = []
    got = bytearray()

    async def delivered(size_bytes: int) -> "hashlib._Hash":
        asked.append(size_bytes)
        return hashlib.sha256(got[:size_bytes])

    async def read() -> None:
        async with client.task_log(KEY, None, delivered) as body:
            async for chunk in body:
                got.extend(chunk)

    async with scripted(cut(LOG, 50_000), whole(again)) as server, client_of(server) as client:
        if again == LOG:
            await read()
            assert got == LOG
        else:
            with pytest.raises(LogRewritten):
                await read()
            assert got == LOG[:50_000]
    assert asked == [50_000]
