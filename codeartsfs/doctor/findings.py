"""What a check finds, and how it is kept from taking for ever."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

TIMEOUT_S = 10.0


class State(Enum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        found: in one line.
        fix: what to do about it; empty where all is well.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, State.OK, found)


def warning(name: str, found: str, fix: str) -> Finding:
    return Finding(name, State.WARNING, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    return Finding(name, State.FAILED, found, fix)


def skipped(name: str, because: str) -> Finding:
    return Finding(name, State.SKIPPED, f"skipped because {because}")


def examine(
    name: str,
    check: Callable[[], Finding | Sequence[Finding]],
    timeout_s: float = TIMEOUT_S,
) -> Sequence[Finding]:
    """Make a check, for so long at most: a file system or a resolver may never come back."""
    outcome: list[Finding | Sequence[Finding]] = []

    def run() -> None:
        try:
            outcome.append(check())
        except Exception as error:  # one check that breaks must not keep the others
            told = f"the check itself failed: {type(error).__name__}: {error}"
            outcome.append(failed(name, told, "report this as a bug of codeartsfs"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        return [failed(name, f"no result within {timeout_s:g} s", "see what hangs there")]
    [found] = outcome
    return [found] if isinstance(found, Finding) else found
