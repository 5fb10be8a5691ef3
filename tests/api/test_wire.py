import json
import string
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeartsfs.api.wire import (
    ApiMessage,
    LogPage,
    TimeForm,
    api_error_in,
    count_rows,
    in_running_order,
    parse_build_project,
    parse_jobs,
    parse_log_page,
    parse_record,
    parse_record_info,
    parse_records_page,
    parse_stages,
    parse_time,
    render_jobs,
    render_record,
    render_record_info,
    render_records_page,
    render_stages,
    render_time,
)
from codeartsfs.errors import BadAnswer
from codeartsfs.model import BuildRecord, Job, StageRun
from codeartsfs.names import RecordId, Stage

RECORD = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
MOMENT = int(datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()) * 10**9
MS = 10**6


# --- times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        ("2025-03-04T05:06:07.000+00:00", MOMENT),
        ("2025-03-04T05:06:07.089+00:00", MOMENT + 89 * MS),
        ("2025-03-04T13:06:07+0800", MOMENT),
        ("2025-03-04T13:06:07+08:00", MOMENT),
        ("Tue Mar 04 13:06:07 CST 2025", MOMENT),
        ("Tue Mar 04 05:06:07 UTC 2025", MOMENT),
        ("Tue Mar 04 13:06:07 GMT+08:00 2025", MOMENT),
        ("2025-03-04 13:06:07", MOMENT),
        (MOMENT // MS, MOMENT),
        (float(MOMENT // MS), MOMENT),
        (str(MOMENT // MS), MOMENT),
        ("2025-03-04T05:06:07.123000Z", MOMENT + 123 * MS),
        ("2025-03-04T05:06:07.123456789Z", MOMENT + 123_456_789),
        ("2025-03-03T21:06:07-08:00", MOMENT),
    ],
)
def test_every_documented_time_form_is_read(value: object, ns: int) -> None:
    assert parse_time(value) == ns


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "soon",
        "2025-13-04T05:06:07Z",
        "2025-02-30 05:06:07",
        "2025-03-04T05:06:07+99:99",
        "Tue Foo 04 13:06:07 CST 2025",
        "Tue Mar 04 13:06:07 PST 2025",
        "0001-01-01T00:00:00Z",
        "1970-01-01T00:00:00.000+00:00",
        "٢٠٢٥-03-04T05:06:07Z",
        "9" * 400,
        0,
        -1,
        10**30,
        float("nan"),
        float("inf"),
        True,
        [],
        {},
    ],
)
def test_what_is_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_parse_time_never_raises(value: object) -> None:
    result = parse_time(value)
    assert result is None or result > 0


RESOLUTION_NS = {
    TimeForm.ISO_MILLISECONDS: MS,
    TimeForm.EPOCH_MILLISECONDS: MS,
    TimeForm.ISO_MICROSECONDS: 1000,
}


@given(st.integers(10**9, 9_223_372_000 * 10**9), st.sampled_from(TimeForm))
def test_a_rendered_time_reads_back_to_the_resolution_of_its_form(ns: int, form: TimeForm) -> None:
    resolution = RESOLUTION_NS.get(form, 10**9)
    assert parse_time(render_time(ns, form)) == ns - ns % resolution


@pytest.mark.parametrize("form", TimeForm)
def test_each_form_looks_like_its_example(form: TimeForm) -> None:
    shown = str(render_time(MOMENT + 123 * MS, form))
    assert [c if not c.isdigit() else "0" for c in shown] == [
        c if not c.isdigit() else "0" for c in form.value
    ]


# --- round trips ------------------------------------------------------------------------------

record_ids = st.uuids().map(lambda value: RecordId(str(value)))
times = st.none() | st.integers(1, 9_223_372_036_000).map(lambda ms: ms * MS)  # to 2262
durations = st.none() | st.integers(0, 2**40)
words = st.text(alphabet=string.ascii_letters + " /构建", max_size=12)
stages = st.just(Stage("initial")) | st.just(Stage("final"))
stages |= st.integers(1, 9999).map(lambda number: Stage(f"stage{number}"))


@st.composite
def stage_runs(draw: st.DrawFn) -> tuple[StageRun, ...]:
    names = draw(st.lists(stages, unique=True, max_size=6))
    return in_running_order(
        StageRun(
            stage=name,
            display_name=draw(words),
            sequence=draw(st.none() | st.integers(0, 50)),
            status=draw(words),
            created_ns=draw(times),
            started_ns=draw(times),
            finished_ns=draw(times),
            duration_ms=draw(durations),
        )
        for name in names
    )


build_records = st.builds(
    BuildRecord,
    record=record_ids,
    build_no=st.none() | st.integers(1, 2**31 - 1),
    build_project_id=words,
    status=words,
    created_ns=times,
    started_ns=times,
    finished_ns=times,
    duration_ms=durations,
    branch=words,
    revision=words,
    trigger=words,
)
jobs = st.builds(
    Job,
    job_id=st.text(alphabet="0123456789abcdef", min_size=32, max_size=32),
    name=words,
    build_project_id=words,
    last_build_ns=times,
    last_status=words,
)


def through_json(payload: object) -> Any:
    return json.loads(json.dumps(payload))


@given(stage_runs())
def test_stages_read_back(runs: tuple[StageRun, ...]) -> None:
    assert parse_stages(through_json(render_stages(runs, RECORD))) == runs


@given(build_records)
def test_a_record_reads_back(record: BuildRecord) -> None:
    assert parse_record(through_json(render_record(record))) == record


@given(build_records)
def test_a_record_info_reads_back_by_build_record_id(record: BuildRecord) -> None:
    payload = through_json(render_record_info(record, "f" * 32))
    assert payload["result"]["id"] != record.record
    assert parse_record_info(payload) == record


@given(st.lists(build_records, max_size=4))
def test_a_page_of_records_reads_back(records: list[BuildRecord]) -> None:
    payload = through_json(render_records_page(records, 0, 10))
    assert parse_records_page(payload) == tuple(records)
    assert count_rows(payload) == len(records)


@given(st.lists(jobs, max_size=4))
def test_a_page_of_jobs_reads_back(found: list[Job]) -> None:
    payload = through_json(render_jobs(found, len(found)))
    assert parse_jobs(payload) == tuple(found)
    assert count_rows(payload) == len(found)


# --- tolerance --------------------------------------------------------------------------------


def stages_payload(**stages: object) -> dict[str, object]:
    return {"status": "success", "error": None, "result": {"build_stages": stages}}


def test_stages_without_sequence_are_sorted_by_name() -> None:
    payload = stages_payload(final={}, stage10={}, stage2={"sequence": None}, initial={})
    assert [str(run.stage) for run in parse_stages(payload)] == [
        "initial",
        "stage2",
        "stage10",
        "final",
    ]


def test_stages_with_sequence_are_sorted_by_it() -> None:
    payload = stages_payload(stage1={"sequence": "2"}, stage2={"sequence": 1.0})
    assert [str(run.stage) for run in parse_stages(payload)] == ["stage2", "stage1"]


def test_unknown_keys_and_nulls_among_stages_are_harmless() -> None:
    payload = stages_payload(stage1=None, check_7={}, stage2={"duration": "5", "x": [1]})
    first, second = parse_stages(payload)
    assert first == StageRun(Stage("stage1"))
    assert second.duration_ms == 5


def test_a_build_without_stages_has_none() -> None:
    assert parse_stages({"result": {"build_stages": None}}) == ()


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "text",
        3,
        {},
        {"result": None},
        {"result": []},
        {"result": {"build_stages": []}},
        {"result": {"build_stages": {"stage1": "SUCCESS"}}},
    ],
)
def test_a_wrong_shape_of_stages_is_a_bad_answer(payload: object) -> None:
    with pytest.raises(BadAnswer):
        parse_stages(payload)


