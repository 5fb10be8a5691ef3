"""What the doctor says of credentials and of the way to the API."""

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from codeartsfs.api import route
from codeartsfs.api.auth import Credentials, SignatureAuth, TokenAuth, load_credentials
from codeartsfs.api.route import Certificate, NotTrusted
from codeartsfs.doctor import access
from codeartsfs.doctor.findings import Finding, State
from tests.api.conftest import certificate

__all__ = ["certificate"]

TOKEN = TokenAuth(lambda: "a-secret-token")
KEYS = SignatureAuth("AN-ACCESS-KEY", "a-secret-key")
PROJECT = "c" * 32


@contextmanager
def server(
    status: int = 404,
    body: bytes = b"{}",
    *,
    ahead_s: float = 0,
    tls: tuple[str, str] | None = None,
) -> Iterator[str]:
    """Answer whatever is asked in one way; CONNECT, too."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Request-Id", "req-7")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_CONNECT = do_GET  # noqa: N815

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead_s, usegmt=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as http:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def way(
    endpoint: str,
    found: Credentials | None = TOKEN,
    *,
    ca_file: str | None = None,
    project: str | None = None,
) -> dict[str, Finding]:
    findings = {finding.name: finding for finding in access.way(endpoint, ca_file, found, project)}
    assert not [each for each in findings.values() if "a-secret" in each.found + each.fix]
    return findings


def states(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {name: finding.state.value for name, finding in findings.items()}


# The way there.


def test_all_steps_are_well_where_they_are() -> None:
    with server() as endpoint:
        findings = way(endpoint)
    assert states(findings) == dict.fromkeys(("proxy", "DNS", "TCP", "API call", "clock"), "ok")


def test_where_nobody_listens_the_rest_is_skipped() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        findings = way(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert findings["TCP"].found.endswith(": Connection refused")
    assert states(findings) == {
        "proxy": "ok",
        "DNS": "ok",
        "TCP": "failed",
        "API call": "skipped",
        "clock": "skipped",
    }


def test_a_name_that_is_none_fails() -> None:
    findings = way("https://build.invalid")
    assert states(findings)["DNS"] == "failed"
    assert findings["TCP"].found == "skipped because of DNS"


def test_without_credentials_the_way_is_gone_as_far_as_it_goes() -> None:
    with server() as endpoint:
        findings = way(endpoint, None)
    assert states(findings)["TCP"] == "ok"
    assert findings["API call"].found == "skipped because there are no credentials"


def test_a_certificate_of_an_interceptor_is_explained(certificate: tuple[str, str]) -> None:
    with server(tls=certificate) as endpoint:
        findings = way(endpoint)
    assert findings["TLS"].state is State.FAILED
    assert "by 127.0.0.1" in findings["TLS"].found  # who says so
    assert "--ca-file" in findings["TLS"].fix
    assert findings["API call"].state is State.SKIPPED


def test_a_certificate_trusted_by_ca_file_is_told_with_its_end(
    certificate: tuple[str, str],
) -> None:
    with server(tls=certificate) as endpoint:
        findings = way(endpoint, ca_file=certificate[0])
    assert findings["API call"].state is State.OK
    assert findings["TLS"].state is State.WARNING  # that of the tests lives for two days
    assert "valid for 2 d" in findings["TLS"].found


def test_a_certificate_of_another_host_is_explained(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tls=certificate) as endpoint:
        findings = way(endpoint.replace("127.0.0.1", "localhost"), ca_file=certificate[0])
    assert "another server's" in findings["TLS"].fix


def test_a_certificate_that_has_expired_is_explained() -> None:
    shown = Certificate("build.example.com", "Some Authority", time.time() - 86400)
    finding = access._not_trusted(NotTrusted("certificate has expired", shown))
    assert finding.fix == "it has expired, or the clock of this machine is wrong"


def test_who_never_answers_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_STEP_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        findings = way(f"https://127.0.0.1:{silent.getsockname()[1]}")
    assert (findings["TCP"].state, findings["TLS"].found) == (State.OK, "nothing for 0.05 s")


def test_what_speaks_no_tls_is_explained() -> None:
    with server() as endpoint:
        findings = way(endpoint.replace("http:", "https:"))
    assert (findings["TLS"].state, findings["TLS"].fix) == (
        State.FAILED,
        "is that a server of TLS?",
    )


def test_a_proxy_is_named_without_its_password_and_its_refusal_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with server(403) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.replace("//", "//me:a-secret-word@"))
        findings = way("https://build.example.com")
    assert findings["proxy"].found == proxy.replace("//", "//***@")
    assert findings["TLS"].found == "the proxy answers 403"
    assert "HTTPS_PROXY" in findings["TLS"].fix


def test_a_proxy_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:a-secret-word@127.0.0.1:1")
    findings = way("https://build.example.com")
    assert states(findings)["proxy"] == "failed"
    assert states(findings)["API call"] == "skipped"


# The call.


@pytest.mark.parametrize(
    ("status", "body", "project", "state", "says"),
    [
        (200, b"{}", None, "ok", ""),
        (404, b"{}", None, "ok", ""),
        (400, b"{}", None, "ok", ""),
        (404, b"{}", PROJECT, "failed", "check --project"),
        (401, b"{}", None, "failed", "get a new token"),
        (403, b"{}", None, "failed", "a role"),
        (429, b"{}", None, "warning", "--max-requests-per-second"),
        (500, b"{}", None, "failed", "request id"),
        (503, b"<html>", None, "failed", "request id"),
        (404, b'{"error_code": "APIGW.0101", "error_msg": "x"}', None, "failed", "--region"),
    ],
)
def test_what_the_api_answers_is_told_with_its_request_id_and_a_fix(
    status: int, body: bytes, project: str | None, state: str, says: str
) -> None:
    with server(status, body) as endpoint:
        finding = way(endpoint, project=project)["API call"]
    assert (finding.state.value, says in finding.fix) == (state, True)
    assert f"HTTP {status}" in finding.found
    assert "(request req-7)" in finding.found


@pytest.mark.parametrize(
    ("ahead_s", "found", "state"),
    [
        (20, TOKEN, "ok"),
        (300, TOKEN, "warning"),
        (-300, KEYS, "warning"),
        (2000, TOKEN, "warning"),
        (2000, KEYS, "failed"),
        (-2000, KEYS, "failed"),
    ],
)
def test_a_clock_that_is_wrong_is_told(ahead_s: float, found: Credentials, state: str) -> None:
    with server(ahead_s=ahead_s) as endpoint:
        finding = way(endpoint, found)["clock"]
    assert finding.state.value == state
    if state != "ok":
        assert ("behind" if ahead_s > 0 else "ahead of") in finding.found


# Who we are.


def signed(told: object) -> str:
    """Make something like a token of IAM: JSON in what else a signature needs."""
    text = json.dumps({"token": told}, separators=(",", ":")).encode()
    return (
        base64.b64encode(b"0\x82\x0f\x02\x06\xff\xfe" + text + b"\xff" * 70)
        .decode()
        .replace("/", "-")
    )


def in_s(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() + seconds))


DOMAIN = {"name": "acme", "id": "0" * 32}
OF_PROJECT = {"project": {"domain": DOMAIN, "name": "cn-north-4", "id": "1" * 32}}


@pytest.mark.parametrize(
    ("left_s", "scope", "state", "says"),
    [
        (80000, OF_PROJECT, "ok", "IAM project cn-north-4, valid for 22 h"),
        (1000, OF_PROJECT, "warning", "IAM project cn-north-4, valid for 17 min"),
        (-7300, OF_PROJECT, "failed", "expired 2 h ago"),
        (80000, {"domain": DOMAIN}, "failed", "the account, not a project"),
        (None, {}, "ok", "token from CODEARTSFS_TOKEN"),
    ],
)
def test_a_token_tells_its_project_and_its_end(
    left_s: float | None, scope: dict[str, object], state: str, says: str
) -> None:
    expires = {} if left_s is None else {"expires_at": in_s(left_s)}
    found = load_credentials({"CODEARTSFS_TOKEN": signed({**expires, **scope})}, Path("/"))
    assert found is not None
    [finding] = access.credentials(found)
    assert (finding.state.value, says in finding.found) == (state, True), finding


def test_a_file_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-secret-token")
    file.chmod(0o644)
    found = load_credentials({"CODEARTSFS_TOKEN_FILE": str(file)}, tmp_path)
    assert found is not None
    told, readable = access.credentials(found)
    assert told.found == f"token file from CODEARTSFS_TOKEN_FILE, {file}"
    assert (readable.state, readable.fix) == (State.WARNING, f"chmod 600 {file}")
    file.chmod(0o600)
    assert access.credentials(found) == [told]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"HUAWEICLOUD_SDK_AK": "A", "HUAWEICLOUD_SDK_SK": "a-secret"},
            "AK/SK from HUAWEICLOUD_SDK_AK and",
        ),
        ({"CREDENTIALS_DIRECTORY": "."}, "token file from systemd, "),
        ({}, "AK/SK from "),
        (
            {
                "CODEARTSFS_USER": "me",
                "CODEARTSFS_PASSWORD": "a-secret",
                "CODEARTSFS_ACCOUNT": "acme",
                "CODEARTSFS_IAM_PROJECT": "cn-north-4",
            },
            "IAM password from CODEARTSFS_USER and CODEARTSFS_PASSWORD, IAM project cn-north-4",
        ),
    ],
    ids=["keys", "systemd", "profile", "password"],
)
def test_where_credentials_come_from_is_told_without_them(
    variables: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("a-secret-token")
    profile = tmp_path / ".huaweicloud" / "credentials"
    profile.parent.mkdir()
    profile.write_text("[basic]\nak = A\nsk = a-secret\n")
    found = load_credentials(variables, tmp_path)
    assert found is not None
    findings = access.credentials(found)
    assert findings[0].found.startswith(says), findings
    assert "a-secret" not in str(findings)
