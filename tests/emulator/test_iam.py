"""Tokens, temporary keys and projects, as IAM gives them out and as the API then takes them."""

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.server import open_emulator
from codeartsfs.emulator.signature import SignedRequest, canonical_request, sign

from .conftest import ACCOUNTS, FAILED, open_client

RECORD = f"/v1/record/{FAILED}/info"
BY_KEY = {
    "methods": ["hw_ak_sk"],
    "hw_ak_sk": {"access": {"key": ACCOUNTS.access_key}, "secret": {"key": ACCOUNTS.secret_key}},
}
BY_PASSWORD = {
    "methods": ["password"],
    "password": {
        "user": {
            "name": ACCOUNTS.user,
            "password": ACCOUNTS.password,
            "domain": {"name": ACCOUNTS.domain},
        }
    },
}
IN_REGION = {"project": {"name": ACCOUNTS.region}}


def asking(identity: dict[str, Any], scope: dict[str, Any] | None = None) -> dict[str, Any]:
    auth: dict[str, Any] = {"identity": copy.deepcopy(identity)}
    if scope is not None:
        auth["scope"] = scope
    return {"auth": auth}


def signed_headers(
    target: str, host: str, access_key: str, secret_key: str, **more: str
) -> dict[str, str]:
    date = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    headers = {
        "host": host,
        "x-sdk-date": date,
        **{k.replace("_", "-"): v for k, v in more.items()},
    }
    path, _, query = target.partition("?")
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
    names = sorted(headers)
    canonical = canonical_request(SignedRequest("GET", path.encode(), query.encode(), pairs), names)
    signature = sign(secret_key, date, canonical)
    headers["authorization"] = (
        f"SDK-HMAC-SHA256 Access={access_key}, SignedHeaders={';'.join(names)}, "
        f"Signature={signature}"
    )
    return headers


async def test_the_clock_that_judges_signatures_can_be_wrong(recordings: Path) -> None:
    async with open_emulator(recordings, faults=["clock-ahead=1000"]) as url:
        host = url.removeprefix("http://")
        target = f"/v1/record/{FAILED}/full-stages"
        headers = signed_headers(target, host, ACCOUNTS.access_key, ACCOUNTS.secret_key)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            refused = await client.get(target, headers=headers)
            assert refused.status_code == 401
            assert "expired" in refused.json()["error_msg"]
            await client.post("/_emulator/faults", json=[])
            assert (await client.get(target, headers=headers)).status_code == 200


@pytest.mark.parametrize("identity", [BY_PASSWORD, BY_KEY], ids=["password", "hw_ak_sk"])
@pytest.mark.parametrize("scope", [IN_REGION, {"project": {"id": ACCOUNTS.project_id}}])
async def test_a_token_comes_in_a_header_and_opens_the_api(
    recordings: Path, identity: dict[str, Any], scope: dict[str, Any]
) -> None:
    async with open_client(recordings) as client:
        reply = await client.post("/v3/auth/tokens?nocatalog=true", json=asking(identity, scope))
        assert reply.status_code == 201
        token = reply.headers["x-subject-token"]
        body = reply.json()["token"]
        assert token not in reply.text
        assert "catalog" not in body
        assert body["methods"] == identity["methods"]
        lifetime = [
            datetime.strptime(body[name], "%Y-%m-%dT%H:%M:%S.%fZ")
            for name in ("issued_at", "expires_at")
        ]
        assert (lifetime[1] - lifetime[0]).total_seconds() == pytest.approx(86400, abs=1e-3)
        assert (await client.get(RECORD, headers={"X-Auth-Token": token})).status_code == 200


async def test_a_token_of_no_project_is_refused_by_the_api(recordings: Path) -> None:
    async with open_client(recordings) as client:
        reply = await client.post("/v3/auth/tokens", json=asking(BY_PASSWORD))
        token = reply.headers["x-subject-token"]
        refused = await client.get(RECORD, headers={"X-Auth-Token": token})
        assert (refused.status_code, refused.json()["error_code"]) == (401, "APIGW.0301")
        projects = await client.get("/v3/projects", headers={"X-Auth-Token": token})
        assert [p["id"] for p in projects.json()["projects"]] == [ACCOUNTS.project_id]


