"""The CodeArts Build HTTP API as a few calls that return our types or raise our errors.

One ``ApiClient`` per process: it holds the connections, the pace and the credentials. GET
requests only. Redirects are followed here, not by httpx, because a redirect to another host
(object storage, say) must not carry our credentials along.
"""

import functools
import json
import logging
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar
from urllib.parse import quote

import httpx

from codeartsfs import __version__
from codeartsfs.api.auth import Credentials, one_line
from codeartsfs.api.body import RECEIVED, Chunks, Delivered, LogBody, read_at_most, trouble
from codeartsfs.api.endpoints import (
    REGIONS,
    EndpointError,
    check_endpoint,
    endpoint_for_region,
    iam_endpoint_for_region,
    is_loopback,
)
from codeartsfs.api.health import ApiState, Health, Mishap
from codeartsfs.api.pace import Pace, TemporaryFailure, parse_date, parse_retry_after
from codeartsfs.api.pages import PAGE_LINES, LogAccess, LogPages, LogPlace, open_pages
from codeartsfs.api.transport import DirectTransport
from codeartsfs.api.wire import (
    ApiMessage,
    LogPage,
    api_error_in,
    api_error_of,
    count_rows,
    parse_build_project,
    parse_jobs,
    parse_log_page,
    parse_record,
    parse_record_info,
    parse_records_page,
    parse_stages,
)
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    BuildNotFound,
    CallUnavailable,
    CodeArtsError,
    Facts,
    Forbidden,
    LogNotFound,
    NotFound,
)
from codeartsfs.model import BuildRecord, Job, LogPrefix, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId
from codeartsfs.timing import Durations

__all__ = [
    "REGIONS",
    "ApiClient",
    "ApiCounts",
    "Delivered",
    "EndpointError",
    "LogBody",
    "LogPlace",
    "endpoint_for_region",
    "iam_endpoint_for_region",
    "open_client",
]

log = logging.getLogger(__name__)

_IDLE_S = 30.0
_MOST_REDIRECTS = 5
_JSON_LIMIT_BYTES = 16 << 20
_ERROR_BODY_LIMIT_BYTES = 64 << 10
_PAGE_ROWS = 100
_MOST_PAGES = 1000
_NO_ANSWER = frozenset({502, 503, 504})  # a gateway's words
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_LOG_PATHS = ("/v4/{}/task-log", "/v1/log/{}/task-log")
_NO_RECORD = "00000000-0000-0000-0000-000000000000"
_JOB_PATHS = ("/v1/job/{}/list", "/v3/{}/jobs")
_RECORD_INFO_PATHS = ("/v1/record/{}/{}/record-info", "/v4/jobs/{}/{}/record-info")

Query = Mapping[str, str | int]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ApiCounts:
    """What the client has done since it was opened, and what it is doing now.

    Attributes:
        waited_s: how long requests were held back, by reason.
    """

    requests: int
    retries: int
    throttled: int
    logs_opened: int
    downloads_open: int
    calls_open: int
    waited_s: Mapping[str, float]


@dataclass(eq=False, slots=True)
class CallCounts:
    """What became of the requests of one kind of call.

    Attributes:
        answers: how often by the first digit of the HTTP status, ``2xx``; ``none`` for no answer.
        durations: from sending a request to the head of its answer.
        received_bytes: of bodies, as they come.
    """

    answers: Counter[str] = field(default_factory=Counter)
    durations: Durations = field(default_factory=Durations)
    received_bytes: int = 0

    def receive(self, count: int) -> None:
        self.received_bytes += count

    def copy(self) -> "CallCounts":
        return replace(self, answers=self.answers.copy(), durations=self.durations.copy())


