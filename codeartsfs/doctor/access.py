"""The way to the API and who we are to it, step by step: each needs the one before."""

import ssl
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

import trio

from codeartsfs import human
from codeartsfs.api.auth import Credentials
from codeartsfs.api.client import EndpointError, Reply, open_client, trust
from codeartsfs.api.pace import Pace, TemporaryFailure
from codeartsfs.api.route import (
    NotTrusted,
    Peer,
    RouteError,
    connect,
    peer_of,
    resolve,
    secure,
)
from codeartsfs.doctor.findings import Finding, State, examine, failed, ok, skipped, warning
from codeartsfs.errors import AccessDenied, CodeArtsError

_EXPIRES_SOON_S = 3600.0
_CERTIFICATE_SOON_S = 14 * 86400.0
_SKEW_NOTED_S = 60.0
_SKEW_REFUSED_S = 15 * 60.0  # what signatures may be off
_CALL_TIMEOUT_S = 30.0
_CALL = ("API call", "clock")
STEPS = ("DNS", "TCP", "TLS", *_CALL)


# Who we are.


def credentials(found: Credentials) -> Sequence[Finding]:
    """Say who we are to the API, for how long, and who else can read that."""
    return [_told(found), *_open_to_others(found)]


def _told(found: Credentials) -> Finding:
    name, scope = "credentials", found.scope()
    told = f"{found.kind} from {found.source}{', ' * bool(scope.place)}{scope.place}"
    if not scope.of_project:
        return failed(name, told, "get a token for a project: calls are made in one")
    if scope.expires_s is None:
        return ok(name, told)
    left_s = scope.expires_s - time.time()
    if left_s <= 0:
        return failed(name, f"{told}, expired {human.span(-left_s)} ago", "get a new token")
    told = f"{told}, valid for {human.span(left_s)}"
    if left_s < _EXPIRES_SOON_S:
        return warning(name, told, "renew it soon; a token file is read again by itself")
    return ok(name, told)


def _open_to_others(found: Credentials) -> Iterator[Finding]:
    for file in found.files:
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
        except OSError:
            continue
        if mode & 0o044:
            told = f"{file} can be read by others (mode {mode:04o})"
            yield warning("credentials", told, f"chmod 600 {file}")


# The way there.


def way(
    endpoint: str, ca_file: str | None, found: Credentials | None, project: str | None
) -> Iterator[Finding]:
    """Go to the API as far as it goes."""
    try:
        trusted = trust(ca_file)
    except EndpointError as error:
        yield failed("TLS", str(error), "give a PEM file of certificates as --ca-file")
        yield from rest(_CALL, "of TLS")
        return
    try:
        peer = peer_of(endpoint)
    except RouteError as error:
        yield failed("proxy", str(error), "correct HTTPS_PROXY, ALL_PROXY or NO_PROXY")
        yield from rest(STEPS, "of the proxy")
        return
    yield ok("proxy", peer.proxy or "none")
    steps: list[tuple[str, Callable[[], Finding]]] = [
        ("DNS", lambda: _dns(peer)),
        ("TCP", lambda: _tcp(peer)),
    ]
    if urlsplit(endpoint).scheme == "https":
        steps.append(("TLS", lambda: _tls(endpoint, trusted, peer)))
    names = [*(name for name, _ in steps), *_CALL]
    for name, step in steps:
        [finding] = examine(name, step)
        yield finding
        if finding.state is State.FAILED:
            yield from rest(names[names.index(name) + 1 :], f"of {name}")
            return
    if found is None:
        yield from rest(_CALL, "there are no credentials")
        return
    yield from examine(
        "API call",
        lambda: trio.run(_call, endpoint, ca_file, found, project),
        _CALL_TIMEOUT_S,
    )


def rest(names: Sequence[str], because: str) -> Iterator[Finding]:
    """Say of all that is behind a failure why nobody looks at it."""
    for name in names:
        yield skipped(name, because)


def _dns(peer: Peer) -> Finding:
    try:
        addresses = trio.run(resolve, peer)
    except RouteError as error:
        fix = "check the name (--region, --endpoint) and /etc/resolv.conf"
        if peer.proxy:
            fix = "check the name of the proxy (HTTPS_PROXY)"
        return failed("DNS", f"{peer.host}: {error}", fix)
    return ok("DNS", f"{peer.host} is {', '.join(addresses[:4])}")


