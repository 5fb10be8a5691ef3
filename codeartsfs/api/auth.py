"""Who we are to the API: a token, a signed request, or a password that IAM turns into a token.

Each kind is an ``httpx.Auth`` flow and renews itself once on 401; whatever is refused after
that is refused. Secrets live in ``Secret``, which does not print, and ``redact`` takes them
out of text that a server may have echoed.
"""

import base64
import configparser
import json
import os
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import httpx
import trio

from codeartsfs.api.endpoints import EndpointError, check_endpoint, iam_endpoint_for_region
from codeartsfs.api.pace import TemporaryFailure, parse_retry_after
from codeartsfs.api.wire import api_error_in, parse_time
from codeartsfs.errors import AccessDenied, BadAnswer, CodeArtsError, CredentialsRefused

_RENEW_BEFORE_S = 30 * 60.0
_REFUSED_FOR_S = 5 * 60.0
_RENEWAL_PAUSE_S = 60.0
_LIFETIME_IF_UNKNOWN_S = 60 * 60.0
_SHORTEST_REDACTED = 4  # replacing every "a" hides nothing and spoils the message


class CredentialsError(Exception):
    """The credentials as configured cannot be used: half given, unreadable or empty; one line."""


class Secret:
    """Text that no repr, str or format shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(***)"


@dataclass(frozen=True, slots=True)
class Scope:
    """What credentials are good for, and until when, as far as is known.

    Attributes:
        place: Such as ``IAM project cn-north-4``; empty where unknown.
        of_project: False where it is known to be no project; calls need one.
        expires_s: Seconds since the epoch.
    """

    place: str = ""
    of_project: bool = True
    expires_s: float | None = None


class Credentials(httpx.Auth):
    """What every kind of credentials has beyond the httpx flow.

    Attributes:
        kind: What it is, for people: ``token``, ``token file``, ``AK/SK`` or ``IAM password``.
        source: Where it was found, for people: names of variables, or of a file or directory.
        files: The files among that.
    """

    kind: str
    source: str = ""
    files: tuple[Path, ...] = ()

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until what is sent now is refused, where we know; it renews itself before."""
        return None

    def scope(self) -> "Scope":
        """Return what they are good for, as far as they tell themselves."""
        return Scope()

    @abstractmethod
    def secrets(self) -> Iterable[Secret]:
        """Return everything that must not be seen, as known at this moment."""

    def redact(self, text: str) -> str:
        """Return ``text`` without the secrets."""
        for secret in self.secrets():
            shown = secret.reveal()
            if len(shown) >= _SHORTEST_REDACTED:
                text = text.replace(shown, "***")
        return text

    def __repr__(self) -> str:
        return f"<{self.kind} credentials>"


