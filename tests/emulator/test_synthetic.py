"""The synthetic project: any number of builds that nobody keeps, through every call there is."""

import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeartsfs.api.auth import TokenAuth
from codeartsfs.api.client import ApiClient
from codeartsfs.api.client import open_client as open_api
from codeartsfs.api.pace import Pace
from codeartsfs.api.wire import parse_jobs, parse_record, parse_record_info, parse_stages
from codeartsfs.emulator.library import Library
from codeartsfs.emulator.server import open_emulator
from codeartsfs.emulator.synthetic import (
    HOSTILE_NAMES,
    MOST_BUILDS,
    MOST_JOBS,
    STAGES,
    SYNTHETIC_PROJECT,
    SyntheticBuild,
    SyntheticProject,
    build_project_id,
    job_id,
    job_name,
    last_stage_of,
    record_id,
    status_of,
)
from codeartsfs.errors import LogNotFound, NotFound
from codeartsfs.model import BuildRecord, StageRun
from codeartsfs.names import LogKey, LogLevel, parse_project_id, parse_record_id

from .conftest import ACCOUNTS, BUILD_PROJECT, GOOD, JOB, PROJECT, open_client, task_log

NOW_S = 1_741_064_767.089
LINE = re.compile(
    r"\[(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}) GMT\+08:00\] (\$ \S.*|\[(INFO|DEBUG|ERROR)\] .+)\n"
)
# One job of each kind, with hostile and with harmless names, in all states.
SAMPLE = [(job, build_no) for job in (0, 1, 2, 3, 4, 12, 23) for build_no in (1, 17, 40, 43, 60)]

jobs = st.integers(0, MOST_JOBS - 1)
build_numbers = st.integers(1, MOST_BUILDS)
largest = SyntheticProject(MOST_JOBS, MOST_BUILDS, NOW_S)


def get(project: SyntheticProject, job: int, build_no: int) -> SyntheticBuild:
    build = project.build(record_id(job, build_no))
    assert build is not None
    return build


async def log_of(build: SyntheticBuild, stage: int, level: LogLevel) -> str | None:
    file = await build.open_log(LogKey(build.record().record, STAGES[stage], level))
    if file is None:
        return None
    with file:
        return os.pread(file.fileno(), 1 << 20, 0).decode()


# --- what there is ----------------------------------------------------------------------------


@given(jobs, build_numbers)
def test_ids_and_numbers_lead_to_each_other(job: int, build_no: int) -> None:
    build = get(largest, job, build_no)
    record = build.record()

    assert record.record == parse_record_id(record_id(job, build_no))
    assert (build.job_number, record.build_no) == (job, build_no)
    assert build.job.project_id == parse_project_id(SYNTHETIC_PROJECT)
    assert re.fullmatch("[0-9a-z]{32}", build.job.job_id)
    assert re.fullmatch("[0-9a-z-]{36}", build.job.build_project_id)
    assert largest.numbered(build.job.job_id, build_no) == build
    assert largest.of_job(build.job.job_id)[MOST_BUILDS - build_no] == build
    assert largest.of_build_project(record.build_project_id)[MOST_BUILDS - build_no] == build


@pytest.mark.parametrize(
    "record",
    [
        record_id(5, 1),
        record_id(0, 0),
        record_id(0, 8),
        record_id(0, 1).replace("b11d", "0000"),
        "00000001-0000-4000-8000-0123456789ab",
        build_project_id(0),
        job_id(0),
        GOOD,
        "",
    ],
)
def test_ids_of_nothing_lead_nowhere(record: str) -> None:
    project = SyntheticProject(5, 7, NOW_S)
    assert project.build(record) is None
    assert not project.of_job(record) or record == job_id(0)
    assert not project.of_build_project(record) or record == build_project_id(0)
    assert project.numbered(job_id(0), 8) is None
    assert not project.of_job(job_id(5))


@given(jobs, build_numbers)
async def test_all_is_the_same_whenever_it_is_asked_for(job: int, build_no: int) -> None:
    again = get(SyntheticProject(MOST_JOBS, MOST_BUILDS, NOW_S), job, build_no)
    build = get(largest, job, build_no)

    assert (build.job, build.record(), build.stages()) == (
        again.job,
        again.record(),
        again.stages(),
    )
    for level in LogLevel:
        assert await log_of(build, 1, level) == await log_of(again, 1, level)


