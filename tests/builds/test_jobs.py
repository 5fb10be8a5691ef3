"""Jobs and builds before an in-memory API that counts."""

from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import Index, open_index
from codeartsfs.builds.jobs import Jobs, Latest, Which, parse_which
from codeartsfs.errors import ApiUnavailable, NotFound
from codeartsfs.model import BuildRecord, Job
from codeartsfs.names import ProjectId, RecordId
from tests.builds.test_catalog import FakeBuilds

PROJECT = ProjectId("c" * 32)
JOB = Job("j" * 32, "web-app", "p-1", 9, "blue")


def build(number: int, status: str = "SUCCESS", project: str = "p-1") -> BuildRecord:
    finished_ns = None if status == "RUNNING" else number
    return BuildRecord(RecordId(f"{number:036}"), number, project, status, finished_ns=finished_ns)


class FakeJobs:
    """Tells ``jobs`` and ``builds``, or fails; counts."""

    def __init__(self, *builds: BuildRecord) -> None:
        self.jobs_told: tuple[Job, ...] = (JOB,)
        self.builds_told = builds
        self.older: dict[int, BuildRecord] = {}
        self.failure: Exception | None = None
        self.go: trio.Event | None = None
        self.calls: list[str] = []

    async def jobs(self, project: ProjectId) -> tuple[Job, ...]:
        await self._called("jobs")
        return self.jobs_told

    async def builds(self, job: Job, limit: int) -> tuple[BuildRecord, ...]:
        await self._called("builds")
        return self.builds_told[:limit]

    async def record_by_number(self, job_id: str, build_no: int) -> BuildRecord:
        await self._called("number")
        if build_no not in self.older:
            raise NotFound(f"no build {build_no}")
        return self.older[build_no]

    async def _called(self, kind: str) -> None:
        self.calls.append(kind)
        await trio.lowlevel.checkpoint()
        if self.go is not None:
            await self.go.wait()
        if self.failure is not None:
            raise self.failure


def jobs_of(
    source: FakeJobs,
    nursery: trio.Nursery,
    index: Index | None = None,
    builds_per_job: int = 100,
) -> Jobs:
    catalog = Catalog(FakeBuilds(), nursery, index)
    return Jobs(source, catalog, [PROJECT], nursery, builds_per_job=builds_per_job, index=index)


async def test_many_who_ask_share_one_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(build(2))
    source.older = {1: build(1)}
    jobs = jobs_of(source, nursery)
    async with trio.open_nursery() as askers:
        for _ in range(50):
            askers.start_soon(jobs.jobs, PROJECT)
            askers.start_soon(jobs.job, PROJECT, "web-app")
            askers.start_soon(jobs.builds, JOB)
            askers.start_soon(jobs.record, JOB, Latest.ANY)
            askers.start_soon(jobs.record, JOB, 1)
    assert sorted(source.calls) == ["builds", "jobs", "number"]


async def test_jobs_live_half_a_minute_and_builds_five_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(build(1))
    jobs = jobs_of(source, nursery)
    for _ in range(12):
        await jobs.jobs(PROJECT)
        await jobs.builds(JOB)
        await trio.sleep(4.99)
    assert source.calls.count("jobs") == 2
    assert source.calls.count("builds") == 6


