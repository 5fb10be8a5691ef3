"""The API's JSON and our types, both ways; pure, and tolerant of what the API leaves vague.

Reading accepts every spelling the vendor's documents show: numbers as text, seven time
formats, bodies with and without an envelope, keys that are missing, null or unknown. What is
not even the right shape raises ``BadAnswer``. Writing is for the emulator, and produces the
form the official SDK understands; reading what was written gives the same value back.

Times are nanoseconds since the epoch (UTC), durations milliseconds.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import TypeAlias

from codeartsfs.errors import BadAnswer
from codeartsfs.model import BuildRecord, Job, StageRun
from codeartsfs.names import RecordId, Stage, parse_record_id

JsonObject: TypeAlias = dict[str, object]

# --- times ------------------------------------------------------------------------------------

_CHINA = timezone(timedelta(hours=8))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Later than any nanosecond that 64 bits can count means "never", as 9999-12-31 does.
_END_OF_TIME_NS = 2**63
_END_OF_TIME_MS = _END_OF_TIME_NS // 1_000_000
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_ISO_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9})\d*)?"
    r" ?(?:(Z)|(?:GMT)?([+-])(\d\d):?(\d\d))?",
    re.ASCII,
)
_JAVA_TIME = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) (\d{1,2}) (\d\d):(\d\d):(\d\d)"
    r" (CST|UTC|GMT)(?:([+-])(\d\d):?(\d\d))? (\d{4})",
    re.ASCII,
)


# Documented as 32 of [0-9a-z]; it becomes part of paths and of file names.
_JOB_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class TimeForm(Enum):
    """The forms in which the API writes one and the same kind of time."""

    ISO_MILLISECONDS = "2025-03-04T05:06:07.000+00:00"
    ISO_ZONE_WITHOUT_COLON = "2025-03-04T05:06:07+0800"
    ISO_ZONE = "2025-03-04T05:06:07+08:00"
    JAVA = "Tue Mar 04 13:06:07 CST 2025"
    NO_ZONE = "2025-03-04 05:06:07"
    EPOCH_MILLISECONDS = "1741064767000"
    ISO_MICROSECONDS = "2025-03-04T05:06:07.123000Z"


def parse_time(value: object) -> int | None:
    """Return a time in nanoseconds since the epoch, None for whatever is not one.

    Numbers are epoch milliseconds. Text without a zone is taken as +08:00, and so is the CST
    of Java's date text, which here means China. Zero and times before the epoch are how
    servers spell "never": None. Never raises.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        if not 0 < value < _END_OF_TIME_MS:
            return None
        return int(value) * 1_000_000 if value >= 1 else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return parse_time(int(text)) if len(text) <= 15 else None
    try:
        return _parse_iso_time(text) or _parse_java_time(text)
    except (ValueError, OverflowError):
        return None


def _parse_iso_time(text: str) -> int | None:
    match = _ISO_TIME.fullmatch(text)
    if match is None:
        return None
    *date, fraction, zulu, sign, zone_hours, zone_minutes = match.groups()
    zone = UTC if zulu else _zone(sign, zone_hours, zone_minutes, default=_CHINA)
    year, month, day, hour, minute, second = map(int, date)
    nanoseconds = int((fraction or "0").ljust(9, "0"))
    return _since_epoch(datetime(year, month, day, hour, minute, second, tzinfo=zone), nanoseconds)


def _parse_java_time(text: str) -> int | None:
    match = _JAVA_TIME.fullmatch(text)
    if match is None or match[1] not in _MONTHS:
        return None
    zone = _zone(match[7], match[8], match[9], default=_CHINA if match[6] == "CST" else UTC)
    month = _MONTHS.index(match[1]) + 1
    day, hour, minute, second, year = (int(match[n]) for n in (2, 3, 4, 5, 10))
    return _since_epoch(datetime(year, month, day, hour, minute, second, tzinfo=zone), 0)


def _zone(sign: str | None, hours: str, minutes: str, *, default: timezone) -> timezone:
    if sign is None:
        return default
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(-offset if sign == "-" else offset)