def test_states_follow_the_pattern() -> None:
    assert Counter(status_of(0, age) for age in range(100)) == {
        "SUCCESS": 75,
        "FAILURE": 20,
        "ABORTED": 5,
    }
    assert [status_of(0, age) for age in range(5)] == ["SUCCESS"] * 4 + ["FAILURE"]
    running = [job for job in range(20) if status_of(job, 0) == "RUNNING"]
    assert running == [3, 7, 11, 15, 19]
    assert not any(status_of(job, age) == "RUNNING" for job in range(40) for age in range(1, 40))
    ended = [(job, age) for job in range(40) for age in range(1, 40)]
    assert {last_stage_of(*where) for where in ended if status_of(*where) == "FAILURE"} == {1, 2, 3}


@given(jobs, st.integers(0, 200))
def test_stages_and_times_agree_with_their_record(job: int, age: int) -> None:
    build = get(largest, job, MOST_BUILDS - age)
    record, runs = build.record(), build.stages()
    last = last_stage_of(job, age)
    began, rest = runs[: last + 1], runs[last + 1 :]

    assert [run.stage for run in runs] == list(STAGES)
    assert [run.sequence for run in runs] == [0, 1, 2, 3, 4]
    assert record.status == status_of(job, age)
    assert [run.status for run in began] == ["SUCCESS"] * last + [record.status]
    assert {run.status for run in rest} <= {"PENDING" if not record.final else "ABORTED"}
    assert all(run.skipped == record.final and run.started_ns is None for run in rest)
    assert [run.final for run in runs] == [True] * last + [record.final] * (5 - last)

    assert record.created_ns is not None
    assert record.started_ns is not None
    assert record.created_ns <= record.started_ns == began[0].started_ns
    for before, after in pairwise(began):
        assert before.finished_ns == after.started_ns
    timed: list[StageRun | BuildRecord] = [*began, record]
    for run in timed:
        if run.finished_ns is not None:
            assert run.duration_ms == (run.finished_ns - (run.started_ns or 0)) / 1e6
            assert run.finished_ns < NOW_S * 1e9
    assert record.finished_ns == began[-1].finished_ns
    assert (record.finished_ns is None) == (record.duration_ms is None) == (not record.final)


def test_builds_are_ten_minutes_apart_and_the_newest_is_a_few_minutes_old() -> None:
    created = [build.created_ns / 1e9 for build in largest.of_job(job_id(0))[:3]]
    assert [round(NOW_S - at) for at in created] == [180, 780, 1380]


@pytest.mark.parametrize("job", [0, 2, 3, 4, 17])
async def test_logs_look_real_and_only_stages_that_began_have_them(job: int) -> None:
    build = get(largest, job, MOST_BUILDS)
    for number, run in enumerate(build.stages()):
        info = await log_of(build, number, LogLevel.INFO)
        debug = await log_of(build, number, LogLevel.DEBUG)
        if run.started_ns is None:
            assert info is None
            assert debug is None
            continue
        assert info is not None
        assert debug is not None
        assert 800 < len(info.encode()) < len(debug.encode()) < 4000
        lines = debug.splitlines(keepends=True)
        assert info == "".join(line for line in lines if "] [DEBUG] " not in line)
        stamps = [match[1] for line in lines if (match := LINE.fullmatch(line))]
        assert len(stamps) == len(lines)
        assert stamps == sorted(stamps)
        ended = f"{run.display_name}: {run.status}\n"
        assert info.endswith(ended) == run.final
        until_ns = run.finished_ns or NOW_S * 1e9
        until = datetime.fromtimestamp(until_ns / 1e9, UTC) + timedelta(hours=8)
        assert stamps[-1] <= f"{until:%Y/%m/%d %H:%M:%S.%f}"


def test_names_are_hostile_where_they_are_said_to_be() -> None:
    assert [job_name(job) for job in (0, 17, 9999, 12345)] == [
        "web-app",
        "job-0017",
        "job-9999",
        "job-12345",
    ]
    assert [job_name(job + 1) for job in range(len(HOSTILE_NAMES))] == list(HOSTILE_NAMES)
    assert max(len(name.encode("utf-8", "surrogatepass")) for name in HOSTILE_NAMES) == 400
    assert {name for name, count in Counter(HOSTILE_NAMES).items() if count > 1} == {"twin"}


def test_a_hundred_thousand_million_builds_are_there_at_once(tmp_path: Path) -> None:
    with Library(tmp_path, lambda: NOW_S, (MOST_JOBS, MOST_BUILDS)) as library:
        last = library.build(record_id(MOST_JOBS - 1, MOST_BUILDS))
        assert last is not None
        assert library.numbered(last.job.job_id, MOST_BUILDS) == last
        assert len(library.of_job(last.job.job_id)) == MOST_BUILDS
        assert library.projects() == [SYNTHETIC_PROJECT]
    with Library(tmp_path, lambda: NOW_S) as library:
        assert library.build(record_id(0, 1)) is None
        assert library.projects() == []
        assert library.jobs(SYNTHETIC_PROJECT) == []


