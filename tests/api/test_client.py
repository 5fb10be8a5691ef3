import json
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from codeartsfs.api.auth import Credentials, PasswordAuth, SignatureAuth, TokenAuth
from codeartsfs.api.client import ApiClient, EndpointError, open_client
from codeartsfs.api.pace import Pace
from codeartsfs.api.transport import proxy_for
from codeartsfs.api.wire import (
    render_jobs,
    render_record,
    render_record_info,
    render_records_page,
    render_stages,
)
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    BuildNotFound,
    CallUnavailable,
    CodeArtsError,
    Forbidden,
    LogNotFound,
    NotFound,
)
from codeartsfs.model import BuildRecord, Job, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

from .scripted import Asked, Hangup, answer, scripted, whole

HOST = "build.example.com"
API = f"https://{HOST}"
RECORD = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
KEY = LogKey(RECORD, Stage("stage1"), LogLevel.DEBUG)
PROJECT = "c0de0000000000000000000000000001"
STAGES = (StageRun(Stage("stage1"), sequence=1, status="SUCCESS", created_ns=10**18),)
NOT_PUBLISHED = {"error_code": "APIGW.0101", "error_msg": "no such API", "request_id": "r"}

Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


class Network:
    """A transport that remembers what was asked and answers with what the test says."""

    def __init__(self, *answers: httpx.Response | Exception | Handler) -> None:
        self.answers = answers
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            # A response can be read once; the last answer may have to serve many times.
            return httpx.Response(
                answer.status_code, headers=answer.headers, content=answer.content
            )
        made = answer(request)
        return made if isinstance(made, httpx.Response) else await made

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.asked]


@asynccontextmanager
async def client_on(
    network: Handler,
    *,
    credentials: Credentials | None = None,
    pace: Pace | None = None,
    endpoint: str = API,
) -> AsyncIterator[ApiClient]:
    async with open_client(
        endpoint=endpoint,
        credentials=credentials or TokenAuth(lambda: "token-1"),
        pace=pace or Pace(requests_per_second=0),
        transport=httpx.MockTransport(network),  # type: ignore[arg-type]
    ) as client:
        yield client


async def read_log(client: ApiClient) -> bytes:
    async with client.task_log(KEY) as body:
        return b"".join([chunk async for chunk in body])


async def read_stages(client: ApiClient) -> tuple[StageRun, ...]:
    return await client.stages(RECORD)


def good_stages() -> httpx.Response:
    return httpx.Response(200, json=render_stages(STAGES, RECORD))


def problem(status: int, code: str = "", message: str = "", **headers: str) -> httpx.Response:
    body: Any = {"error_code": code, "error_msg": message} if code else None
    headers.setdefault("X-Request-Id", "req-7")
    return httpx.Response(status, json=body, headers=headers)


# --- the calls --------------------------------------------------------------------------------


async def test_stages_are_read() -> None:
    network = Network(good_stages())
    async with client_on(network) as client:
        assert await client.stages(RECORD) == STAGES
    assert str(network.asked[0].url) == f"{API}/v1/record/{RECORD}/full-stages"
    assert network.asked[0].headers["X-Auth-Token"] == "token-1"
    assert network.asked[0].headers["User-Agent"].startswith("codeartsfs/")


async def test_a_record_is_read() -> None:
    record = BuildRecord(RECORD, build_no=7, status="SUCCESS", branch="main")
    network = Network(httpx.Response(200, json=render_record(record)))
    async with client_on(network) as client:
        assert await client.record(RECORD) == record
    assert network.paths == [f"/v1/record/{RECORD}/info"]


async def test_a_record_is_found_by_job_and_number() -> None:
    record = BuildRecord(RECORD, build_no=7)
    network = Network(httpx.Response(200, json=render_record_info(record, "j" * 32)))
    async with client_on(network) as client:
        assert await client.record_by_number("j" * 32, 7) == record
    assert network.paths == [f"/v1/record/{'j' * 32}/7/record-info"]


async def test_an_endpoint_may_have_a_path_prefix() -> None:
    network = Network(good_stages())
    async with client_on(network, endpoint=f"{API}/gateway/") as client:
        await client.stages(RECORD)
    assert network.paths == [f"/gateway/v1/record/{RECORD}/full-stages"]


