"""Everything that can go wrong below the kernel, as one tree.

CodeArtsError
├── NotFound                 the API says, about this very thing, that it is not there
│   ├── BuildNotFound
│   └── LogNotFound
├── AccessDenied             401, after one renewal of the token
│   ├── Forbidden            403: we are known, but may not do this; other calls may work
│   └── CredentialsRefused   IAM refused the credentials themselves: asking again may lock the user
├── ApiUnavailable           5xx, 429, network trouble or silence, after all retries
│   └── CallUnavailable      the gateway does not publish this call here; others may work
├── CrawlerRefused           an indexer wants what is not here: it gets no download
├── BadAnswer                an answer that is neither a log nor an error the API documents
└── LogRewritten             a log no longer begins with the bytes already served

Messages are one line, name what was asked and carry the request id, and never hold a secret.
Only ``fs/reply.py`` turns them into errnos.
"""

from collections.abc import Mapping
from types import MappingProxyType

from codeartsfs.names import LogKey, RecordId

Facts = Mapping[str, str | int]
NO_FACTS: Facts = MappingProxyType({})


class CodeArtsError(Exception):
    """Base of all errors this package raises for reasons outside itself.

    Attributes:
        facts: what the message says of an answer, by name, for the log: what was ``asked``, and the
            ``status``, ``code`` and ``request_id`` of the answer.
    """

    facts: Facts = NO_FACTS


class NotFound(CodeArtsError):
    """The API says that the thing asked for does not exist."""


class BuildNotFound(NotFound):
    def __init__(self, record: RecordId, detail: str) -> None:
        super().__init__(f"no build record {record}: {detail}")


class LogNotFound(NotFound):
    def __init__(self, key: LogKey, detail: str) -> None:
        super().__init__(f"no log {key}: {detail}")


class AccessDenied(CodeArtsError):
    """The API refused the caller: 401 after one token renewal, or 403 (``Forbidden``)."""


class Forbidden(AccessDenied):
    """The API knows us and does not permit this call."""


class CredentialsRefused(AccessDenied):
    """IAM refused user name, password or key; repeating it could lock the account."""


class ApiUnavailable(CodeArtsError):
    """No usable answer in time: 5xx, 429, network trouble, retries included."""


class CallUnavailable(ApiUnavailable):
    """The gateway answers, but does not publish this call in this region (APIGW.0101)."""


class CrawlerRefused(CodeArtsError):
    """A program that reads everything it finds wants something that is not here."""


class BadAnswer(CodeArtsError):
    """The answer is neither what was asked for nor a documented error."""


class LogRewritten(CodeArtsError):
    """The server's log no longer starts with bytes that readers have already seen."""

    def __init__(self, key: LogKey) -> None:
        super().__init__(
            f"the server rewrote {key}: it no longer begins with what was served before"
        )
