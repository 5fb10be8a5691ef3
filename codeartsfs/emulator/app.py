"""The routes of the CodeArts Build API and of IAM, as a starlette application.

Every call passes one gateway, which counts it, lets faults strike, checks who calls, and only
then asks a handler; handlers answer from the library and raise `ApiFailure` for the rest.
Under ``/_emulator`` sit the controls of the emulator itself.
"""

import json
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from codeartsfs.api.wire import (
    TimeForm,
    parse_time,
    render_envelope,
    render_jobs,
    render_record,
    render_record_info,
    render_records_page,
    render_stages,
    render_time,
)
from codeartsfs.emulator.bodies import (
    Body,
    BodyReply,
    LogBody,
    TextBody,
    gzipped,
    parse_range,
    zipped,
)
from codeartsfs.emulator.faults import (
    BUILD_CALLS,
    CALLS,
    IAM_CALLS,
    LOG_CALLS,
    FaultPlan,
    Faults,
    UnknownFault,
)
from codeartsfs.emulator.iam import Accounts, BadRequest, Iam, Unauthorized
from codeartsfs.emulator.jobs import LOG_ZONE
from codeartsfs.emulator.library import (
    Build,
    Clock,
    Library,
    LiveBuild,
    created_between,
    created_ns,
)
from codeartsfs.emulator.signature import SignedRequest
from codeartsfs.model import StageRun
from codeartsfs.names import LogKey, LogLevel, Stage, parse_record_id

JSON = "application/json;charset=UTF-8"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PAGE_LINES = 1000
PAGE_BYTES = 1 << 20

# The vendor lists no code for an unknown record or stage; only the 404 is relied upon.
NO_SUCH_THING = "CB.00060204"