async def test_foreign_ids_cannot_leave_their_place_in_the_path() -> None:
    network = Network(httpx.Response(200, json=render_jobs([], 0)))
    async with client_on(network) as client:
        await client.jobs("../../x?y#z")
    assert network.asked[0].url.raw_path.startswith(b"/v1/job/..%2F..%2Fx%3Fy%23z/list?")


# --- lists ------------------------------------------------------------------------------------


def job(number: int) -> Job:
    return Job(f"{number:032x}", f"job {number}")


async def test_jobs_are_read_page_by_page_whatever_total_says() -> None:
    everything = [job(number) for number in range(250)]

    def handler(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        size = int(query["page_size"])
        start = int(query["page_index"]) * size
        return httpx.Response(200, json=render_jobs(everything[start : start + size], -1))

    network = Network(handler)
    async with client_on(network) as client:
        assert await client.jobs(PROJECT) == tuple(everything)
    assert len(network.asked) == 3


async def test_a_list_that_repeats_its_first_page_for_ever_ends() -> None:
    page = httpx.Response(200, json=render_jobs([job(number) for number in range(100)], 10**6))
    network = Network(page)
    async with client_on(network) as client:
        assert len(await client.jobs(PROJECT)) == 100
    assert len(network.asked) == 2


async def test_jobs_fall_back_to_the_old_path_and_stay_there() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/"):
            return httpx.Response(404, json=NOT_PUBLISHED)
        return httpx.Response(200, json=render_jobs([job(1)], 1))

    network = Network(handler)
    async with client_on(network) as client:
        assert await client.jobs(PROJECT) == (job(1),)
        assert await client.jobs(PROJECT) == (job(1),)
    new, old = f"/v1/job/{PROJECT}/list", f"/v3/{PROJECT}/jobs"
    assert network.paths == [new, old, old]


@pytest.mark.parametrize(
    ("told", "paths"),
    [
        ("bp-1", ["/v1/record/bp-1/records"] * 2),
        ("", [f"/v1/job/{'a' * 32}/info", *["/v1/record/bp-1/records"] * 2]),
    ],
)
async def test_builds_of_a_job_are_found_even_where_the_list_of_jobs_hides_their_project(
    told: str, paths: list[str]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/info"):
            return httpx.Response(200, json={"status": "success", "result": {"project_id": "bp-1"}})
        return httpx.Response(200, json=render_records_page([run(1)], 0, 100))

    network = Network(handler)
    async with client_on(network) as client:
        for _ in range(2):
            found = await client.builds(Job("a" * 32, "web-app", told), 100)
            assert [build.build_no for build in found] == [1]
    assert network.paths == paths


async def test_a_job_that_is_not_there_is_not_found_and_asked_for_anew() -> None:
    network = Network(
        problem(404, "CB.1", "gone"),
        httpx.Response(200, json={"result": {"project_id": "../bp?"}}),
        httpx.Response(200, json=render_records_page([run(1)], 0, 100)),
    )
    async with client_on(network) as client:
        with pytest.raises(NotFound, match="no job"):
            await client.builds(Job("../a?", "web-app"), 100)
        assert len(await client.builds(Job("../a?", "web-app"), 100)) == 1
    raw = [request.url.raw_path for request in network.asked]
    assert raw[:2] == [b"/v1/job/..%2Fa%3F/info"] * 2
    assert raw[2].startswith(b"/v1/record/..%2Fbp%3F/records?")


async def test_jobs_whose_project_is_hidden_are_kept_apart() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        job_id = request.url.path.split("/")[3]
        if request.url.path.endswith("/info"):
            return httpx.Response(200, json={"result": {"project_id": f"bp-{job_id[0]}"}})
        return httpx.Response(200, json=render_records_page([], 0, 100))

    network = Network(handler)
    async with client_on(network) as client:
        for letter in "ab":
            await client.builds(Job(letter * 32, "web-app"), 100)
    asked = dict.fromkeys(path for path in network.paths if path.endswith("/records"))
    assert list(asked) == ["/v1/record/bp-a/records", "/v1/record/bp-b/records"]


def run(number: int) -> BuildRecord:
    return BuildRecord(
        RecordId(f"{number:08d}-b2cb-4234-8eb0-b37d362f4d4c"),
        build_no=number,
        created_ns=10**18 + number * 10**9,
    )


class RecordsPages:
    """The records list of a job with runs 1 ... ``count``, with either base and order."""

    def __init__(self, count: int, base: int, page_0: str, *, oldest_first: bool = False) -> None:
        self.runs = [run(number) for number in range(count, 0, -1)]
        if oldest_first:
            self.runs.reverse()
        self.base = base
        self.page_0 = page_0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        page, limit = (int(request.url.params[name]) for name in ("page", "limit"))
        index = page - self.base
        if index < 0:
            if self.page_0 == "refused":
                return problem(400, "CB.00060200", "page must be positive")
            if self.page_0 == "empty":
                return httpx.Response(200, json=render_records_page([], page, limit))
            index = 0
        rows = self.runs[index * limit : (index + 1) * limit]
        return httpx.Response(200, json=render_records_page(rows, page, limit))


BASES = [(0, ""), (1, "refused"), (1, "empty"), (1, "same as page 1")]


@pytest.mark.parametrize(("base", "page_0"), BASES)
@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
async def test_records_come_newest_first_with_either_page_base(
    base: int, page_0: str, count: int
) -> None:
    pages = RecordsPages(count, base, page_0)
    async with client_on(Network(pages)) as client:
        assert await client.records("bp", 1000) == tuple(pages.runs)
        assert await client.records("bp", 1000) == tuple(pages.runs)


@pytest.mark.parametrize(("base", "page_0"), BASES)
async def test_a_few_records_cost_one_request_once_the_page_base_is_known(
    base: int, page_0: str
) -> None:
    network = Network(RecordsPages(250, base, page_0))
    async with client_on(network) as client:
        await client.records("bp", 10)
        before = len(network.asked)
        assert [record.build_no for record in await client.records("bp", 10)] == [
            *range(250, 240, -1)
        ]
    assert len(network.asked) == before + 1


async def test_an_oldest_first_list_is_read_to_its_end_for_the_newest() -> None:
    network = Network(RecordsPages(250, 0, "", oldest_first=True))
    async with client_on(network) as client:
        found = await client.records("bp", 2)
    assert [record.build_no for record in found] == [250, 249]


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "read", "error"),
    [
        (problem(404), read_stages, BuildNotFound),
        (problem(404, "CB.1", "gone"), read_log, LogNotFound),
        (problem(400, "CB.00060200", "bad"), read_log, LogNotFound),
        (problem(400, "CB.00060200", "bad"), read_stages, ApiUnavailable),
        (problem(401, "APIGW.0301", "who"), read_log, AccessDenied),
        (problem(403), read_log, Forbidden),
        (problem(403, "APIGW.0302", "no"), read_stages, Forbidden),
        (problem(405), read_stages, ApiUnavailable),
        (httpx.Response(404, json=NOT_PUBLISHED), read_stages, CallUnavailable),
        (httpx.Response(304), read_stages, BadAnswer),
        (httpx.Response(204), read_log, BadAnswer),
        (httpx.Response(206, content=b"xx"), read_log, BadAnswer),
        (httpx.Response(200, html="<html>"), read_stages, BadAnswer),
        (httpx.Response(200, html="<html>"), read_log, BadAnswer),
        (httpx.Response(200, json=[]), read_stages, BadAnswer),
        (httpx.Response(200, content=b""), read_stages, BadAnswer),
        (httpx.Response(200, content=b'{"result": ' * 10**5), read_stages, BadAnswer),
        (
            httpx.Response(200, json={"status": "fail", "error": {"code": "404"}}),
            read_stages,
            BuildNotFound,
        ),
        (
            httpx.Response(200, json={"success": False, "message": "m", "errCode": "APIGW.0302"}),
            read_stages,
            Forbidden,
        ),
        (
            httpx.Response(200, json={"status": "fail", "error": "boom", "result": None}),
            read_stages,
            ApiUnavailable,
        ),
    ],
)
async def test_an_answer_is_the_error_it_means_and_is_not_asked_for_again(
    answer: httpx.Response,
    read: Callable[[ApiClient], Awaitable[object]],
    error: type[CodeArtsError],
    autojump_clock: MockClock,
) -> None:
    network = Network(answer)
    async with client_on(network) as client:
        with pytest.raises(error) as caught:
            await read(client)
    assert type(caught.value) is error or error is ApiUnavailable
    assert len(network.asked) == 1


