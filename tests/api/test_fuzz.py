"""Whatever a server answers: our types or our errors come out, and nothing else.

Answers are JSON of any shape, made of the words of the API so that they get far, proper answers
with one part replaced, and bytes that are no JSON at all.
"""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from codeartsfs.api import wire
from codeartsfs.api.client import ApiClient, LogPlace, open_client
from codeartsfs.api.pace import Pace
from codeartsfs.builds.document import record_document
from codeartsfs.errors import BadAnswer, CodeArtsError
from codeartsfs.model import BuildRecord, Job, LogPrefix, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage, parse_record_id
from codeartsfs.spelling import spell_all
from tests.scale import scaled

RECORD = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
KEY = LogKey(RECORD, Stage("stage1"), LogLevel.INFO)
JOB = Job("0a" * 16, "web-app", "11111111-1111-1111-1111-111111111111")

unhurried = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
many = settings(unhurried, max_examples=scaled(60))
some_dozen = settings(unhurried, max_examples=scaled(20))  # a client each

WORDS = re.findall(
    r"\w+",
    """
    status error result build_stages data jobs job_list pagination total id job_id job_name name
    build_project_id project_id last_build_time last_build_status build_record_id build_no number
    build_number branch revision commit trigger_type trigger_name build_record_type stage1 stage2
    initial final execution_stage_name display_name sequence create_time start_time finish_time
    duration log end_offset error_code error_msg errorCode errorMsg code message request_id
    success reason
    """,
)
VALUES = [RECORD, JOB.job_id, "success", "fail", "error", "SUCCESS", "APIGW.0101", "CB.00060211"]
VALUES += ["404", "500", "2025-03-04T05:06:07+08:00", "Tue Mar 04 13:06:07 CST 2025"]
VALUES += ["2025-13-41 25:61:61", "9999-12-31T23:59:59Z", "-1", "9" * 400, "٣", "stage1", ""]

texts = st.sampled_from([*VALUES, *WORDS]) | st.text(st.characters(exclude_categories=[]))
numbers = (
    st.integers()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([10**400, -(10**4000), 2**63, 0, 1741064767000])
    | st.floats()
)
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(WORDS) | texts, inner, max_size=6)
    ),
    max_leaves=30,
)

BUILD = BuildRecord(RECORD, build_no=412, build_project_id=JOB.build_project_id, status="SUCCESS")
RUNS = (StageRun(Stage("stage1"), "Maven build", 1, "SUCCESS", 10**18, 10**18, 2 * 10**18, 5),)
PARSERS: list[tuple[Callable[[object], object], object]] = [
    (wire.parse_stages, wire.render_stages(RUNS, RECORD)),
    (wire.parse_record, wire.render_record(BUILD)),
    (wire.parse_records_page, wire.render_records_page([BUILD], 1, 100)),
    (wire.parse_record_info, wire.render_record_info(BUILD, JOB.job_id)),
    (wire.parse_jobs, wire.render_jobs([JOB], 1)),
    (wire.parse_build_project, wire.render_envelope({"project_id": JOB.build_project_id})),
    (wire.parse_log_page, wire.render_envelope({"log": "a line\n", "end_offset": 7})),
    (wire.api_error_of, {"error_code": "APIGW.0308", "error_msg": "slower", "request_id": "r"}),
]