def _since_epoch(moment: datetime, nanoseconds: int) -> int | None:
    total = (moment - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + nanoseconds
    return total if 0 < total < _END_OF_TIME_NS else None


def render_time(ns: int | None, form: TimeForm = TimeForm.ISO_MILLISECONDS) -> str | int | None:
    """Write a time in one of the API's forms, cut to what the form can hold; None stays None."""
    if ns is None:
        return None
    moment = _EPOCH + timedelta(microseconds=ns // 1000)
    china = moment.astimezone(_CHINA)
    match form:
        case TimeForm.ISO_MILLISECONDS:
            return moment.isoformat(timespec="milliseconds")
        case TimeForm.ISO_ZONE_WITHOUT_COLON:
            return china.isoformat(timespec="seconds").replace("+08:00", "+0800")
        case TimeForm.ISO_ZONE:
            return china.isoformat(timespec="seconds")
        case TimeForm.JAVA:
            weekday, month = _WEEKDAYS[china.weekday()], _MONTHS[china.month - 1]
            return f"{weekday} {month} {china:%d %H:%M:%S} CST {china.year:04}"
        case TimeForm.NO_ZONE:
            return china.replace(tzinfo=None).isoformat(" ", timespec="seconds")
        case TimeForm.EPOCH_MILLISECONDS:
            return ns // 1_000_000
        case TimeForm.ISO_MICROSECONDS:
            return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- reading ----------------------------------------------------------------------------------


def parse_stages(payload: object) -> tuple[StageRun, ...]:
    """Read the answer of ``full-stages``, in running order.

    The map's own order means nothing. Stages are sorted by ``sequence`` where every one has
    it, else by name. Keys that are no stage names are skipped.

    Raises:
        BadAnswer: there is no ``build_stages`` map in it.
    """
    result = _result(payload, "stages")
    if "build_stages" not in result:
        raise BadAnswer("the stages answer has no build_stages")
    stages = result["build_stages"]
    if stages is None:
        return ()
    if not isinstance(stages, dict):
        raise BadAnswer(f"build_stages is {_kind(stages)}, not an object")
    runs = {}
    for key, value in stages.items():
        fields = _object({} if value is None else value, f"stage {key!r}")
        stage = Stage.parse(str(key)) or Stage.parse(_text(fields, "execution_stage_name"))
        if stage is not None:
            runs[stage] = _stage_run(stage, fields)
    return in_running_order(runs.values())


def in_running_order(runs: Iterable[StageRun]) -> tuple[StageRun, ...]:
    """Sort stages by ``sequence`` where every one has it, else by name."""
    runs = tuple(runs)
    if any(run.sequence is None for run in runs):
        return tuple(sorted(runs, key=lambda run: run.stage.order))
    return tuple(sorted(runs, key=lambda run: (run.sequence or 0, run.stage.order)))


def _stage_run(stage: Stage, fields: JsonObject) -> StageRun:
    return StageRun(
        stage=stage,
        display_name=_text(fields, "display_name"),
        sequence=_int(fields, "sequence"),
        status=_text(fields, "status"),
        created_ns=parse_time(fields.get("create_time")),
        started_ns=parse_time(fields.get("start_time")),
        finished_ns=parse_time(fields.get("finish_time")),
        duration_ms=_int(fields, "duration"),
    )


def parse_record(payload: object) -> BuildRecord:
    """Read the answer of ``/v1/record/{id}/info``.

    Raises:
        BadAnswer: it is no object, or its ``id`` cannot be a record id.
    """
    return _record(_result(payload, "record"))


def parse_records_page(payload: object) -> tuple[BuildRecord, ...]:
    """Read one page of the records list, in the order of the page.

    Rows whose ``id`` cannot be a record id are left out (the vendor shows daily numbers in its
    place), so a page may have more rows than this returns; ``count_rows`` counts them all.

    Raises:
        BadAnswer: there is no ``data`` list in it, or a row is no object.
    """
    rows = [_object(row, "row of the records list") for row in _record_rows(payload)]
    return tuple(_record(row) for row in rows if parse_record_id(_text(row, "id")))


def count_rows(payload: object) -> int:
    """Count the rows of one page of the records or the jobs list, usable or not."""
    if isinstance(_result(payload, "list").get("data"), list):
        return len(_record_rows(payload))
    return len(_job_rows(payload))


def _record_rows(payload: object) -> list[object]:
    return _rows(_result(payload, "records"), "data")


def _record(fields: JsonObject) -> BuildRecord:
    record = parse_record_id(_text(fields, "id"))
    if record is None:
        raise BadAnswer(f"the record answer has no usable id: {_short(fields.get('id'))}")
    kind = fields.get("build_record_type")
    return BuildRecord(
        record=record,
        build_no=_int(fields, "build_no", "number", "build_number"),
        build_project_id=_text(fields, "project_id", "build_project_id"),
        status=_text(fields, "status"),
        created_ns=parse_time(fields.get("create_time")),
        started_ns=parse_time(fields.get("start_time")),
        finished_ns=parse_time(fields.get("finish_time")),
        duration_ms=_int(fields, "duration"),
        branch=_text(fields, "branch"),
        revision=_text(fields, "revision"),
        trigger=_text(fields, "trigger_type")
        or (_text(kind, "trigger_type") if isinstance(kind, dict) else "")
        or _text(fields, "trigger_name"),
    )


def parse_record_info(payload: object) -> BuildRecord:
    """Read the answer of ``record-info``, which names one run by job and build number.

    Its ``id`` keys the info row; the record id of logs and stages is ``build_record_id``.

    Raises:
        BadAnswer: it is no object, or its ``build_record_id`` cannot be a record id.
    """
    fields = _result(payload, "record-info")
    record = parse_record_id(_text(fields, "build_record_id"))
    if record is None:
        raise BadAnswer(
            "the record-info answer has no usable build_record_id: "
            f"{_short(fields.get('build_record_id'))}"
        )
    return BuildRecord(
        record=record,
        build_no=_int(fields, "build_no", "number", "build_number"),
        build_project_id=_text(fields, "build_project_id"),
        status=_text(fields, "status"),
        created_ns=parse_time(fields.get("create_time")),
        started_ns=parse_time(fields.get("start_time")),
        finished_ns=parse_time(fields.get("finish_time")),
        duration_ms=_int(fields, "duration"),
        branch=_text(fields, "branch"),
        revision=_text(fields, "commit"),
        trigger=_text(fields, "trigger_type"),
    )


def parse_jobs(payload: object) -> tuple[Job, ...]:
    """Read one page of the jobs list: flat, or as ``jobs`` or ``job_list`` in an envelope.

    Rows without a usable id are left out; ``count_rows`` counts them.

    Raises:
        BadAnswer: there is no list of jobs in it, or a row is no object.
    """
    rows = [_object(row, "row of the jobs list") for row in _job_rows(payload)]
    return tuple(
        Job(
            job_id=_text(row, "id", "job_id"),
            name=_text(row, "job_name", "name"),
            build_project_id=_text(row, "build_project_id"),
            last_build_ns=parse_time(row.get("last_build_time")),
            last_status=_text(row, "last_build_status"),
        )
        for row in rows
        if _JOB_ID.fullmatch(_text(row, "id", "job_id"))
    )


def parse_build_project(payload: object) -> str:
    """Read the build project of a job from the answer of ``/v1/job/{job_id}/info``.

    Raises:
        BadAnswer: there is none in it.
    """
    build_project_id = _text(_result(payload, "job"), "project_id", "build_project_id")
    if not build_project_id:
        raise BadAnswer("the job answer has no build project")
    return build_project_id


@dataclass(frozen=True, slots=True)
class LogPage:
    """A piece of a log that grows: its text and where the next piece begins."""

    log: str
    end_offset: int


def parse_log_page(payload: object) -> LogPage:
    """Read the answer of ``/v1/log/task/step``; offsets come as numbers or as text.

    Raises:
        BadAnswer: there is no text or no offset in it.
    """
    result = _result(payload, "log page")
    text, end_offset = result.get("log"), _int(result, "end_offset")
    if text is None:
        text = ""
    if not isinstance(text, str) or end_offset is None:
        raise BadAnswer("the log page has no log or no end_offset")
    return LogPage(text, end_offset)


def _job_rows(payload: object) -> list[object]:
    fields = _result(payload, "jobs")
    return _rows(fields, "job_list" if "jobs" not in fields else "jobs")


def _result(payload: object, what: str) -> JsonObject:
    """The object inside the ``status, error, result`` envelope, or the body itself without one."""
    body = _object(payload, f"{what} answer")
    return _object(body["result"], f"result of the {what} answer") if "result" in body else body


def _rows(fields: JsonObject, key: str) -> list[object]:
    rows = fields.get(key)
    if not isinstance(rows, list):
        raise BadAnswer(f"{key} is {_kind(rows)}, not a list")
    return rows


def _object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise BadAnswer(f"the {what} is {_kind(value)}, not an object")
    return value


def _text(fields: Mapping[str, object], *keys: str) -> str:
    """The first of ``keys`` that holds text or a number, as text; else an empty string."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, str) or (
            isinstance(value, int | float) and not isinstance(value, bool)
        ):
            return str(value)
    return ""


def _int(fields: Mapping[str, object], *keys: str) -> int | None:
    """The first of ``keys`` that holds a whole number, as a number or as text; else None."""
    for key in keys:
        value = fields.get(key)
        if isinstance(value, bool):
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int):
            return value if abs(value) < 2**63 else None
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
            return int(value)
    return None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "missing or null" if value is None else names.get(type(value), "a number")


def _short(value: object) -> str:
    return repr(value)[:60]


# --- errors -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiMessage:
    """What the API or its gateway says went wrong; parts it does not give are empty."""

    code: str
    message: str
    request_id: str = ""

    @property
    def not_published(self) -> bool:
        """The gateway does not know this call in this region: the twin path may work."""
        return self.code.endswith("GW.0101") or self.code == "APIG.0101"

    @property
    def throttled(self) -> bool:
        """Too many requests, whatever HTTP status it came with."""
        return self.code in {"CB.00060211", "APIGW.0308", "APIG.0308"}

    @property
    def status(self) -> int | None:
        """The HTTP status the documents give for this code, None for codes they do not list."""
        if re.fullmatch(r"[45][0-9][0-9]", self.code):
            return int(self.code)
        return _STATUS_OF_CODE.get(self.code.replace("APIG.", "APIGW."))


_STATUS_OF_CODE = {
    "CB.00060100": 500,
    "CB.00060101": 500,
    "CB.00060200": 400,
    "CB.00060201": 400,
    "CB.00060202": 400,
    "CB.00060203": 400,
    "CB.00060211": 500,
    "APIGW.0101": 404,
    "APIGW.0201": 502,
    "APIGW.0203": 504,
    "APIGW.0301": 401,
    "APIGW.0302": 403,
    "APIGW.0303": 401,
    "APIGW.0305": 401,
    "APIGW.0306": 403,
    "APIGW.0307": 401,
    "APIGW.0308": 429,
    "APIGW.0310": 403,
    "APIGW.0311": 401,
    "APIGW.0601": 500,
    "APIGW.0610": 502,
    "APIGW.0613": 503,
    "APIGW.0801": 403,
    "APIGW.0802": 403,
}

_CODE_KEYS = ("error_code", "errorCode", "errCode", "err_code", "code")
_MESSAGE_KEYS = ("error_msg", "errorMsg", "message", "reason", "msg", "title")
_BARE_ERROR_KEYS = frozenset(
    {"code", "message", "error", "status", "result", "request_id", "requestId", "success"}
)


def api_error_in(body: bytes) -> ApiMessage | None:
    """Return the error a body reports, None where it is anything else.

    A log may begin with ``{``, and may even be a JSON document: only an object with the keys
    of a documented envelope is an error. ``error`` being null, empty or ``{}`` says all is well.
    """
    if body.lstrip()[:1] != b"{":
        return None
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return api_error_of(payload)


def api_error_of(payload: object) -> ApiMessage | None:
    """``api_error_in`` for a body that is parsed already."""
    if not isinstance(payload, dict):
        return None
    request_id = _text(payload, "request_id", "requestId")
    failed = payload.get("success") is False or (
        _text(payload, "status").casefold() in {"fail", "failed", "error"}
        and ("error" in payload or "result" in payload)
    )
    for source in (payload, payload.get("error")):
        if isinstance(source, dict):
            code, message = _text(source, *_CODE_KEYS), _text(source, *_MESSAGE_KEYS)
            if source is not payload:
                reported = bool(code or message)
            else:
                reported = _has_code_and_message(payload)
            if reported:
                return ApiMessage(code, message, request_id or _text(source, "request_id"))
        elif isinstance(source, str) and source and (failed or payload.keys() <= _BARE_ERROR_KEYS):
            return ApiMessage("", source, request_id)
    if failed:
        return ApiMessage(_text(payload, *_CODE_KEYS), _text(payload, *_MESSAGE_KEYS), request_id)
    return None


def _has_code_and_message(payload: JsonObject) -> bool:
    if _text(payload, "error_code", "errorCode") and (
        "error_msg" in payload or "errorMsg" in payload
    ):
        return True
    # Two such common words are an error only where nothing else is beside them.
    both = bool(_text(payload, "code") and _text(payload, "message"))
    return both and payload.keys() <= _BARE_ERROR_KEYS and not payload.get("result")


# --- writing, for the emulator ----------------------------------------------------------------

_STATUS_CODES = {"SUCCESS": 5, "ABORTED": 8}


def render_envelope(result: object) -> JsonObject:
    """Wrap a result as the v1 calls do."""
    return {"status": "success", "error": None, "result": result}


def render_stages(
    runs: Iterable[StageRun],
    record: RecordId,
    form: TimeForm = TimeForm.ISO_MILLISECONDS,
) -> JsonObject:
    """Write the answer of ``full-stages`` for the stages of one record."""
    stages = {str(run.stage): _render_stage(run, record, form) for run in runs}
    return render_envelope({"build_stages": stages, "check_stages": None})


def _render_stage(run: StageRun, record: RecordId, form: TimeForm) -> JsonObject:
    name = str(run.stage)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{record}/{name}")),
        "execution_stage_name": name,
        "display_name": run.display_name,
        "sequence": run.sequence,
        "status": run.status,
        "status_code": _STATUS_CODES.get(run.status),
        "log_status": None,
        "node_id": None,
        "build_record_id": record,
        **_render_times(run, form),
    }


def render_record(record: BuildRecord, form: TimeForm = TimeForm.ISO_MILLISECONDS) -> JsonObject:
    """Write the answer of ``/v1/record/{id}/info``."""
    return render_envelope(_render_record(record, form))


def render_records_page(
    records: Iterable[BuildRecord],
    page: int,
    limit: int,
    total: int = -1,
    form: TimeForm = TimeForm.ISO_MILLISECONDS,
) -> JsonObject:
    """Write one page of the records list; ``total`` is -1 as in the vendor's example."""
    return render_envelope(
        {
            "pagination": {"page": page, "limit": limit, "total": total},
            "data": [_render_record(record, form) for record in records],
        }
    )


def _render_record(record: BuildRecord, form: TimeForm) -> JsonObject:
    return {
        "id": record.record,
        "status": record.status,
        "status_code": _STATUS_CODES.get(record.status),
        **_render_times(record, form),
        "project_id": record.build_project_id,
        "parameters": [],
        "branch": record.branch,
        "revision": record.revision,
        "trigger_type": record.trigger,
        "build_record_type": {"is_rerun": False, "trigger_type": record.trigger},
        "build_no": None if record.build_no is None else str(record.build_no),
    }


def render_record_info(
    record: BuildRecord, job_id: str, form: TimeForm = TimeForm.ISO_MILLISECONDS
) -> JsonObject:
    """Write the answer of ``record-info``; its ``id`` is the row's own, as in the real one."""
    return render_envelope(
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{record.record}/record-info")),
            "build_record_id": record.record,
            "build_project_id": record.build_project_id,
            "codeci_job_id": job_id,
            "build_no": record.build_no,
            "branch": record.branch,
            "commit": record.revision,
            "trigger_type": record.trigger,
            "status": record.status,
            **_render_times(record, form),
        }
    )


def _render_times(run: StageRun | BuildRecord, form: TimeForm) -> JsonObject:
    created, started, finished = run.created_ns, run.started_ns, run.finished_ns
    return {
        "create_time": render_time(created, form),
        "schedule_time": render_time(created, form),
        "queued_time": render_time(created, form),
        "start_time": render_time(started, form),
        "finish_time": render_time(finished, form),
        "duration": run.duration_ms,
        "build_duration": _milliseconds(started, finished),
        "pending_duration": _milliseconds(created, started),
    }


def _milliseconds(since: int | None, until: int | None) -> int | None:
    return None if since is None or until is None else (until - since) // 1_000_000


def render_jobs(jobs: Iterable[Job], total: int) -> JsonObject:
    """Write one page of the jobs list, flat, as the official SDK reads it."""
    return {"jobs": [_render_job(job) for job in jobs], "total": total}


def _render_job(job: Job) -> JsonObject:
    return {
        "id": job.job_id,
        "job_name": job.name,
        "build_project_id": job.build_project_id,
        "last_build_time": render_time(job.last_build_ns, TimeForm.EPOCH_MILLISECONDS),
        "last_build_status": job.last_status,
        "is_finished": job.last_status != "building",
        "disabled": False,
        "is_view": True,
    }