# --- through the client of the mount ----------------------------------------------------------


@asynccontextmanager
async def api(
    recordings: Path, jobs: int, builds: int, *faults: str
) -> AsyncIterator[tuple[ApiClient, SyntheticProject]]:
    """Serve a synthetic project; yield a client of it and what it is a client of."""
    async with (
        open_emulator(
            recordings, faults=faults, clock=lambda: NOW_S, synthetic=(jobs, builds)
        ) as url,
        open_api(
            endpoint=url,
            credentials=TokenAuth(lambda: ACCOUNTS.token),
            pace=Pace(requests_per_second=0),
        ) as client,
    ):
        yield client, SyntheticProject(jobs, builds, NOW_S)


@pytest.mark.parametrize("faults", [[], ["numbers=str"], ["numbers=int"]])
async def test_records_stages_and_logs_arrive_as_they_are(
    tmp_path: Path, faults: list[str]
) -> None:
    async with api(tmp_path, 24, 60, *faults) as (client, project):
        seen = set()
        for job, build_no in SAMPLE:
            build = get(project, job, build_no)
            record = build.record()
            seen.add(record.status)
            assert await client.record(record.record) == record
            assert await client.record_by_number(job_id(job), build_no) == record
            assert list(await client.stages(record.record)) == build.stages()
            for number, stage in enumerate(STAGES):
                key = LogKey(record.record, stage, LogLevel.DEBUG)
                text = await log_of(build, number, LogLevel.DEBUG)
                if text is None:
                    with pytest.raises(LogNotFound):
                        await read_log(client, key)
                else:
                    assert (await read_log(client, key)).decode() == text
        assert seen == {"SUCCESS", "FAILURE", "ABORTED", "RUNNING"}


async def read_log(client: ApiClient, key: LogKey) -> bytes:
    async with client.task_log(key) as body:
        return b"".join([chunk async for chunk in body])


async def test_jobs_arrive_with_their_names_unchanged(tmp_path: Path) -> None:
    async with api(tmp_path, 230, 3) as (client, project):
        found = await client.jobs(SYNTHETIC_PROJECT)
    assert {job.job_id: job for job in found} == {job.job_id: job for job in project.job_rows}
    assert len(found) == 230
    names = {job.job_id: job.name for job in found}
    assert [names[job_id(job)] for job in range(230)] == [job_name(job) for job in range(230)]
    assert [job.name for job in found] == sorted(names.values())


@pytest.mark.parametrize("base", ["page-base=0", "page-base=1"])
@pytest.mark.parametrize("order", ["order=newest", "order=oldest"])
@pytest.mark.parametrize("numbers", ["numbers=int", "numbers=str"])
async def test_paging_finds_each_build_once(
    tmp_path: Path, base: str, order: str, numbers: str
) -> None:
    async with api(tmp_path, 2, 350, base, order, numbers) as (client, project):
        found = await client.records(build_project_id(1), 1000)
    assert list(found) == [build.record() for build in project.of_job(job_id(1))]


async def test_what_is_not_there_is_not_found(recordings: Path) -> None:
    async with api(recordings, 2, 3) as (client, _):
        for job, build_no in ((0, 4), (2, 1)):
            with pytest.raises(NotFound):
                await client.record(record_id(job, build_no))
            with pytest.raises(NotFound):
                await client.record_by_number(job_id(job), build_no)
        assert await client.records(build_project_id(2), 10) == ()


async def test_recordings_stay_beside_it(recordings: Path) -> None:
    async with api(recordings, 2, 3) as (client, _):
        assert [job.name for job in await client.jobs(PROJECT)] == ["docs", "web-app"]
        assert (await client.record_by_number(JOB, 42)).record == GOOD
        assert len(await client.records(BUILD_PROJECT, 10)) == 2
        assert len(await client.jobs(SYNTHETIC_PROJECT)) == 2


# --- through all other calls ------------------------------------------------------------------


async def result_of(client: httpx.AsyncClient, path: str) -> Any:
    reply = await client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json().get("result", reply.json())