@pytest.mark.parametrize(
    "build_no", [{"build_no": "6463"}, {"number": 6463}, {"build_number": 6463.0}]
)
def test_build_numbers_come_as_text_or_number(build_no: dict[str, object]) -> None:
    assert parse_record({"result": {"id": RECORD, **build_no}}).build_no == 6463


def test_a_record_of_nothing_but_its_id_is_enough() -> None:
    assert parse_record({"id": RECORD, "status": None}) == BuildRecord(RECORD)


@pytest.mark.parametrize("payload", [{}, {"result": {"id": "20250304.1"}}, {"result": {"id": 5}}])
def test_a_record_without_a_usable_id_is_a_bad_answer(payload: object) -> None:
    with pytest.raises(BadAnswer):
        parse_record(payload)


def test_rows_with_daily_numbers_for_ids_are_left_out_but_counted() -> None:
    payload = {"result": {"data": [{"id": "20250304.1"}, {"id": RECORD}]}}
    assert [record.record for record in parse_records_page(payload)] == [RECORD]
    assert count_rows(payload) == 2


def test_record_info_never_takes_its_own_id_for_the_record() -> None:
    with pytest.raises(BadAnswer, match="build_record_id"):
        parse_record_info({"result": {"id": RECORD}})


JOB_ROW = {"id": "a" * 32, "job_name": "nightly", "last_build_time": MOMENT // MS}


@pytest.mark.parametrize(
    "payload",
    [
        {"jobs": [JOB_ROW], "total": 1},
        {"result": {"jobs": [JOB_ROW]}},
        {"result": {"job_list": [JOB_ROW]}},
        {"status": "success", "error": None, "result": {"jobs": [JOB_ROW], "total": "1"}},
    ],
)
def test_jobs_are_read_from_every_known_envelope(payload: object) -> None:
    assert parse_jobs(payload) == (Job("a" * 32, "nightly", last_build_ns=MOMENT),)


@pytest.mark.parametrize("job_id", ["", None, "../x", "a b", "a/b", "x" * 65, "\u202e", True])
def test_a_job_whose_id_is_none_is_left_out(job_id: object) -> None:
    assert parse_jobs({"jobs": [{"id": job_id, "job_name": "x"}, JOB_ROW]}) == parse_jobs(
        {"jobs": [JOB_ROW]}
    )
    assert count_rows({"jobs": [{"id": job_id}, JOB_ROW]}) == 2


def test_a_hostile_job_name_arrives_as_it_is() -> None:
    for name in ("../../etc", "\0\n\x1b", "\ud800", "~" + "a" * 32, "名" * 400):
        text = json.dumps({"jobs": [{"id": "a" * 32, "job_name": name}]})
        assert parse_jobs(json.loads(text))[0].name == name


def test_the_build_project_of_a_job_is_read() -> None:
    assert parse_build_project({"status": "success", "result": {"project_id": "bp"}}) == "bp"
    wrong: list[object] = [{"result": {}}, {"result": {"project_id": ""}}, [], {"result": None}]
    for payload in wrong:
        with pytest.raises(BadAnswer):
            parse_build_project(payload)


@pytest.mark.parametrize(
    "value", ["9999-12-31T23:59:59.000+00:00", 253_402_300_799_000, "2300-01-01 00:00:00"]
)
def test_a_time_that_64_bits_of_nanoseconds_cannot_hold_is_never(value: object) -> None:
    assert parse_time(value) is None


def test_a_number_that_64_bits_cannot_hold_is_none() -> None:
    row = {"id": "a" * 36, "build_no": 2**70, "duration": str(2**70)}
    record = parse_record(row)
    assert (record.build_no, record.duration_ms) == (None, None)


@pytest.mark.parametrize("offset", [120, "120"])
def test_a_page_of_a_log_is_read(offset: object) -> None:
    payload = {"result": {"has_more": True, "start_offset": 0, "end_offset": offset, "log": "x"}}
    assert parse_log_page(payload) == LogPage("x", 120)


@pytest.mark.parametrize("result", [{}, {"log": "x"}, {"end_offset": 1, "log": 3}, None])
def test_a_page_without_text_or_offset_is_a_bad_answer(result: object) -> None:
    with pytest.raises(BadAnswer):
        parse_log_page({"result": result})


@pytest.mark.parametrize("payload", [{}, {"jobs": None}, {"jobs": {}}, {"jobs": ["x"]}, []])
def test_a_wrong_shape_of_jobs_is_a_bad_answer(payload: object) -> None:
    with pytest.raises(BadAnswer):
        parse_jobs(payload)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "message", "request_id"),
    [
        ('{"error_code":"CB.00060200","error_msg":"bad"}', "CB.00060200", "bad", ""),
        (
            '{"error_msg":"late","error_code":"APIGW.0308","request_id":"r1"}',
            "APIGW.0308",
            "late",
            "r1",
        ),
        ('{"errorCode":"X.1","errorMsg":"m"}', "X.1", "m", ""),
        (
            '{"status":"fail","error":{"code":"C.1","reason":"why"},"result":null}',
            "C.1",
            "why",
            "",
        ),
        ('{"status":"fail","error":"it broke","result":null}', "", "it broke", ""),
        ('{"status":"fail","error":null,"result":null}', "", "", ""),
        ('{"success":false,"message":"m","errCode":"E.1"}', "E.1", "m", ""),
        ('{"success":false,"message":"m","err_code":"E.1","result":null}', "E.1", "m", ""),
        (
            '{"error":{"code":401,"message":"wrong","title":"Unauthorized"}}',
            "401",
            "wrong",
            "",
        ),
        ('  \n{"code":"C.2","message":"m"}\n', "C.2", "m", ""),
    ],
)
def test_every_error_envelope_is_recognised(
    body: str, code: str, message: str, request_id: str
) -> None:
    assert api_error_in(body.encode()) == ApiMessage(code, message, request_id)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[2025/03/04 05:06:07.089 GMT+08:00] [INFO] text",
        '{"status":"success","error":null,"result":{"build_stages":{}}}',
        '{"status":"success","error":{},"result":{}}',
        '{"jobs":[],"total":0}',
        '{"error_code":null,"error_msg":null,"result":{}}',
        "{ this is a log that begins with a brace",
        '{"a":1}\n{"a":2}\n',
        '{"error_code":"CB.00060200","error_msg":"bad"}\nand then the log goes on\n',
        '{"name":"demo","message":"hello","code":"x"}',
        '{"error":"compile failed","file":"main.c"}',
        '{"success":true,"message":"fine"}',
        '["error_code"]',
        "{" * 100_000,
        '{"a":' * 50_000,
    ],
)
def test_what_is_no_error_envelope_is_none(body: str) -> None:
    assert api_error_in(body.encode()) is None


@given(st.binary() | st.text().map(lambda text: b"{" + text.encode()))
def test_looking_for_an_error_never_raises(body: bytes) -> None:
    api_error_in(body)


@pytest.mark.parametrize(
    ("code", "status"),
    [("CB.00060211", 500), ("APIG.0101", 404), ("APIGW.0307", 401), ("403", 403), ("Q.1", None)],
)
def test_a_code_names_its_http_status(code: str, status: int | None) -> None:
    assert ApiMessage(code, "").status == status
