"""Every fault, as a client sees it; and the words faults are said in."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from codeartsfs.api.wire import parse_time
from codeartsfs.emulator.faults import CALLS, FaultPlan, UnknownFault, describe
from codeartsfs.emulator.synthetic import record_id

from .conftest import (
    ACCOUNTS,
    BUILD_PROJECT,
    DEBUG_TEXT,
    FAILED,
    GOOD,
    INFO_TEXT,
    JOB,
    PROJECT,
    calls,
    open_client,
    task_log,
    write_recording,
)

STAGES = f"/v1/record/{FAILED}/full-stages"
RECORD = f"/v1/record/{FAILED}/info"
RECORDS = f"/v1/record/{BUILD_PROJECT}/records"
TWIN = f"/v1/log/{FAILED}/task-log?task_name=stage1"
PASSWORD = {
    "auth": {
        "identity": {
            "methods": ["password"],
            "password": {
                "user": {
                    "name": ACCOUNTS.user,
                    "password": ACCOUNTS.password,
                    "domain": {"name": ACCOUNTS.domain},
                }
            },
        },
        "scope": {"project": {"name": ACCOUNTS.region}},
    }
}


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "nonsense",
        "nocall:gzip",
        "gzip=maybe",
        "throttle=-1",
        "throttle=x",
        "slow=0",
        "slow",
        "delay=-1",
        "delay=inf",
        "compress=lzma",
        "time-format=roman",
        "numbers",
        "numbers=roman",
        "order=random",
        "",
    ],
)
def test_words_without_sense_are_refused(word: str) -> None:
    with pytest.raises(UnknownFault):
        FaultPlan([word])


def test_a_fault_for_one_call_leaves_the_others_alone() -> None:
    plan = FaultPlan(["task_log:error500=2"])
    assert not plan.take("full_stages", "error500")
    assert [plan.take("task_log", "error500") for _ in range(3)] == [True, True, False]


def test_a_count_is_shared_by_all_calls_it_is_meant_for() -> None:
    plan = FaultPlan(["throttle=2"])
    assert [plan.take(c, "throttle") for c in ("task_log", "jobs", "record")] == [True, True, False]


def test_a_count_left_out_means_always_and_log_faults_spare_json() -> None:
    plan = FaultPlan(["cut"])
    assert all(plan.take("task_log", "cut") for _ in range(10))
    assert not plan.take("full_stages", "cut")
    assert FaultPlan(["full_stages:cut"]).take("full_stages", "cut")


def test_no_fault_strikes_iam_unless_it_is_named() -> None:
    assert not FaultPlan(["error500"]).take("iam_tokens", "error500")
    assert FaultPlan(["iam_tokens:error500"]).take("iam_tokens", "error500")


def test_every_switch_is_described() -> None:
    rows = dict(describe())
    assert rows["throttle[=N]"] == "N times 429 APIGW.0308"
    assert len(rows) >= 25
    assert all(rows.values())


# --- bodies -----------------------------------------------------------------------------------


async def test_without_faults_a_log_has_its_length_and_its_type(recordings: Path) -> None:
    async with open_client(recordings) as client:
        reply = await client.get(task_log())
        assert reply.content == INFO_TEXT
        assert reply.headers["content-length"] == str(len(INFO_TEXT))
        assert reply.headers["content-type"] == "application/octet-stream"
        assert "content-encoding" not in reply.headers
        assert len(reply.headers["x-request-id"]) == 32


@pytest.mark.parametrize("word", ["no-content-length", "chunked"])
async def test_chunked_bodies_have_no_length(recordings: Path, word: str) -> None:
    async with open_client(recordings, word) as client:
        reply = await client.get(task_log())
        assert reply.content == INFO_TEXT
        assert "content-length" not in reply.headers
        assert reply.headers["transfer-encoding"] == "chunked"


async def test_gzip_counts_encoded_bytes_and_needs_consent(recordings: Path) -> None:
    async with open_client(recordings, "gzip") as client:
        reply = await client.get(task_log())
        assert reply.headers["content-encoding"] == "gzip"
        assert int(reply.headers["content-length"]) < len(INFO_TEXT)
        assert reply.content == INFO_TEXT
        plain = await client.get(task_log(), headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == INFO_TEXT


async def test_compress_gives_gzip_or_zip_and_is_unknown_to_v4(recordings: Path) -> None:
    async with open_client(recordings) as client:
        packed = await client.get(TWIN + "&compress=true")
        assert gzip.decompress(packed.content) == INFO_TEXT
        assert (await client.get(TWIN + "&compress=false")).content == INFO_TEXT
        assert (await client.get(task_log() + "&compress=true")).content == INFO_TEXT
        await client.post("/_emulator/faults", json=["compress=zip"])
        packed = await client.get(TWIN + "&compress=true")
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            assert archive.read("stage1.info.log") == INFO_TEXT


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [("bytes=0-9", 0, 10), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
async def test_a_range_is_honoured(
    recordings: Path, wanted: str, first: int, end: int | None
) -> None:
    async with open_client(recordings) as client:
        reply = await client.get(task_log(level="DEBUG"), headers={"Range": wanted})
        assert reply.status_code == 206
        assert reply.content == DEBUG_TEXT[first:end]
        start = first % len(DEBUG_TEXT)
        last = start + len(reply.content) - 1
        assert reply.headers["content-range"] == f"bytes {start}-{last}/{len(DEBUG_TEXT)}"


async def test_a_range_can_be_ignored_and_can_be_impossible(recordings: Path) -> None:
    async with open_client(recordings) as client:
        beyond = {"Range": f"bytes={len(INFO_TEXT)}-"}
        reply = await client.get(task_log(), headers=beyond)
        assert reply.status_code == 416
        assert reply.headers["content-range"] == f"bytes */{len(INFO_TEXT)}"
        await client.post("/_emulator/faults", json=["range=off"])
        reply = await client.get(task_log(), headers={"Range": "bytes=0-9"})
        assert (reply.status_code, reply.content) == (200, INFO_TEXT)
        assert "accept-ranges" not in reply.headers


async def test_an_empty_log_comes_as_often_as_asked(recordings: Path) -> None:
    async with open_client(recordings, "empty=1") as client:
        sizes = [len((await client.get(task_log())).content) for _ in range(2)]
        assert sizes == [0, len(INFO_TEXT)]


async def receive(client: httpx.AsyncClient, got: bytearray, timeout_s: float) -> None:
    """Receive a log into ``got``, so that what came before an error is there, too."""
    async with client.stream("GET", task_log(), timeout=timeout_s) as reply:
        assert reply.status_code == 200
        async for piece in reply.aiter_raw():
            got += piece


@pytest.mark.parametrize("words", [("cut=1",), ("cut=1", "chunked")])
async def test_a_cut_body_ends_early_and_is_seen_to(
    recordings: Path, words: tuple[str, ...]
) -> None:
    async with open_client(recordings, *words) as client:
        got = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            await receive(client, got, timeout_s=5)
        assert got == INFO_TEXT[: len(INFO_TEXT) // 2]
        assert (await client.get(task_log())).content == INFO_TEXT


async def test_a_cut_can_strike_json(recordings: Path) -> None:
    async with open_client(recordings, "full_stages:cut=1") as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(STAGES)
        assert (await client.get(STAGES)).status_code == 200


async def test_a_stalled_body_stops_half_way_and_stays_open(recordings: Path) -> None:
    async with open_client(recordings, "stall=1") as client:
        got = bytearray()
        with pytest.raises(httpx.ReadTimeout):
            # Really waiting is the point: nothing more comes.
            await receive(client, got, timeout_s=0.2)
        assert got == INFO_TEXT[: len(INFO_TEXT) // 2]
        assert (await client.get(task_log())).content == INFO_TEXT


async def test_a_slow_body_comes_in_many_small_pieces(recordings: Path) -> None:
    async with open_client(recordings, f"slow={len(INFO_TEXT) * 2}") as client:
        pieces = []
        async with client.stream("GET", task_log()) as reply:
            async for piece in reply.aiter_raw():
                pieces.append(piece)
        assert b"".join(pieces) == INFO_TEXT
        assert len(pieces) >= 5
        assert max(map(len, pieces)) <= len(INFO_TEXT) // 5 + 1


async def test_a_delay_comes_before_the_headers(recordings: Path) -> None:
    async with open_client(recordings, "task_log:delay=30") as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(task_log(), timeout=0.1)
        assert (await client.get(STAGES)).status_code == 200


# --- errors -----------------------------------------------------------------------------------


async def test_throttling_with_and_without_retry_after(recordings: Path) -> None:
    async with open_client(recordings, "throttle=1,retry-after=2.5") as client:
        reply = await client.get(task_log())
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "2.5")
        assert reply.json()["error_code"] == "APIGW.0308"
        assert (await client.get(task_log())).status_code == 200
        await client.post("/_emulator/faults", json=["throttle"])
        reply = await client.get(STAGES)
        assert reply.status_code == 429
        assert "retry-after" not in reply.headers


@pytest.mark.parametrize(
    ("word", "status", "code"),
    [
        ("error500=1", 500, "CB.00060101"),
        ("busy=1", 500, "CB.00060211"),
        ("forbid=1", 403, "APIGW.0302"),
    ],
)
async def test_errors_come_in_the_documented_envelope(
    recordings: Path, word: str, status: int, code: str
) -> None:
    async with open_client(recordings, word) as client:
        reply = await client.get(task_log())
        body = reply.json()
        assert (reply.status_code, body["error_code"]) == (status, code)
        assert body["error_msg"]
        assert ("request_id" in body) == code.startswith("APIGW")
        assert (await client.get(task_log())).status_code == 200


async def test_a_bad_gateway_speaks_html(recordings: Path) -> None:
    async with open_client(recordings, "bad-gateway=1") as client:
        reply = await client.get(STAGES)
        assert (reply.status_code, reply.headers["content-type"]) == (502, "text/html")
        assert reply.text.startswith("<html>")


async def test_a_fail_envelope_comes_with_200_even_for_a_log(recordings: Path) -> None:
    async with open_client(recordings, "fail-envelope") as client:
        for path in (task_log(), STAGES):
            reply = await client.get(path)
            assert reply.status_code == 200
            assert reply.json()["status"] == "fail"
            assert reply.json()["error"]["code"] == "CB.00060101"


async def test_expired_tokens_are_refused_until_a_new_one_is_fetched(recordings: Path) -> None:
    async with open_client(recordings) as client:
        old = (await client.post("/v3/auth/tokens", json=PASSWORD)).headers["x-subject-token"]
        await client.post("/_emulator/faults", json=["expire-token"])
        for token in (old, ACCOUNTS.token):
            reply = await client.get(STAGES, headers={"X-Auth-Token": token})
            assert (reply.status_code, reply.json()["error_code"]) == (401, "APIGW.0307")
        new = (await client.post("/v3/auth/tokens", json=PASSWORD)).headers["x-subject-token"]
        assert (await client.get(STAGES, headers={"X-Auth-Token": new})).status_code == 200


async def test_paths_can_be_unpublished(recordings: Path) -> None:
    async with open_client(recordings, "no-v4") as client:
        reply = await client.get(task_log())
        assert (reply.status_code, reply.json()["error_code"]) == (404, "APIGW.0101")
        assert (await client.get(TWIN)).content == INFO_TEXT
        await client.post("/_emulator/faults", json=["no-v1-log"])
        assert (await client.get(TWIN)).status_code == 404
        assert (await client.get(task_log())).content == INFO_TEXT
        counts = await calls(client)
        assert (counts["task_log"], counts["unpublished"]) == (2, 2)


async def test_stages_can_be_missing_or_forbidden(recordings: Path) -> None:
    async with open_client(recordings, "no-stages") as client:
        reply = await client.get(STAGES)
        assert (reply.status_code, reply.json()["error_code"]) == (404, "APIGW.0101")
        await client.post("/_emulator/faults", json=["forbid-stages"])
        reply = await client.get(STAGES)
        assert (reply.status_code, reply.json()["error_code"]) == (403, "APIGW.0302")
        assert (await client.get(task_log())).status_code == 200


# --- shapes -----------------------------------------------------------------------------------


COUNTED = [
    (RECORDS, lambda result: result["data"][0]["build_no"]),
    (RECORDS, lambda result: result["data"][0]["duration"]),
    (RECORDS, lambda result: result["pagination"]["total"]),
    (RECORD, lambda result: result["build_no"]),
    (f"/v1/record/{JOB}/41/record-info", lambda result: result["build_no"]),
    (STAGES, lambda result: result["build_stages"]["stage1"]["sequence"]),
    (f"/v1/job/{PROJECT}/list?page_index=0&page_size=9", lambda result: result["total"]),
]


@pytest.mark.parametrize(("path", "field"), COUNTED)
async def test_counted_fields_can_be_numbers_or_strings(
    recordings: Path, path: str, field: Callable[[Any], object]
) -> None:
    async with open_client(recordings, "numbers=int") as client:

        async def told() -> object:
            answer = (await client.get(path)).json()
            return field(answer.get("result", answer))

        number = await told()
        assert isinstance(number, int)
        await client.post("/_emulator/faults", json=["numbers=str"])
        assert await told() == str(number)


async def test_numbers_are_by_default_as_the_vendor_has_them(recordings: Path) -> None:
    async with open_client(recordings) as client:
        info = f"/v1/record/{JOB}/41/record-info"
        assert (await client.get(RECORD)).json()["result"]["build_no"] == "41"
        assert (await client.get(info)).json()["result"]["build_no"] == 41


async def test_what_is_not_known_stays_null_however_numbers_are_spelled(tmp_path: Path) -> None:
    async with open_client(tmp_path, "numbers=str", synthetic=(4, 1)) as client:
        result = (await client.get(f"/v1/record/{record_id(3, 1)}/info")).json()["result"]
        assert (result["status"], result["duration"], result["build_no"]) == ("RUNNING", None, "1")


async def test_the_records_list_can_begin_with_the_oldest(recordings: Path) -> None:
    async with open_client(recordings, "order=oldest") as client:
        pages = [
            (await client.get(f"{RECORDS}?page={page}&limit=1")).json()["result"]["data"]
            for page in (1, 2, 3)
        ]
        assert [[row["id"] for row in page] for page in pages] == [[FAILED], [GOOD], []]


async def test_every_time_format_says_the_same_second(recordings: Path) -> None:
    async with open_client(recordings) as client:
        told = []
        for name in ("iso-zone-without-colon", "iso-zone", "java", "no-zone", "iso-microseconds"):
            await client.post("/_emulator/faults", json=[f"time-format={name}"])
            told.append((await client.get(RECORD)).json()["result"]["finish_time"])
        assert len(set(told)) == 5
        assert len({parse_time(text) for text in told}) == 1
        await client.post("/_emulator/faults", json=["time-format=epoch-milliseconds"])
        number = (await client.get(RECORD)).json()["result"]["finish_time"]
        assert number * 1_000_000 == parse_time(told[0])


async def test_total_page_base_jobs_and_offsets_change_shape(recordings: Path) -> None:
    page = f"/v1/log/stage/page?job_id={JOB}&build_no=41&start_offset=0&end_offset=0"
    jobs = f"/v1/job/{PROJECT}/list?page_index=0&page_size=10"
    async with open_client(recordings) as client:
        plain = (await client.get(RECORDS + "?page=1&limit=1")).json()["result"]
        assert plain["pagination"]["total"] == 2
        assert (await client.get(page)).json()["result"]["start_offset"] == 0
        assert len((await client.get(jobs)).json()["jobs"]) == 2

        words = ["total=-1", "page-base=0", "offsets=str", "jobs=enveloped"]
        await client.post("/_emulator/faults", json=words)
        odd = (await client.get(RECORDS + "?page=0&limit=1")).json()["result"]
        assert odd["pagination"]["total"] == -1
        assert odd["data"] == plain["data"]
        assert (await client.get(page)).json()["result"]["start_offset"] == "0"
        assert len((await client.get(jobs)).json()["result"]["job_list"]) == 2


async def test_initial_has_no_log_where_it_is_switched_off(recordings: Path) -> None:
    async with open_client(recordings) as client:
        assert (await client.get(task_log(stage="initial"))).text == "[INFO] initial\n"
        await client.post("/_emulator/faults", json=["initial-final-logs=off"])
        assert (await client.get(task_log(stage="initial"))).status_code == 404


# --- controls ---------------------------------------------------------------------------------


async def test_faults_are_replaced_at_run_time_and_bad_ones_change_nothing(
    recordings: Path,
) -> None:
    async with open_client(recordings, "throttle") as client:
        bad = await client.post("/_emulator/faults", json=["gzip", "nonsense"])
        assert bad.status_code == 400
        assert "nonsense" in bad.json()["error"]
        assert (await client.get("/_emulator/faults")).json() == ["throttle"]
        assert (await client.post("/_emulator/faults", json=[])).json() == []
        assert (await client.get(STAGES)).status_code == 200
        assert (await client.post("/_emulator/faults", json={"a": 1})).status_code == 400
        assert (await client.post("/_emulator/faults", content=b"{")).status_code == 400


async def test_calls_are_counted_by_kind_and_bytes_are_those_of_logs(recordings: Path) -> None:
    async with open_client(recordings) as client:
        await client.get(task_log())
        await client.get(task_log(), headers={"Range": "bytes=0-9"})
        await client.get(STAGES)
        await client.get("/v9/nothing")
        counts = await calls(client)
        assert set(counts) == CALLS | {"unpublished", "bytes", "total"}
        assert counts["task_log"] == 2
        assert counts["full_stages"] == 1
        assert counts["unpublished"] == 1
        assert counts["total"] == 4
        assert counts["bytes"] == len(INFO_TEXT) + 10
        assert set((await client.delete("/_emulator/calls")).json().values()) == {0}


async def test_a_refused_call_counts_as_a_call(recordings: Path) -> None:
    async with open_client(recordings, "throttle") as client:
        await client.get(task_log())
        await client.get(task_log(), headers={"X-Auth-Token": "wrong"})
        assert (await calls(client))["task_log"] == 2


async def test_shutdown_does_not_wait_for_a_client_that_stopped_reading(tmp_path: Path) -> None:
    write_recording(tmp_path, GOOD, 1)
    with (tmp_path / GOOD / "stage2.debug.log").open("wb") as file:
        file.truncate(64 << 20)
    with trio.fail_after(10):
        async with open_client(tmp_path) as client:
            assert client.base_url.port
            stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port)
            target = task_log(GOOD, "stage2", "DEBUG")
            head = f"GET {target} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {ACCOUNTS.token}\r\n\r\n"
            await stream.send_all(head.encode())
            assert (await stream.receive_some(15)).startswith(b"HTTP/1.1 200")
            sent = [-2, -1]
            while sent[-1] != sent[-2]:  # until the sender is stuck
                sent.append((await calls(client))["bytes"])
            assert sent[-1] < 64 << 20
    await stream.aclose()


async def test_a_long_token_fits_into_a_request(recordings: Path) -> None:
    async with open_client(recordings) as client:
        reply = await client.get(STAGES, headers={"X-Auth-Token": "x" * 100_000})
        assert reply.status_code == 401
        assert json.loads(reply.content)["error_code"] == "APIGW.0301"