async def test_the_jobs_list_can_be_searched_and_turned_round(tmp_path: Path) -> None:
    base = f"/v1/job/{SYNTHETIC_PROJECT}/list?page_index=0&page_size=100"
    async with open_client(tmp_path, synthetic=(40, 5)) as client:

        async def names(query: str) -> list[str]:
            return [job.name for job in parse_jobs(await result_of(client, base + query))]

        everything = await names("")
        assert len(everything) == 40
        assert await names("&sort_order=DESC") == everything[::-1]
        assert await names("&search=web-app") == [
            "group%2Fweb-app",
            "group/web-app",
            "web-app",
            f"web-app~{job_id(0)}",
        ]
        for word, status in (
            ("building", "RUNNING"),
            ("red", "FAILURE"),
            ("blue", "SUCCESS"),
            ("aborted", "ABORTED"),
        ):
            wanted = [job_name(job) for job in range(40) if status_of(job, 0) == status]
            assert await names(f"&build_status={word}") == sorted(wanted)
            assert wanted


async def test_the_records_list_can_be_filtered(tmp_path: Path) -> None:
    records = f"/v1/record/{build_project_id(0)}/records?limit=100"
    async with open_client(tmp_path, synthetic=(1, 30)) as client:

        async def numbers(query: str) -> list[str]:
            return [row["build_no"] for row in (await result_of(client, records + query))["data"]]

        assert await numbers("&branches=release/1.0") == ["28", "21", "14", "7"]
        assert await numbers("&triggers=CODE") == []
        [at] = [row["create_time"] for row in (await result_of(client, records))["data"][3:4]]
        # The filter has whole seconds.
        moment = datetime.fromisoformat(at) + timedelta(hours=8, seconds=1)
        assert await numbers(f"&from_date={moment:%Y-%m-%d %H:%M:%S}") == ["30", "29", "28"]
        assert (await numbers(f"&to_date={moment:%Y-%m-%d %H:%M:%S}"))[:2] == ["27", "26"]


async def test_calls_by_job_answer_for_its_builds(tmp_path: Path) -> None:
    job = job_id(3)
    async with open_client(tmp_path, synthetic=(4, 500)) as client:
        status = await result_of(client, f"/v1/job/{job}/running-status")
        assert (status["last_build_no"], status["is_running"]) == ("500", True)

        history = await result_of(client, f"/v3/jobs/{job}/history?interval=1&limit=100")
        assert history["total"] == 144
        rows = history["history_records"]
        assert [row["build_number"] for row in rows] == list(range(500, 400, -1))
        days = [row["record_id"].split(".") for row in rows]
        for (day, number), (earlier_day, earlier_number) in pairwise(days):
            assert int(number) == (int(earlier_number) + 1 if day == earlier_day else 1)

        details = await result_of(client, f"/v3/jobs/{job}/500/history-details")
        assert details["job_name"] == job_name(3)
        assert [step["status"] for step in details["build_steps"]] == [
            "success",
            "success",
            "running",
            "",
            "",
        ]

        span = "start_time=2000-01-01 00:00:00&end_time=2100-01-01 00:00:00"
        states = await result_of(client, f"/v1/record/{job}/list?{span}&page_index=1")
        assert states["total_record"] == "500"
        assert [s["number"] for s in states["job_build_states"]] == list(range(490, 480, -1))


async def test_logs_come_through_every_call(tmp_path: Path) -> None:
    build_no = 40 - 4  # the newest of job 0 that failed, and it did so in stage1
    record, numbered = record_id(0, build_no), f"job_id={job_id(0)}&build_no={build_no}"
    async with open_client(tmp_path, synthetic=(1, 40)) as client:
        parts = [(await client.get(task_log(record, name))).text for name in ("initial", "stage1")]
        assert (await client.get(task_log(record, "stage2"))).status_code == 404
        assert (await client.get(f"/v4/{record}/download-log")).text == "".join(parts)
        pages = f"/v1/log/stage/page?{numbered}&start_offset=0&end_offset=0"
        assert (await result_of(client, pages))["log"] == "".join(parts)
        step = f"/v1/log/task/page?{numbered}&step_id=1&start_offset=0&end_offset=0"
        assert (await result_of(client, step))["log"] == parts[1]
        [node] = (await result_of(client, f"/v1/log/{job_id(0)}/{build_no}/analysis"))[
            "error_nodes"
        ]
        assert node["error_info"]["error_message"].endswith("[ERROR] Code CheckOut: FAILURE")
        info = await result_of(client, f"/v1/record/{record}/info")
        assert parse_record(info).failed
        again = await result_of(client, f"/v1/record/{job_id(0)}/{build_no}/record-info")
        assert parse_record_info(again) == parse_record(info)
        assert len(parse_stages(await result_of(client, f"/v1/record/{record}/full-stages"))) == 5