async def test_a_known_job_is_found_without_asking(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    assert await jobs.job(PROJECT, "web-app") == JOB
    await trio.sleep(250)
    assert await jobs.job(PROJECT, "web-app") == JOB
    assert source.calls == ["jobs"]


async def test_a_new_job_is_found_by_name_before_the_list_is_old(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    with pytest.raises(NotFound):
        await jobs.job(PROJECT, "new")
    assert source.calls == ["jobs"]
    assert jobs.rules_out(PROJECT, "new")
    assert not jobs.rules_out(PROJECT, "web-app")
    await trio.sleep(5)
    assert not jobs.rules_out(PROJECT, "new")
    source.jobs_told = (JOB, Job("k" * 32, "new", "p-2"))
    assert (await jobs.job(PROJECT, "new")).build_project_id == "p-2"
    assert source.calls == ["jobs"] * 2


async def test_a_job_goes_by_its_spelled_name(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    source.jobs_told = tuple(
        Job(f"{n:032}", name) for n, name in enumerate(["../x", ".git", "twin", "twin", ""])
    )
    names = await jobs_of(source, nursery).jobs(PROJECT)
    assert set(names) == {
        "%2E.%2Fx",
        "%2Egit",
        f"twin~{2:032}",
        f"twin~{3:032}",
        f"~{4:032}",
    }
    assert {job.name for job in names.values()} == {"../x", ".git", "twin", ""}


BUILDS = (
    build(9, "RUNNING"),
    build(8, "ABORTED"),
    build(7, "SUCCESS"),
    build(6, "FAILURE"),
    build(5, "a word nobody knows"),
    build(4, "FAILURE"),
)


@pytest.mark.parametrize(
    ("which", "number"),
    [(Latest.ANY, 9), (Latest.RUNNING, 9), (Latest.SUCCESS, 7), (Latest.FAILED, 6)],
)
async def test_latest_is_the_newest_in_its_state(
    autojump_clock: MockClock, which: Latest, number: int, nursery: trio.Nursery
) -> None:
    jobs = jobs_of(FakeJobs(*BUILDS), nursery)
    assert await jobs.record(JOB, which) == build(number).record
    assert jobs.known_build(JOB, which) == BUILDS[9 - number]


@pytest.mark.parametrize("which", Latest)
async def test_there_may_be_no_latest(
    autojump_clock: MockClock, which: Latest, nursery: trio.Nursery
) -> None:
    jobs = jobs_of(FakeJobs(), nursery)
    with pytest.raises(NotFound):
        await jobs.record(JOB, which)


async def test_latest_follows_new_builds(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    source = FakeJobs(build(1))
    jobs = jobs_of(source, nursery)
    assert await jobs.record(JOB, Latest.ANY) == build(1).record
    source.builds_told = (build(2), build(1))
    assert await jobs.record(JOB, Latest.ANY) == build(1).record
    assert jobs.fresh(JOB)
    await trio.sleep(5)
    assert not jobs.fresh(JOB)
    assert await jobs.record(JOB, Latest.ANY) == build(2).record


async def test_a_listed_build_is_found_by_number_without_asking(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(*BUILDS)
    jobs = jobs_of(source, nursery)
    await jobs.builds(JOB)
    await trio.sleep(1000)
    assert await jobs.record(JOB, 7) == build(7).record
    assert source.calls == ["builds"]


async def test_an_older_build_is_asked_for_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(*BUILDS)
    source.older = {1: build(1)}
    jobs = jobs_of(source, nursery, builds_per_job=2)
    assert len(await jobs.builds(JOB)) == 2
    for _ in range(3):
        assert await jobs.record(JOB, 1) == build(1).record
        await trio.sleep(1000)
    assert source.calls == ["builds", "number"]


async def test_a_build_that_is_not_there_is_absent_for_five_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    for _ in range(3):
        with pytest.raises(NotFound):
            await jobs.record(JOB, 77)
    assert source.calls == ["number"]
    source.older = {77: build(77)}
    await trio.sleep(5)
    assert await jobs.record(JOB, 77) == build(77).record


async def test_an_older_build_that_could_not_be_asked_for_is_no_absence(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    source.older, source.failure = {1: build(1)}, ApiUnavailable("down")
    jobs = jobs_of(source, nursery)
    for _ in range(3):
        with pytest.raises(ApiUnavailable):
            await jobs.record(JOB, 1)
    assert source.calls == ["number"]
    source.failure = None
    await trio.sleep(1)
    assert await jobs.record(JOB, 1) == build(1).record


async def test_a_failure_leaves_the_jobs_and_builds_told_before(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(*BUILDS)
    jobs = jobs_of(source, nursery)
    await jobs.jobs(PROJECT)
    await jobs.builds(JOB)
    await trio.sleep(1000)
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await jobs.jobs(PROJECT)
    with pytest.raises(ApiUnavailable):
        await jobs.record(JOB, Latest.ANY)
    assert set(jobs.known_jobs(PROJECT)) == {"web-app"}
    assert not jobs.rules_out(PROJECT, "new")
    assert await jobs.recall_builds(JOB) == BUILDS
    assert jobs.known_build(JOB, Latest.FAILED) == build(6, "FAILURE")


async def test_a_slow_api_holds_nobody_up_for_longer_than_patience(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(*BUILDS)
    source.go = trio.Event()
    jobs = jobs_of(source, nursery)
    for waited_s in (5, 0):
        began = trio.current_time()
        async with trio.open_nursery() as askers:
            for ask in (jobs.jobs(PROJECT, patience_s=5), jobs.record(JOB, Latest.ANY, 5)):
                askers.start_soon(_expect_unavailable, ask)
        assert trio.current_time() - began == waited_s
    source.go.set()
    await wait_all_tasks_blocked()
    assert set(jobs.known_jobs(PROJECT)) == {"web-app"}  # though nobody waited for it
    assert jobs.known_build(JOB, Latest.ANY) == build(9, "RUNNING")
    assert sorted(source.calls) == ["builds", "jobs"]


async def _expect_unavailable(ask: Awaitable[object]) -> None:
    with pytest.raises(ApiUnavailable, match="no answer yet"):
        await ask


async def test_a_job_that_is_gone_or_renamed_is_no_longer_known_by_its_name(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    await jobs.jobs(PROJECT)
    source.jobs_told = (replace(JOB, name="web-application"),)
    await trio.sleep(30)
    assert set(await jobs.jobs(PROJECT)) == {"web-application"}
    assert jobs.rules_out(PROJECT, "web-app")
    with pytest.raises(NotFound):
        await jobs.job(PROJECT, "web-app")


async def test_a_list_without_a_name_is_not_asked_for_again_within_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    await jobs.jobs(PROJECT)
    await trio.sleep(10)
    for _ in range(5):
        with pytest.raises(NotFound):
            await jobs.job(PROJECT, "typo")
    assert source.calls == ["jobs"] * 2


async def test_projects_keep_their_jobs_apart(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    catalog = Catalog(FakeBuilds(), nursery)
    other = ProjectId("d" * 32)
    jobs = Jobs(source, catalog, [PROJECT, other], nursery, builds_per_job=100)
    await jobs.jobs(PROJECT)
    assert jobs.known_jobs(other) == {}
    assert not jobs.rules_out(other, "new")
    source.jobs_told = (Job("k" * 32, "web-app", "p-2"), Job("l" * 32, "of a hidden project"))
    await jobs.jobs(other)
    assert jobs.known_jobs(PROJECT) == {"web-app": JOB}
    assert jobs.job_of(build(1, project="p-2")) == source.jobs_told[0]
    assert jobs.job_of(build(1)) == JOB
    assert jobs.job_of(build(1, project="p-3")) is None
    assert jobs.job_of(build(1, project="")) is None


async def test_after_a_restart_what_was_told_is_known(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    source = FakeJobs(*BUILDS)
    source.older = {1: build(1)}
    async with open_index(tmp_path) as index:
        jobs = jobs_of(source, nursery, index)
        await jobs.builds(await jobs.job(PROJECT, "web-app"))
        await jobs.record(JOB, 1)
    asked = list(source.calls)
    source.failure = ApiUnavailable("down")
    async with open_index(tmp_path) as index:
        jobs = jobs_of(source, nursery, index)
        job = await jobs.job(PROJECT, "web-app")
        assert job == JOB
        assert await jobs.recall_builds(job) == (*BUILDS, build(1))
        assert await jobs.record(job, 1) == build(1).record
        assert jobs.job_of(build(1)) == JOB
        assert source.calls == asked
        with pytest.raises(ApiUnavailable):
            await jobs.jobs(PROJECT)
        assert set(jobs.known_jobs(PROJECT)) == {"web-app"}


async def test_a_list_of_builds_tells_the_catalog(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "v1").mkdir()
    source = FakeJobs(build(1, "RUNNING"))
    async with open_index(tmp_path) as index:
        catalog = Catalog(FakeBuilds(), nursery, index)
        jobs = Jobs(source, catalog, [PROJECT], nursery, builds_per_job=9, index=index)
        await jobs.builds(JOB)
        await catalog.recall(build(1).record)
        assert catalog.known_build(build(1).record) == build(1, "RUNNING")
        source.builds_told = (build(1),)
        catalog.learn(build(1))
        assert catalog.known_build(build(1).record) == build(1)


@pytest.mark.parametrize("which", [Latest.ANY, 1])
async def test_what_is_said_of_a_build_reaches_a_record_in_use(
    autojump_clock: MockClock, which: Which, nursery: trio.Nursery
) -> None:
    records = FakeBuilds()
    records.status = "RUNNING"
    catalog = Catalog(records, nursery)
    await catalog.build(build(1).record)
    source = FakeJobs(build(1))
    source.older = {1: build(1)}
    jobs = Jobs(source, catalog, [PROJECT], nursery, builds_per_job=9)
    await jobs.record(JOB, which)
    assert catalog.known_build(build(1).record) == build(1)


def test_names_of_builds() -> None:
    assert parse_which("latest-failed") is Latest.FAILED
    assert parse_which("12") == 12
    for name in ("0", "012", "-1", "1.0", "2147483648", "latest-", "Latest", "", "९"):
        assert parse_which(name) is None, name


async def test_which_job_a_name_means_is_asked_again_after_minutes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    assert await jobs.job(PROJECT, "web-app") == JOB
    other = Job("k" * 32, "web-app", "p-2")
    source.jobs_told = (other,)
    await trio.sleep(299)
    assert await jobs.job(PROJECT, "web-app") == JOB
    await trio.sleep(1)
    assert await jobs.job(PROJECT, "web-app") == other
    await trio.sleep(300)
    source.failure = ApiUnavailable("down")
    assert await jobs.job(PROJECT, "web-app") == other  # as far as is known
    source.failure = None
    source.jobs_told = ()
    await trio.sleep(300)
    with pytest.raises(NotFound):
        await jobs.job(PROJECT, "web-app")


async def test_a_job_that_is_gone_makes_its_name_be_asked_for_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    jobs = jobs_of(source, nursery)
    job = await jobs.job(PROJECT, "web-app")
    source.failure = NotFound("no such job")
    with pytest.raises(NotFound):
        await jobs.builds(job)
    source.failure = None
    source.jobs_told = (Job("k" * 32, "web-app", "p-2"),)
    await trio.sleep(30)
    assert (await jobs.job(PROJECT, "web-app")).build_project_id == "p-2"


async def test_an_older_build_that_ran_when_it_was_found_ends(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs()
    source.older = {1: build(1, "RUNNING")}
    catalog = Catalog(FakeBuilds(), nursery)
    jobs = Jobs(source, catalog, [PROJECT], nursery, builds_per_job=9)
    await catalog.stages(build(1).record)
    await jobs.record(JOB, 1)
    assert jobs.known_build(JOB, 1) == build(1, "RUNNING")
    catalog.learn(build(1))
    assert jobs.known_build(JOB, 1) == build(1)


async def test_an_older_build_that_is_on_disk_is_there_for_all_who_ask_at_once(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    async with open_index(tmp_path) as index:
        index.keep_builds([build(1)])
    source = FakeJobs()
    source.failure = ApiUnavailable("down")
    found: list[RecordId] = []
    async with open_index(tmp_path) as index:
        jobs = jobs_of(source, nursery, index)

        async def ask() -> None:
            found.append(await jobs.record(JOB, 1))

        async with trio.open_nursery() as askers:
            for _ in range(5):
                askers.start_soon(ask)
    assert found == [build(1).record] * 5
    assert source.calls == []


async def test_builds_that_could_not_be_asked_for_are_not_fresh(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeJobs(build(1))
    jobs = jobs_of(source, nursery)
    await jobs.builds(JOB)
    await trio.sleep(5)
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await jobs.builds(JOB)
    assert not jobs.fresh(JOB)