async def test_a_wrong_password_and_a_strange_body_get_the_iam_envelope(recordings: Path) -> None:
    wrong = asking(BY_PASSWORD, IN_REGION)
    wrong["auth"]["identity"]["password"]["user"]["password"] = "guess"
    async with open_client(recordings) as client:
        reply = await client.post("/v3/auth/tokens", json=wrong)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == 401
        assert reply.json()["error"]["title"] == "Unauthorized"
        assert "x-subject-token" not in reply.headers
        for content in (b"{", b"[]", b'{"auth":{"identity":{"methods":["totp"]}}}'):
            reply = await client.post("/v3/auth/tokens", content=content)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, 400)
        elsewhere = asking(BY_PASSWORD, {"project": {"name": "eu-west-0"}})
        assert (await client.post("/v3/auth/tokens", json=elsewhere)).status_code == 401


async def test_a_token_lives_for_24_hours(recordings: Path) -> None:
    now_s = [1_750_000_000.0]
    async with (
        open_emulator(recordings, clock=lambda: now_s[0]) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        reply = await client.post("/v3/auth/tokens", json=asking(BY_PASSWORD, IN_REGION))
        headers = {"X-Auth-Token": reply.headers["x-subject-token"]}
        now_s[0] += 86399
        assert (await client.get(RECORD, headers=headers)).status_code == 200
        now_s[0] += 2
        reply = await client.get(RECORD, headers=headers)
        assert (reply.status_code, reply.json()["error_code"]) == (401, "APIGW.0307")


async def test_no_credentials_and_wrong_ones_are_401(recordings: Path) -> None:
    async with open_client(recordings) as client:
        del client.headers["X-Auth-Token"]
        for headers in ({}, {"X-Auth-Token": "guess"}, {"Authorization": "Bearer guess"}):
            reply = await client.get(RECORD, headers=headers)
            assert (reply.status_code, reply.json()["error_code"]) == (401, "APIGW.0301")
            assert reply.json()["request_id"] == reply.headers["x-request-id"]


async def test_projects_are_found_by_region_name_with_a_signature(recordings: Path) -> None:
    async with open_client(recordings) as client:
        host = f"{client.base_url.host}:{client.base_url.port}"
        del client.headers["X-Auth-Token"]
        for region, count in ((ACCOUNTS.region, 1), ("eu-west-0", 0)):
            target = f"/v3/projects?name={region}"
            headers = signed_headers(target, host, ACCOUNTS.access_key, ACCOUNTS.secret_key)
            reply = await client.get(target, headers=headers)
            assert (reply.status_code, len(reply.json()["projects"])) == (200, count)
        refused = await client.get("/v3/projects")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, 401)


async def test_temporary_keys_sign_only_with_their_security_token(recordings: Path) -> None:
    token = {"id": ACCOUNTS.token, "duration_seconds": 3600}
    async with open_client(recordings) as client:
        host = f"{client.base_url.host}:{client.base_url.port}"
        reply = await client.post(
            "/v3.0/OS-CREDENTIAL/securitytokens",
            json=asking({"methods": ["token"], "token": token}),
        )
        assert reply.status_code == 201
        key = reply.json()["credential"]
        del client.headers["X-Auth-Token"]
        keys = (key["access"], key["secret"])
        good = signed_headers(RECORD, host, *keys, x_security_token=key["securitytoken"])
        assert (await client.get(RECORD, headers=good)).status_code == 200
        for bad in (
            signed_headers(RECORD, host, *keys),
            signed_headers(RECORD, host, *keys, x_security_token="guess"),
        ):
            assert (await client.get(RECORD, headers=bad)).status_code == 401


def test_accounts_come_from_the_environment_and_hide_their_secrets() -> None:
    accounts = Accounts.from_environment(
        {
            "CODEARTSFS_EMULATOR_TOKEN": "t-secret",
            "CODEARTSFS_EMULATOR_SK": "s-secret",
            "OTHER": "x",
        }
    )
    assert (accounts.token, accounts.secret_key) == ("t-secret", "s-secret")
    assert accounts.user == ACCOUNTS.user
    assert "secret" not in repr(accounts).replace("secret_key", "")