@pytest.mark.parametrize("read", [read_stages, read_log])
@pytest.mark.parametrize(
    "answer",
    [
        problem(500, "CB.00060211", "too many"),
        problem(500, "CB.00060100", "busy"),
        problem(500),
        httpx.Response(502, html="<html>bad gateway</html>"),
        problem(503),
        problem(429, "APIGW.0308", "over ratelimit"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
    ],
)
async def test_what_may_pass_is_tried_again_until_it_has_passed(
    answer: httpx.Response | Exception,
    read: Callable[[ApiClient], Awaitable[object]],
    autojump_clock: MockClock,
) -> None:
    network = Network(answer, answer, good_stages())
    async with client_on(network) as client:
        await read(client)
        assert client.statistics.requests == 3
        assert client.statistics.retries == 2


@pytest.mark.parametrize("read", [read_stages, read_log])
async def test_what_does_not_pass_is_unavailable_after_all_attempts(
    read: Callable[[ApiClient], Awaitable[object]], autojump_clock: MockClock
) -> None:
    network = Network(problem(503, "APIGW.0613", "IAM down"))
    async with client_on(network) as client:
        with pytest.raises(ApiUnavailable, match=r"APIGW\.0613 IAM down; gave up after 5"):
            await read(client)
    assert len(network.asked) == 5


async def test_throttling_is_counted_and_retry_after_obeyed(autojump_clock: MockClock) -> None:
    network = Network(problem(429, "APIGW.0308", "slow", **{"Retry-After": "20"}), good_stages())
    async with client_on(network) as client:
        await client.stages(RECORD)
        assert trio.current_time() == pytest.approx(20)
        assert client.statistics.throttled == 1


async def test_a_message_says_what_was_asked_and_what_came_back() -> None:
    network = Network(problem(403, "APIGW.0302", "not\r\nallowed\x1b[2J"))
    async with client_on(network) as client:
        with pytest.raises(AccessDenied) as caught:
            await client.stages(RECORD)
    assert str(caught.value) == (
        f"GET /v1/record/{RECORD}/full-stages: HTTP 403 (request req-7) APIGW.0302 not allowed [2J"
    )


async def test_a_long_message_is_cut_and_keeps_the_request_id() -> None:
    network = Network(problem(403, "X", "y" * 10_000))
    async with client_on(network) as client:
        with pytest.raises(AccessDenied, match="req-7") as caught:
            await client.stages(RECORD)
    assert len(str(caught.value)) == 300


async def test_more_json_than_anybody_needs_is_a_bad_answer() -> None:
    network = Network(httpx.Response(200, content=b" " * ((16 << 20) + 1)))
    async with client_on(network) as client:
        with pytest.raises(BadAnswer, match="16 MiB"):
            await client.stages(RECORD)


async def test_json_that_breaks_off_is_asked_for_again() -> None:
    body = json.dumps(render_stages(STAGES, RECORD)).encode()

    async def short(asked: Asked) -> None:
        await asked.head(Content_Length=len(body))
        await asked.send(body[:50])
        raise Hangup

    pace = Pace(requests_per_second=0, random=lambda: 0.0)
    async with (
        scripted(short, whole(body)) as server,
        open_client(endpoint=server.endpoint, credentials=None, pace=pace) as client,
    ):
        assert await client.stages(RECORD) == STAGES
        assert len(server.asked) == 2
        assert pace.calls_open == 0


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    body = json.dumps(render_stages(STAGES, RECORD)).encode()

    async def silent(asked: Asked) -> None:
        await asked.head(Content_Length=len(body))
        await trio.sleep_forever()

    pace = Pace(max_calls=1, requests_per_second=0)
    async with (
        scripted(silent, whole(body)) as server,
        open_client(endpoint=server.endpoint, credentials=None, pace=pace) as client,
    ):
        # The server waits on a real socket, so this is real time.
        with trio.move_on_after(0.1) as scope:
            await client.stages(RECORD)
        assert scope.cancelled_caught
        assert pace.calls_open == 0
        assert await client.stages(RECORD) == STAGES


# --- twin paths -------------------------------------------------------------------------------


async def test_logs_fall_back_to_the_twin_path_and_remember_it() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v4/"):
            return httpx.Response(404, json=NOT_PUBLISHED)
        return httpx.Response(200, content=b"log\n")

    network = Network(handler)
    async with client_on(network) as client:
        assert await read_log(client) == b"log\n"
        assert await read_log(client) == b"log\n"
    v4, v1 = f"/v4/{RECORD}/task-log", f"/v1/log/{RECORD}/task-log"
    assert network.paths == [v4, v1, v1]


async def test_logs_published_nowhere_are_call_unavailable() -> None:
    network = Network(httpx.Response(404, json=NOT_PUBLISHED))
    async with client_on(network) as client:
        with pytest.raises(CallUnavailable, match=r"APIGW\.0101"):
            await read_log(client)
    assert len(network.asked) == 2


async def test_a_plain_404_is_no_reason_to_try_the_twin() -> None:
    network = Network(problem(404, "CB.1", "gone"))
    async with client_on(network) as client:
        with pytest.raises(LogNotFound):
            await read_log(client)
    assert len(network.asked) == 1


# --- redirects --------------------------------------------------------------------------------

AUTH_HEADERS = {
    "x-auth-token",
    "authorization",
    "x-sdk-date",
    "x-project-id",
    "x-security-token",
}


def redirect(location: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "credentials",
    [TokenAuth(lambda: "token-1"), SignatureAuth("AK", "SK", "security-token", "project")],
)
async def test_a_redirect_to_another_host_goes_without_credentials(
    status: int, credentials: Credentials
) -> None:
    elsewhere = "https://obs.example.org/bucket/log?Signature=presigned%20x"
    network = Network(redirect(elsewhere, status), httpx.Response(200, content=b"log\n"))
    async with client_on(network, credentials=credentials) as client:
        assert await read_log(client) == b"log\n"
    first, second = network.asked
    assert AUTH_HEADERS & set(first.headers)
    assert not AUTH_HEADERS & set(second.headers)
    assert str(second.url) == elsewhere
    assert second.headers["Host"] == "obs.example.org"


@pytest.mark.parametrize("location", ["https://build.example.com:8443/x", "https://example.com/x"])
async def test_another_port_or_parent_domain_is_another_host(location: str) -> None:
    network = Network(redirect(location), httpx.Response(200, content=b"log\n"))
    async with client_on(network) as client:
        await read_log(client)
    assert not AUTH_HEADERS & set(network.asked[1].headers)


async def test_a_redirect_on_the_same_host_keeps_credentials() -> None:
    network = Network(redirect("/elsewhere"), httpx.Response(200, content=b"log\n"))
    async with client_on(network) as client:
        await read_log(client)
    assert network.paths[1] == "/elsewhere"
    assert network.asked[1].headers["X-Auth-Token"] == "token-1"


async def test_credentials_dropped_on_the_way_stay_dropped() -> None:
    network = Network(
        redirect("https://obs.example.org/x"),
        redirect(f"{API}/back"),
        httpx.Response(200, content=b"log\n"),
    )
    async with client_on(network) as client:
        await read_log(client)
    assert not AUTH_HEADERS & set(network.asked[2].headers)


@pytest.mark.parametrize(
    "location",
    [
        "http://build.example.com/x",
        "http://127.0.0.1/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https://two..dots/x",
        "https://xn--.example.com/x",
        f"https://{'a' * 64}.example.com/x",
    ],
)
async def test_a_redirect_away_from_https_or_to_no_host_is_refused(location: str) -> None:
    network = Network(redirect(location))
    async with client_on(network) as client:
        with pytest.raises(BadAnswer, match="redirected to"):
            await read_log(client)
    assert len(network.asked) == 1


async def test_redirects_end_after_five() -> None:
    network = Network(redirect("/again"))
    async with client_on(network) as client:
        with pytest.raises(BadAnswer, match="more than 5 redirects"):
            await read_log(client)
    assert len(network.asked) == 6


async def test_no_cookie_is_ever_sent() -> None:
    network = Network(
        httpx.Response(200, content=b"log\n", headers={"Set-Cookie": "session=1; Path=/"})
    )
    async with client_on(network) as client:
        await read_log(client)
        await read_log(client)
    assert "Cookie" not in network.asked[1].headers


# --- endpoints, certificates, proxies ---------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://build.example.com",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "ftp://127.0.0.1",
        "build.example.com",
        "https://",
        pytest.param("https://user:hush@build.example.com", id="with a password"),
        "https://build.example.com/?x=hush",
        "https://[::1",
        "https://two..dots",
        "https://xn--.example.com",
        "",
    ],
)
async def test_an_unsafe_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(EndpointError) as caught:
        await open_client(endpoint=endpoint, credentials=None, pace=Pace()).__aenter__()
    assert "user:hush" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