@dataclass(frozen=True, slots=True)
class ApiTrouble:
    """What went wrong, last and now.

    Attributes:
        refused: our credentials were, and nothing was answered since.
        asks_again_in_s: while the API is not asked: when one request will be let pass.
    """

    last_failure: Mishap | None
    last_refusal: Mishap | None
    refused: bool
    asks_again_in_s: float | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whatever it was, to one small question.

    Attributes:
        told: What was asked and what came back, in one line.
        status: Of HTTP, or what the API wraps in a success.
        published: Whether this host has such a call.
        dated_s: The server's clock, in seconds since the epoch; None where it does not tell.
        came_s: When that was by ours.
    """

    told: str
    status: int
    published: bool
    dated_s: float | None
    came_s: float


@asynccontextmanager
async def open_client(
    *,
    endpoint: str,
    credentials: Credentials | None,
    pace: Pace,
    ca_file: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    first_byte_timeout_s: float = 60,
    idle_timeout_s: float = 15,
    connect_timeout_s: float = 5,
) -> AsyncIterator["ApiClient"]:
    """Open the client of one endpoint; its connections close with the context.

    Proxies of the environment are used, except to this machine itself.

    Args:
        endpoint: ``https://host[:port]``; http for loopback only.
        credentials: Who we are, None to ask without credentials.
        pace: Caps and retry policy.
        ca_file: PEM file of certificate authorities to trust beside the usual ones.
        transport: Replaces the network, for tests.
        first_byte_timeout_s: Wait for the beginning of an answer.
        idle_timeout_s: Longest silence within a body.
        connect_timeout_s: Wait for a connection.

    Raises:
        EndpointError: ``endpoint`` or ``ca_file`` cannot be used.
    """
    base = check_endpoint(endpoint)
    _keep_headers_out_of_logs()
    # Pace bounds the connections; a second bound could only make requests wait twice.
    most_idle = pace.max_downloads + pace.max_calls
    async with httpx.AsyncClient(
        transport=transport or DirectTransport(trust(ca_file), most_idle=most_idle, idle_s=_IDLE_S),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        headers={"User-Agent": f"codeartsfs/{__version__}", "Accept": "*/*"},
        timeout=httpx.Timeout(
            connect=connect_timeout_s, read=first_byte_timeout_s, write=idle_timeout_s, pool=None
        ),
    ) as http:
        yield ApiClient(http, base, credentials, pace, idle_timeout_s)


def trust(ca_file: str | None) -> ssl.SSLContext:
    """Return who may vouch for the API: the usual ones, and those in a file.

    Raises:
        EndpointError: there are none in it.
    """
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            unusable = "no certificates in it"
            reason = unusable if isinstance(error, ssl.SSLError) else error.strerror
            raise EndpointError(f"CA file {ca_file}: {reason}") from None
    return context


def _keep_headers_out_of_logs() -> None:
    """At DEBUG httpcore logs response headers, IAM's token among them; httpx logs whole URLs."""
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