class TokenAuth(Credentials):
    """A ready project-scoped IAM token in ``X-Auth-Token``.

    The token is read at the first use, when its source changed, and on a 401; only a token
    that differs from the refused one is worth a second request.

    Args:
        read: Returns the token; may raise CredentialsError.
        kind: What to call it.
        stamp: Identifies the present version of the source; a new value means: read again.
    """

    def __init__(
        self,
        read: Callable[[], str],
        *,
        kind: str = "token",
        stamp: Callable[[], object] = lambda: None,
    ) -> None:
        self.kind = kind
        self._read = read
        self._stamp = stamp
        self._seen: object = None
        self._token = Secret("")

    @staticmethod
    def from_file(path: Path) -> "TokenAuth":
        """Use the token in a file that something else renews."""

        def stamp() -> object:
            try:
                status = path.stat()
            except OSError:
                return None
            return (status.st_ino, status.st_mtime_ns, status.st_size)

        return TokenAuth(
            lambda: _header_text(_read_file(path, "token file"), f"token file {path}"),
            kind="token file",
            stamp=stamp,
        )

    def secrets(self) -> Iterable[Secret]:
        return (self._token,)

    def scope(self) -> Scope:
        try:
            return scope_of_token(self._token.reveal() or self._read())
        except CredentialsError:
            return Scope()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with the token, and once more where a 401 turns up a new token.

        Raises:
            AccessDenied: there is no token to be had.
        """
        stamp = self._stamp()
        if not self._token or stamp != self._seen:
            self._renew(stamp)
        sent = self._token
        request.headers["X-Auth-Token"] = sent.reveal()
        response = yield request
        if response.status_code == 401:
            self._renew(self._stamp())
            if self._token != sent:
                request.headers["X-Auth-Token"] = self._token.reveal()
                yield request

    def _renew(self, stamp: object) -> None:
        try:
            self._token = Secret(_header_text(self._read(), self.kind))
        except CredentialsError as error:
            # A file that is away for a moment while it is being replaced is no reason to stop.
            if not self._token:
                raise AccessDenied(str(error)) from error
        else:
            self._seen = stamp


class SignatureAuth(Credentials):
    """Requests signed with an access key, ``SDK-HMAC-SHA256``.

    The vendor's own signer does the signing. Nothing else of its package may be imported:
    its client modules write into the home directory as they load.
    """

    kind = "AK/SK"

    def __init__(
        self,
        ak: str,
        sk: str,
        security_token: str | None = None,
        project_id: str | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ak = Secret(_header_text(ak, "access key"))
        self._sk = Secret(sk)
        self._security_token = (
            Secret(_header_text(security_token, "security token")) if security_token else None
        )
        self._project_id = _header_text(project_id, "project id") if project_id else None
        self._now = now

    def secrets(self) -> Iterable[Secret]:
        known = (self._ak, self._sk, self._security_token)
        return tuple(secret for secret in known if secret is not None)

    def scope(self) -> Scope:
        return Scope(f"IAM project {self._project_id}" if self._project_id else "")

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign the request as it stands: host, content type and all headers of our own."""
        request.headers["X-Sdk-Date"] = self._now().strftime("%Y%m%dT%H%M%SZ")
        if self._project_id:
            request.headers["X-Project-Id"] = self._project_id
        if self._security_token:
            request.headers["X-Security-Token"] = self._security_token.reveal()
        signed = {
            name: value
            for name, value in request.headers.items()
            if name in {"host", "content-type"} or name.startswith("x-")
        }
        request.headers["Authorization"] = self.authorization(
            request.method, request.url, signed, request.content
        )
        yield request

    def authorization(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], body: bytes
    ) -> str:
        """Return the ``Authorization`` header for a request in which ``headers`` are signed.

        The query is taken from the URL as it is sent; ``headers`` must hold the host and the
        date.
        """
        from huaweicloudsdkcore.sdk_request import SdkRequest
        from huaweicloudsdkcore.signer.signer import Signer

        path, _, query = url.raw_path.decode("ascii").partition("?")
        pairs = (pair.partition("=") for pair in query.split("&") if pair)
        request = SdkRequest(
            method=method,
            schema=url.scheme,
            host=url.netloc.decode("ascii"),
            resource_path=path,
            query_params=[(unquote(name), unquote(value)) for name, _, value in pairs],
            header_params=dict(headers),
            body=body,
        )
        # The signer looks these three up with their usual capitals; the signature has none.
        for name in ("Host", "X-Sdk-Date", "Content-Type"):
            if name.lower() in request.header_params:
                request.header_params[name] = request.header_params.pop(name.lower())
        keys = SimpleNamespace(ak=self._ak.reveal(), sk=self._sk.reveal())
        signed = Signer(keys).sign(request)
        return str(signed.header_params["Authorization"])


