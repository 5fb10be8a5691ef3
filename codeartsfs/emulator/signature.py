"""Checks ``SDK-HMAC-SHA256`` signatures: the server's half of AK/SK authentication.

Written from the published algorithm and not from the SDK, which signs on the client's side:
two independent readings that agree on every request are the point of the exercise.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote_from_bytes, unquote_to_bytes

ALGORITHM = "SDK-HMAC-SHA256"
MAX_SKEW_S = 15 * 60
UNSIGNED_PAYLOAD = b"UNSIGNED-PAYLOAD"

_AUTHORIZATION = re.compile(
    rf"{ALGORITHM} Access=(?P<access>[^,\s]+), ?SignedHeaders=(?P<names>[^,\s]+), ?"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


class SignatureRefused(Exception):
    """The request is not signed by whom it says; the text is the gateway's own wording."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a signature covers, exactly as received: nothing decoded, nothing normalised.

    Header names are lower case. ``raw_path`` ends before the ``?``.
    """

    method: str
    raw_path: bytes
    raw_query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def header(self, name: str) -> bytes | None:
        """Return the one value of a header, None where it is absent.

        Raises:
            SignatureRefused: it was sent twice, so that a signature of it would be ambiguous.
        """
        values = [value for key, value in self.headers if key == name.encode()]
        if len(values) > 1:
            raise SignatureRefused(f"header {name} sent {len(values)} times")
        return values[0] if values else None


def canonical_request(request: SignedRequest, signed_names: list[str]) -> bytes:
    """Return the text a signature is made over.

    Raises:
        SignatureRefused: a header said to be signed was not sent.
    """
    path = b"/".join(_encode(part) for part in unquote_to_bytes(request.raw_path).split(b"/"))
    if not path.endswith(b"/"):
        path += b"/"
    # Not parse_qsl: there a "+" is a space, in a canonical query it is a plus sign.
    pairs = [
        tuple(unquote_to_bytes(part) for part in (key, value))
        for key, _, value in (item.partition(b"=") for item in request.raw_query.split(b"&"))
        if key
    ]
    query = b"&".join(_encode(key) + b"=" + _encode(value) for key, value in sorted(pairs))
    lines = [request.method.encode(), path, query]
    for name in signed_names:
        value = request.header(name)
        if value is None:
            raise SignatureRefused(f"signed header {name} is missing")
        lines.append(name.encode() + b":" + value.strip())
    lines += [b"", ";".join(signed_names).encode(), _payload_hash(request, signed_names)]
    return b"\n".join(lines)


def sign(secret: str, date: str, canonical: bytes) -> str:
    """Return the signature, in lower-case hex, of a canonical request made at ``date``."""
    digest = hashlib.sha256(canonical).hexdigest()
    text = f"{ALGORITHM}\n{date}\n{digest}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def verify(request: SignedRequest, secret_of: Callable[[str], str | None], now_s: float) -> str:
    """Return the access key that signed a request.

    Args:
        request: the request as it came in.
        secret_of: the secret of an access key, None for unknown keys.
        now_s: seconds since the epoch.

    Raises:
        SignatureRefused: malformed, out of date, unknown key, or simply wrong.
    """
    authorization = request.header("authorization") or b""
    match = _AUTHORIZATION.fullmatch(authorization.decode("latin-1"))
    if match is None:
        raise SignatureRefused("authorization header is malformed")
    names = match["names"].split(";")
    if "x-sdk-date" not in names or names != sorted(n.lower() for n in names):
        raise SignatureRefused("signed headers must be sorted and hold x-sdk-date")
    date = (request.header("x-sdk-date") or b"").decode("latin-1")
    try:
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise SignatureRefused("x-sdk-date is malformed") from None
    if abs(signed_at.timestamp() - now_s) > MAX_SKEW_S:
        raise SignatureRefused("the signature has expired")
    secret = secret_of(match["access"])
    if secret is None:
        raise SignatureRefused("ak not exist")
    expected = sign(secret, date, canonical_request(request, names))
    if not hmac.compare_digest(expected, match["signature"]):
        raise SignatureRefused("verify aksk signature fail")
    return match["access"]


def _payload_hash(request: SignedRequest, signed_names: list[str]) -> bytes:
    # Only a signed waiver counts; else anybody could strip the body's protection on the way.
    name = "x-sdk-content-sha256"
    if name in signed_names and request.header(name) == UNSIGNED_PAYLOAD:
        return UNSIGNED_PAYLOAD
    return hashlib.sha256(request.body).hexdigest().encode()


def _encode(part: bytes) -> bytes:
    return quote_from_bytes(part, safe="-_.~").encode()
