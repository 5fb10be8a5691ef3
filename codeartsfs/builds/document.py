"""``record.json``: what the API says of a record and its stages, for people and for jq."""

import json
from datetime import UTC, datetime, timedelta

from codeartsfs.model import BuildRecord, StageRun
from codeartsfs.names import RecordId

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_json = json.JSONEncoder(ensure_ascii=False).encode


def record_document(
    record: RecordId,
    build: BuildRecord | None,
    runs: tuple[StageRun, ...] | None,
    job: str | None,
) -> bytes:
    """Render a record, keys always all there and in the same order; null is what is unknown.

    One line per value and one per stage, so that grep and diff see what belongs together.
    Times are UTC in ISO 8601 with milliseconds, durations are milliseconds.

    Args:
        build: the record itself, None where the API does not tell.
        runs: its stages, None where the API does not tell.
        job: the name of its job, None where unknown.
    """
    build = build or BuildRecord(record)
    failed = first_failed(runs or ())
    values = {
        "record_id": record,
        "job": job,
        "build_number": build.build_no,
        "status": build.status or None,
        "final": build.final,
        "failed_stage": failed and failed.stage.name,
        "branch": build.branch or None,
        "commit": build.revision or None,
        "trigger": build.trigger or None,
        **_times(build),
    }
    lines = [f'  "{name}": {_json(value)}' for name, value in values.items()]
    stages = ",\n".join(f"    {_json(_stage(run))}" for run in runs or ())
    lines.append(f'  "stages": [\n{stages}\n  ]' if stages else f'  "stages": {_json(runs)}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", "replace")


def first_failed(runs: tuple[StageRun, ...]) -> StageRun | None:
    """Return the first stage with logs that failed; it is what made the build fail."""
    return next((run for run in runs if run.failed and run.stage.numbered), None)


def utc(time_ns: int | None) -> str | None:
    """Write a time as ISO 8601 in UTC with milliseconds: ``2025-03-04T05:06:07.089Z``."""
    if time_ns is None:
        return None
    moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stage(run: StageRun) -> dict[str, object]:
    return {
        "stage": run.stage.name,
        "display_name": run.display_name or None,
        "status": run.status or None,
        "final": run.final,
        **_times(run),
    }


def _times(what: BuildRecord | StageRun) -> dict[str, object]:
    return {
        "created_utc": utc(what.created_ns),
        "started_utc": utc(what.started_ns),
        "finished_utc": utc(what.finished_ns),
        "duration_ms": what.duration_ms,
    }
