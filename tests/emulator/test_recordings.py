"""The recordings in the package are what they claim to be: real, complete, and fit to be shown."""

import json
import lzma
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import codeartsfs.emulator
from codeartsfs.model import BuildRecord, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage, parse_record_id

RECORDINGS = Path(codeartsfs.emulator.__file__).with_name("recordings")
RECORDED = sorted(path.parent for path in RECORDINGS.glob("*/record.json"))
LIVE = sorted(path.parent for path in RECORDINGS.glob("*/live.json"))
C_EXTENSION = RecordId("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")

LINE = re.compile(
    rb"\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} GMT\+08:00\] (?:\$ \S.*|\[(?:INFO|DEBUG|ERROR)\] .*)"
)
STAMP = slice(1, 24)
HOST = re.compile(rb"://(?:[^\s/@:\"']+@)?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)")
SHOWN_HOSTS = {
    b"registry.example",
    b"github.com",
    b"docs.python.org",
    b"gnu.org",
    b"www.gnu.org",
    b"example.com",
}
SECRET = re.compile(
    rb"(?i)gh[pousr]_\w{20}|npm_\w{30}|AKIA\w{12}|bearer \S{8}|_authtoken|x-auth-token: *\S"
    rb"|-----BEGIN [A-Z ]*PRIVATE|://[^\s/@:]+:[^\s/@]+@"
)
LOCAL_PATH = re.compile(rb"(?<!\w)/(?:root|work|Users)/|(?<!/workspace)/home/\w|/record-builds-")

each_recorded = pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
each_live = pytest.mark.parametrize("folder", LIVE, ids=lambda folder: folder.name)


def document(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def logs(folder: Path) -> Iterator[tuple[LogKey, bytes]]:
    record = parse_record_id(folder.name)
    assert record is not None
    for path in sorted(folder.glob("*.log.xz")):
        key = LogKey.parse(record, path.name.removesuffix(".xz"))
        assert key is not None, path
        yield key, lzma.decompress(path.read_bytes())


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def ns(text: str | None) -> int | None:
    at = moment(text)
    return None if at is None else round(at.timestamp() * 1000) * 1_000_000


def record_of(folder: Path) -> tuple[BuildRecord, list[StageRun]]:
    parts = document(folder / "record.json")
    record, job = parts["record"], parts["job"]
    record_id = parse_record_id(record["record_id"])
    assert record_id == folder.name
    stages = []
    for entry in parts["stages"]:
        stage = Stage.parse(entry["stage"])
        assert stage is not None, entry
        stages.append(
            StageRun(
                stage=stage,
                display_name=entry["display_name"],
                sequence=entry["sequence"],
                status=entry["status"],
                created_ns=ns(entry["created"]),
                started_ns=ns(entry["started"]),
                finished_ns=ns(entry["finished"]),
                duration_ms=entry["duration_ms"],
            )
        )
    build = BuildRecord(
        record=record_id,
        build_no=record["build_no"],
        build_project_id=job["build_project_id"],
        status=record["status"],
        created_ns=ns(record["created"]),
        started_ns=ns(record["started"]),
        finished_ns=ns(record["finished"]),
        duration_ms=record["duration_ms"],
        branch=record["branch"],
        revision=record["revision"],
        trigger=record["trigger"],
    )
    return build, stages


def assert_job_is_identified(job: dict[str, str]) -> None:
    assert set(job) == {"job_id", "name", "build_project_id", "project_id"}
    assert re.fullmatch(r"[0-9a-z]{32}", job["job_id"])
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job["build_project_id"])
    assert re.fullmatch(r"[0-9a-f]{32}", job["project_id"])
    assert job["name"]


def test_the_documented_builds_are_there() -> None:
    assert RECORDINGS / C_EXTENSION in RECORDED
    assert len(RECORDED) >= 5
    assert len(LIVE) >= 1


def test_recordings_weigh_less_than_five_megabytes() -> None:
    total_bytes = sum(path.stat().st_size for path in RECORDINGS.rglob("*") if path.is_file())
    assert total_bytes < 5_000_000


def test_nothing_but_recordings_is_in_their_folder() -> None:
    allowed = re.compile(r"record\.json|live\.json|stage\d+\.(info|debug)\.log\.xz")
    for path in RECORDINGS.rglob("*"):
        assert path.is_dir() or allowed.fullmatch(path.name), path
    assert set(RECORDINGS.iterdir()) == {*RECORDED, *LIVE}


@each_recorded
def test_record_parses_into_a_build_that_is_over(folder: Path) -> None:
    build, stages = record_of(folder)
    assert_job_is_identified(document(folder / "record.json")["job"])
    assert build.final
    assert build.started_ns is not None
    assert build.finished_ns is not None
    assert build.started_ns < build.finished_ns
    assert build.duration_ms is not None
    assert all(stage.final for stage in stages)
    assert [stage.sequence for stage in stages] == list(range(len(stages)))
    names = [str(stage.stage) for stage in stages]
    assert names == ["initial", *(f"stage{n}" for n in range(1, len(stages) - 1)), "final"]
    assert stages == sorted(stages, key=lambda stage: stage.stage.order)


@each_recorded
def test_status_of_a_build_follows_from_its_stages(folder: Path) -> None:
    build, stages = record_of(folder)
    words = [stage.status for stage in stages[1:-1]]
    if build.status == "SUCCESS":
        assert set(words) == {"SUCCESS"}
    else:
        assert build.status == "FAILURE"
        failed = words.index("FAILURE")
        assert set(words[:failed]) <= {"SUCCESS"}
        assert set(words[failed + 1 :]) <= {"ABORTED"}