def _tcp(peer: Peer) -> Finding:
    begun = time.monotonic()
    try:
        trio.run(connect, peer)
    except RouteError as error:
        whom = "the proxy" if peer.proxy else "a firewall, or a proxy that must be used"
        fix = f"see to {whom} (HTTPS_PROXY)"
        return failed("TCP", f"{peer.host} port {peer.port}: {error}", fix)
    took_ms = (time.monotonic() - begun) * 1000
    return ok("TCP", f"{peer.host} port {peer.port} answers in {took_ms:.0f} ms")


def _tls(endpoint: str, trusted: ssl.SSLContext, peer: Peer) -> Finding:
    try:
        shown = trio.run(secure, endpoint, trusted)
    except NotTrusted as error:
        return _not_trusted(error)
    except RouteError as error:
        fix = "see to the proxy (HTTPS_PROXY)" if peer.proxy else "is that a server of TLS?"
        return failed("TLS", str(error), fix)
    left_s = shown.expires_s - time.time()
    told = f"{shown.protocol}, certificate by {shown.issuer}, valid for {human.span(left_s)}"
    if left_s < _CERTIFICATE_SOON_S:
        return warning("TLS", told, "whoever runs the server has to renew it")
    return ok("TLS", told)


def _not_trusted(error: NotTrusted) -> Finding:
    shown = error.certificate
    told = f"the certificate is not trusted: {error}"
    if shown is None:
        return failed("TLS", told, "give --ca-file where a proxy intercepts")
    told += f" (of {shown.subject}, by {shown.issuer})"
    now = time.time()
    if shown.expires_s < now:
        return failed("TLS", told, "it has expired, or the clock of this machine is wrong")
    if "Hostname mismatch" in str(error) or "IP address mismatch" in str(error):
        return failed("TLS", told, "it is another server's: check --endpoint, DNS and proxies")
    return failed(
        "TLS", told, "a proxy that intercepts, or an authority of your own: give it as --ca-file"
    )


# The call.


async def _call(
    endpoint: str, ca_file: str | None, found: Credentials, project: str | None
) -> Sequence[Finding]:
    name = "API call"
    pace = Pace(requests_per_second=0)
    async with open_client(
        endpoint=endpoint,
        credentials=found,
        pace=pace,
        ca_file=ca_file,
        first_byte_timeout_s=_CALL_TIMEOUT_S - 5,
    ) as client:
        try:
            reply = await client.ask_once(project)
        except (CodeArtsError, TemporaryFailure) as failure:
            refused = isinstance(failure, AccessDenied)
            fix = _credentials_fix(found) if refused else "try again later; see DNS, TCP and TLS"
            return [failed(name, str(failure), fix), skipped("clock", "nobody told the time")]
    return [_meaning(reply, found, project), _clock(reply, found)]


def _meaning(reply: Reply, found: Credentials, project: str | None) -> Finding:
    name, status = "API call", reply.status
    if not reply.published:
        fix = "this host does not have that call: check --region or --endpoint"
        return failed(name, reply.told, fix)
    if status == 401:
        return failed(name, reply.told, _credentials_fix(found))
    if status == 403:
        fix = "give the user a role that may read CodeArts Build in this project"
        return failed(name, reply.told, fix)
    if status in (400, 404) and project is None:
        return ok(name, f"we are known, though the record asked for is none: {reply.told}")
    if status in (400, 404):
        fix = f"check --project {project}: it is in the address of the project's page"
        return failed(name, reply.told, fix)
    if status == 429:
        return warning(name, reply.told, "it is asked too often: lower --max-requests-per-second")
    if 200 <= status < 300:
        return ok(name, reply.told)
    fix = "the service is in trouble: try again, then give its support the request id"
    return failed(name, reply.told, fix)


def _credentials_fix(found: Credentials) -> str:
    return {
        "AK/SK": "check the keys and the clock: signatures are good for 15 minutes",
        "IAM password": "check user, password, account and IAM project",
    }.get(found.kind, "get a new token, for the project of this region")


def _clock(reply: Reply, found: Credentials) -> Finding:
    name = "clock"
    if reply.dated_s is None:
        return skipped(name, "the server does not tell the time")
    ahead_s = reply.came_s - reply.dated_s
    direction = "ahead of" if ahead_s > 0 else "behind"
    told = f"{human.span(abs(ahead_s))} {direction} the server's"
    fix = "set the clock of this machine (timedatectl set-ntp true)"
    if abs(ahead_s) < _SKEW_NOTED_S:
        return ok(name, "as the server's, to a minute")
    if abs(ahead_s) >= _SKEW_REFUSED_S and found.kind == "AK/SK":
        return failed(name, f"{told}: signatures are refused", fix)
    return warning(name, told, fix)
