"""The verifier against vectors made with the vendor's signer, and against tampering."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from codeartsfs.emulator.signature import (
    SignatureRefused,
    SignedRequest,
    canonical_request,
    sign,
    verify,
)

DATE = "20250102T030405Z"
NOW_S = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
SECRETS = {
    "EXAMPLEAK00000000001": "EXAMPLE/secret+key/0000000000000000000001",
    "TEMPAK00000000000001": "TEMPSECRET000000000000000000000000000001",
}
NOBODY: dict[str, str] = {}
HOST = "cloudbuild-ext.cn-north-4.myhuaweicloud.com"
IAM = "iam.cn-north-4.myhuaweicloud.com"
RECORD = "2cc26382-b2cb-4234-8eb0-b37d362f4d4c"
PROJECT = "0123456789abcdef0123456789abcdef"

# (access key, method, host, target, headers beside Host and X-Sdk-Date, body,
#  SHA-256 of the canonical request, signature)
VECTORS = [
    (
        "EXAMPLEAK00000000001",
        "GET",
        HOST,
        f"/v4/{RECORD}/task-log?log_level=INFO&task_name=stage1",
        {},
        b"",
        "5bdfdce2530bd7f0da6acfea36e068d1a89a1449f610564d0c7b6086d9f025ed",
        "13fedf6d2a4eff307c885bc5509e0e8eaf60c635f5eb034d24eaa165f0242090",
    ),
    (
        "EXAMPLEAK00000000001",
        "GET",
        HOST,
        f"/v4/{RECORD}/task-log?log_level=DEBUG&task_name=stage1",
        {
            "user-agent": "logfs-test/1.0",
            "content-type": "application/json",
            "x-project-id": PROJECT,
        },
        b"",
        "5e276e296e7e5499db34a28b7ea172228275b86e692dcde949b076cf0a8b8a9c",
        "e2d39df6f3f1ff76fab9b56c7a4f755dfc2426d8fd2685af40166e5fa668d9d5",
    ),
    (
        "TEMPAK00000000000001",
        "GET",
        "127.0.0.1:8080",
        f"/v1/record/{RECORD}/full-stages?cascade=true",
        {
            "content-type": "application/json",
            "x-project-id": PROJECT,
            "x-security-token": "sectok==",
        },
        b"",
        "fa9120255132533a0b149bdb0eb679c5d679249b7136f603c3f2f5eb8eea15fe",
        "18fac5ac8344644f8ee4dfab05170d62e0c1c3227ade650061ba851c44d626e6",
    ),
    (
        "EXAMPLEAK00000000001",
        "GET",
        HOST,
        "/v1/record/ee24b7bf-0285-43b4-b975-77f615884466/records?branches=dev~x"
        "&branches=release%2F1.0&from_date=2024-06-26%2008%3A00%3A00&limit=10&page=0"
        "&tags=%E6%9E%84%E5%BB%BA%2B1",
        {"x-project-id": PROJECT},
        b"",
        "82085886bbad13f6b57d62216dd768e54f94fdfd688effe19c8edbf3eb1090da",
        "be804a97d0860ab5eec00bad04ca4921d88465cf07fde6efd9c562ce419cc5c6",
    ),
    (
        "EXAMPLEAK00000000001",
        "POST",
        IAM,
        "/v3/auth/tokens?nocatalog=true",
        {"content-type": "application/json;charset=utf8"},
        b'{"auth":{"identity":{"methods":["token"]}}}',
        "f75d98781cc9ba7b783ba56ce1ca44c02335f3803ee4ac455af80f6477eeddd5",
        "0df4aae2eb758c556d374312bd5a2f3bb20be83530b0feb31806a09c9cb51bab",
    ),
    (
        "EXAMPLEAK00000000001",
        "GET",
        IAM,
        "/v3/projects?name=cn-north-4",
        {},
        b"",
        "1beabfb78e4031ec547d84a875f33ed28be459bd661843b4ef6fb8fef6a4a3df",
        "2e5d18b17918500b7e7cc1249679d0ed392f47f52ef00d421619fa2050f07d3f",
    ),
]


def signed(
    access: str,
    method: str,
    host: str,
    target: str,
    extra: dict[str, str],
    body: bytes,
    signature: str,
) -> tuple[SignedRequest, list[str]]:
    headers = {"host": host, "x-sdk-date": DATE, **extra}
    names = sorted(headers)
    headers["authorization"] = (
        f"SDK-HMAC-SHA256 Access={access}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    path, _, query = target.partition("?")
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
    return SignedRequest(method, path.encode(), query.encode(), pairs, body), names


@pytest.mark.parametrize("vector", VECTORS, ids=["V1", "V2", "V3", "V4", "V5", "V6"])
def test_official_vectors_are_accepted(
    vector: tuple[str, str, str, str, dict[str, str], bytes, str, str],
) -> None:
    access, method, host, target, extra, body, request_hash, signature = vector
    request, names = signed(access, method, host, target, extra, body, signature)

    canonical = canonical_request(request, names)

    assert hashlib.sha256(canonical).hexdigest() == request_hash
    assert sign(SECRETS[access], DATE, canonical) == signature
    assert verify(request, SECRETS.get, NOW_S) == access


def first_vector() -> SignedRequest:
    access, method, host, target, extra, body, _, signature = VECTORS[0]
    return signed(access, method, host, target, extra, body, signature)[0]


def test_headers_added_on_the_way_are_not_part_of_the_signature() -> None:
    request = first_vector()
    request = replace(request, headers=(*request.headers, (b"accept-encoding", b"gzip")))
    assert verify(request, SECRETS.get, NOW_S) == "EXAMPLEAK00000000001"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "POST"}, "signature fail"),
        ({"raw_path": b"/v4/other/task-log"}, "signature fail"),
        ({"raw_query": b"log_level=DEBUG&task_name=stage1"}, "signature fail"),
        ({"body": b"x"}, "signature fail"),
    ],
)
def test_a_request_changed_after_signing_is_refused(change: dict[str, object], reason: str) -> None:
    request = replace(first_vector(), **change)  # type: ignore[arg-type]
    with pytest.raises(SignatureRefused, match=reason):
        verify(request, SECRETS.get, NOW_S)


@pytest.mark.parametrize("skew_s", [-901, 901])
def test_a_clock_more_than_15_minutes_off_is_refused(skew_s: int) -> None:
    with pytest.raises(SignatureRefused, match="expired"):
        verify(first_vector(), SECRETS.get, NOW_S + skew_s)


@pytest.mark.parametrize("skew_s", [-899, 899])
def test_a_clock_less_than_15_minutes_off_is_accepted(skew_s: int) -> None:
    assert verify(first_vector(), SECRETS.get, NOW_S + skew_s)


def test_an_unknown_key_and_a_wrong_secret_are_refused() -> None:
    with pytest.raises(SignatureRefused, match="ak not exist"):
        verify(first_vector(), NOBODY.get, NOW_S)
    with pytest.raises(SignatureRefused, match="verify aksk signature fail"):
        verify(first_vector(), {"EXAMPLEAK00000000001": "wrong"}.get, NOW_S)


def test_a_plus_sign_in_a_query_is_not_a_space() -> None:
    spaced = SignedRequest("GET", b"/", b"a=b%20c", ())
    plus = replace(spaced, raw_query=b"a=b+c")
    assert b"\na=b%20c\n" in canonical_request(spaced, [])
    assert b"\na=b%2Bc\n" in canonical_request(plus, [])


def test_an_unsigned_payload_needs_a_signed_waiver() -> None:
    waiver = ((b"x-sdk-content-sha256", b"UNSIGNED-PAYLOAD"),)
    request = SignedRequest("POST", b"/", b"", waiver, b"body")
    assert canonical_request(request, ["x-sdk-content-sha256"]).endswith(b"\nUNSIGNED-PAYLOAD")
    assert not canonical_request(request, []).endswith(b"UNSIGNED-PAYLOAD")