class ApiClient:
    """Calls of one CodeArts Build endpoint; made by ``open_client``.

    All calls raise, beside what they name themselves: AccessDenied, ApiUnavailable (after all
    retries), CallUnavailable, BadAnswer. Messages name method, path, status, the API's code
    and words, and the request id; never a secret.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        base: str,
        credentials: Credentials | None,
        pace: Pace,
        idle_timeout_s: float,
    ) -> None:
        self._http = http
        self._base = base
        self._credentials = credentials
        self._pace = pace
        self._idle_timeout_s = idle_timeout_s
        self._health = Health()
        self._published: dict[tuple[str, ...], str] = {}
        self._first_page = 0
        self._build_projects: dict[str, str] = {}  # by job id
        self._log_access = LogAccess()
        self._logs_opened = 0
        self._counts: defaultdict[str, CallCounts] = defaultdict(CallCounts)

    @property
    def statistics(self) -> ApiCounts:
        counts = self._pace.counts()
        return ApiCounts(
            requests=counts.requests,
            retries=counts.retries,
            throttled=counts.throttled,
            logs_opened=self._logs_opened,
            downloads_open=self._pace.downloads_open,
            calls_open=self._pace.calls_open,
            waited_s=counts.waited_s,
        )

    @property
    def state(self) -> ApiState:
        """How the API is, as the last requests saw it."""
        return self._health.state

    @property
    def trouble(self) -> ApiTrouble:
        health = self._health
        return ApiTrouble(
            health.last_failure, health.last_refusal, health.refused, health.asks_again_in_s
        )

    def calls(self) -> dict[str, CallCounts]:
        """Return what became of the requests so far, by kind of call."""
        return {call: counts.copy() for call, counts in self._counts.items()}

    @property
    def honours_ranges(self) -> bool:
        """Whether the server was not seen to ignore ``Range`` for logs that grow."""
        return self._log_access.ranges is not False

    def task_log(
        self,
        key: LogKey,
        after: LogPrefix | None = None,
        delivered: Delivered | None = None,
        *,
        place: LogPlace | None = None,
    ) -> AbstractAsyncContextManager[LogBody]:
        """Open one log; its bytes are read by iterating over what the context gives.

        Args:
            key: Which log.
            after: What is here already: iteration begins behind it.
            delivered: Tells the hash of what was delivered, should it have to be compared with what
                comes again; where nobody does, it is computed on the way.
            place: Where it can be had by offset while it grows, should ranges not be honoured.

        Raises:
            LogNotFound: the API has no such record, stage or level (400 or 404).
        """
        return self._task_log(key, after, delivered, place)

    @asynccontextmanager
    async def _task_log(
        self,
        key: LogKey,
        after: LogPrefix | None,
        delivered: Delivered | None,
        place: LogPlace | None,
    ) -> AsyncIterator[LogBody]:
        def absent(detail: str) -> NotFound:
            return LogNotFound(key, detail)

        def judge(message: ApiMessage, response: httpx.Response) -> Exception:
            return self._enveloped(message, response, absent, no_log_on_400=True)

        async def send(headers: Mapping[str, str]) -> httpx.Response:
            return await self._send_log(key, headers, absent)

        async def pages(offset: int, tail: bytes) -> LogPages | None:
            if place is None or key.level is not LogLevel.INFO:  # of which level pages are
                return None
            fetch = functools.partial(self._log_page, place)
            return await open_pages(self._log_access, place, fetch, offset, tail)

        body = LogBody(key, self._pace, send, judge, self._log_access, pages, after, delivered)
        try:
            with self._health_noted(str(key)):
                await body.start()
            self._logs_opened += 1
            yield body
        finally:
            await body.aclose()

    async def _send_log(
        self, key: LogKey, headers: Mapping[str, str], absent: Callable[[str], NotFound]
    ) -> httpx.Response:
        query = {"task_name": key.stage.name, "log_level": key.level.value}
        good = {200, 206, 416} if "Range" in headers else {200}

        async def ask(path: str) -> httpx.Response:
            response = await self._exchange(
                "task_log", path, query, {"Accept-Encoding": "identity", **headers}
            )
            kind = response.headers.get("Content-Type", "").strip().lower()
            if response.status_code in good and not kind.startswith("text/html"):
                return response
            raise await self._failure(response, absent, no_log_on_400=True)

        return await self._at_published_path(_LOG_PATHS, (key.record,), ask)

    async def _log_page(self, place: LogPlace, step: int, offset: int) -> LogPage:
        query: Query = {
            "job_id": place.job_id,
            "build_no": place.build_no,
            "step_id": step,
            "start_offset": offset,
            "end_offset": 0,
            "size": PAGE_LINES,
        }
        absent = _nothing(f"no step {step} of build {place.build_no} of job {place.job_id}")
        return parse_log_page(await self._json("log_page", "/v1/log/task/step", query, absent))

    async def ask_once(self, project_id: str | None) -> Reply:
        """Ask for as little as possible, without retries: one job, or a record that is none.

        Raises:
            TemporaryFailure: there is no answer at all.
        """
        if project_id is None:
            return await self._ask_once("record", f"/v1/record/{_NO_RECORD}/info", {})
        for path in _JOB_PATHS:
            query = {"page_index": 0, "page_size": 1}
            reply = await self._ask_once("jobs", path.format(quote(project_id, safe="")), query)
            if reply.published:
                break
        return reply

    async def _ask_once(self, call: str, path: str, query: Query) -> Reply:
        response = await self._exchange(call, path, query, {})
        came_s = time.time()
        chunks = Chunks(response, f"GET {path}")
        try:
            message = api_error_in(await read_at_most(chunks, _ERROR_BODY_LIMIT_BYTES))
        finally:
            await chunks.aclose()
        return Reply(
            told=self._told(response, "", message),
            status=(message.status if message else None) or response.status_code,
            published=not (message and message.not_published),
            dated_s=parse_date(response.headers.get("Date")),
            came_s=came_s,
        )

    async def stages(self, record: RecordId) -> tuple[StageRun, ...]:
        """Return the stages of a record, in running order.

        Raises:
            BuildNotFound: there is no such record.
        """
        path = f"/v1/record/{record}/full-stages"
        return parse_stages(await self._json("full_stages", path, {}, _no_build(record)))

    async def record(self, record: RecordId) -> BuildRecord:
        """Return what the API says of a record.

        Raises:
            BuildNotFound: there is no such record.
        """
        return parse_record(
            await self._json("record", f"/v1/record/{record}/info", {}, _no_build(record))
        )

    async def record_by_number(self, job_id: str, build_no: int) -> BuildRecord:
        """Return the record of one run of a job.

        Raises:
            NotFound: there is no such job or run.
        """

        async def ask(path: str) -> BuildRecord:
            absent = _nothing(f"no build {build_no} of job {job_id}")
            return parse_record_info(await self._json("record_info", path, {}, absent))

        return await self._at_published_path(_RECORD_INFO_PATHS, (job_id, str(build_no)), ask)

    async def jobs(self, project_id: str) -> tuple[Job, ...]:
        """Return all jobs of a CodeArts project (not: IAM project).

        Raises:
            NotFound: there is no such project.
        """

        async def ask(path: str) -> tuple[Job, ...]:
            found: dict[str, Job] = {}
            for page in range(_MOST_PAGES):
                payload = await self._json(
                    "jobs",
                    path,
                    {"page_index": page, "page_size": _PAGE_ROWS},
                    _nothing(f"no CodeArts project {project_id}"),
                )
                new = {job.job_id: job for job in parse_jobs(payload) if job.job_id not in found}
                found |= new
                if not new or count_rows(payload) < _PAGE_ROWS:
                    break
            return tuple(found.values())

        return await self._at_published_path(_JOB_PATHS, (project_id,), ask)

    async def builds(self, job: Job, limit: int) -> tuple[BuildRecord, ...]:
        """Return up to ``limit`` records of a job, newest first.

        Raises:
            NotFound: there is no such job.
        """
        build_project_id = job.build_project_id or self._build_projects.get(job.job_id)
        if build_project_id is None:  # not every region's list of jobs tells it
            path = f"/v1/job/{quote(job.job_id, safe='')}/info"
            payload = await self._json("job", path, {}, _nothing(f"no job {job.job_id}"))
            build_project_id = self._build_projects[job.job_id] = parse_build_project(payload)
        return await self.records(build_project_id, limit)

    async def records(self, build_project_id: str, limit: int) -> tuple[BuildRecord, ...]:
        """Return up to ``limit`` records of a job, newest first.

        Raises:
            NotFound: there is no such job.
        """
        path = f"/v1/record/{quote(build_project_id, safe='')}/records"
        absent = _nothing(f"no job with build project {build_project_id}")
        rows = max(1, min(limit, _PAGE_ROWS))
        found: dict[RecordId, BuildRecord] = {}
        for page in range(self._first_page, _MOST_PAGES):
            try:
                payload = await self._json("records", path, {"page": page, "limit": rows}, absent)
            except _BadRequest:
                if page > 0:
                    raise
                continue  # the documents count from 1, their examples from 0
            new = [record for record in parse_records_page(payload) if record.record not in found]
            if page == 1 and new and not found:
                self._first_page = 1
            found |= {record.record: record for record in new}
            # Page 0 may be empty, or the same as page 1, where pages count from 1.
            at_end = not new and page > 1 if found else page > 0
            short = bool(found) and count_rows(payload) < rows
            enough = len(found) >= limit and not _oldest_first(list(found.values()))
            if at_end or short or enough:
                break
        return tuple(sorted(found.values(), key=_age)[:limit])

    async def _at_published_path(
        self,
        paths: tuple[str, ...],
        parts: tuple[str, ...],
        ask: Callable[[str], Awaitable[_T]],
    ) -> _T:
        """Ask at the path known to be published here, else at each until one is."""
        known = self._published.get(paths)
        missing: CallUnavailable | None = None
        for path in sorted(paths, key=lambda path: path != known):
            try:
                answer = await ask(path.format(*(quote(part, safe="") for part in parts)))
            except CallUnavailable as error:
                missing = error
            except NotFound:
                self._published[paths] = path
                raise
            else:
                self._published[paths] = path
                return answer
        assert missing is not None
        raise missing

    @contextmanager
    def _health_noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ApiUnavailable, AccessDenied) as failure:
            self._health.gave_up(what, failure)
            raise

    async def _json(
        self, call: str, path: str, query: Query, absent: Callable[[str], NotFound]
    ) -> object:
        """Return the parsed body of a call that answers with JSON, retries included."""
        attempts = self._pace.start()
        with self._health_noted(path):
            while True:
                try:
                    with await self._pace.call_permit():
                        return await self._json_once(call, path, query, absent)
                except TemporaryFailure as failure:
                    await attempts.after(failure)

    async def _json_once(
        self, call: str, path: str, query: Query, absent: Callable[[str], NotFound]
    ) -> object:
        response = await self._exchange(call, path, query, {"Accept-Encoding": "gzip"})
        if response.status_code != 200:
            raise await self._failure(response, absent)
        chunks = Chunks(response, f"GET {path}")
        try:
            body = await read_at_most(chunks, _JSON_LIMIT_BYTES)
        finally:
            await chunks.aclose()
        if len(body) > _JSON_LIMIT_BYTES:
            raise self._bad(response, "more JSON than 16 MiB")
        try:
            payload: object = json.loads(body)
        except (ValueError, RecursionError):
            kind = response.headers.get("Content-Type", "of unknown type")
            raise self._bad(response, f"not JSON but {kind}") from None
        message = api_error_of(payload)
        if message is not None:
            raise self._enveloped(message, response, absent)
        return payload

    async def _exchange(
        self, call: str, path: str, query: Query, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Send one GET and return the response to it, body unread, redirects followed.

        Args:
            call: the kind of call that its requests are counted under.

        Raises:
            TemporaryFailure: no answer, for reasons that may pass.
        """
        async with self._health.admitted():
            return await self._send(call, path, query, headers)

    async def _send(
        self, call: str, path: str, query: Query, headers: Mapping[str, str]
    ) -> httpx.Response:
        asked = path + canonical_query(query)
        what, url = f"GET {asked}", httpx.URL(self._base + asked)
        credentials = self._credentials
        counts = self._counts[call]
        for _ in range(_MOST_REDIRECTS + 1):
            request = self._http.build_request("GET", url, headers=dict(headers))
            # What a redirect leads to is somebody else's address, which may hold secrets.
            request.extensions["asked"] = what
            await self._pace.admit()
            began = time.monotonic()
            try:
                response = await self._http.send(
                    request, auth=credentials, stream=True, follow_redirects=False
                )
            except httpx.HTTPError as error:
                counts.answers["none"] += 1
                failure = self._hushed(trouble(error, what))
                if isinstance(failure, TemporaryFailure):
                    failure.no_answer = True
                    self._health.unanswered(failure)
                raise failure from None
            except UnicodeError:  # httpx reads Location whether or not it is to follow it
                raise BadAnswer(f"{what}: redirected to what is no host name") from None
            took_s = time.monotonic() - began
            counts.durations.add(took_s)
            counts.answers[f"{response.status_code // 100}xx"] += 1
            response.extensions[RECEIVED] = counts.receive
            if log.isEnabledFor(logging.DEBUG):
                log.debug(
                    "%s: HTTP %d after %.0f ms (request %s)",
                    what,
                    response.status_code,
                    took_s * 1000,
                    self._request_id(response),
                )
            if response.status_code not in _NO_ANSWER | {401}:
                self._health.answered()
            elif response.status_code in _NO_ANSWER:
                failure = TemporaryFailure(self._told(response, ""))
                failure.facts = self._facts(response)
                self._health.unanswered(failure)
            # From here on silence means a stall. The transport looks this up as it reads.
            response.request.extensions.get("timeout", {})["read"] = self._idle_timeout_s
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return response
            await Chunks(response, what).aclose()
            target = self._redirect_target(response, url)
            if _origin(target) != _origin(url):
                credentials = None  # and for good, even if a later hop leads back
            url = target
        raise BadAnswer(f"{what}: more than {_MOST_REDIRECTS} redirects")

    def _redirect_target(self, response: httpx.Response, url: httpx.URL) -> httpx.URL:
        try:
            target = url.join(response.headers["Location"])
            target.host.encode("idna")  # as the resolver will
        except (httpx.InvalidURL, UnicodeError):
            raise self._bad(response, "redirected to what is no URL") from None
        in_the_clear = target.scheme == "http" and (
            url.scheme == "https" or not is_loopback(target.host)
        )
        if in_the_clear or target.scheme not in {"http", "https"} or not target.host:
            raise self._bad(response, "redirected to an address that is not https")
        return target

    async def _failure(
        self,
        response: httpx.Response,
        absent: Callable[[str], NotFound],
        *,
        no_log_on_400: bool = False,
    ) -> Exception:
        """Close a response that is not what was asked for, and say what it means."""
        chunks = Chunks(response, "error body")
        try:
            body = await read_at_most(chunks, _ERROR_BODY_LIMIT_BYTES)
        except (TemporaryFailure, BadAnswer):
            body = b""  # the status says enough
        finally:
            await chunks.aclose()
        message = api_error_in(body) or ApiMessage("", response.reason_phrase)
        status = response.status_code
        failure = self._verdict(status, message, response, absent, no_log_on_400=no_log_on_400)
        failure.facts = self._facts(response, message)
        return failure

    def _enveloped(
        self,
        message: ApiMessage,
        response: httpx.Response,
        absent: Callable[[str], NotFound],
        *,
        no_log_on_400: bool = False,
    ) -> Exception:
        """Say what an error that came with HTTP 200 means: what it would with its own status."""
        status = message.status
        if status is None:
            failure: CodeArtsError | TemporaryFailure
            failure = ApiUnavailable(self._told(response, "", message))
        else:
            failure = self._verdict(status, message, response, absent, no_log_on_400=no_log_on_400)
        failure.facts = self._facts(response, message)
        return failure

    def _verdict(
        self,
        status: int,
        message: ApiMessage,
        response: httpx.Response,
        absent: Callable[[str], NotFound],
        *,
        no_log_on_400: bool,
    ) -> CodeArtsError | TemporaryFailure:
        told = self._told(response, "", message)
        if message.not_published:
            return CallUnavailable(told)
        if status in {401, 403}:
            return Forbidden(told) if status == 403 else AccessDenied(told)
        if status == 404 or (status == 400 and no_log_on_400):
            return absent(told)
        if status == 429 or status >= 500 or message.throttled:
            return TemporaryFailure(
                told,
                retry_after_s=parse_retry_after(response.headers.get("Retry-After")),
                throttled=status == 429 or message.throttled,
                no_answer=status in _NO_ANSWER,
            )
        if status == 400:
            return _BadRequest(told)
        return ApiUnavailable(told) if status > 400 else BadAnswer(told)

    def _told(
        self, response: httpx.Response, remark: str, message: ApiMessage | None = None
    ) -> str:
        """One line on what was asked and what came back."""
        said = f"{message.code} {message.message}".strip() if message else ""
        asked = response.request.extensions["asked"]
        host = response.request.url.netloc.decode()
        elsewhere = f" at {host}" if host != httpx.URL(self._base).netloc.decode() else ""
        text = f"{asked}{elsewhere}: HTTP {response.status_code} {remark}".rstrip()
        # The request id comes before words of any length, so that cutting never loses it.
        request_id = self._request_id(response, message)
        return one_line(f"{text} (request {request_id}) {said}", self._redact)

    def _facts(self, response: httpx.Response, message: ApiMessage | None = None) -> Facts:
        code = one_line(message.code, self._redact) if message else ""
        return {
            "asked": response.request.extensions["asked"],
            "status": response.status_code,
            "request_id": self._request_id(response, message),
            **({"code": code} if code else {}),
        }

    def _request_id(self, response: httpx.Response, message: ApiMessage | None = None) -> str:
        given = message.request_id if message else ""
        return one_line(response.headers.get("X-Request-Id") or given or "unknown", self._redact)

    def _bad(self, response: httpx.Response, remark: str) -> BadAnswer:
        failure = BadAnswer(self._told(response, remark))
        failure.facts = self._facts(response)
        return failure

    def _hushed(self, error: Exception) -> Exception:
        return type(error)(one_line(str(error), self._redact))

    def _redact(self, text: str) -> str:
        return self._credentials.redact(text) if self._credentials else text


class _BadRequest(ApiUnavailable):
    """HTTP 400: asking the same again is useless, asking otherwise may not be."""


def canonical_query(query: Query) -> str:
    """Return a query as signatures want it: sorted, a space as ``%20``; empty or with its ``?``."""
    pairs = sorted((quote(k, safe="~"), quote(str(v), safe="~")) for k, v in query.items())
    return "?" + "&".join(f"{name}={value}" for name, value in pairs) if pairs else ""


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return (url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme))


def _no_build(record: RecordId) -> Callable[[str], NotFound]:
    return lambda detail: BuildNotFound(record, detail)


def _nothing(what: str) -> Callable[[str], NotFound]:
    return lambda detail: NotFound(f"{what}: {detail}")


def _age(record: BuildRecord) -> tuple[int, int]:
    return (-(record.created_ns or record.started_ns or 0), -(record.build_no or 0))


def _oldest_first(records: list[BuildRecord]) -> bool:
    """Whether a list came in the order that puts what we want at its very end."""
    return len(records) > 1 and _age(records[0]) > _age(records[-1])