@each_recorded
def test_every_stage_that_ran_has_both_logs_and_no_other_has_one(folder: Path) -> None:
    build, stages = record_of(folder)
    ran = [s for s in stages[1:-1] if s.status != "ABORTED"]
    expected = {LogKey(build.record, stage.stage, level) for stage in ran for level in LogLevel}
    assert {key for key, _ in logs(folder)} == expected
    assert len(ran) >= 3


@each_recorded
def test_debug_log_holds_the_info_log_and_more(folder: Path) -> None:
    content = dict(logs(folder))
    for key, info in content.items():
        if key.level is LogLevel.DEBUG:
            continue
        debug = content[LogKey(key.record, key.stage, LogLevel.DEBUG)]
        assert len(info) < len(debug), key
        without_detail = [line for line in debug.split(b"\n") if b"] [DEBUG] " not in line[:45]]
        assert without_detail == info.split(b"\n"), key


@each_recorded
def test_every_line_has_the_form_of_a_codearts_log(folder: Path) -> None:
    for key, content in logs(folder):
        assert content.endswith(b"\n"), key
        assert b"\r" not in content, key
        lines = content.removesuffix(b"\n").split(b"\n")
        for line in lines:
            assert LINE.fullmatch(line), (key, line)
        assert lines == sorted(lines, key=lambda line: line[STAMP]), f"{key}: times run backwards"
        assert sum(line[36:].startswith(b"$ ") for line in lines) >= 1, key
        content.decode("utf-8")


@each_recorded
def test_lines_are_timed_within_their_stage(folder: Path) -> None:
    _, stages = record_of(folder)
    times = {s.stage: (s.started_ns, s.finished_ns) for s in stages}
    for key, content in logs(folder):
        lines = content.removesuffix(b"\n").split(b"\n")
        started_ns, finished_ns = times[key.stage]
        assert started_ns is not None
        assert finished_ns is not None
        for line in (lines[0], lines[-1]):
            at = datetime.strptime(line[STAMP].decode(), "%Y/%m/%d %H:%M:%S.%f")
            offset = timedelta(hours=8)
            at_ns = round((at - datetime(1970, 1, 1) - offset).total_seconds() * 1000) * 10**6
            assert started_ns <= at_ns <= finished_ns, (key, line)


@each_recorded
def test_logs_name_no_registry_no_secret_and_no_local_path(folder: Path) -> None:
    texts = [content for _, content in logs(folder)]
    texts.append((folder / "record.json").read_bytes())
    for text in texts:
        assert set(HOST.findall(text)) <= SHOWN_HOSTS
        assert not SECRET.search(text)
        assert not LOCAL_PATH.search(text)


def test_one_build_failed_after_stages_that_did_not_and_says_why() -> None:
    failed = [folder for folder in RECORDED if record_of(folder)[0].status == "FAILURE"]
    assert failed
    for folder in failed:
        _, stages = record_of(folder)
        broken = next(stage.stage for stage in stages if stage.status == "FAILURE")
        info = next(
            content
            for key, content in logs(folder)
            if key.stage == broken and key.level is LogLevel.INFO
        )
        assert b"error" in info
        assert b"[ERROR] command ended with exit status" in info


def test_one_job_has_both_a_good_and_a_failed_build() -> None:
    outcomes: dict[str, set[str]] = {}
    for folder in RECORDED:
        job_id = document(folder / "record.json")["job"]["job_id"]
        outcomes.setdefault(job_id, set()).add(record_of(folder)[0].status)
    assert {"SUCCESS", "FAILURE"} in outcomes.values()


def test_one_log_is_larger_than_twenty_megabytes() -> None:
    sizes = {key: len(content) for folder in RECORDED for key, content in logs(folder)}
    assert max(sizes.values()) > 20_000_000


def test_some_stages_have_chinese_names() -> None:
    names = {stage.display_name for folder in RECORDED for stage in record_of(folder)[1]}
    assert "执行shell命令" in names


def test_all_jobs_belong_to_one_project_and_number_their_builds_apart() -> None:
    documents = [document(f / "record.json") for f in RECORDED]
    jobs = [parts["job"] for parts in documents] + [document(f / "live.json")["job"] for f in LIVE]
    assert len({job["project_id"] for job in jobs}) == 1
    numbered = {(d["job"]["job_id"], d["record"]["build_no"]) for d in documents}
    assert len(numbered) == len(documents)


@each_live
def test_live_build_can_be_run_by_any_python(folder: Path) -> None:
    assert parse_record_id(folder.name)
    live = document(folder / "live.json")
    assert_job_is_identified(live["job"])
    assert isinstance(live["branch"], str)
    assert len(live["stages"]) >= 3
    for number, stage in enumerate(live["stages"], 1):
        assert Stage.parse(stage["stage"]) == Stage(f"stage{number}")
        assert stage["display_name"]
        program, *words = stage["command"]
        assert program == "{python}"
        # The emulator echoes the command as one line of the log.
        assert all(word.isprintable() for word in words)
        if "-c" in words:
            compile(words[words.index("-c") + 1], stage["stage"], "exec")
    text = (folder / "live.json").read_bytes()
    assert not HOST.search(text)
    assert not SECRET.search(text)
    assert not LOCAL_PATH.search(text)
