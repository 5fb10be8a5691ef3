"""Who may call: the demo account, its tokens and keys, and the temporary ones IAM hands out."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codeartsfs.api.wire import TimeForm, render_time
from codeartsfs.emulator.library import Clock
from codeartsfs.emulator.signature import SignatureRefused, SignedRequest, verify

TOKEN_LIFETIME_S = 24 * 3600


class Unauthorized(Exception):
    """A caller is not let in.

    Attributes:
        code: the gateway's code; IAM itself does not give it.
        text: why, in the words the gateway and IAM use.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class BadRequest(Exception):
    """A body IAM cannot understand."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """The one account there is, in one project of one region; its secrets stay out of ``repr``."""

    token: str = field(default="codeartsfs-demo-token", repr=False)
    access_key: str = "DEMOACCESSKEY0000001"
    secret_key: str = field(default="demosecretkey000000000000000000000000001", repr=False)
    user: str = "demo"
    password: str = field(default="demo-password", repr=False)
    domain: str = "demo-account"
    region: str = "cn-north-4"
    project_id: str = "0d0e0000000000000000000000000001"

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> "Accounts":
        """Return the demo account, with whatever CODEARTSFS_EMULATOR_* says instead."""
        names = {
            "token": "TOKEN",
            "access_key": "AK",
            "secret_key": "SK",
            "user": "USER",
            "password": "PASSWORD",
        }
        found = {
            name: environ[f"CODEARTSFS_EMULATOR_{suffix}"]
            for name, suffix in names.items()
            if environ.get(f"CODEARTSFS_EMULATOR_{suffix}")
        }
        return Accounts(**found)


@dataclass(frozen=True, slots=True)
class _Token:
    expires_s: float
    in_project: bool


@dataclass(frozen=True, slots=True)
class _TemporaryKey:
    secret_key: str
    security_token: str
    expires_s: float


class Iam:
    """Lets callers in by token or signature, and hands out both.

    Args:
        accounts: who there is.
        clock: what time it is, for lifetimes and for the skew of signatures.
    """

    def __init__(self, accounts: Accounts, clock: Clock) -> None:
        self.accounts = accounts
        self._clock = clock
        self._tokens = {accounts.token: _Token(float("inf"), in_project=True)}
        self._temporary: dict[str, _TemporaryKey] = {}
        self._stale: frozenset[str] = frozenset()

    def expire_tokens(self, expire: bool) -> None:
        """Refuse every token known by now, until told otherwise; later ones are good."""
        self._stale = frozenset(self._tokens) if expire else frozenset()

    def admit(
        self, request: SignedRequest, needs_project: bool = True, *, ahead_s: float = 0
    ) -> None:
        """Let a request pass.

        Args:
            ahead_s: how far our clock is ahead of the caller's.

        Raises:
            Unauthorized: neither a good token nor a good signature.
        """
        try:
            token = request.header("x-auth-token")
            if token is not None:
                self._admit_token(token.decode("latin-1"), needs_project)
            elif request.header("authorization") is not None:
                self._admit_signature(request, ahead_s)
            else:
                raise Unauthorized("APIGW.0301", "Incorrect IAM authentication information")
        except SignatureRefused as refused:
            raise Unauthorized(
                "APIGW.0301", f"Incorrect IAM authentication information: {refused}"
            ) from refused

    def _admit_token(self, text: str, needs_project: bool) -> None:
        token = self._tokens.get(text)
        if token is None:
            raise Unauthorized(
                "APIGW.0301", "Incorrect IAM authentication information: decrypt token fail"
            )
        if text in self._stale or token.expires_s <= self._clock():
            raise Unauthorized("APIGW.0307", "The token must be updated.")
        if needs_project and not token.in_project:
            raise Unauthorized(
                "APIGW.0301", "Incorrect IAM authentication information: no project in token"
            )

    def _admit_signature(self, request: SignedRequest, ahead_s: float) -> None:
        access_key = verify(request, self._secret_of, self._clock() + ahead_s)
        key = self._temporary.get(access_key)
        if key is None:
            return
        if request.header("x-security-token") != key.security_token.encode():
            raise SignatureRefused("security token does not belong to the ak")
        if key.expires_s <= self._clock():
            raise SignatureRefused("the temporary ak has expired")

    def _secret_of(self, access_key: str) -> str | None:
        if access_key == self.accounts.access_key:
            return self.accounts.secret_key
        key = self._temporary.get(access_key)
        return None if key is None else key.secret_key

    def issue_token(self, body: Any, with_catalog: bool) -> tuple[str, dict[str, Any]]:
        """Answer ``POST /v3/auth/tokens``: return the token and the JSON beside it.

        Raises:
            BadRequest: the body names no method this IAM has.
            Unauthorized: wrong name, password or key, or a project that is not the account's.
        """
        account = self.accounts
        try:
            identity = body["auth"]["identity"]
            [method] = identity["methods"]
            if method == "password":
                user = identity["password"]["user"]
                given = (user["name"], user["password"], user["domain"]["name"])
                known = (account.user, account.password, account.domain)
            elif method == "hw_ak_sk":
                key = identity["hw_ak_sk"]
                given = (key["access"]["key"], key["secret"]["key"], "")
                known = (account.access_key, account.secret_key, "")
            else:
                raise BadRequest(f"method {method!r} is not supported")
            project = body["auth"].get("scope", {}).get("project")
            in_project = project is not None
            if project is not None:
                scope = (
                    project.get("id", account.project_id),
                    project.get("name", account.region),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRequest("the request body is invalid") from error
        if given != known:
            raise Unauthorized("", "The username or password is wrong.")
        if in_project and scope != (account.project_id, account.region):
            raise Unauthorized("", "The project does not exist.")
        now = self._clock()
        token = secrets.token_hex(32)
        self._tokens[token] = _Token(now + TOKEN_LIFETIME_S, in_project)
        domain = {"id": "0d0e0000000000000000000000000000", "name": account.domain}
        answer: dict[str, Any] = {
            "issued_at": _fractional(now),
            "expires_at": _fractional(now + TOKEN_LIFETIME_S),
            "methods": [method],
            "user": {"id": "0d0e0000000000000000000000000002", "name": account.user}
            | {"domain": domain},
            "roles": [{"id": "0", "name": "readonly"}],
        }
        if in_project:
            project_entry = {"id": account.project_id, "name": account.region, "domain": domain}
            answer["project"] = project_entry
        if with_catalog:
            answer["catalog"] = []
        return token, {"token": answer}

    def issue_temporary_key(self, body: Any, header_token: str | None) -> dict[str, Any]:
        """Answer ``POST /v3.0/OS-CREDENTIAL/securitytokens``.

        Raises:
            BadRequest: the body is not the documented one, or the duration is out of range.
            Unauthorized: the token it is asked with is no good.
        """
        try:
            identity = body["auth"]["identity"]
            if identity["methods"] != ["token"]:
                raise BadRequest("only the method token is supported")
            entry = identity.get("token", {})
            token = entry.get("id", header_token)
            duration_s = int(entry.get("duration_seconds", 900))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRequest("the request body is invalid") from error
        if not 900 <= duration_s <= 86400:
            raise BadRequest("duration_seconds must be from 900 to 86400")
        self._admit_token(str(token), needs_project=False)
        access_key = "TEMP" + secrets.token_hex(8).upper()
        key = _TemporaryKey(
            secrets.token_hex(20), secrets.token_hex(24), self._clock() + duration_s
        )
        self._temporary[access_key] = key
        return {
            "credential": {
                "access": access_key,
                "secret": key.secret_key,
                "securitytoken": key.security_token,
                "expires_at": _fractional(key.expires_s),
            }
        }

    def projects(self, name: str | None) -> dict[str, Any]:
        """Answer ``GET /v3/projects``."""
        account = self.accounts
        project = {
            "id": account.project_id,
            "name": account.region,
            "domain_id": "0d0e0000000000000000000000000000",
            "parent_id": "0d0e0000000000000000000000000000",
            "enabled": True,
            "is_domain": False,
            "description": "",
            "links": {},
        }
        return {"projects": [project] if name in (None, account.region) else [], "links": {}}


def _fractional(seconds: float) -> str:
    return str(render_time(int(seconds * 1_000_000) * 1000, TimeForm.ISO_MICROSECONDS))
