import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock

from codeartsfs.api.auth import (
    Credentials,
    CredentialsError,
    PasswordAuth,
    Secret,
    SignatureAuth,
    TokenAuth,
    load_credentials,
    one_line,
)
from codeartsfs.api.client import canonical_query
from codeartsfs.api.endpoints import EndpointError
from codeartsfs.api.pace import TemporaryFailure
from codeartsfs.errors import AccessDenied, BadAnswer, CredentialsRefused

API = "https://api.example.com/x"
Handler = Callable[[httpx.Request], httpx.Response]


async def get(auth: Credentials, handler: Handler, url: str = API) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        return await client.get(url, auth=auth)


class Api:
    """Accepts some tokens, and remembers what it was shown."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = set(accepted)
        self.shown: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        token = request.headers["X-Auth-Token"]
        self.shown.append(token)
        return httpx.Response(200 if token in self.accepted else 401)


# --- token ------------------------------------------------------------------------------------


async def test_a_token_is_sent_as_it_is() -> None:
    api = Api("t1")
    assert (await get(TokenAuth(lambda: " t1\n"), api)).status_code == 200
    assert api.shown == ["t1"]


async def test_a_refused_token_that_stays_the_same_is_sent_once() -> None:
    api = Api()
    assert (await get(TokenAuth(lambda: "t1"), api)).status_code == 401
    assert api.shown == ["t1"]


async def test_a_refused_token_that_changed_is_replaced_once() -> None:
    tokens = iter(["t1", "t2", "t3"])
    api = Api("t2")
    assert (await get(TokenAuth(lambda: next(tokens)), api)).status_code == 200
    assert api.shown == ["t1", "t2"]


async def test_a_token_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("t1\n")
    auth = TokenAuth.from_file(path)
    api = Api("t1", "t2")
    await get(auth, api)
    await get(auth, api)
    renewed = tmp_path / "new"
    renewed.write_text("t2\n")
    renewed.replace(path)
    await get(auth, api)
    assert api.shown == ["t1", "t1", "t2"]


async def test_a_token_file_rewritten_in_place_within_one_tick_is_found_on_401(
    tmp_path: Path,
) -> None:
    path = tmp_path / "token"
    path.write_text("t1")
    before = path.stat()
    auth = TokenAuth.from_file(path)
    api = Api("t1")
    await get(auth, api)
    path.write_text("t2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    api.accepted = {"t2"}
    assert (await get(auth, api)).status_code == 200
    assert api.shown == ["t1", "t1", "t2"]


async def test_a_token_file_that_is_away_for_a_moment_leaves_the_old_token(
    tmp_path: Path,
) -> None:
    path = tmp_path / "token"
    path.write_text("t1")
    auth = TokenAuth.from_file(path)
    api = Api("t1")
    await get(auth, api)
    path.unlink()
    assert (await get(auth, api)).status_code == 200


async def test_no_token_at_all_is_access_denied(tmp_path: Path) -> None:
    api = Api()
    with pytest.raises(AccessDenied, match=r"token file .* cannot be read: No such file"):
        await get(TokenAuth.from_file(tmp_path / "none"), api)
    assert api.shown == []


# --- signature --------------------------------------------------------------------------------

AK1, SK1 = "EXAMPLEAK00000000001", "EXAMPLE/secret+key/0000000000000000000001"
AK2, SK2 = "TEMPAK00000000000001", "TEMPSECRET000000000000000000000000000001"
H1 = "cloudbuild-ext.cn-north-4.myhuaweicloud.com"
IAM = "iam.cn-north-4.myhuaweicloud.com"
R = "2cc26382-b2cb-4234-8eb0-b37d362f4d4c"
P = "0123456789abcdef0123456789abcdef"
DATE = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
JSON = {"content-type": "application/json"}
V4_QUERY = (
    "branches=dev~x&branches=release%2F1.0&from_date=2024-06-26%2008%3A00%3A00"
    "&limit=10&page=0&tags=%E6%9E%84%E5%BB%BA%2B1"
)
V4_RECORDS = "ee24b7bf-0285-43b4-b975-77f615884466"

VECTORS = {
    "V1": (
        SignatureAuth(AK1, SK1),
        f"https://{H1}/v4/{R}/task-log?log_level=INFO&task_name=stage1",
        {},
        b"",
        "host;x-sdk-date",
        "13fedf6d2a4eff307c885bc5509e0e8eaf60c635f5eb034d24eaa165f0242090",
    ),
    "V2": (
        SignatureAuth(AK1, SK1),
        f"https://{H1}/v4/{R}/task-log?log_level=DEBUG&task_name=stage1",
        {**JSON, "user-agent": "logfs-test/1.0", "x-project-id": P},
        b"",
        "content-type;host;user-agent;x-project-id;x-sdk-date",
        "e2d39df6f3f1ff76fab9b56c7a4f755dfc2426d8fd2685af40166e5fa668d9d5",
    ),
    "V3": (
        SignatureAuth(AK2, SK2),
        f"http://127.0.0.1:8080/v1/record/{R}/full-stages?cascade=true",
        {**JSON, "x-project-id": P, "x-security-token": "sectok=="},
        b"",
        "content-type;host;x-project-id;x-sdk-date;x-security-token",
        "18fac5ac8344644f8ee4dfab05170d62e0c1c3227ade650061ba851c44d626e6",
    ),
    "V4": (
        SignatureAuth(AK1, SK1),
        f"https://{H1}/v1/record/{V4_RECORDS}/records?{V4_QUERY}",
        {"x-project-id": P},
        b"",
        "host;x-project-id;x-sdk-date",
        "be804a97d0860ab5eec00bad04ca4921d88465cf07fde6efd9c562ce419cc5c6",
    ),
    "V5": (
        SignatureAuth(AK1, SK1),
        f"https://{IAM}/v3/auth/tokens?nocatalog=true",
        {"content-type": "application/json;charset=utf8"},
        b'{"auth":{"identity":{"methods":["token"]}}}',
        "content-type;host;x-sdk-date",
        "0df4aae2eb758c556d374312bd5a2f3bb20be83530b0feb31806a09c9cb51bab",
    ),
    "V6": (
        SignatureAuth(AK1, SK1),
        f"https://{IAM}/v3/projects?name=cn-north-4",
        {},
        b"",
        "host;x-sdk-date",
        "2e5d18b17918500b7e7cc1249679d0ed392f47f52ef00d421619fa2050f07d3f",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_signature_vector(name: str) -> None:
    auth, text, headers, body, signed, signature = VECTORS[name]
    url = httpx.URL(text)
    assert url.raw_path.decode() == text.split(url.netloc.decode(), 1)[1]  # sent as it was signed
    all_headers = {"host": url.netloc.decode(), "x-sdk-date": "20250102T030405Z", **headers}
    access = AK2 if name == "V3" else AK1
    assert auth.authorization("POST" if body else "GET", url, all_headers, body) == (
        f"SDK-HMAC-SHA256 Access={access}, SignedHeaders={signed}, Signature={signature}"
    )


async def test_the_flow_signs_what_is_sent() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(401)

    auth = SignatureAuth(AK1, SK1, now=lambda: DATE)
    path = f"/v4/{R}/task-log" + canonical_query({"task_name": "stage1", "log_level": "INFO"})
    response = await get(auth, handler, f"https://{H1}{path}")
    assert response.status_code == 401
    assert len(sent) == 1  # signing the same again would be refused the same
    assert sent[0].headers["Authorization"].endswith(VECTORS["V1"][5])
    assert sent[0].headers["X-Sdk-Date"] == "20250102T030405Z"


async def test_the_flow_signs_project_and_security_token() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    auth = SignatureAuth(AK2, SK2, "sectok==", P, now=lambda: DATE)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        await client.get(
            f"http://127.0.0.1:8080/v1/record/{R}/full-stages?cascade=true",
            auth=auth,
            headers=JSON,
        )
    assert sent[0].headers["Authorization"].endswith(VECTORS["V3"][5])
    assert sent[0].headers["X-Security-Token"] == "sectok=="


def test_a_query_is_canonical_before_it_is_signed() -> None:
    query: dict[str, str | int] = {
        "tags": "构建+1",
        "from_date": "2024-06-26 08:00:00",
        "page": 0,
        "a~b": "x/y",
    }
    assert canonical_query(query) == (
        "?a~b=x%2Fy&from_date=2024-06-26%2008%3A00%3A00&page=0&tags=%E6%9E%84%E5%BB%BA%2B1"
    )


def test_signing_writes_nothing_into_the_home_directory(tmp_path: Path) -> None:
    program = (
        "import httpx, codeartsfs.api.client\n"
        "from codeartsfs.api.auth import SignatureAuth\n"
        "url = httpx.URL('https://h/x?a=b')\n"
        "head = {'host': 'h', 'x-sdk-date': '20250102T030405Z'}\n"
        "print(SignatureAuth('AK', 'SK').authorization('GET', url, head, b''))\n"
    )
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("SDK-HMAC-SHA256 Access=AK")
    assert list(tmp_path.rglob("*")) == []


# --- password ---------------------------------------------------------------------------------

ISSUED = "2025-03-04T05:06:07.123000Z"
EXPIRES = "2025-03-05T05:06:07.123000Z"
DAY_S = 24 * 3600
PASSWORD = "correct horse"


class Cloud:
    """IAM and the API behind it; tokens are t1, t2, ... and only the last one is good."""

    def __init__(self) -> None:
        self.iam_requests: list[httpx.Request] = []
        self.api_tokens: list[str] = []
        self.iam_answer: httpx.Response | None = None
        self.refuse_all = False
        self.iam_open = trio.Event()
        self.iam_open.set()
        self.valid = ""

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v3/auth/tokens":
            self.iam_requests.append(request)
            await self.iam_open.wait()
            if self.iam_answer is not None:
                return self.iam_answer
            self.valid = f"t{len(self.iam_requests)}"
            token = {"issued_at": ISSUED, "expires_at": EXPIRES}
            return httpx.Response(
                201, headers={"X-Subject-Token": self.valid}, json={"token": token}
            )
        self.api_tokens.append(request.headers["X-Auth-Token"])
        good = not self.refuse_all and self.api_tokens[-1] == self.valid
        return httpx.Response(200 if good else 401)

    async def get(self, auth: Credentials) -> int:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self)) as client:
            return (await client.get(API, auth=auth)).status_code


def password_auth(project: str = "cn-north-4") -> PasswordAuth:
    return PasswordAuth("user", PASSWORD, "account", project, "https://iam.example.com")


def iam_error(status: int, **headers: str) -> httpx.Response:
    error = {"error": {"code": status, "message": f"no {PASSWORD}", "title": "Title"}}
    return httpx.Response(status, json=error, headers={"X-IAM-Trace-Id": "trace-9", **headers})


async def test_a_password_becomes_a_project_scoped_token() -> None:
    cloud = Cloud()
    assert await cloud.get(password_auth()) == 200
    request = cloud.iam_requests[0]
    assert str(request.url) == "https://iam.example.com/v3/auth/tokens?nocatalog=true"
    assert json.loads(request.content) == {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {
                    "user": {
                        "name": "user",
                        "password": PASSWORD,
                        "domain": {"name": "account"},
                    }
                },
            },
            "scope": {"project": {"name": "cn-north-4"}},
        }
    }
    assert "timeout" in request.extensions
    assert "X-Auth-Token" not in request.headers


async def test_a_project_id_is_sent_as_an_id() -> None:
    cloud = Cloud()
    await cloud.get(password_auth(P))
    assert json.loads(cloud.iam_requests[0].content)["auth"]["scope"] == {"project": {"id": P}}


async def test_many_requests_at_once_ask_iam_once(autojump_clock: MockClock) -> None:
    cloud, auth = Cloud(), password_auth()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(cloud.get, auth)
    assert len(cloud.iam_requests) == 1
    assert cloud.api_tokens == ["t1"] * 20


async def test_a_token_is_renewed_in_its_last_half_hour_and_not_before(
    autojump_clock: MockClock,
) -> None:
    cloud, auth = Cloud(), password_auth()
    await cloud.get(auth)
    await trio.sleep(DAY_S - 30 * 60 - 1)
    await cloud.get(auth)
    assert len(cloud.iam_requests) == 1
    await trio.sleep(2)
    await cloud.get(auth)
    assert cloud.api_tokens == ["t1", "t1", "t2"]


async def test_nobody_waits_for_a_renewal_while_the_old_token_is_good(
    autojump_clock: MockClock,
) -> None:
    cloud, auth = Cloud(), password_auth()
    await cloud.get(auth)
    await trio.sleep(DAY_S - 60)
    cloud.iam_open = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cloud.get, auth)
        await trio.testing.wait_all_tasks_blocked()
        assert await cloud.get(auth) == 200
        cloud.iam_open.set()
    assert cloud.api_tokens == ["t1", "t1", "t2"]


async def test_when_the_token_expires_is_known_once_there_is_one(
    autojump_clock: MockClock,
) -> None:
    auth = password_auth()
    assert auth.expires_in_s is None
    await Cloud().get(auth)
    assert auth.expires_in_s == DAY_S
    await trio.sleep(60)
    assert auth.expires_in_s == DAY_S - 60


async def test_a_good_token_outlives_an_iam_that_is_down(autojump_clock: MockClock) -> None:
    cloud, auth = Cloud(), password_auth()
    await cloud.get(auth)
    await trio.sleep(DAY_S - 600)
    cloud.iam_answer = iam_error(503)
    for _ in range(3):
        assert await cloud.get(auth) == 200
    assert len(cloud.iam_requests) == 2  # one failed renewal, not one per request
    await trio.sleep(601)
    with pytest.raises(TemporaryFailure, match="HTTP 503"):
        await cloud.get(auth)


async def test_a_401_renews_the_token_once(autojump_clock: MockClock) -> None:
    cloud, auth = Cloud(), password_auth()
    await cloud.get(auth)
    cloud.valid = "voided"
    assert await cloud.get(auth) == 200
    assert cloud.api_tokens == ["t1", "t1", "t2"]


async def test_an_api_that_refuses_every_token_does_not_wear_out_iam(
    autojump_clock: MockClock,
) -> None:
    cloud, auth = Cloud(), password_auth()
    cloud.refuse_all = True
    for _ in range(10):
        assert await cloud.get(auth) == 401
    assert len(cloud.iam_requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refused_password_is_not_asked_again_for_five_minutes(
    status: int, autojump_clock: MockClock
) -> None:
    cloud, auth = Cloud(), password_auth()
    cloud.iam_answer = iam_error(status)
    for _ in range(5):
        with pytest.raises(CredentialsRefused, match=f"HTTP {status} {status} no .*trace-9"):
            await cloud.get(auth)
        await trio.sleep(50)
    assert len(cloud.iam_requests) == 1
    await trio.sleep(51)
    cloud.iam_answer = None
    assert await cloud.get(auth) == 200
    assert len(cloud.iam_requests) == 2


async def test_many_requests_at_once_try_a_wrong_password_once(
    autojump_clock: MockClock,
) -> None:
    cloud, auth = Cloud(), password_auth()
    cloud.iam_answer = iam_error(401)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(CredentialsRefused):
            await cloud.get(auth)
        refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert refused == 10
    assert len(cloud.iam_requests) == 1


async def test_a_throttling_iam_is_a_temporary_failure_with_its_retry_after() -> None:
    cloud = Cloud()
    cloud.iam_answer = iam_error(429, **{"Retry-After": "7"})
    with pytest.raises(TemporaryFailure) as caught:
        await cloud.get(password_auth())
    assert (caught.value.retry_after_s, caught.value.throttled) == (7, True)


async def test_a_cancelled_renewal_leaves_the_next_one_free(autojump_clock: MockClock) -> None:
    cloud, auth = Cloud(), password_auth()
    cloud.iam_open = trio.Event()
    with trio.move_on_after(1) as scope:
        await cloud.get(auth)
    assert scope.cancelled_caught
    cloud.iam_open.set()
    assert await cloud.get(auth) == 200


async def test_an_iam_answer_without_token_is_a_bad_answer() -> None:
    cloud = Cloud()
    cloud.iam_answer = httpx.Response(201, json={"token": {}})
    with pytest.raises(BadAnswer, match="no token in it"):
        await cloud.get(password_auth())


def test_a_password_is_never_sent_in_the_clear() -> None:
    with pytest.raises(EndpointError, match="must be https"):
        PasswordAuth("u", "p", "a", "cn-north-4", "http://iam.example.com")


# --- secrecy ----------------------------------------------------------------------------------


def test_no_repr_shows_a_secret() -> None:
    for auth in (
        TokenAuth(lambda: "hush-hush"),
        SignatureAuth("hush-hush", "hush-hush", "hush-hush"),
        PasswordAuth("u", "hush-hush", "a", "p", "https://iam.example.com"),
    ):
        assert "hush" not in f"{auth!r} {auth} {vars(auth)}"
    assert f"{Secret('hush')} {Secret('hush')!r}" == "Secret(***) Secret(***)"


def test_foreign_text_becomes_one_short_line_without_secrets() -> None:
    auth = SignatureAuth("AK-hidden", "SK-hidden")
    text = "a\r\nb\x1b[31m\tAK-hidden SK-hidden " + "x" * 1000
    line = one_line(text, auth.redact)
    assert len(line) == 300
    assert line.startswith("a b [31m *** *** xxx")
    assert line.isprintable()


# --- where they come from ---------------------------------------------------------------------


async def headers_of(auth: Credentials | None) -> httpx.Headers:
    assert auth is not None
    seen = httpx.Headers()

    def handler(request: httpx.Request) -> httpx.Response:
        seen.update(request.headers)
        return httpx.Response(200)

    await get(auth, handler)
    return seen


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


async def test_variables_name_a_token(tmp_path: Path) -> None:
    auth = load_credentials({"CODEARTSFS_TOKEN": "t1\n", "CLOUD_SDK_AK": "half"}, tmp_path)
    assert auth is not None
    assert auth.kind == "token"
    assert (await headers_of(auth))["X-Auth-Token"] == "t1"


async def test_variables_name_a_token_file(tmp_path: Path) -> None:
    path = write(tmp_path / "token", "t1\n")
    auth = load_credentials({"CODEARTSFS_TOKEN_FILE": path}, tmp_path)
    assert auth is not None
    assert auth.kind == "token file"
    assert (await headers_of(auth))["X-Auth-Token"] == "t1"


@pytest.mark.parametrize("prefix", ["HUAWEICLOUD_SDK", "CLOUD_SDK"])
async def test_variables_name_keys(prefix: str, tmp_path: Path) -> None:
    environ = {
        f"{prefix}_AK": "AK9",
        f"{prefix}_SK": "SK9",
        "HUAWEICLOUD_SDK_PROJECT_ID": P,
        "HUAWEICLOUD_SDK_SECURITY_TOKEN": "st",
    }
    auth = load_credentials(environ, tmp_path)
    headers = await headers_of(auth)
    assert auth is not None
    assert auth.kind == "AK/SK"
    assert "Access=AK9" in headers["Authorization"]
    assert (headers["X-Project-Id"], headers["X-Security-Token"]) == (P, "st")


@pytest.mark.parametrize("by_file", [False, True])
async def test_variables_name_a_password(by_file: bool, tmp_path: Path) -> None:
    environ = {"CODEARTSFS_USER": "user", "CODEARTSFS_ACCOUNT": "account"}
    if by_file:
        environ["CODEARTSFS_PASSWORD_FILE"] = write(tmp_path / "pw", PASSWORD + "\n")
    else:
        environ["CODEARTSFS_PASSWORD"] = PASSWORD
    auth = load_credentials(environ, tmp_path, region="cn-north-4")
    assert auth is not None
    assert auth.kind == "IAM password"
    cloud = Cloud()
    assert await cloud.get(auth) == 200
    request = cloud.iam_requests[0]
    assert request.url.host == IAM
    content = json.loads(request.content)["auth"]
    assert content["identity"]["password"]["user"]["password"] == PASSWORD
    assert content["scope"] == {"project": {"name": "cn-north-4"}}


async def test_systemd_credentials_come_after_variables(tmp_path: Path) -> None:
    folder = tmp_path / "creds"
    write(folder / "ak", "AK-systemd\n")
    write(folder / "sk", "SK-systemd\n")
    write(folder / "project_id", P)
    environ = {"CREDENTIALS_DIRECTORY": str(folder)}
    headers = await headers_of(load_credentials(environ, tmp_path))
    assert "Access=AK-systemd" in headers["Authorization"]
    assert headers["X-Project-Id"] == P
    auth = load_credentials({**environ, "CODEARTSFS_TOKEN": "t1"}, tmp_path)
    assert auth is not None
    assert auth.kind == "token"


async def test_a_systemd_token_is_a_token_file(tmp_path: Path) -> None:
    write(tmp_path / "creds" / "token", "t1\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "creds")}
    auth = load_credentials(environ, tmp_path)
    assert auth is not None
    assert auth.kind == "token file"
    assert (await headers_of(auth))["X-Auth-Token"] == "t1"


async def test_a_systemd_password_finds_its_project_in_the_variables(tmp_path: Path) -> None:
    folder = tmp_path / "creds"
    for name, text in {"user": "user", "password": PASSWORD, "account": "account"}.items():
        write(folder / name, text)
    environ = {
        "CREDENTIALS_DIRECTORY": str(folder),
        "CODEARTSFS_IAM_PROJECT": P,
        "HUAWEICLOUD_SDK_IAM_ENDPOINT": "http://127.0.0.1:9/",
    }
    auth = load_credentials(environ, tmp_path)
    assert auth is not None
    cloud = Cloud()
    await cloud.get(auth)
    assert json.loads(cloud.iam_requests[0].content)["auth"]["scope"] == {"project": {"id": P}}
    assert cloud.iam_requests[0].url.host == "127.0.0.1"


@pytest.mark.parametrize("section", ["basic", "basiccredentials"])
@pytest.mark.parametrize("named", [False, True])
async def test_the_sdk_profile_comes_last(section: str, named: bool, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" if named else tmp_path / ".huaweicloud" / "credentials"
    text = f"[{section}]\nak = AK%9\nsk = SK%9\nproject_id = {P}\nsecurity_token = st\n"
    path = write(place, text)
    environ = {"HUAWEICLOUD_SDK_CREDENTIALS_FILE": path} if named else {}
    headers = await headers_of(load_credentials(environ, tmp_path))
    assert "Access=AK%9" in headers["Authorization"]
    assert (headers["X-Project-Id"], headers["X-Security-Token"]) == (P, "st")


def test_no_credentials_anywhere_is_none(tmp_path: Path) -> None:
    assert load_credentials({"CODEARTSFS_TOKEN": ""}, tmp_path) is None


@pytest.mark.parametrize(
    ("environ", "files", "message"),
    [
        ({"CLOUD_SDK_AK": "hush1"}, {}, "CLOUD_SDK_AK given without CLOUD_SDK_SK"),
        ({"HUAWEICLOUD_SDK_SK": "hush1"}, {}, "given without HUAWEICLOUD_SDK_AK"),
        (
            {"CODEARTSFS_USER": "u", "CODEARTSFS_PASSWORD": "hush1"},
            {},
            "CODEARTSFS_USER, CODEARTSFS_PASSWORD given without CODEARTSFS_ACCOUNT",
        ),
        (
            {
                "CODEARTSFS_USER": "u",
                "CODEARTSFS_PASSWORD": "hush1",
                "CODEARTSFS_ACCOUNT": "a",
            },
            {},
            "needs an IAM project",
        ),
        ({"CODEARTSFS_TOKEN": "hush1\nhush2"}, {}, "CODEARTSFS_TOKEN holds characters"),
        ({"CODEARTSFS_TOKEN": "  "}, {}, "CODEARTSFS_TOKEN is empty"),
        ({"CODEARTSFS_TOKEN_FILE": "{home}/none"}, {}, "cannot be read: No such file"),
        ({"CODEARTSFS_TOKEN_FILE": "{home}/t"}, {"t": " \n"}, "token file .* is empty"),
        ({"CODEARTSFS_TOKEN_FILE": "{home}"}, {}, "cannot be read: Is a directory"),
        ({"CREDENTIALS_DIRECTORY": "{home}/c"}, {"c/ak": "hush1"}, "given without"),
        ({"CREDENTIALS_DIRECTORY": "{home}/c"}, {"c/ak": ""}, "ak is empty"),
        ({}, {".huaweicloud/credentials": "hush1 = hush2"}, "is not an INI file"),
        ({}, {".huaweicloud/credentials": "[basic]\nak = hush1"}, "ak given without sk"),
        ({"HUAWEICLOUD_SDK_CREDENTIALS_FILE": "{home}/f"}, {"f": "[x]\n"}, "no ak and sk"),
        ({"HUAWEICLOUD_SDK_CREDENTIALS_FILE": "{home}/none"}, {}, "cannot be read"),
    ],
)
def test_half_given_and_unreadable_credentials_are_one_clear_line(
    environ: dict[str, str], files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    variables = {name: value.replace("{home}", str(tmp_path)) for name, value in environ.items()}
    with pytest.raises(CredentialsError, match=message) as caught:
        load_credentials(variables, tmp_path)
    assert "\n" not in str(caught.value)
    assert not re.search("hush", str(caught.value))
