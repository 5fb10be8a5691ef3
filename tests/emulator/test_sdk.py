"""The vendor's own SDK against the emulator: what it can read is what real clients expect."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from codeartsfs.emulator.server import open_emulator
from codeartsfs.emulator.synthetic import (
    SYNTHETIC_PROJECT,
    build_project_id,
    job_name,
    record_id,
)

from .conftest import (
    ACCOUNTS,
    BUILD_PROJECT,
    DEBUG_TEXT,
    FAILED,
    GOOD,
    INFO_TEXT,
    JOB,
    LAST_TEXT,
    OTHER,
    PROJECT,
    write_recording,
)


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The SDK's module; importing it writes into HOME, and using it obeys proxies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for name in [name for name in os.environ if name.startswith("HUAWEICLOUD_")]:
            patch.delenv(name)
        from huaweicloudsdkcodeartsbuild import v3

        yield v3


@pytest.fixture
async def url(recordings: Path) -> AsyncIterator[str]:
    async with open_emulator(recordings) as base:
        yield base


def open_client(sdk: Any, url: str, secret_key: str = ACCOUNTS.secret_key) -> Any:
    from huaweicloudsdkcore.auth.credentials import BasicCredentials
    from huaweicloudsdkcore.http.http_config import HttpConfig

    credentials = BasicCredentials(ACCOUNTS.access_key, secret_key, ACCOUNTS.project_id)
    return (
        sdk.CodeArtsBuildClient.new_builder()
        .with_credentials(credentials)
        .with_http_config(HttpConfig(timeout=(5, 20)))
        .with_endpoint(url)
        .build()
    )


async def call(
    sdk: Any, url: str, method: str, parameters: dict[str, Any], download: bool = False
) -> Any:
    """Make one call in a thread; return the response, or the bytes of a download."""

    def work() -> Any:
        client = open_client(sdk, url)
        try:
            request_type = "".join(word.title() for word in method.split("_")) + "Request"
            reply = getattr(client, method)(getattr(sdk, request_type)(**parameters))
            if not download:
                return reply
            got = bytearray()

            def take(response: Any) -> None:
                for piece in response.iter_content(65536):
                    got.extend(piece)

            reply.consume_download_stream(take)
            return bytes(got)
        finally:
            client.close()

    return await trio.to_thread.run_sync(work)


INITIAL_TEXT = b"[INFO] initial\n"
DOWNLOADS = [
    ("download_task_log", {"task_name": "stage1", "log_level": "INFO"}, INFO_TEXT),
    ("download_task_log", {"task_name": "stage1", "log_level": "DEBUG"}, DEBUG_TEXT),
    ("download_build_log", {"log_level": "INFO"}, INITIAL_TEXT + INFO_TEXT + LAST_TEXT),
    ("download_build_full_log", {"compress": False}, INITIAL_TEXT + INFO_TEXT + LAST_TEXT),
]


@pytest.mark.parametrize(("method", "parameters", "wanted"), DOWNLOADS)
async def test_downloads_give_the_recorded_bytes(
    sdk: Any, url: str, method: str, parameters: dict[str, Any], wanted: bytes
) -> None:
    got = await call(sdk, url, method, {"record_id": FAILED, **parameters}, download=True)
    assert got == wanted


NUMBERED = {"job_id": JOB, "build_no": 41}
READS: list[tuple[str, dict[str, Any], Callable[[Any], object], object]] = [
    (
        "show_build_record_full_stages",
        {"record_id": FAILED, "cascade": True},
        lambda r: {k: (s.display_name, s.status) for k, s in r.result.build_stages.items()},
        {
            "initial": ("initial", "SUCCESS"),
            "stage1": ("检出 / Code CheckOut", "SUCCESS"),
            "stage2": ("Maven", "FAILURE"),
            "final": ("final", "SUCCESS"),
        },
    ),
    (
        "show_build_record",
        {"record_id": FAILED},
        lambda r: (r.status, r.result.id, r.result.status, r.result.build_no),
        ("success", FAILED, "FAILURE", "41"),
    ),
    (
        "list_records",
        {"build_project_id": BUILD_PROJECT, "page": 1, "limit": 10, "branches": ["main", "x"]},
        lambda r: ([record.id for record in r.result.data], r.result.pagination.total),
        ([GOOD, FAILED], 2),
    ),
    (
        "list_project_jobs",
        {"project_id": PROJECT, "page_index": 0, "page_size": 10},
        lambda r: ([(j.job_name, j.last_build_status) for j in r.jobs], r.total),
        ([("docs", "blue"), ("web-app", "blue")], 2),
    ),
    (
        "show_job_list_by_project_id",
        {"project_id": PROJECT, "page_index": 1, "page_size": 1},
        lambda r: ([j.id for j in r.jobs], r.total),
        ([JOB], 2),
    ),
    (
        "show_job_build_record_detail",
        NUMBERED,
        lambda r: (r.result.build_record_id, r.result.build_no, r.result.codeci_job_id),
        (FAILED, 41, JOB),
    ),
    (
        "show_record_detail",
        NUMBERED,
        lambda r: (r.result.build_record_id, r.result.build_project_id),
        (FAILED, BUILD_PROJECT),
    ),
    (
        "download_build_real_time_log",
        {**NUMBERED, "start_offset": 0, "end_offset": 0, "sort": "AES", "size": "1000"},
        lambda r: (r.result.log.count("\n"), r.result.start_offset, r.result.has_more),
        (1000, "0", True),
    ),
    (
        "download_real_time_log",
        {**NUMBERED, "offset": 0, "length": 1000000},
        lambda r: (r.result.content.encode(), r.result.has_more_data),
        (INITIAL_TEXT + INFO_TEXT + LAST_TEXT, False),
    ),
    (
        "show_action_i_info",
        {**NUMBERED, "start_offset": len(INITIAL_TEXT + INFO_TEXT), "end_offset": 0},
        lambda r: (r.result.log.encode(), r.result.has_more),
        (LAST_TEXT, False),
    ),
    (
        "list_build_info_record_by_job_id",
        {
            "job_id": JOB,
            "start_time": "2025-03-01 00:00:00",
            "end_time": "2025-04-01 00:00:00",
            "page_index": 0,
            "page_size": 10,
        },
        lambda r: ([s.number for s in r.result.job_build_states], r.result.total_record),
        ([42, 41], "2"),
    ),
    (
        "show_history_details",
        {"job_id": JOB, "build_number": 41},
        lambda r: [(step.name, step.status) for step in r.build_steps][1:3],
        [("检出 / Code CheckOut", "success"), ("Maven", "error")],
    ),
    (
        "show_running_status",
        {"job_id": JOB},
        lambda r: (r.result.last_build_no, r.result.last_build_status, r.result.is_running),
        ("42", "SUCCESS", False),
    ),
]


@pytest.mark.parametrize(
    ("method", "parameters", "read", "wanted"), READS, ids=[row[0] for row in READS]
)
async def test_calls_give_what_was_recorded(
    sdk: Any,
    url: str,
    method: str,
    parameters: dict[str, Any],
    read: Callable[[Any], object],
    wanted: object,
) -> None:
    assert read(await call(sdk, url, method, parameters)) == wanted


async def test_history_has_only_recent_builds_under_daily_numbers(
    sdk: Any, recordings: Path
) -> None:
    # Near now, as the signatures are: calls of another time would be refused.
    recent = datetime.now(UTC) - timedelta(hours=60)
    write_recording(recordings, OTHER[::-1], 50, began=recent)
    parameters = {"job_id": JOB, "offset": 0, "limit": 10, "interval": 7}

    async with open_emulator(recordings) as url:
        reply = await call(sdk, url, "show_list_history", parameters)

    assert reply.total == 1
    [row] = reply.history_records
    assert (row.build_number, row.result) == (50, "SUCCESS")
    began_at = datetime.fromisoformat(row.start_time)
    assert timedelta(hours=9) < datetime.now(UTC) - began_at < timedelta(hours=11)
    assert row.record_id == f"{began_at:%Y%m%d}.1"


async def test_synthetic_jobs_and_builds_are_listed(sdk: Any, tmp_path: Path) -> None:
    names: list[str] = []
    async with open_emulator(tmp_path, synthetic=(20, 30)) as url:
        for page in (0, 1):
            parameters = {"project_id": SYNTHETIC_PROJECT, "page_index": page, "page_size": 10}
            reply = await call(sdk, url, "list_project_jobs", parameters)
            names += [job.job_name for job in reply.jobs]
        parameters = {"build_project_id": build_project_id(1), "page": 2, "limit": 20}
        records = (await call(sdk, url, "list_records", parameters)).result.data
        parameters = {"record_id": record_id(1, 30), "task_name": "stage2"}
        text = await call(sdk, url, "download_task_log", parameters, download=True)

    assert names == sorted(job_name(job) for job in range(20))
    assert [record.build_no for record in records] == [str(10 - place) for place in range(10)]
    assert b"[INFO] Maven build: SUCCESS\n" in text


async def test_a_wrong_secret_key_is_refused(sdk: Any, url: str) -> None:
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    def work() -> None:
        client = open_client(sdk, url, secret_key="not-the-secret-key")
        try:
            client.show_build_record(sdk.ShowBuildRecordRequest(record_id=FAILED))
        finally:
            client.close()

    with pytest.raises(ClientRequestException) as refused:
        await trio.to_thread.run_sync(work)
    assert refused.value.status_code == 401
    assert refused.value.error_code == "APIGW.0301"
    assert "verify aksk signature fail" in refused.value.error_msg
    assert refused.value.request_id


async def test_an_unknown_record_is_a_404_with_code_and_message(sdk: Any, url: str) -> None:
    from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

    with pytest.raises(ClientRequestException) as missing:
        await call(sdk, url, "show_build_record", {"record_id": "0" * 36})
    assert missing.value.status_code == 404
    assert missing.value.error_msg == f"No such record {'0' * 36}"
    assert missing.value.request_id


async def test_the_region_lookup_finds_the_project(
    sdk: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huaweicloudsdkcore.auth.credentials import BasicCredentials
    from huaweicloudsdkcore.region.region import Region

    monkeypatch.setenv("HUAWEICLOUD_SDK_IAM_ENDPOINT", url)

    def work() -> Any:
        credentials = BasicCredentials(ACCOUNTS.access_key, ACCOUNTS.secret_key)
        client = (
            sdk.CodeArtsBuildClient.new_builder()
            .with_credentials(credentials)
            .with_region(Region(ACCOUNTS.region, url))
            .build()
        )
        try:
            return client.show_build_record(sdk.ShowBuildRecordRequest(record_id=GOOD))
        finally:
            client.close()

    assert (await trio.to_thread.run_sync(work)).result.id == GOOD


async def test_parallel_downloads_through_one_client(sdk: Any, url: str) -> None:
    got: list[bytes] = []

    def work(client: Any) -> None:
        request = sdk.DownloadTaskLogRequest(record_id=GOOD, task_name="stage1")
        reply = client.download_task_log(request)
        reply.consume_download_stream(lambda response: got.append(response.content))

    client = open_client(sdk, url)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(partial(trio.to_thread.run_sync, work, client))
    client.close()
    assert got == [INFO_TEXT] * 4
