"""The circuit breaker, through the client that it protects."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.api.client import ApiClient, ApiTrouble
from codeartsfs.api.health import NotAsked, StillRefused
from codeartsfs.api.pace import Pace
from codeartsfs.errors import AccessDenied, ApiUnavailable, CodeArtsError, Forbidden
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from tests.api.test_client import Network, client_on, good_stages, problem

RECORDS = [RecordId(f"{number:036}") for number in range(20)]
LOG = b"first half, second one"
GONE = httpx.ConnectError("connection refused")


@asynccontextmanager
async def client_of(network: Network) -> AsyncIterator[ApiClient]:
    """A client that tries everything once: retries are another matter."""
    async with client_on(network, pace=Pace(requests_per_second=0, attempts=1)) as client:
        yield client


async def fails(client: ApiClient, *records: RecordId) -> list[type[Exception]]:
    """Return how asking for the stages of records ends."""
    ends: list[type[Exception]] = []
    for record in records:
        try:
            await client.stages(record)
        except CodeArtsError as failure:
            ends.append(type(failure))
    return ends


@pytest.mark.parametrize("trouble", [GONE, httpx.ReadTimeout(""), problem(502), problem(503)])
async def test_when_nobody_answers_for_several_things_the_rest_is_not_asked(
    trouble: Exception | httpx.Response, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network(trouble)
    async with client_of(network) as client:
        ends = await fails(client, *RECORDS[:10])
        assert ends == [ApiUnavailable] * 3 + [NotAsked] * 7
        assert len(network.asked) == 3
        assert client.state.condition == "down"
        assert client.state.error
        with pytest.raises(ApiUnavailable, match=r"not asked again for 1\.0 s"):
            await client.stages(RECORDS[0])
    assert [record.levelname for record in caplog.records if "health" in record.name] == ["WARNING"]


async def test_logs_are_not_asked_for_either(autojump_clock: MockClock) -> None:
    network = Network(GONE)
    async with client_of(network) as client:
        for number in range(1, 6):
            with pytest.raises(ApiUnavailable):
                await log_of(client, number)
        assert len(network.asked) == 3


async def log_of(client: ApiClient, number: int) -> bytes:
    async with client.task_log(LogKey(RECORDS[0], Stage(f"stage{number}"), LogLevel.INFO)) as body:
        return b"".join([chunk async for chunk in body])


async def test_a_log_that_breaks_off_meanwhile_goes_on_where_it_was(
    autojump_clock: MockClock,
) -> None:
    broken = trio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"first half, "
        await broken.wait()
        raise httpx.ReadError("reset")

    rest = httpx.Response(206, headers={"Content-Range": "bytes 0-21/22"}, content=LOG)

    def begin(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Length": "22"}, content=half())

    network = Network(begin, *[GONE] * 9, rest)
    pace = Pace(requests_per_second=0, random=lambda: 0.0, attempts=3)
    async with client_on(network, pace=pace) as client:
        async with client.task_log(LogKey(RECORDS[0], Stage("stage1"), LogLevel.INFO)) as body:
            assert await anext(body) == b"first half, "
            await trio.sleep(1)
            await fails(client, *RECORDS[:3])
            assert client.state.condition == "down"
            broken.set()
            assert b"".join([chunk async for chunk in body]) == b"second one"
        assert network.asked[-1].headers["Range"] == "bytes=0-"
        assert len(network.asked) == 11


async def test_one_request_at_a_time_finds_out_whether_it_is_over(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = Network(GONE, GONE, GONE, GONE, GONE, good_stages())
    async with client_of(network) as client:
        await fails(client, *RECORDS[:5])
        for asked, pause_s in ((4, 1.0), (5, 2.0)):
            await trio.sleep(pause_s)
            assert len(await fails(client, *RECORDS[:5])) == 5
            assert len(network.asked) == asked
        await trio.sleep(4)
        assert await fails(client, *RECORDS[:5]) == []
        assert len(network.asked) == 10
        assert client.state.condition == "ok"
        assert not client.state.error
    assert "the API answers again" in caplog.text


@pytest.mark.parametrize(
    ("answer", "ends"), [(good_stages(), []), (GONE, [ApiUnavailable] + [NotAsked] * 4)]
)
async def test_who_comes_while_one_finds_out_waits_for_what_it_finds(
    answer: httpx.Response | Exception, ends: list[type[Exception]], autojump_clock: MockClock
) -> None:
    async def slowly(request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.5)
        if isinstance(answer, Exception):
            raise answer
        return answer

    network = Network(GONE, GONE, GONE, slowly, good_stages())
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        await trio.sleep(1)
        found: list[type[Exception]] = []

        async def ask(record: RecordId) -> None:
            found.extend(await fails(client, record))

        async with trio.open_nursery() as nursery:
            for record in RECORDS[3:8]:
                nursery.start_soon(ask, record)
        assert sorted(found, key=str) == sorted(ends, key=str)
        assert len(network.asked) == (4 if ends else 8)


async def test_a_probe_that_does_not_come_back_holds_nobody_up_for_long(
    autojump_clock: MockClock,
) -> None:
    async def never(request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()

    network = Network(GONE, GONE, GONE, never)
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        await trio.sleep(1)
        ends: list[type[Exception]] = []

        async def ask(record: RecordId) -> None:
            ends.extend(await fails(client, record))

        async with trio.open_nursery() as nursery:
            for record in RECORDS[3:7]:
                nursery.start_soon(ask, record)
                await wait_all_tasks_blocked()
            await trio.sleep(2.5)
            assert ends == [NotAsked] * 2  # one is the probe, and one of the others the next
            nursery.cancel_scope.cancel()


async def test_it_never_takes_longer_than_five_seconds_to_find_out(
    autojump_clock: MockClock,
) -> None:
    network = Network(GONE)
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        for _ in range(20):
            await trio.sleep(5)
            await fails(client, RECORDS[0])
        assert len(network.asked) == 23


async def test_trouble_with_one_thing_does_not_hide_that_the_api_is_back(
    autojump_clock: MockClock,
) -> None:
    network = Network(GONE, GONE, GONE, problem(500), good_stages())
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        await trio.sleep(1)
        assert await fails(client, RECORDS[0], RECORDS[1]) == [ApiUnavailable]
        assert client.state.condition == "ok"


@pytest.mark.parametrize(
    ("trouble", "error"),
    [(problem(500), ApiUnavailable), (problem(429), ApiUnavailable), (problem(403), Forbidden)],
)
async def test_trouble_that_may_be_with_the_thing_itself_stops_nobody_else(
    trouble: httpx.Response, error: type[Exception], autojump_clock: MockClock
) -> None:
    network = Network(trouble)
    async with client_of(network) as client:
        assert await fails(client, *RECORDS[:10]) == [error] * 10
        assert len(network.asked) == 10
        assert client.state.condition == "ok"


async def test_one_thing_that_fails_again_and_again_stops_nobody_else(
    autojump_clock: MockClock,
) -> None:
    network = Network(GONE)
    async with client_of(network) as client:
        await fails(client, *[RECORDS[0]] * 10)
        assert len(network.asked) == 10


async def test_any_answer_between_makes_the_count_begin_anew(autojump_clock: MockClock) -> None:
    network = Network(GONE, GONE, problem(404), GONE, GONE, good_stages())
    async with client_of(network) as client:
        await fails(client, *RECORDS[:10])
        assert len(network.asked) == 10


async def test_things_that_fail_while_others_are_answered_are_their_own_trouble(
    autojump_clock: MockClock,
) -> None:
    network = Network(good_stages(), GONE)
    async with client_of(network) as client:
        assert await fails(client, RECORDS[0]) == []
        await trio.sleep(0.9)
        assert await fails(client, *RECORDS[1:6]) == [ApiUnavailable] * 5
        assert client.state.condition == "ok"
        await trio.sleep(0.1)
        assert await fails(client, *RECORDS[1:3]) == [ApiUnavailable, NotAsked]


async def test_refused_credentials_are_not_tried_on_everything(autojump_clock: MockClock) -> None:
    network = Network(problem(401))
    async with client_of(network) as client:
        ends = await fails(client, *RECORDS[:10])
        assert ends == [AccessDenied] * 3 + [StillRefused] * 7
        assert client.state.condition == "refused"
        assert len(network.asked) < 10


async def test_what_is_the_matter_may_change(autojump_clock: MockClock) -> None:
    network = Network(GONE, GONE, GONE, problem(401))
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        await trio.sleep(1)
        assert await fails(client, *RECORDS[:2]) == [AccessDenied, StillRefused]
        assert client.state.condition == "refused"


@pytest.mark.parametrize("trouble", [GONE, problem(502)])
async def test_refused_credentials_are_not_blamed_for_an_outage_that_follows(
    trouble: Exception | httpx.Response, autojump_clock: MockClock
) -> None:
    network = Network(problem(401), problem(401), problem(401), trouble)
    async with client_on(network, pace=Pace(requests_per_second=0)) as client:
        await fails(client, *RECORDS[:3])
        assert client.state.condition == "refused"
        await trio.sleep(1)
        assert await fails(client, *RECORDS[3:5]) == [NotAsked, NotAsked]
        assert client.state.condition == "down"


async def test_what_went_wrong_is_remembered_when_it_is_over(autojump_clock: MockClock) -> None:
    network = Network(problem(401), good_stages())
    async with client_of(network) as client:
        assert client.trouble == ApiTrouble(None, None, False, None)
        await fails(client, *RECORDS[:2])
        assert client.state.condition == "ok"
        refusal = client.trouble.last_refusal
        assert refusal is not None
        assert "HTTP 401" in refusal.error
        assert client.trouble.last_failure == refusal
        assert not client.trouble.refused


async def test_when_it_asks_again_is_told_while_it_does_not_ask(autojump_clock: MockClock) -> None:
    async with client_of(Network(GONE)) as client:
        await fails(client, *RECORDS[:4])
        failed = client.trouble.last_failure
        assert client.trouble.asks_again_in_s == 1.0
        await trio.sleep(0.25)
        assert client.trouble.asks_again_in_s == 0.75
        await fails(client, RECORDS[5])  # which is not asked for, and so no news
        assert client.trouble.last_failure == failed
        await trio.sleep(5)
        assert client.trouble.asks_again_in_s == 0.0


async def test_calls_are_counted_by_what_became_of_them(autojump_clock: MockClock) -> None:
    network = Network(GONE, problem(503), good_stages())
    async with client_of(network) as client:
        await fails(client, *RECORDS[:3])
        counts = client.calls()["full_stages"]
        assert counts.answers == {"none": 1, "5xx": 1, "2xx": 1}
        assert counts.durations.count == 2  # those that were answered
        assert counts.received_bytes == len(good_stages().content) + len(problem(503).content)