async def test_plain_http_is_for_loopback(host: str) -> None:
    network = Network(good_stages())
    async with client_on(network, endpoint=f"http://{host}:8080") as client:
        assert await client.stages(RECORD) == STAGES


async def test_proxies_of_the_environment_are_used_but_not_for_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = json.dumps(render_stages(STAGES, RECORD)).encode()
    async with scripted(answer(502)) as proxy, scripted(whole(body)) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint)
        for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        pace = Pace(requests_per_second=0, random=lambda: 0.0, attempts=1)
        async with open_client(endpoint=server.endpoint, credentials=None, pace=pace) as client:
            assert await client.stages(RECORD) == STAGES
        assert proxy.asked == []
        async with open_client(endpoint=API, credentials=None, pace=pace) as client:
            with pytest.raises(ApiUnavailable):
                await client.stages(RECORD)
        assert [asked.target for asked in proxy.asked] == ["build.example.com:443"]


@asynccontextmanager
async def tls_server(certificate: tuple[str, str]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve the stages over TLS; gives the endpoint and what was received."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    body = json.dumps(render_stages(STAGES, RECORD)).encode()
    received: list[bytes] = []

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            received.append(bytes(await stream.receive_some(65536)))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode() + body)
        except trio.BrokenResourceError:
            received.append(b"")  # the client went away in the handshake

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"https://127.0.0.1:{port}", received
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tunnel_to(endpoint: str, answer: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve a proxy whose tunnels lead to one server; gives its address and what was asked."""
    asked: list[str] = []

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)

    async def serve(client: trio.SocketStream) -> None:
        asked.append(bytes(await client.receive_some(65536)).decode())
        await client.send_all(f"HTTP/1.1 {answer}\r\n\r\n".encode())
        if not answer.startswith("200"):
            return
        server = await trio.open_tcp_stream("127.0.0.1", int(endpoint.rpartition(":")[2]))
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, client, server)
            await pass_on(server, client)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", asked
        nursery.cancel_scope.cancel()


async def test_tls_goes_through_the_tunnel_of_a_proxy(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        tls_server(certificate) as (endpoint, received),
        tunnel_to(endpoint, "200 OK") as (proxy, asked),
    ):
        monkeypatch.setenv("https_proxy", f"http://us%40er:hush@{proxy}")
        async with open_client(
            endpoint=API, credentials=None, pace=Pace(), ca_file=certificate[0]
        ) as client:
            assert await client.stages(RECORD) == STAGES
    assert asked[0].startswith(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n")
    assert b64encode(b"us@er:hush").decode() in asked[0]
    assert b"Proxy-Authorization" not in received[0]
    assert f"Host: {HOST}".encode() in received[0]


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ("socks5://127.0.0.1:1", "a proxy by socks5"),
        ("http://user:hush@127.0.0.1:1", "Connection refused"),
        (None, "the proxy answers 407"),
    ],
)
async def test_a_proxy_that_is_of_no_use_is_an_error_without_its_password(
    proxy: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(requests_per_second=0, attempts=1)
    async with tunnel_to("x:1", "407 Who are you") as (refuses, _):
        monkeypatch.setenv("ALL_PROXY", proxy or f"http://user:hush@{refuses}")
        async with open_client(endpoint=API, credentials=None, pace=pace) as client:
            with pytest.raises((ApiUnavailable, BadAnswer), match=says) as caught:
                await client.stages(RECORD)
    assert "hush" not in str(caught.value)


async def test_no_proxy_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "other.example, example.com")
    assert proxy_for(("https", HOST, 443)) is None
    assert proxy_for(("https", "example.org", 443)) == httpx.URL("http://127.0.0.1:1")
    assert proxy_for(("https", "127.0.0.1", 443)) is None


async def test_an_untrusted_certificate_is_refused_and_not_tried_again(
    certificate: tuple[str, str],
) -> None:
    async with (
        tls_server(certificate) as (endpoint, received),
        open_client(
            endpoint=endpoint, credentials=TokenAuth(lambda: "token-1"), pace=Pace()
        ) as client,
    ):
        with pytest.raises(ApiUnavailable, match=r"certificate not trusted: self.signed"):
            await client.stages(RECORD)
        assert client.statistics.requests == 1
        assert b"token-1" not in b"".join(received)


async def test_a_certificate_of_our_own_is_trusted_by_ca_file(
    certificate: tuple[str, str],
) -> None:
    async with (
        tls_server(certificate) as (endpoint, _),
        open_client(
            endpoint=endpoint, credentials=None, pace=Pace(), ca_file=certificate[0]
        ) as client,
    ):
        assert await client.stages(RECORD) == STAGES


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file"), ("no certificate", "no certificates in it")]
)
async def test_an_unusable_ca_file_is_one_clear_line(
    text: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EndpointError, match=message):
        await open_client(
            endpoint=API, credentials=None, pace=Pace(), ca_file=str(path)
        ).__aenter__()


async def test_a_refused_connection_is_unavailable_with_method_and_path(
    autojump_clock: MockClock,
) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    pace = Pace(requests_per_second=0, random=lambda: 0.0, attempts=2)
    async with open_client(
        endpoint=f"http://127.0.0.1:{port}", credentials=None, pace=pace
    ) as client:
        with pytest.raises(ApiUnavailable, match=f"^GET /v1/record/{RECORD}/full-stages: "):
            await client.stages(RECORD)


# --- secrets ----------------------------------------------------------------------------------

PLANTED = "planted-s3cret"


def planted(kind: str) -> Credentials:
    if kind == "token":
        return TokenAuth(lambda: f"{PLANTED}-token")
    if kind == "keys":
        return SignatureAuth(f"{PLANTED}-ak", f"{PLANTED}-sk", f"{PLANTED}-st", "project")
    return PasswordAuth("user", f"{PLANTED}-pw", "account", "p", "http://127.0.0.1:1")


def echo(request: httpx.Request, status: int) -> httpx.Response:
    """A server that repeats everything it was told, in its error."""
    said = f"{request.headers} {request.url} {request.content!r}"
    return httpx.Response(
        status,
        json={"error_code": f"E {request.headers.get('X-Auth-Token')}", "error_msg": said},
        headers={"X-Request-Id": request.headers.get("X-Auth-Token", "none")},
    )


@pytest.mark.parametrize("kind", ["token", "keys", "password"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
async def test_no_secret_gets_into_messages_or_logs(
    kind: str, status: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    credentials = planted(kind)
    wrong_password = status == 401

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and not wrong_password:
            return httpx.Response(201, headers={"X-Subject-Token": f"{PLANTED}-token"})
        return echo(request, status)

    told = [repr(credentials), str(vars(credentials))]
    async with client_on(handler, credentials=credentials) as client:
        for read in (read_stages, read_log):
            with pytest.raises(CodeArtsError) as caught:
                await read(client)
            error: BaseException | None = caught.value
            while error is not None:
                told.append(f"{error} {error!r}")
                error = error.__cause__ or error.__context__
    told += [f"{record.getMessage()} {record.exc_text}" for record in caplog.records]
    assert PLANTED not in "\n".join(told)
    assert any("***" in text for text in told) or status == 200


@pytest.mark.parametrize("begin", ["", "Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("kind", ["token", "keys", "password"])
async def test_no_secret_gets_into_messages_or_logs_of_real_connections(
    kind: str, begin: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def iam(asked: Asked) -> None:
        await asked.head(201, Content_Length=0, X_Subject_Token=f"{PLANTED}-token")

    async def mirror(asked: Asked) -> None:
        # Not quite HTTP: what the parser complains about, and quotes, is what we sent.
        sent = asked.headers.get("x-auth-token") or asked.headers["authorization"]
        await asked.send(f"HTTP/1.1 200 OK\r\n{begin}", sent, "\r\n\r\n")
        raise Hangup

    caplog.set_level(logging.DEBUG)
    scripts = (iam, mirror) if kind == "password" else (mirror,)
    pace = Pace(requests_per_second=0, random=lambda: 0.0, attempts=2)
    async with scripted(*scripts) as server:
        credentials = planted(kind)
        if kind == "password":
            credentials = PasswordAuth("user", f"{PLANTED}-pw", "account", "p", server.endpoint)
        async with open_client(
            endpoint=server.endpoint, credentials=credentials, pace=pace
        ) as client:
            with pytest.raises(ApiUnavailable) as caught:
                await client.stages(RECORD)
    assert PLANTED not in f"{caught.value}{caplog.text}"
