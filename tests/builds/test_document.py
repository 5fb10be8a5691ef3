"""record.json: one shape for all records."""

import json

from codeartsfs.builds.document import first_failed, record_document, utc
from codeartsfs.model import BuildRecord, StageRun
from codeartsfs.names import RecordId, Stage

RECORD = RecordId("a" * 36)
MS = 1_000_000
BUILD = BuildRecord(
    RECORD, 7, "p-1", "FAILURE", 1000 * MS, 2000 * MS, 3500 * MS, 2500, "main", "abc", "PUSH"
)
RUNS = (
    StageRun(Stage("stage1"), "Maven 构建", 1, "SUCCESS", 1000 * MS, 2000 * MS, 3000 * MS, 2000),
    StageRun(Stage("stage2"), "", 2, "FAILURE"),
    StageRun(Stage("stage3"), "", 3, "FAILURE"),
)


def test_all_that_is_known_is_in_it() -> None:
    document = json.loads(record_document(RECORD, BUILD, RUNS, "web-app"))
    assert list(document) == [
        "record_id",
        "job",
        "build_number",
        "status",
        "final",
        "failed_stage",
        "branch",
        "commit",
        "trigger",
        "created_utc",
        "started_utc",
        "finished_utc",
        "duration_ms",
        "stages",
    ]
    assert document["job"] == "web-app"
    assert document["failed_stage"] == "stage2"
    assert document["finished_utc"] == "1970-01-01T00:00:03.500Z"
    assert document["duration_ms"] == 2500
    assert document["stages"][0] == {
        "stage": "stage1",
        "display_name": "Maven 构建",
        "status": "SUCCESS",
        "final": True,
        "created_utc": "1970-01-01T00:00:01.000Z",
        "started_utc": "1970-01-01T00:00:02.000Z",
        "finished_utc": "1970-01-01T00:00:03.000Z",
        "duration_ms": 2000,
    }


def test_what_is_unknown_is_null_and_no_key_is_missing() -> None:
    full = json.loads(record_document(RECORD, BUILD, RUNS, "web-app"))
    bare = json.loads(record_document(RECORD, None, None, None))
    assert list(bare) == list(full)
    assert bare["record_id"] == RECORD
    assert bare["final"] is False
    assert {bare[name] for name in bare if name not in ("record_id", "final")} == {None}
    assert json.loads(record_document(RECORD, None, (), None))["stages"] == []


def test_each_stage_is_a_line() -> None:
    lines = record_document(RECORD, BUILD, RUNS, None).decode().splitlines()
    [line] = [line for line in lines if '"stage2"' in line and "FAILURE" in line]
    assert json.loads(line.rstrip(","))["stage"] == "stage2"


def test_hostile_text_stays_text() -> None:
    runs = (StageRun(Stage("stage1"), 'a"b\n\x1b\ud800', 1, "SUCCESS"),)
    document = json.loads(record_document(RECORD, None, runs, None))
    assert document["stages"][0]["display_name"] == 'a"b\n\x1b?'


def test_the_first_failed_stage_is_one_with_logs() -> None:
    assert first_failed(RUNS) == RUNS[1]
    assert first_failed((StageRun(Stage("initial"), status="FAILURE"), RUNS[0])) is None
    assert first_failed((StageRun(Stage("stage1"), status="ABORTED"),)) is None


def test_times_are_utc_with_milliseconds() -> None:
    assert utc(None) is None
    assert utc(1_741_064_776_089_999_999) == "2025-03-04T05:06:16.089Z"