class PasswordAuth(Credentials):
    """An IAM user's password, turned into a project-scoped token that lives about a day.

    One request to IAM at a time; whoever comes meanwhile waits for it, or goes on with the
    old token while that is still good. A refused password is not tried again for five
    minutes: IAM locks users who insist.

    Args:
        user: IAM user name.
        password: Its password.
        account: The account (IAM domain) the user belongs to.
        project: IAM project, by name (the region's, as ``cn-north-4``) or by id (32 hex digits).
        iam_endpoint: ``https://iam.<region>.myhuaweicloud.com``; http for loopback only.

    Raises:
        EndpointError: ``iam_endpoint`` is not one to send a password to.
    """

    kind = "IAM password"

    def __init__(
        self, user: str, password: str, account: str, project: str, iam_endpoint: str
    ) -> None:
        self._user = user
        self._password = Secret(password)
        self._account = account
        self._project = project
        self._url = check_endpoint(iam_endpoint) + "/v3/auth/tokens?nocatalog=true"
        self._token = Secret("")
        self._expires_at = 0.0
        self._asking = trio.Lock()
        self._asked = 0
        self._settled = 0  # which of the askings got an answer
        self._pause_until = 0.0
        self._refusal = ""
        self._renewed_on_401_at: float | None = None

    @property
    def expires_in_s(self) -> float | None:
        return self._expires_at - trio.current_time() if self._token else None

    def secrets(self) -> Iterable[Secret]:
        return (self._password, self._token)

    def scope(self) -> Scope:
        return Scope(f"IAM project {self._project}, by {httpx.URL(self._url).host}")

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request with a token, getting one first where need be, once more on 401.

        Raises:
            CredentialsRefused: IAM refused the user, now or less than five minutes ago.
            TemporaryFailure: IAM is not able to answer.
            BadAnswer: what IAM answers is no token.
        """
        retried = False
        while True:
            if self._needs_token() or (self._wants_token() and not self._asking.locked()):
                asked = self._asked
                await self._asking.acquire()
                try:
                    if self._needs_token() or self._wants_token():
                        self._begin(waited=self._asked != asked)
                        iam = yield self._iam_request(request)
                        await iam.aread()
                        self._take(iam)
                finally:
                    self._asking.release()
            token = self._token
            request.headers["X-Auth-Token"] = token.reveal()
            response = yield request
            if response.status_code != 401 or retried or not self._forget(token):
                return
            retried = True

    def _needs_token(self) -> bool:
        return not self._token or trio.current_time() >= self._expires_at

    def _wants_token(self) -> bool:
        now = trio.current_time()
        return now >= self._expires_at - _RENEW_BEFORE_S and now >= self._pause_until

    def _begin(self, *, waited: bool) -> None:
        now = trio.current_time()
        if self._refusal and now < self._pause_until:
            raise CredentialsRefused(
                f"{self._refusal}; not asked again for {self._pause_until - now:.0f} s"
            )
        if waited and self._settled != self._asked:
            # The one we waited for failed. A hundred waiters must not repeat it one by one.
            raise TemporaryFailure("IAM gave no token to the request before this one")
        self._asked += 1
        self._refusal = ""
        # While the old token is good, a failed renewal is not repeated at every request.
        self._pause_until = now + _RENEWAL_PAUSE_S

    def _iam_request(self, request: httpx.Request) -> httpx.Request:
        project = "id" if re.fullmatch(r"[0-9a-f]{32}", self._project) else "name"
        user = {
            "name": self._user,
            "password": self._password.reveal(),
            "domain": {"name": self._account},
        }
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {project: self._project}},
            }
        }
        return httpx.Request(
            "POST",
            self._url,
            content=json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json;charset=utf8",
                "Accept": "application/json",
                "User-Agent": request.headers.get("User-Agent", "codeartsfs"),
            },
            extensions={"timeout": dict(request.extensions.get("timeout", {}))},
        )

    def _take(self, response: httpx.Response) -> None:
        """Keep the token of an IAM answer; what is none is an error unless the old one is good."""
        self._settled = self._asked
        failure = self._failure_in(response)
        if failure is not None:
            failure.facts = {
                "asked": f"POST {response.request.url.path}",
                "status": response.status_code,
                "request_id": one_line(_trace_of(response), self.redact),
            }
        if failure is None:
            self._token = Secret(response.headers["X-Subject-Token"])
            self._expires_at = trio.current_time() + _lifetime_s(response.content)
        elif isinstance(failure, CredentialsRefused):
            self._refusal = str(failure)
            self._pause_until = trio.current_time() + _REFUSED_FOR_S
        if failure is not None and self._needs_token():
            raise failure

    def _failure_in(self, response: httpx.Response) -> CodeArtsError | TemporaryFailure | None:
        error = api_error_in(response.content)
        said = f"{error.code} {error.message}".strip() if error else response.reason_phrase
        status, trace = response.status_code, _trace_of(response)
        text = one_line(
            f"POST {response.request.url.path}: HTTP {status} {said} (request {trace})",
            self.redact,
        )
        if status in {200, 201}:
            token = response.headers.get("X-Subject-Token", "")
            usable = token.isascii() and token.isprintable() and token.strip()
            return None if usable else BadAnswer(f"{text}: no token in it")
        if status == 429 or status >= 500:
            return TemporaryFailure(
                text,
                retry_after_s=parse_retry_after(response.headers.get("Retry-After")),
                throttled=status == 429,
            )
        if 400 <= status < 500:
            return CredentialsRefused(text)
        return BadAnswer(text)

    def _forget(self, token: Secret) -> bool:
        """Drop a token the API refused; False where another new one would be as useless."""
        if token != self._token:
            return True
        now = trio.current_time()
        last = self._renewed_on_401_at
        if last is not None and now - last < _RENEWAL_PAUSE_S:
            return False
        self._renewed_on_401_at = now
        self._token = Secret("")
        return True


def _trace_of(response: httpx.Response) -> str:
    headers = response.headers
    return headers.get("X-IAM-Trace-Id") or headers.get("X-Request-Id") or "?"


def _lifetime_s(body: bytes) -> float:
    """How long a token lives, by IAM's clock alone, so that ours may be wrong."""
    try:
        token = json.loads(body)["token"]
        expires_ns = parse_time(token["expires_at"])
        issued_ns = parse_time(token["issued_at"])
    except (ValueError, KeyError, TypeError):
        return _LIFETIME_IF_UNKNOWN_S
    if expires_ns is None or issued_ns is None or expires_ns <= issued_ns:
        return _LIFETIME_IF_UNKNOWN_S
    return (expires_ns - issued_ns) / 1e9


