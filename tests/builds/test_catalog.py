"""The catalog before an in-memory API that counts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import IndexedRecord, RecordTimes, open_index
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    BuildNotFound,
    CallUnavailable,
    CodeArtsError,
    CredentialsRefused,
    Forbidden,
)
from codeartsfs.model import BuildRecord, LogNote, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

RECORD = RecordId("a" * 36)
OTHER = RecordId("b" * 36)
KEY = LogKey(RECORD, Stage("stage1"), LogLevel.INFO)
LONG_AGO_NS = 1_700_000_000_000_000_000

RUNNING = StageRun(Stage("stage1"), status="running")
OVER = StageRun(Stage("stage1"), status="success", finished_ns=LONG_AGO_NS)


class FakeBuilds:
    """Tells ``runs`` of every record, or fails; counts."""

    def __init__(self, *runs: StageRun) -> None:
        self.runs = runs
        self.status = "SUCCESS"
        self.failure: Exception | None = None
        self.go: trio.Event | None = None
        self.calls: list[RecordId] = []
        self.asking = self.most_asking = 0

    async def stages(self, record: RecordId) -> tuple[StageRun, ...]:
        self.calls.append(record)
        self.asking += 1
        self.most_asking = max(self.most_asking, self.asking)
        try:
            await trio.lowlevel.checkpoint()
            if self.go is not None:
                await self.go.wait()
            if self.failure is not None:
                raise self.failure
            return self.runs
        finally:
            self.asking -= 1

    async def record(self, record: RecordId) -> BuildRecord:
        self.calls.append(record)
        if self.failure is not None:
            raise self.failure
        return BuildRecord(record, 7, "p-1", self.status)


async def test_many_who_ask_share_one_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    answers: list[tuple[StageRun, ...] | None] = []

    async def ask() -> None:
        answers.append(await catalog.stages(RECORD))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert answers == [(RUNNING,)] * 20
    assert len(source.calls) == 1


async def test_records_are_asked_about_side_by_side(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.go = trio.Event()
    catalog = Catalog(source, nursery)
    async with trio.open_nursery() as nursery:
        for record in (RECORD, OTHER):
            nursery.start_soon(catalog.stages, record)
        await wait_all_tasks_blocked()
        assert source.most_asking == 2
        source.go.set()
    assert set(await catalog.records()) == {RECORD, OTHER}


async def test_a_question_goes_on_when_its_asker_leaves(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.go = trio.Event()
    catalog = Catalog(source, nursery)
    with trio.move_on_after(1) as first:
        await catalog.stages(RECORD)
    assert first.cancelled_caught
    source.go.set()
    assert await catalog.stages(RECORD) == (RUNNING,)
    assert len(source.calls) == 1


async def test_a_log_waits_five_seconds_for_its_state(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.go = trio.Event()
    catalog = Catalog(source, nursery)
    with pytest.raises(ApiUnavailable):
        await catalog.stage(KEY)
    assert trio.current_time() == pytest.approx(5)
    source.go.set()
    await wait_all_tasks_blocked()
    source.go = trio.Event()
    assert await catalog.stage(KEY) == RUNNING  # as told late, while the next answer is late too
    assert len(source.calls) == 2


async def test_patience_counts_from_the_question(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.go = trio.Event()
    catalog = Catalog(source, nursery)
    for waited_s in (5, 0, 0):
        began = trio.current_time()
        with pytest.raises(ApiUnavailable, match="no answer yet"):
            await catalog.stages(RECORD, patience_s=5)
        assert trio.current_time() - began == waited_s
    source.go.set()
    await wait_all_tasks_blocked()
    assert catalog.known_stages(RECORD) == (RUNNING,)  # though nobody waited for it
    assert len(source.calls) == 1


async def test_record_that_is_over_is_never_asked_about_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    catalog = Catalog(source, nursery)
    for _ in range(5):
        assert await catalog.stages(RECORD) == (OVER,)
        assert await catalog.stage(KEY) == OVER
        await trio.sleep(80_000)
    assert len(source.calls) == 1


async def test_stage_that_is_over_costs_no_call_while_others_run(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER, StageRun(Stage("stage2"), status="running"))
    catalog = Catalog(source, nursery)
    for _ in range(5):
        assert await catalog.stage(KEY) == OVER
        await trio.sleep(100)
    assert len(source.calls) == 1


@pytest.mark.parametrize(
    "runs",
    [
        (),
        (RUNNING,),
        (OVER, StageRun(Stage("stage2"), status="a word nobody knows")),
        # Over by word alone: nobody knows since when, so another stage may still begin.
        (StageRun(Stage("stage1"), status="success"),),
        (OVER, StageRun(Stage("stage2"), status="success")),
    ],
)
async def test_record_is_not_over_before_all_its_stages_are(
    autojump_clock: MockClock, runs: tuple[StageRun, ...], nursery: trio.Nursery
) -> None:
    source = FakeBuilds(*runs)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    await trio.sleep(5)
    await catalog.stages(RECORD)
    assert len(source.calls) == 2


async def test_record_whose_last_stage_just_finished_may_get_another(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    just_now = StageRun(Stage("stage1"), status="success", finished_ns=time.time_ns())
    source = FakeBuilds(just_now)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    await trio.sleep(5)
    source.runs = (just_now, StageRun(Stage("stage2"), status="running"))
    stages = await catalog.stages(RECORD)
    assert stages is not None
    assert len(stages) == 2


async def test_record_with_its_final_stage_over_is_over_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(StageRun(Stage("final"), status="success", finished_ns=time.time_ns()))
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    await trio.sleep(1000)
    await catalog.stages(RECORD)
    assert len(source.calls) == 1


async def test_what_is_told_of_a_running_record_lives_five_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    for _ in range(10):
        await catalog.stages(RECORD)
        await catalog.stage(KEY)
        await trio.sleep(1)
    assert len(source.calls) == 2
    await catalog.stages(RECORD, force=True)
    assert len(source.calls) == 3


async def test_age_counts_from_the_question_not_the_answer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.go = trio.Event()
    catalog = Catalog(source, nursery)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalog.stages, RECORD)
        await trio.sleep(7)
        source.go.set()
    await catalog.stage(KEY)
    assert len(source.calls) == 2


@pytest.mark.parametrize("failure", [ApiUnavailable("down"), BadAnswer("html")])
async def test_failure_is_shared_for_a_second_and_is_no_absence(
    autojump_clock: MockClock, failure: CodeArtsError, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = failure
    catalog = Catalog(source, nursery)
    failures: list[CodeArtsError] = []

    async def ask() -> None:
        try:
            await catalog.stages(RECORD)
        except CodeArtsError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert failures == [failure] * 20
    assert len(source.calls) == 1
    assert not catalog.absent(RECORD)
    assert await catalog.records() == {}
    source.failure = None
    await trio.sleep(1)
    assert await catalog.stages(RECORD) == (OVER,)


async def test_failure_leaves_what_was_told_before(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    await trio.sleep(10)
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await catalog.stages(RECORD)
    assert catalog.known_stages(RECORD) == (RUNNING,)
    assert set(await catalog.records()) == {RECORD}


async def test_absence_is_remembered_for_five_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = BuildNotFound(RECORD, "gone")
    catalog = Catalog(source, nursery)
    for _ in range(3):
        with pytest.raises(BuildNotFound):
            await catalog.stages(RECORD)
    assert await catalog.stage(KEY) is None  # the log itself knows better
    assert catalog.absent(RECORD)
    assert not catalog.absent(OTHER)
    assert len(source.calls) == 1
    await trio.sleep(5)
    assert not catalog.absent(RECORD)
    source.failure = None
    assert await catalog.stages(RECORD) == (OVER,)
    assert len(source.calls) == 2


async def test_call_that_is_not_offered_is_not_tried_for_other_records_either(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = CallUnavailable("APIGW.0101")
    catalog = Catalog(source, nursery)
    assert await catalog.stages(RECORD) is None
    assert await catalog.stages(OTHER) is None
    assert await catalog.stage(KEY) is None
    assert source.calls == [RECORD]
    assert catalog.known_stages(RECORD) is None
    assert await catalog.records() == {}
    source.failure = None
    await trio.sleep(400)
    assert await catalog.stages(OTHER) == (OVER,)


async def test_record_that_is_not_ours_to_list_says_nothing_of_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = Forbidden("no")
    catalog = Catalog(source, nursery)
    assert await catalog.stages(RECORD) is None
    assert await catalog.stage(KEY) is None
    assert source.calls == [RECORD]
    source.failure = None
    assert await catalog.stages(OTHER) == (OVER,)
    await trio.sleep(30)
    assert await catalog.stages(RECORD) == (OVER,)


@pytest.mark.parametrize("failure", [AccessDenied("no"), CredentialsRefused("no")])
async def test_refused_credentials_are_a_failure_for_seconds_never_an_empty_listing(
    autojump_clock: MockClock, failure: CodeArtsError, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = failure
    catalog = Catalog(source, nursery)
    with pytest.raises(AccessDenied):
        await catalog.stages(RECORD)
    assert await catalog.stage(KEY) is None
    source.failure = None
    await trio.sleep(5)
    assert await catalog.stages(RECORD) == (OVER,)


async def test_stage_is_ruled_out_only_by_a_recent_or_last_word(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    second = LogKey(RECORD, Stage("stage2"), LogLevel.INFO)
    assert not catalog.rules_out(second)
    await catalog.stages(RECORD)
    assert catalog.rules_out(second)
    assert not catalog.rules_out(KEY)
    await trio.sleep(5)
    assert not catalog.rules_out(second)
    source.runs = (OVER,)
    await catalog.stages(RECORD)
    await trio.sleep(80_000)
    assert catalog.rules_out(second)


async def test_stage_is_not_ruled_out_where_the_last_question_failed(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await catalog.stages(RECORD, force=True)
    assert not catalog.fresh(RECORD)
    assert not catalog.rules_out(LogKey(RECORD, Stage("stage2"), LogLevel.INFO))


async def test_unforeseen_exception_passes_and_leaves_the_catalog_usable(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = ValueError("a bug")
    catalog = Catalog(source, nursery)
    with pytest.raises(ValueError, match="a bug"):
        await catalog.stages(RECORD)
    source.failure = None
    assert await catalog.stages(RECORD) == (OVER,)


# The record itself.


async def test_record_that_is_over_is_asked_for_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    catalog = Catalog(source, nursery)
    for _ in range(3):
        build = await catalog.build(RECORD)
        assert build is not None
        assert (build.build_no, build.final) == (7, True)
        await trio.sleep(1000)
    assert len(source.calls) == 1


async def test_record_that_runs_is_asked_for_again_after_five_seconds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    source.status = "RUNNING"
    catalog = Catalog(source, nursery)
    for _ in range(4):
        await catalog.build(RECORD)
        await trio.sleep(2.5)
    assert len(source.calls) == 2


async def test_record_is_told_once_both_its_stages_and_itself_are(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.status = "RUNNING"
    catalog = Catalog(source, nursery)
    assert not catalog.told(RECORD)
    await catalog.stages(RECORD)
    assert not catalog.told(RECORD)
    await catalog.build(RECORD)
    assert catalog.told(RECORD)
    await trio.sleep(5)
    assert not catalog.told(RECORD)


async def test_what_a_list_of_builds_says_of_a_running_record_is_taken_in(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.status = "RUNNING"
    catalog = Catalog(source, nursery)
    await catalog.build(RECORD)
    over = BuildRecord(RECORD, 7, "p-1", "SUCCESS")
    catalog.learn(over)
    await trio.sleep(1000)
    assert await catalog.build(RECORD) == over
    catalog.learn(BuildRecord(RECORD, 7, "p-1", "RUNNING"))  # a page that is old already
    assert catalog.known_build(RECORD) == over
    assert len(source.calls) == 1


async def test_a_list_of_builds_fills_the_memory_with_no_record_nobody_looked_at(
    nursery: trio.Nursery,
) -> None:
    catalog = Catalog(FakeBuilds(), nursery)
    catalog.learn(BuildRecord(RECORD, 7))
    assert catalog.known_build(RECORD) is None


@pytest.mark.parametrize("failure", [CallUnavailable("APIGW.0101"), Forbidden("no")])
async def test_record_that_the_api_does_not_tell_is_none(
    autojump_clock: MockClock, failure: CodeArtsError, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = failure
    catalog = Catalog(source, nursery)
    for _ in range(3):
        assert await catalog.build(RECORD) is None
    assert len(source.calls) == 1
    assert not catalog.last_error(RECORD)


async def test_last_error_is_told_until_it_is_over(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    source.failure = ApiUnavailable("down (request 1)")
    catalog = Catalog(source, nursery)
    with pytest.raises(ApiUnavailable):
        await catalog.stages(RECORD)
    assert catalog.last_error(RECORD) == "down (request 1)"
    source.failure = None
    await trio.sleep(1)
    await catalog.stages(RECORD)
    assert catalog.last_error(RECORD) == ""


# Times.


@pytest.mark.parametrize(
    ("runs", "modified_ns"),
    [
        ((), None),
        ((StageRun(Stage("stage1"), status="success"),), None),
        ((StageRun(Stage("stage1"), status="success", created_ns=5),), 5),
        ((replace(OVER, finished_ns=7), replace(OVER, finished_ns=6)), 7),
        # What has not begun makes a record no newer.
        ((replace(OVER, finished_ns=7), StageRun(Stage("stage2"), status="PENDING")), 7),
    ],
)
async def test_record_is_as_old_as_its_newest_stage(
    autojump_clock: MockClock,
    runs: tuple[StageRun, ...],
    modified_ns: int | None,
    nursery: trio.Nursery,
) -> None:
    catalog = Catalog(FakeBuilds(*runs), nursery)
    assert catalog.times(RECORD) is None
    await catalog.stages(RECORD)
    times = catalog.times(RECORD)
    assert times is not None
    assert times.modified_ns == modified_ns


async def test_record_is_new_while_a_stage_runs(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    running = StageRun(Stage("stage2"), status="RUNNING", started_ns=8)
    catalog = Catalog(FakeBuilds(OVER, running), nursery)
    before_ns = time.time_ns()
    await catalog.stages(RECORD)
    times = catalog.times(RECORD)
    assert times is not None
    assert times.modified_ns is not None
    assert before_ns <= times.modified_ns <= time.time_ns()
    assert not times.final


# Beyond the process.


async def test_after_a_restart_what_is_over_is_not_asked_for_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    source = FakeBuilds(OVER)
    async with open_index(tmp_path) as index:
        catalog = Catalog(source, nursery, index)
        await catalog.stages(RECORD)
        await catalog.build(RECORD)
        catalog.note_log(KEY, LogNote(5, 6, True))
        told = catalog.times(RECORD)
    assert len(source.calls) == 2
    async with open_index(tmp_path) as index:
        catalog = Catalog(source, nursery, index)
        assert await catalog.records() == {RECORD: told}
        assert catalog.known_stages(RECORD) is None
        await catalog.recall(RECORD)
        assert catalog.known_stages(RECORD) == (OVER,)
        assert catalog.log_note(KEY) == LogNote(5, 6, True)
        assert catalog.noted_logs(RECORD) == (KEY,)
        assert await catalog.stages(RECORD) == (OVER,)
        assert await catalog.stage(KEY) == OVER
        build = await catalog.build(RECORD)
        assert build is not None
        assert build.build_no == 7
    assert len(source.calls) == 2


async def test_after_a_restart_what_runs_is_asked_for_again_and_known_meanwhile(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    source = FakeBuilds(RUNNING)
    async with open_index(tmp_path) as index:
        await Catalog(source, nursery, index).stages(RECORD)
    async with open_index(tmp_path) as index:
        catalog = Catalog(source, nursery, index)
        await catalog.recall(RECORD)
        assert catalog.known_stages(RECORD) == (RUNNING,)
        assert not catalog.fresh(RECORD)
        source.runs = (OVER,)
        assert await catalog.stages(RECORD) == (OVER,)


async def test_what_was_seen_since_the_start_is_newer_than_what_is_recalled(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    second = LogKey(RECORD, Stage("stage2"), LogLevel.INFO)
    async with open_index(tmp_path) as index:
        catalog = Catalog(FakeBuilds(), nursery, index)
        catalog.note_log(KEY, LogNote(5, 6, False))
        catalog.note_log(second, LogNote(1, 2, True))
    async with open_index(tmp_path) as index:
        catalog = Catalog(FakeBuilds(), nursery, index)
        catalog.note_log(KEY, LogNote(50, 60, True))
        await catalog.recall(RECORD)
        assert catalog.log_note(KEY) == LogNote(50, 60, True)
        assert catalog.log_note(second) == LogNote(1, 2, True)


async def test_what_was_seen_during_a_recall_is_newer_than_what_is_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    async with open_index(tmp_path) as index:
        index.keep_log(KEY, LogNote(5, 6, False))
        catalog = Catalog(FakeBuilds(), nursery, index)
        read = index.records_from

        async def overtaken(first: RecordId, limit: int) -> dict[RecordId, IndexedRecord]:
            found = await read(first, limit)
            catalog.note_log(KEY, LogNote(50, 60, True))
            return found

        monkeypatch.setattr(index, "records_from", overtaken)
        await catalog.recall(RECORD)
        assert catalog.log_note(KEY) == LogNote(50, 60, True)


async def test_an_index_that_cannot_be_used_costs_calls_and_nothing_else(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    async with open_index(tmp_path / "gone") as index:
        catalog = Catalog(source, nursery, index)
        assert await catalog.stages(RECORD) == (OVER,)
        assert await catalog.stages(RECORD) == (OVER,)
        catalog.note_log(KEY, LogNote(5, 6, True))
        assert set(await catalog.records()) == {RECORD}
        assert catalog.log_note(KEY) == LogNote(5, 6, True)
    assert len(source.calls) == 1


async def test_note_that_is_forgotten_stays_forgotten(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    async with open_index(tmp_path) as index:
        catalog = Catalog(FakeBuilds(), nursery, index)
        catalog.note_log(KEY, LogNote(5, 6, True))
        catalog.note_log(KEY, None)
    async with open_index(tmp_path) as index:
        catalog = Catalog(FakeBuilds(), nursery, index)
        await catalog.recall(RECORD)
        assert catalog.log_note(KEY) is None


async def test_who_walks_through_records_reads_the_index_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    (tmp_path / "v1").mkdir()
    records = [RecordId(f"{number:036}") for number in range(1000)]
    async with open_index(tmp_path) as index:
        for record in records:
            index.keep_stages(record, (OVER,), RecordTimes(1, final=True))
    async with open_index(tmp_path) as index:
        reads: list[int] = []
        read = index.records_from

        async def counted(first: RecordId, limit: int) -> dict[RecordId, IndexedRecord]:
            reads.append(limit)
            return await read(first, limit)

        monkeypatch.setattr(index, "records_from", counted)
        catalog = Catalog(FakeBuilds(), nursery, index)
        for record in records:
            await catalog.recall(record)
            assert catalog.known_stages(record) == (OVER,)
        assert len(reads) < 30
        reads.clear()
        catalog = Catalog(FakeBuilds(), nursery, index)
        for record in reversed(records[::100]):
            await catalog.recall(record)
        assert reads == [1] * 10  # somebody who jumps about gets what was asked for


async def test_an_order_asks_whatever_is_known(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    assert catalog.times(RECORD) == RecordTimes(LONG_AGO_NS, final=True)
    again = StageRun(Stage("stage1"), status="RUNNING", started_ns=time.time_ns())
    source.runs = (again,)  # somebody ran it again
    assert await catalog.stages(RECORD) == (OVER,)
    assert await catalog.stages(RECORD, force=True) == (again,)
    times = catalog.times(RECORD)
    assert times is not None
    assert not times.final
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await catalog.stages(RECORD, force=True)
    source.failure = None
    assert await catalog.stages(RECORD, force=True) == (again,)


async def test_a_record_that_is_over_makes_what_was_told_of_its_stages_old(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(RUNNING)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    source.runs = (OVER,)
    catalog.learn(BuildRecord(RECORD, status="SUCCESS"))
    assert await catalog.stages(RECORD) == (OVER,)


async def test_a_failure_is_no_news(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    source = FakeBuilds(OVER)
    source.failure = ApiUnavailable("down")
    catalog = Catalog(source, nursery)
    with pytest.raises(ApiUnavailable):
        await catalog.stages(RECORD)
    assert not catalog.fresh(RECORD)
    assert not catalog.told(RECORD)


async def test_a_record_of_which_only_the_stages_could_be_had_is_not_all_told(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    source = FakeBuilds(OVER)
    catalog = Catalog(source, nursery)
    await catalog.stages(RECORD)
    source.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await catalog.build(RECORD)
    assert catalog.fresh(RECORD)
    assert not catalog.told(RECORD)