class ApiFailure(Exception):
    """An answer other than success: HTTP status, error code, text, and headers to add."""

    def __init__(
        self, status: int, code: str, text: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Call:
    """One call that has passed the gateway."""

    kind: str
    request: Request
    faults: Faults
    body: bytes

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def text(self, name: str) -> str | None:
        return self.request.query_params.get(name)

    def texts(self, name: str) -> list[str]:
        return self.request.query_params.getlist(name)

    def flag(self, name: str) -> bool:
        return self.text(name) == "true"

    def number(self, name: str, default: int | None, low: int = 0, high: int = 2**63) -> int:
        """Return a number of the query; a default of None says that it is required."""
        text = self.text(name)
        if text is None and default is not None:
            return default
        return _number(name, text, low, high)

    def moment_ns(self, name: str) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        moment = parse_time(text)
        if moment is None:
            raise _bad_parameter(f"{name} must be yyyy-MM-dd HH:mm:ss")
        return moment

    def level(self) -> LogLevel:
        try:
            return LogLevel(self.text("log_level") or "INFO")
        except ValueError:
            raise _bad_parameter("log_level must be INFO or DEBUG") from None


Handler = Callable[[Call], Awaitable[BodyReply]]


def build_app(library: Library, faults: FaultPlan, accounts: Accounts, clock: Clock) -> Starlette:
    """Return the emulator as an ASGI application; it runs on trio only.

    Live builds need `Library.run_live_builds` beside it, which `server.serve` sees to.
    """
    return _Emulator(library, faults, accounts, clock).app()


class _Emulator:
    def __init__(
        self, library: Library, faults: FaultPlan, accounts: Accounts, clock: Clock
    ) -> None:
        self._library = library
        self._iam = Iam(accounts, clock)
        self._clock = clock
        self._calls: Counter[str] = Counter()
        self._plan = faults
        self._apply(faults)

    def app(self) -> Starlette:
        published: list[tuple[str, str, Handler]] = [
            ("task_log", "/v4/{record_id}/task-log", self._task_log),
            ("task_log", "/v1/log/{record_id}/task-log", self._task_log),
            ("download_log", "/v4/{record_id}/download-log", self._download_log),
            ("download_log", "/v1/log/{record_id}/download-log", self._download_log),
            ("full_stages", "/v1/record/{record_id}/full-stages", self._full_stages),
            ("record", "/v1/record/{record_id}/info", self._record),
            ("records", "/v1/record/{build_project_id}/records", self._records),
            ("build_info_records", "/v1/record/{job_id}/list", self._build_info_records),
            ("record_info", "/v1/record/{job_id}/{build_no}/record-info", self._record_info),
            ("record_info", "/v4/jobs/{job_id}/{build_no}/record-info", self._record_info),
            ("jobs", "/v1/job/{project_id}/list", self._jobs),
            ("jobs", "/v3/{project_id}/jobs", self._jobs),
            ("running_status", "/v1/job/{job_id}/running-status", self._running_status),
            ("history", "/v3/jobs/{job_id}/history", self._history),
            (
                "history_details",
                "/v3/jobs/{job_id}/{build_no}/history-details",
                self._history_details,
            ),
            ("log_page", "/v1/log/task/step", self._running_step),
            ("log_page", "/v1/log/task/page", self._finished_step),
            ("log_page", "/v1/log/stage/page", self._finished_build),
            ("log_page", "/v1/log/{job_id}/{build_no}/real-time-log", self._running_build),
            ("real_time_log", "/v3/jobs/{job_id}/{build_no}/real-time-log", self._real_time_log),
            ("analysis", "/v1/log/{job_id}/{build_no}/analysis", self._analysis),
            ("iam_projects", "/v3/projects", self._iam_projects),
        ]
        posted: list[tuple[str, str, Handler]] = [
            ("iam_tokens", "/v3/auth/tokens", self._iam_tokens),
            ("iam_temporary_keys", "/v3.0/OS-CREDENTIAL/securitytokens", self._iam_keys),
        ]
        routes = [
            Route(path, self._gateway(kind, handler), methods=[method])
            for method, table in (("GET", published), ("POST", posted))
            for kind, path, handler in table
        ]
        for route in routes:
            if route.methods:  # starlette adds HEAD to GET; the API has no such method
                route.methods.discard("HEAD")
        routes += [
            Route("/_emulator/faults", self._control_faults, methods=["GET", "POST"]),
            Route("/_emulator/calls", self._control_calls, methods=["GET", "DELETE"]),
            Route("/_emulator/grow", self._control_grow, methods=["POST"]),
            Route("/{path:path}", self._not_published, methods=METHODS),
        ]
        app = Starlette(routes=routes)
        app.router.redirect_slashes = False
        app.state.library = self._library
        return app

    # --- the gateway --------------------------------------------------------------------------

    def _gateway(self, kind: str, handler: Handler) -> Callable[[Request], Awaitable[BodyReply]]:
        async def endpoint(request: Request) -> BodyReply:
            faults = self._plan.of(kind)
            try:
                self._check_published(request, faults)
                self._calls[kind] += 1
                await trio.sleep(faults.delay)
                body = await request.body()
                if kind in BUILD_CALLS:
                    self._iam.admit(_as_signed(request, body), ahead_s=faults.clock_ahead)
                self._strike(kind, faults)
                if self._plan.take(kind, "fail_envelope"):
                    return self._json(kind, faults, _FAIL_ENVELOPE)
                return await handler(Call(kind, request, faults, body))
            except ApiFailure as failure:
                return self._failure(kind, failure)
            except Unauthorized as refused:
                return self._failure(kind, ApiFailure(401, refused.code, refused.text))
            except BadRequest as error:
                return self._failure(kind, ApiFailure(400, "", str(error)))

        return endpoint

    def _check_published(self, request: Request, faults: Faults) -> None:
        path = request.url.path
        if (
            faults.no_stages
            or (faults.no_v4 and path.startswith("/v4/"))
            or (faults.no_v1_log and path.startswith("/v1/log/"))
        ):
            self._calls["unpublished"] += 1
            raise _unpublished()

    def _strike(self, kind: str, faults: Faults) -> None:
        if self._plan.take(kind, "throttle"):
            wait_s = faults.retry_after
            raise ApiFailure(
                429,
                "APIGW.0308",
                "The throttling threshold has been reached: policy user over ratelimit,"
                "limit:5,time:1 minute",
                {} if wait_s is None else {"Retry-After": f"{wait_s:g}"},
            )
        if self._plan.take(kind, "bad_gateway"):
            raise ApiFailure(502, "html", "<html><body><h1>502 Bad Gateway</h1></body></html>")
        if self._plan.take(kind, "error500"):
            raise ApiFailure(500, "CB.00060101", "Internal error.")
        if self._plan.take(kind, "busy"):
            raise ApiFailure(500, "CB.00060211", "Too many requests. Try again later.")
        if faults.forbid_stages or self._plan.take(kind, "forbid"):
            raise ApiFailure(403, "APIGW.0302", "The IAM user is not allowed to access the API")

    async def _not_published(self, request: Request) -> BodyReply:
        self._calls["unpublished"] += 1
        return self._failure("unpublished", _unpublished())

    # --- replies ------------------------------------------------------------------------------

    def _failure(self, kind: str, failure: ApiFailure) -> BodyReply:
        request_id = uuid.uuid4().hex
        document: dict[str, Any]
        if failure.code == "html":
            content_type, text = "text/html", failure.text
        else:
            content_type = JSON
            if kind in IAM_CALLS:
                title = {400: "Bad Request", 401: "Unauthorized"}.get(failure.status, "Error")
                document = {
                    "error": {"code": failure.status, "message": failure.text, "title": title}
                }
            else:
                document = {"error_code": failure.code, "error_msg": failure.text}
                if failure.code.startswith("APIGW."):
                    document["request_id"] = request_id
            text = json.dumps(document, ensure_ascii=False)
        body = TextBody(text.encode())
        headers = {"Content-Type": content_type, "X-Request-Id": request_id, **failure.headers}
        return BodyReply(failure.status, headers, body, (0, body.size))

    def _json(
        self,
        kind: str,
        faults: Faults,
        document: object,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> BodyReply:
        # UTF-8 has no half of a surrogate pair; its backslash escape is that of JSON too.
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")
        body = TextBody(text)
        return self._reply(
            kind, faults, body, {"Content-Type": JSON, **(headers or {})}, (0, body.size), status
        )

    def _answer(self, call: Call, document: object) -> BodyReply:
        if call.faults.numbers is not None:
            document = _spelled(document, {"int": int, "str": str}[call.faults.numbers])
        return self._json(call.kind, call.faults, document)

    def _reply(
        self,
        kind: str,
        faults: Faults,
        body: Body,
        headers: Mapping[str, str],
        window: tuple[int, int],
        status: int,
    ) -> BodyReply:
        half = next((how for how in ("cut", "stall") if self._plan.take(kind, how)), None)
        return BodyReply(
            status,
            {"X-Request-Id": uuid.uuid4().hex, **headers},
            body,
            window,
            declare_length=not faults.no_content_length,
            half=half,
            bytes_per_s=faults.slow,
            on_sent=self._count_bytes if kind in LOG_CALLS else lambda count: None,
        )

    def _count_bytes(self, count: int) -> None:
        self._calls["bytes"] += count

    async def _log(self, call: Call, body: Body, name: str) -> BodyReply:
        """Send a log the way the call and the faults want it."""
        headers = {"Content-Type": "application/octet-stream"}
        if self._plan.take(call.kind, "empty"):
            body.close()
            body = TextBody(b"")
        if call.request.url.path.startswith("/v1/log/") and call.flag("compress"):
            # The older paths do not know the parameter, and ignore it.
            body = await (gzipped(body) if call.faults.compress == "gzip" else zipped(body, name))
        status, window = 200, (0, body.size)
        if call.faults.gzip and "gzip" in call.request.headers.get("accept-encoding", ""):
            body = await gzipped(body)
            window = (0, body.size)
            headers["Content-Encoding"] = "gzip"
        elif call.faults.range:
            headers["Accept-Ranges"] = "bytes"
            wanted = parse_range(call.request.headers.get("range"), body.size)
            if wanted is not None:
                first, end = wanted
                if first >= body.size:
                    size = body.size
                    body.close()
                    raise ApiFailure(
                        416,
                        "APIGW.0201",
                        "The range cannot be satisfied",
                        {"Content-Range": f"bytes */{size}"},
                    )
                status, window = 206, wanted
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{body.size}"
        return self._reply(call.kind, call.faults, body, headers, window, status)

    # --- logs ---------------------------------------------------------------------------------

    async def _task_log(self, call: Call) -> BodyReply:
        build = self._build(call)
        name = call.text("task_name")
        if not name or len(name) > 1000:
            raise _bad_parameter("task_name must have 1 to 1000 characters")
        stage = Stage.parse(name)
        level = call.level()
        if stage is None or (name in ("initial", "final") and not call.faults.initial_final_logs):
            raise _no_such(f"log of {name}")
        key = LogKey(build.record().record, stage, level)
        file = await build.open_log(key)
        if file is None:
            raise _no_such(f"log of {name}")
        return await self._log(call, LogBody.of([file]), key.file_name)

    async def _download_log(self, call: Call) -> BodyReply:
        body = await self._library.open_logs(self._build(call), call.level())
        return await self._log(call, body, "build.log")

    async def _running_step(self, call: Call) -> BodyReply:
        lines = call.number("size", None, 1)
        return await self._step_page(call, lines)

    async def _finished_step(self, call: Call) -> BodyReply:
        return await self._step_page(call, PAGE_LINES)

    async def _step_page(self, call: Call, lines: int) -> BodyReply:
        build = self._numbered(call.text("job_id"), call.text("build_no"))
        step = call.number("step_id", None)
        run = next((r for r in build.stages() if r.sequence == step), None)
        if run is None:
            raise _no_such(f"step {step}")
        file = await build.open_log(LogKey(build.record().record, run.stage, LogLevel.INFO))
        body = LogBody.of([] if file is None else [file])
        start, end = call.number("start_offset", None), call.number("end_offset", None)
        return self._log_page(call, body, start, end, lines, growing=not run.final)

    async def _finished_build(self, call: Call) -> BodyReply:
        build = self._numbered(call.text("job_id"), call.text("build_no"))
        start, end = call.number("start_offset", None), call.number("end_offset", None)
        return await self._build_page(call, build, start, end, PAGE_LINES)

    async def _running_build(self, call: Call) -> BodyReply:
        build = self._numbered(call.path("job_id"), call.path("build_no"))
        start, end = call.number("start_offset", 0), call.number("end_offset", 0)
        return await self._build_page(call, build, start, end, call.number("size", None, 1))

    async def _build_page(
        self, call: Call, build: Build, start: int, end: int, lines: int
    ) -> BodyReply:
        growing = not build.record().final
        body = await self._library.open_logs(build, LogLevel.INFO)
        return self._log_page(call, body, start, end, lines, growing)

    def _log_page(
        self, call: Call, body: LogBody, start: int, end: int, lines: int, growing: bool
    ) -> BodyReply:
        """Answer with up to ``lines`` lines from byte ``start``; an ``end`` of 0 is no bound."""
        limit = min(end, body.size) if end else body.size
        data = _read_all(body, start, min(limit, start + PAGE_BYTES))
        body.close()
        kept = data.splitlines(keepends=True)[:lines]
        if growing and kept and not kept[-1].endswith(b"\n"):
            kept.pop()  # its other half is yet to come
        log = b"".join(kept)
        reached = start + len(log)
        if call.text("sort") == "DESC":
            log = b"".join(reversed(kept))
        spell: Callable[[int], int | str] = str if call.faults.offsets == "str" else int
        result = {
            "has_more": reached < limit or growing,
            "start_offset": spell(start),
            "end_offset": spell(reached),
            "log": log.decode("utf-8", "replace"),
            "location": "jenkins",
        }
        return self._answer(call, render_envelope(result))

    async def _real_time_log(self, call: Call) -> BodyReply:
        build = self._numbered(call.path("job_id"), call.path("build_no"))
        offset = call.number("offset", None)
        length = call.number("length", 1_000_000, 1)
        growing = not build.record().final
        body = await self._library.open_logs(build, LogLevel.INFO)
        size = body.size
        data = _read_all(body, offset, min(size, offset + length))
        body.close()
        content, used = _whole_characters(data)
        result = {
            "content": content,
            "offset": offset + used,
            "current_offset": offset,
            "has_more_data": offset + used < size or growing,
        }
        return self._answer(call, render_envelope(result))

    async def _analysis(self, call: Call) -> BodyReply:
        build = self._numbered(call.path("job_id"), call.path("build_no"))
        limit, offset = call.number("limit", 10, 1, 100), call.number("offset", 0)
        nodes = []
        for run in build.stages():
            if run.status == "FAILURE":
                file = await build.open_log(LogKey(build.record().record, run.stage, LogLevel.INFO))
                message = "" if file is None else _last_line(LogBody.of([file]))
                nodes.append(
                    {
                        "node_id": run.sequence,
                        "step": run.display_name,
                        "analyzed_success": True,
                        "error_info": {"error_code": "", "error_message": message, "faq": ""},
                    }
                )
        result = {"jobName": build.job.name, "error_nodes": nodes[offset : offset + limit]}
        return self._answer(call, render_envelope(result))

    # --- records and jobs ---------------------------------------------------------------------

    async def _full_stages(self, call: Call) -> BodyReply:
        build = self._build(call)
        record = build.record().record
        return self._answer(call, render_stages(build.stages(), record, call.faults.time_form))

    async def _record(self, call: Call) -> BodyReply:
        build = self._build(call)
        return self._answer(call, render_record(build.record(), call.faults.time_form))

    async def _records(self, call: Call) -> BodyReply:
        page, limit = call.number("page", 1), call.number("limit", 10, 1, 100)
        since, until = call.moment_ns("from_date"), call.moment_ns("to_date")
        branches, triggers = call.texts("branches"), call.texts("triggers")
        builds = self._library.of_build_project(call.path("build_project_id"))
        builds = created_between(builds, since, until)
        if branches or triggers:
            builds = [
                build
                for build in builds
                if (not branches or build.record().branch in branches)
                and (not triggers or build.record().trigger in triggers)
            ]
        if call.faults.order == "oldest":
            builds = builds[::-1]
        total = len(builds) if call.faults.total is None else call.faults.total
        first = max(0, page - call.faults.page_base) * limit
        chosen = [build.record() for build in builds[first : first + limit]]
        return self._answer(
            call, render_records_page(chosen, page, limit, total, call.faults.time_form)
        )

    async def _record_info(self, call: Call) -> BodyReply:
        build = self._numbered(call.path("job_id"), call.path("build_no"))
        record, job_id = build.record(), build.job.job_id
        return self._answer(call, render_record_info(record, job_id, call.faults.time_form))

    async def _jobs(self, call: Call) -> BodyReply:
        index = call.number("page_index", None, 0, 10**9 - 1)
        size = call.number("page_size", None, 1, 100)
        search, status = call.text("search") or "", call.text("build_status")
        jobs = [
            job
            for job in self._library.jobs(call.path("project_id"))
            if search in job.name and status in (None, job.last_status)
        ]
        if call.text("sort_order") == "DESC":
            jobs.reverse()
        answer = render_jobs(jobs[index * size : (index + 1) * size], len(jobs))
        if call.faults.jobs == "enveloped":
            answer = render_envelope({"job_list": answer["jobs"], "total": answer["total"]})
        return self._answer(call, answer)

    async def _history(self, call: Call) -> BodyReply:
        offset, limit = call.number("offset", 0), call.number("limit", 10, 1, 100)
        days = call.number("interval", 7, 1, 30)
        since_ns = int((self._clock() - days * 86400) * 1e9)
        builds = self._builds_of_job(call.path("job_id"))
        recent = created_between(builds, since_ns, None)
        rows = [
            {
                # Not the record's id: the vendor's own example has the daily number here.
                "record_id": _daily_number(build, builds),
                "job_id": build.job.job_id,
                "build_number": build.record().build_no,
                "start_time": render_time(build.record().started_ns, TimeForm.ISO_ZONE),
                "end_time": render_time(build.record().finished_ns, TimeForm.ISO_ZONE),
                "result": build.record().status,
            }
            for build in recent[offset : offset + limit]
        ]
        return self._answer(call, {"history_records": rows, "total": len(recent)})

    async def _history_details(self, call: Call) -> BodyReply:
        build = self._numbered(call.path("job_id"), call.path("build_no"))
        details: dict[str, object] = {
            "job_name": build.job.name,
            "build_number": build.record().build_no,
            "project_id": build.job.project_id,
            "project_name": "",
            "parameters": {},
            "build_steps": [_build_step(run) for run in build.stages()],
        }
        return self._answer(call, details)

    async def _running_status(self, call: Call) -> BodyReply:
        last = self._builds_of_job(call.path("job_id"))[0].record()
        result = {
            "last_job_id": call.path("job_id"),
            "last_build_no": str(last.build_no),
            "last_build_status": last.status,
            "is_running": not last.final,
        }
        return self._answer(call, render_envelope(result))

    async def _build_info_records(self, call: Call) -> BodyReply:
        since, until = call.moment_ns("start_time"), call.moment_ns("end_time")
        if since is None or until is None:
            raise _bad_parameter("start_time and end_time are required")
        index, size = call.number("page_index", 0), call.number("page_size", 10, 1, 100)
        builds = self._builds_of_job(call.path("job_id"))
        chosen = created_between(builds, since, until)
        states = []
        for build in chosen[index * size : (index + 1) * size]:
            record = build.record()
            started = render_time(record.started_ns, TimeForm.EPOCH_MILLISECONDS)
            states.append(
                {
                    "number": record.build_no,
                    "state": record.status,
                    "start_time": started,
                    "build_time": started,
                    "cost_time": record.duration_ms,
                    "job_running_status": "Finished" if record.final else "Running",
                    "daily_build_number": _daily_number(build, builds),
                    "trigger_type": record.trigger,
                    "code_branch": record.branch,
                    "commit_id": record.revision,
                }
            )
        result = {
            "health_score": "100",
            "page_index": str(index),
            "total_page": str(-(-len(chosen) // size)),
            "total_record": str(len(chosen)),
            "job_build_states": states,
        }
        return self._answer(call, render_envelope(result))

    def _build(self, call: Call) -> Build:
        text = call.path("record_id")
        if parse_record_id(text) is None:
            raise _bad_parameter("record_id must match ^[0-9a-z-]{36}$")
        build = self._library.build(text)
        if build is None:
            raise _no_such(f"record {text}")
        return build

    def _numbered(self, job_id: str | None, build_no: str | None) -> Build:
        number = _number("build_no", build_no, 1, 2**31 - 1)
        build = self._library.numbered(job_id or "", number)
        if build is None:
            raise _no_such(f"build {number} of job {job_id}")
        return build

    def _builds_of_job(self, job_id: str) -> Sequence[Build]:
        builds = self._library.of_job(job_id)
        if not builds:
            raise ApiFailure(400, "CB.00060201", f"Invalid job id: {job_id}")
        return builds

    # --- IAM ----------------------------------------------------------------------------------

    async def _iam_tokens(self, call: Call) -> BodyReply:
        token, answer = self._iam.issue_token(_parsed(call.body), not call.flag("nocatalog"))
        headers = {"X-Subject-Token": token, "X-IAM-Trace-Id": uuid.uuid4().hex}
        return self._json(call.kind, call.faults, answer, 201, headers)

    async def _iam_keys(self, call: Call) -> BodyReply:
        answer = self._iam.issue_temporary_key(
            _parsed(call.body), call.request.headers.get("x-auth-token")
        )
        return self._json(call.kind, call.faults, answer, 201)

    async def _iam_projects(self, call: Call) -> BodyReply:
        self._iam.admit(_as_signed(call.request, call.body), needs_project=False)
        return self._answer(call, self._iam.projects(call.text("name")))

    # --- controls -----------------------------------------------------------------------------

    def _apply(self, plan: FaultPlan) -> None:
        self._plan = plan
        self._iam.expire_tokens(any(plan.of(call).expire_token for call in CALLS))

    async def _control_faults(self, request: Request) -> BodyReply:
        if request.method == "POST":
            try:
                words = _parsed(await request.body())
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise UnknownFault("a JSON list of strings is wanted")
                self._apply(FaultPlan(words))
            except (BadRequest, UnknownFault) as error:
                return _control_reply({"error": str(error)}, 400)
        return _control_reply(list(self._plan.words))

    async def _control_calls(self, request: Request) -> BodyReply:
        if request.method == "DELETE":
            self._calls.clear()
        counts = {name: self._calls[name] for name in (*sorted(CALLS), "unpublished", "bytes")}
        counts["total"] = sum(self._calls.values()) - self._calls["bytes"]
        return _control_reply(counts)

    async def _control_grow(self, request: Request) -> BodyReply:
        try:
            wanted = _parsed(await request.body())
            build = self._library.build(wanted["record"])
            if not isinstance(build, LiveBuild):
                raise ValueError(f"{wanted['record']} is not a live record")
            level = wanted.get("level")
            build.grow(
                wanted["stage"],
                wanted.get("append", ""),
                list(LogLevel) if level is None else [LogLevel(level)],
                wanted.get("status", "SUCCESS") if wanted.get("finish") else None,
                rewrite=bool(wanted.get("rewrite")),
            )
        except (BadRequest, KeyError, TypeError, ValueError, AttributeError) as error:
            return _control_reply({"error": str(error)}, 400)
        return _control_reply({"final": build.record().final})


def _control_reply(document: object, status: int = 200) -> BodyReply:
    body = TextBody(json.dumps(document).encode())
    return BodyReply(status, {"Content-Type": JSON}, body, (0, body.size))


_FAIL_ENVELOPE = {
    "status": "fail",
    "error": {"code": "CB.00060101", "reason": "Internal error."},
    "result": None,
}


def _as_signed(request: Request, body: bytes) -> SignedRequest:
    scope = request.scope
    headers = tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])
    return SignedRequest(scope["method"], scope["raw_path"], scope["query_string"], headers, body)


def _bad_parameter(text: str) -> ApiFailure:
    return ApiFailure(400, "CB.00060200", text)


def _no_such(what: str) -> ApiFailure:
    return ApiFailure(404, NO_SUCH_THING, f"No such {what}")


def _unpublished() -> ApiFailure:
    return ApiFailure(404, "APIGW.0101", "The API does not exist or has not been published")


def _number(name: str, text: str | None, low: int, high: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise _bad_parameter(f"{name} must be a number from {low} to {high}")
    return int(text)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadRequest("the request body is not JSON") from error


# Those of the fields that count something; times are not among them.
_COUNTS = frozenset(
    {
        "build_no",
        "sequence",
        "duration",
        "build_duration",
        "pending_duration",
        "page",
        "limit",
        "total",
    }
)


def _spelled(document: object, spell: Callable[[Any], int | str]) -> object:
    """Return a document with all that is counted in it spelled in one way."""
    if isinstance(document, list):
        return [_spelled(value, spell) for value in document]
    if not isinstance(document, dict):
        return document
    return {
        key: spell(value) if key in _COUNTS and value is not None else _spelled(value, spell)
        for key, value in document.items()
    }


def _read_all(body: Body, start: int, end: int) -> bytes:
    pieces = []
    while start < end:
        piece = body.read(start, end - start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _whole_characters(data: bytes) -> tuple[str, int]:
    """Return the text of UTF-8 bytes up to a character cut off at the end, and its bytes."""
    for missing in range(min(4, len(data))):
        piece = data[: len(data) - missing]
        try:
            return piece.decode(), len(piece)
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace"), len(data)


def _last_line(body: LogBody) -> str:
    tail = _read_all(body, max(0, body.size - 4096), body.size)
    body.close()
    lines = tail.decode("utf-8", "replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def _daily_number(build: Build, builds_of_job: Sequence[Build]) -> str:
    at_ns = created_ns(build.record())
    day = datetime.fromtimestamp(at_ns // 10**9, LOG_ZONE).replace(hour=0, minute=0, second=0)
    so_far = created_between(builds_of_job, int(day.timestamp()) * 10**9, at_ns)
    return f"{day:%Y%m%d}.{len(so_far)}"


def _build_step(run: StageRun) -> dict[str, object]:
    words = {"SUCCESS": "success", "RUNNING": "running", "FAILURE": "error"}
    return {
        "name": run.display_name,
        "status": words.get(run.status, ""),
        "build_time": run.duration_ms,
    }