def paths_in(value: object, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [here, *(path for key, each in inner for path in paths_in(each, (*here, key)))]


@st.composite
def nearly(draw: st.DrawFn, proper: object) -> object:
    """A proper answer, of which some parts are something else."""
    answer = json.loads(json.dumps(proper))
    for _ in range(draw(st.integers(1, 4))):
        *way, last = draw(st.sampled_from(paths_in(answer)[1:] or [("result",)]))
        place = answer
        for key in way:
            place = place[key]
        place[last] = draw(st.sampled_from(VALUES) | anything)
    return answer


nearly_proper = st.sampled_from([proper for _, proper in PARSERS]).flatmap(nearly)
answers = nearly_proper | anything


@pytest.mark.parametrize(("parse", "proper"), PARSERS)
@many
@given(data=st.data())
def test_a_parser_gives_its_type_or_a_bad_answer(
    parse: Callable[[object], object], proper: object, data: st.DataObject
) -> None:
    answer = data.draw(nearly(proper) | answers)
    with suppress(BadAnswer):
        parse(answer)
    with suppress(BadAnswer):
        wire.count_rows(answer)


@many
@given(answers)
def test_an_error_is_recognized_in_anything(answer: object) -> None:
    message = wire.api_error_of(answer)
    if message is not None:
        assert message.status is None or 400 <= message.status < 600
        assert isinstance(message.not_published, bool)
        assert isinstance(message.throttled, bool)


@many
@given(st.lists(answers, max_size=5))
def test_what_was_parsed_can_be_shown(some: list[object]) -> None:
    def parsed(parse: Callable[[object], Any]) -> list[Any]:
        values = []
        for answer in some:
            try:
                values.append(parse(answer))
            except BadAnswer:
                continue
        return values

    jobs = [job for page in parsed(wire.parse_jobs) for job in page]
    names = spell_all({job.job_id: job.name for job in jobs})
    assert all("/" not in name and len(name.encode()) <= 255 for name in names)
    builds = [*parsed(wire.parse_record), *parsed(wire.parse_record_info), None]
    assert all(build is None or parse_record_id(build.record) for build in builds)
    for runs in [*parsed(wire.parse_stages), None]:
        for build in builds:
            json.loads(record_document(RECORD, build, runs, jobs[0].name if jobs else None))


# Through the client: status, headers and body of every answer.

HEADERS = ["Content-Type", "Content-Length", "Content-Range", "Content-Encoding", "Location"]
HEADERS += ["Retry-After", "X-Request-Id", "ETag", "Transfer-Encoding"]
header_values = st.sampled_from(
    [
        *(
            "0",
            "5",
            "-1",
            "99999999999999999999",
            "bytes 0-4/5",
            "bytes 4096-9000/9001",
            "bytes */0",
        ),
        *("bytes 9-2/3", "gzip", "identity", "text/html", "application/json", "http://[::1", "//"),
        *("https://build.example.com/loop", "http://example.org/", "ftp://x", "\xff\xfe", ""),
        *("Wed, 21 Oct 9999 07:28:00 GMT", "chunked", "a" * 5000),
    ]
) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
bodies = (
    answers.map(lambda answer: json.dumps(answer).encode())
    | st.binary(max_size=200)
    | st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'"\\ud800"', b"\xef\xbb\xbf{}"]
    )
)
statuses = st.sampled_from([200] * 10 + [206, 204, 301, 302, 307, 400, 401, 403, 404, 416, 429])
statuses |= st.sampled_from([500, 502, 503, 418, 599])
replies = st.tuples(
    statuses,
    st.lists(st.tuples(st.sampled_from(HEADERS), header_values), max_size=3),
    bodies,
)


async def task_log(client: ApiClient) -> None:
    async with client.task_log(KEY) as body:
        async for _ in body:
            pass


async def more_of_a_log(client: ApiClient) -> None:
    begun = b"a line\n" * 1000
    prefix = LogPrefix(len(begun), hashlib.sha256(begun), begun[-4096:])
    place = LogPlace(JOB.job_id, 412, (1, 2))
    async with client.task_log(KEY, prefix, place=place) as body:
        async for _ in body:
            pass


CALLS: list[Callable[[ApiClient], Awaitable[object]]] = [
    lambda client: client.stages(RECORD),
    lambda client: client.record(RECORD),
    lambda client: client.record_by_number(JOB.job_id, 412),
    lambda client: client.jobs("c0" * 16),
    lambda client: client.builds(Job(JOB.job_id, "web-app", ""), 150),
    task_log,
    more_of_a_log,
]


@pytest.mark.parametrize("number", range(len(CALLS)))
@some_dozen
@given(some=st.lists(replies, min_size=1, max_size=4))
def test_a_call_gives_its_type_or_one_of_our_errors(
    number: int, some: list[tuple[int, list[tuple[str, str]], bytes]]
) -> None:
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        status, headers, body = some[min(asked, len(some)) - 1]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        return httpx.Response(status, headers=raw, stream=httpx.ByteStream(body))

    async def call() -> None:
        async with open_client(
            endpoint="https://build.example.com",
            credentials=None,
            pace=Pace(requests_per_second=0),
            transport=httpx.MockTransport(answer),
        ) as client:
            with suppress(CodeArtsError):
                await CALLS[number](client)
            assert (client.statistics.calls_open, client.statistics.downloads_open) == (0, 0)

    trio.run(call, clock=MockClock(autojump_threshold=0))
    assert asked <= 1000 + 100
