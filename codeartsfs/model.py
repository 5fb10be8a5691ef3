"""What the API knows about builds, as values: frozen, typed, free of wire formats.

Times are nanoseconds since the epoch (UTC), ``None`` where unknown.
"""

import hashlib
from dataclasses import dataclass

from codeartsfs.names import RecordId, Stage

_FINAL_WORDS = frozenset(
    {"success", "failure", "aborted", "schedule_failure", "finished", "error", "timeout"}
)

_FAILED_WORDS = frozenset({"failure", "schedule_failure", "error", "timeout"})


def is_final_word(status: str) -> bool:
    """Tell whether a status word says that nothing more will happen; unknown words do not."""
    return status.casefold() in _FINAL_WORDS


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of one build record."""

    stage: Stage
    display_name: str = ""
    sequence: int | None = None
    status: str = ""
    created_ns: int | None = None
    started_ns: int | None = None
    finished_ns: int | None = None
    duration_ms: int | None = None

    @property
    def final(self) -> bool:
        """Whether its logs can no longer grow: it has a finish time or a known final word."""
        return self.finished_ns is not None or is_final_word(self.status)

    @property
    def running(self) -> bool:
        return self.started_ns is not None and not self.final

    @property
    def failed(self) -> bool:
        return self.status.casefold() in _FAILED_WORDS

    @property
    def skipped(self) -> bool:
        """Whether it was given up before it began, and so has no logs."""
        return self.started_ns is None and self.status.casefold() == "aborted"


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One build run."""

    record: RecordId
    build_no: int | None = None
    build_project_id: str = ""
    status: str = ""
    created_ns: int | None = None
    started_ns: int | None = None
    finished_ns: int | None = None
    duration_ms: int | None = None
    branch: str = ""
    revision: str = ""
    trigger: str = ""

    @property
    def final(self) -> bool:
        return self.finished_ns is not None or is_final_word(self.status)

    @property
    def failed(self) -> bool:
        return self.status.casefold() in _FAILED_WORDS

    @property
    def succeeded(self) -> bool:
        return self.status.casefold() == "success"

    def modified_ns(self, now_ns: int) -> int | None:
        """Return when it last changed: now, while it runs."""
        if self.started_ns is not None and not self.final:
            return now_ns
        return self.finished_ns or self.started_ns or self.created_ns


@dataclass(frozen=True, slots=True)
class Job:
    """One build task of a CodeArts project."""

    job_id: str
    name: str
    build_project_id: str = ""
    last_build_ns: int | None = None
    last_status: str = ""


@dataclass(frozen=True, slots=True)
class LogNote:
    """What is worth remembering of a log that was once seen: shown before it is asked for again."""

    size_bytes: int
    modified_ns: int
    final: bool


@dataclass(frozen=True, slots=True)
class LogPrefix:
    """The part of a log that is already here: what follows is wanted, if it still begins so.

    ``sha256`` is the running hash of these bytes. With their last bytes in ``tail`` it is
    enough to compare those; without, the whole beginning is fetched and compared again.
    Where more is ``promised``, readers wait for it and get every byte as it comes.
    """

    size_bytes: int
    sha256: "hashlib._Hash"
    tail: bytes = b""
    promised: bool = False
