"""The way to the API step by step, to find out where it ends: proxy, name, connection, TLS."""

import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from codeartsfs.api.auth import one_line
from codeartsfs.api.transport import DirectTransport, proxy_for, reason_of

_STEP_S = 5.0  # no step takes longer


class RouteError(Exception):
    """A step cannot be made; one line, without secrets."""


class NotTrusted(RouteError):
    """The certificate is not.

    Attributes:
        certificate: what it says, None where it could not be had.
    """

    def __init__(self, message: str, certificate: "Certificate | None") -> None:
        super().__init__(message)
        self.certificate = certificate


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows of itself."""

    subject: str
    issuer: str
    expires_s: float
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to connect to: the server, or the proxy before it.

    Attributes:
        proxy: its address without password; empty for none.
    """

    host: str
    port: int
    proxy: str = ""


def peer_of(endpoint: str) -> Peer:
    """Return whom to connect to for an endpoint.

    Raises:
        RouteError: the environment names a proxy that cannot be used.
    """
    url = httpx.URL(endpoint)
    host, port = url.host, url.port or {"http": 80, "https": 443}[url.scheme]
    try:
        proxy = proxy_for((url.scheme, host, port))
    except httpx.UnsupportedProtocol as error:
        raise RouteError(one_line(str(error))) from None
    if proxy is None:
        return Peer(host, port)
    shown = f"{proxy.scheme}://{'***@' if proxy.userinfo else ''}{proxy.netloc.decode()}"
    return Peer(proxy.host, proxy.port or {"http": 80, "https": 443}[proxy.scheme], shown)


async def resolve(peer: Peer) -> tuple[str, ...]:
    """Return the addresses of a peer.

    Raises:
        RouteError: it has none.
    """
    kind = trio.socket.SOCK_STREAM
    with _bounded():
        found = await trio.socket.getaddrinfo(peer.host, peer.port, type=kind)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def connect(peer: Peer) -> None:
    """Connect once.

    Raises:
        RouteError: nobody is there.
    """
    with _bounded():
        await (await trio.open_tcp_stream(peer.host, peer.port)).aclose()


async def secure(endpoint: str, trust: ssl.SSLContext) -> Certificate:
    """Speak TLS to an endpoint as the client does, through the proxy where there is one.

    Raises:
        NotTrusted: the certificate is not good for this.
        RouteError: it does not come to that.
    """
    try:
        der, protocol = await _handshake(endpoint, trust)
    except httpx.HTTPError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise NotTrusted(cause.verify_message, await _untrusted(endpoint)) from None
            cause = cause.__cause__ or cause.__context__
        raise RouteError(one_line(str(error))) from None
    return _read(der, protocol)


async def _handshake(endpoint: str, trust: ssl.SSLContext) -> tuple[bytes, str]:
    transport = DirectTransport(trust, most_idle=0, idle_s=0)
    limits = {"timeout": {"connect": _STEP_S}}
    connection = await transport._connect(httpx.Request("GET", endpoint, extensions=limits))
    try:
        stream = connection._stream
        assert isinstance(stream, trio.SSLStream)
        return stream.getpeercert(True) or b"", str(stream.version())
    finally:
        connection.close()


async def _untrusted(endpoint: str) -> Certificate | None:
    """Return what a certificate says that is not trusted; nothing is sent to who shows it."""
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with suppress(httpx.HTTPError, OSError, ValueError):
        return _read(*await _handshake(endpoint, anybody))
    return None


@contextmanager
def _bounded() -> Iterator[None]:
    try:
        with trio.fail_after(_STEP_S):
            yield
    except trio.TooSlowError:
        raise RouteError(f"no answer within {_STEP_S:g} s") from None
    except OSError as error:
        raise RouteError(reason_of(error)) from None


def _read(der: bytes, protocol: str) -> Certificate:
    # The only reader of certificates in the standard library; it wants a file.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(ssl.DER_cert_to_PEM_cert(der))
        file.flush()
        parts: Mapping[str, Any] = ssl._ssl._test_decode_cert(file.name)  # type: ignore[attr-defined]
    return Certificate(
        subject=_name(parts["subject"]),
        issuer=_name(parts["issuer"]),
        expires_s=ssl.cert_time_to_seconds(parts["notAfter"]),
        protocol=protocol,
    )


def _name(parts: Any) -> str:
    names = {key: value for part in parts for key, value in part}
    wanted = (names.get("commonName"), names.get("organizationName"))
    return one_line(", ".join(filter(None, wanted)) or "nobody")
