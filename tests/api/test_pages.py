"""Growing logs by offset: used only where what comes proves what nobody documents."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest

from codeartsfs.api.client import LogPlace
from codeartsfs.api.health import NotAsked
from codeartsfs.api.pages import LogAccess, open_pages
from codeartsfs.api.wire import LogPage
from codeartsfs.model import LogPrefix
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

from .scripted import Asked, answer, ranged, scripted, whole
from .test_body import client_of, read_all

RECORD = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
KEY = LogKey(RECORD, Stage("stage3"), LogLevel.INFO)
LOG = "".join(f"[INFO] 构建 line {n}\n" for n in range(5000)).encode()
HERE = LOG[: LOG.index(b"\n", 40_000) + 1]
PLACE = LogPlace("j" * 32, 7, (12, 3))


def prefix_of(content: bytes) -> LogPrefix:
    return LogPrefix(len(content), hashlib.sha256(content), content[-4096:])


@dataclass
class Server:
    """Serves whole logs, ignores ranges, and has pages where ``page`` makes them."""

    page: Callable[[int, int], dict[str, object] | None]  # by step id and offset
    log: bytes = LOG
    asked: list[str] = field(default_factory=list)

    async def __call__(self, asked: Asked) -> None:
        query = parse_qs(urlsplit(asked.target).query)
        if not asked.path.endswith("/task/step"):
            self.asked.append("range" if "range" in asked.headers else "whole")
            await whole(self.log)(asked)
            return
        step, offset = int(query["step_id"][0]), int(query["start_offset"][0])
        self.asked.append(f"step {step}")
        result = self.page(step, offset)
        if result is None:
            await answer(404, b'{"error_code":"CB.00060204","error_msg":"none"}')(asked)
            return
        body = json.dumps({"status": "success", "error": None, "result": result})
        await whole(body.encode(), Content_Type="application/json")(asked)


def pages_of(log: bytes, step: int = 3) -> Callable[[int, int], dict[str, object] | None]:
    def page(asked: int, offset: int) -> dict[str, object] | None:
        if asked != step:
            return None
        lines = log[offset:].splitlines(keepends=True)[:1000]
        text = b"".join(lines)
        return {"log": text.decode(), "end_offset": str(offset + len(text)), "has_more": True}

    return page


async def follow(server: Server, *prefixes: bytes, key: LogKey = KEY) -> list[bytes]:
    """Return what comes after each of some prefixes, asked for one after another."""
    pieces = []
    async with scripted(server) as origin, client_of(origin) as client:
        for prefix in prefixes:
            async with client.task_log(key, prefix_of(prefix), place=PLACE) as body:
                pieces.append(await read_all(body))
                assert body.size_bytes == len(prefix) + len(pieces[-1])
    return pieces


async def test_where_ranges_are_ignored_pages_bring_what_is_new() -> None:
    server = Server(pages_of(LOG))
    rest = LOG[len(HERE) :]
    assert await follow(server, HERE, HERE, LOG) == [rest, rest, b""]
    # Once to see that ranges are ignored, once per number that a step id may be.
    turns = -(-(rest.count(b"\n") + 1) // 1000)
    assert server.asked[:3] == ["range", "step 12", "step 3"]
    assert server.asked[3:] == ["step 3"] * (len(server.asked) - 3)
    assert turns <= len(server.asked) - 3 <= turns + 2


async def test_where_ranges_are_honoured_pages_are_not_asked_for() -> None:
    async with scripted(ranged(LOG)) as origin, client_of(origin) as client:
        for _ in range(2):
            async with client.task_log(KEY, prefix_of(HERE), place=PLACE) as body:
                assert await read_all(body) == LOG[len(HERE) :]
                assert not body.whole
        assert {asked.path for asked in origin.asked} == {f"/v4/{RECORD}/task-log"}


async def test_a_line_that_is_not_whole_yet_waits() -> None:
    half = LOG[: len(HERE) + 7]
    server = Server(pages_of(HERE))
    assert await follow(server, HERE, half[: len(HERE)]) == [LOG[len(HERE) :], b""]


def _wrong_unit(step: int, offset: int) -> dict[str, object]:
    text = LOG.decode()[offset : offset + 1000]  # characters, not bytes
    return {"log": text, "end_offset": offset + len(text)}


def _other_log(step: int, offset: int) -> dict[str, object]:
    text = "[INFO] something else\n" * 100
    return {"log": text, "end_offset": offset + len(text)}


def _spoilt(step: int, offset: int) -> dict[str, object]:
    text = LOG[offset : offset + 5000].decode("utf-8", "replace").replace("构", "\ufffd\ufffd")
    return {"log": text, "end_offset": offset + 5000}


@pytest.mark.parametrize(
    "page",
    [
        lambda step, offset: None,
        lambda step, offset: {"log": 3, "end_offset": 1},
        _wrong_unit,
        _other_log,
        _spoilt,
        pages_of(LOG, step=99),
    ],
)
async def test_pages_that_prove_nothing_are_not_believed_and_soon_not_asked_for(
    page: Callable[[int, int], dict[str, object] | None],
) -> None:
    server = Server(page)
    rest = LOG[len(HERE) :]
    assert await follow(server, *[HERE] * 6) == [rest] * 6
    assert server.asked.count("whole") == 5
    assert server.asked[-2:] == ["whole"] * 2  # three times in vain is enough


async def test_debug_logs_are_not_looked_for_in_pages() -> None:
    server = Server(pages_of(LOG))
    debug = LogKey(RECORD, Stage("stage3"), LogLevel.DEBUG)
    await follow(server, HERE, HERE, key=debug)
    assert server.asked == ["range", "whole"]


async def test_pages_that_change_half_way_are_mended_by_the_whole_log() -> None:
    good = pages_of(LOG)
    calls = 0

    def page(step: int, offset: int) -> dict[str, object] | None:
        nonlocal calls
        calls += step == 3
        return good(step, offset) if calls < 3 else {"log": "x\n", "end_offset": offset + 9}

    server = Server(page)
    rest = LOG[len(HERE) :]
    assert await follow(server, HERE, HERE) == [rest, rest]
    assert server.asked[-1] == "whole"


async def test_pages_that_were_not_even_asked_for_are_no_misfit() -> None:
    async def down(step: int, offset: int) -> LogPage:
        raise NotAsked("the API is down", 1.0)

    access = LogAccess()
    for _ in range(5):
        with pytest.raises(NotAsked):
            await open_pages(access, PLACE, down, len(HERE), HERE[-4096:])
    assert access == LogAccess()