def scope_of_token(token: str) -> Scope:
    """Read what a token says of itself: IAM's are signed JSON, in base64 with ``-`` for ``/``.

    Never raises: nothing depends on it but what people are told.
    """
    try:
        signed = base64.b64decode(token.replace("-", "/") + "==").decode("latin-1")
    except ValueError:
        return Scope()
    expires = re.search(r'"expires_at":"([^"]{1,40})"', signed)
    expires_ns = parse_time(expires[1]) if expires else None
    if expires_ns is None:
        return Scope()
    project = re.search(r'"project":\{(?:"domain":\{[^{}]*\},?)?([^{}]*)', signed)
    if project is None:
        return Scope("the account, not a project", False, expires_ns / 1e9)
    name = re.search(r'"name":"([^"]{1,100})"', project[1])
    return Scope(f"IAM project {one_line(name[1])}" if name else "", True, expires_ns / 1e9)


def one_line(text: str, redact: Callable[[str], str] = lambda text: text) -> str:
    """Return foreign text as it may stand in a message: one line, short, without secrets."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in redact(text)).split())
    return plain if len(plain) <= 300 else plain[:299] + "…"


# --- where credentials come from --------------------------------------------------------------

_SYSTEMD_NAMES = {
    "token": "CODEARTSFS_TOKEN_FILE",
    "ak": "HUAWEICLOUD_SDK_AK",
    "sk": "HUAWEICLOUD_SDK_SK",
    "project_id": "HUAWEICLOUD_SDK_PROJECT_ID",
    "security_token": "HUAWEICLOUD_SDK_SECURITY_TOKEN",
    "user": "CODEARTSFS_USER",
    "password": "CODEARTSFS_PASSWORD",
    "account": "CODEARTSFS_ACCOUNT",
}


def load_credentials(
    environ: Mapping[str, str], home: Path, *, region: str = "", iam_endpoint: str = ""
) -> Credentials | None:
    """Find credentials: variables first, then systemd's directory, then the SDK's profile file.

    Inside each place: a token, a token file, AK/SK, a password; the first that is there wins.

    Args:
        environ: The environment, as of ``os.environ``.
        home: The home directory, where ``.huaweicloud/credentials`` may be.
        region: Names the IAM project and host for a password that comes without them.
        iam_endpoint: IAM host instead of the region's; loses to the environment's.

    Returns:
        None where no place has any.

    Raises:
        CredentialsError: what is there is half given, empty or unreadable.
    """
    variables = {name: value.strip("\r\n") for name, value in environ.items() if value}
    found = _from_variables(variables, region, iam_endpoint)
    if found is None and "CREDENTIALS_DIRECTORY" in variables:
        folder = Path(variables["CREDENTIALS_DIRECTORY"])
        given = _systemd_variables(folder)
        others = {k: v for k, v in variables.items() if k in _PLACES}
        found = _from_variables({**others, **given}, region, iam_endpoint)
        if found is not None:
            files = [folder / name for name in _SYSTEMD_NAMES if (folder / name).exists()]
            _found(found, f"systemd, {folder}", *files)
    return found or _from_profile(variables, home)


_PLACES = frozenset(
    {"CODEARTSFS_IAM_PROJECT", "CODEARTSFS_IAM_ENDPOINT", "HUAWEICLOUD_SDK_IAM_ENDPOINT"}
)


def _from_variables(
    variables: Mapping[str, str], region: str, iam_endpoint: str
) -> Credentials | None:
    if "CODEARTSFS_TOKEN" in variables:
        token = _header_text(variables["CODEARTSFS_TOKEN"], "CODEARTSFS_TOKEN")
        return _found(TokenAuth(lambda: token), "CODEARTSFS_TOKEN")
    if "CODEARTSFS_TOKEN_FILE" in variables:
        # A daemon leaves the directory it was started in, and reads the file again and again.
        path = Path(variables["CODEARTSFS_TOKEN_FILE"]).absolute()
        _header_text(_read_file(path, "token file"), f"token file {path}")
        return _found(TokenAuth.from_file(path), f"CODEARTSFS_TOKEN_FILE, {path}", path)
    for prefix in ("HUAWEICLOUD_SDK", "CLOUD_SDK"):
        names = (f"{prefix}_AK", f"{prefix}_SK")
        if pair := _all_or_none(variables, names):
            ak, sk = pair
            keys = SignatureAuth(
                ak,
                sk,
                variables.get("HUAWEICLOUD_SDK_SECURITY_TOKEN"),
                variables.get("HUAWEICLOUD_SDK_PROJECT_ID"),
            )
            return _found(keys, " and ".join(names))
    return _password_from(variables, region, iam_endpoint)


def _found(credentials: Credentials, source: str, *files: Path) -> Credentials:
    credentials.source, credentials.files = source, files
    return credentials


def _password_from(
    variables: Mapping[str, str], region: str, iam_endpoint: str
) -> Credentials | None:
    given = dict(variables)
    files: list[Path] = []
    if "CODEARTSFS_PASSWORD" not in given and "CODEARTSFS_PASSWORD_FILE" in given:
        path = Path(given["CODEARTSFS_PASSWORD_FILE"])
        files.append(path)
        given["CODEARTSFS_PASSWORD"] = _read_file(path, "password file")
    names = ("CODEARTSFS_USER", "CODEARTSFS_PASSWORD", "CODEARTSFS_ACCOUNT")
    found = _all_or_none(given, names)
    if found is None:
        return None
    project = given.get("CODEARTSFS_IAM_PROJECT") or region
    if not project:
        raise CredentialsError(
            "a password needs an IAM project: set CODEARTSFS_IAM_PROJECT or a region"
        )
    try:
        iam = (
            given.get("CODEARTSFS_IAM_ENDPOINT")
            or given.get("HUAWEICLOUD_SDK_IAM_ENDPOINT")
            or iam_endpoint
            or iam_endpoint_for_region(region)
        )
        user, password, account = found
        auth = PasswordAuth(user, password, account, project, iam)
        return _found(auth, f"CODEARTSFS_USER and {files[0] if files else names[1]}", *files)
    except EndpointError as error:
        raise CredentialsError(f"IAM: {error}") from error


def _all_or_none(variables: Mapping[str, str], names: tuple[str, ...]) -> list[str] | None:
    given = [name for name in names if variables.get(name)]
    if not given:
        return None
    if missing := [name for name in names if name not in given]:
        raise CredentialsError(f"{', '.join(given)} given without {', '.join(missing)}")
    return [variables[name] for name in names]


def _systemd_variables(folder: Path) -> dict[str, str]:
    given = {}
    for file_name, variable in _SYSTEMD_NAMES.items():
        path = folder / file_name
        if path.exists():
            # The token stays a file: systemd may refresh it, the others are read for good.
            stays = file_name == "token"
            given[variable] = str(path) if stays else _read_file(path, "credentials file")
    return given


def _from_profile(variables: Mapping[str, str], home: Path) -> Credentials | None:
    named = variables.get("HUAWEICLOUD_SDK_CREDENTIALS_FILE")
    path = Path(named) if named else home / ".huaweicloud" / "credentials"
    if not named and not path.exists():
        return None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_read_file(path, "credentials file"))
    except configparser.Error:
        # The parser's own message quotes the lines it stumbled over.
        raise CredentialsError(f"credentials file {path} is not an INI file") from None
    for section in ("basic", "basiccredentials"):
        if parser.has_section(section):
            values = {k: v.strip() for k, v in parser.items(section) if v and v.strip()}
            pair = _all_or_none(values, ("ak", "sk"))
            if pair is not None:
                ak, sk = pair
                keys = SignatureAuth(ak, sk, values.get("security_token"), values.get("project_id"))
                return _found(keys, os.fspath(path), path)
    if named:
        raise CredentialsError(f"credentials file {path} has no ak and sk in [basic]")
    return None


def _read_file(path: Path, what: str) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CredentialsError(f"{what} {path} is not text") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise CredentialsError(f"{what} {path} cannot be read: {reason}") from None
    if not text:
        raise CredentialsError(f"{what} {path} is empty")
    return text


def _header_text(text: str, what: str) -> str:
    """Return text that can stand in a header; nothing else can be a token or a key."""
    text = text.strip()
    if not text:
        raise CredentialsError(f"{what} is empty")
    if not (text.isascii() and text.isprintable()):
        raise CredentialsError(f"{what} holds characters that cannot be sent")
    return text
