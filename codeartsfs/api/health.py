"""Whether the API answers at all, as all requests together see it: a circuit breaker.

One log that fails is that log's trouble. When requests for several different things gave up
one after the other and nothing succeeded between, the API is down or refuses us. From then on
requests fail at once, but for one every few seconds that finds out whether it is over.
"""

import logging
import time
from dataclasses import dataclass

import trio

from codeartsfs.api.pace import TemporaryFailure
from codeartsfs.errors import AccessDenied, ApiUnavailable, CodeArtsError, Forbidden

log = logging.getLogger(__name__)

_DIFFERENT_FAILURES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 5.0


class NotAsked(ApiUnavailable):
    """The API is down as far as we know; says nothing about what was not asked for.

    Attributes:
        for_s: how long nothing is asked.
    """

    def __init__(self, message: str, for_s: float) -> None:
        super().__init__(message)
        self.for_s = for_s


@dataclass(frozen=True, slots=True)
class ApiState:
    """How the API is.

    Attributes:
        condition: ``ok``, ``down`` or ``refused``.
        since_s: seconds since the epoch; None where it never was otherwise.
        error: what was said last; empty where all is well.
    """

    condition: str = "ok"
    since_s: float | None = None
    error: str = ""


class Health:
    """What became of requests of late.

    INVARIANT: while the condition is not ``ok``, at most one request is sent per pause.
    """

    def __init__(self) -> None:
        self.state = ApiState()
        self._failed: set[str] = set()
        self._pause_s = _FIRST_PAUSE_S
        self._ask_at = 0.0  # trio's clock

    def admit(self) -> None:
        """Let a request pass, or raise what it would find anyway.

        Raises:
            NotAsked: the API is down.
            AccessDenied: it refuses our credentials.
        """
        if self.state.condition == "ok":
            return
        now = trio.current_time()
        if now < self._ask_at:
            for_s = self._ask_at - now
            told = f"{self.state.error} (not asked again for {for_s:.1f} s)"
            raise AccessDenied(told) if self.state.condition == "refused" else NotAsked(told, for_s)
        self._pause()

    def answered(self) -> None:
        """Take note of an answer to some request, be it a pleasant one or not."""
        self._failed.clear()
        if self.state.condition != "ok":
            log.warning("the API answers again")
            self.state = ApiState(since_s=time.time())

    def gave_up(self, what: str, failure: CodeArtsError) -> None:
        """Take note that a request failed for good.

        Args:
            what: was asked for; the same again is the same trouble.
        """
        if isinstance(failure, AccessDenied) and not isinstance(failure, Forbidden):
            condition = "refused"
        elif isinstance(failure.__cause__, TemporaryFailure) and failure.__cause__.no_answer:
            condition = "down"
        else:
            return
        if self.state.condition == "ok":
            self._failed.add(what)
            if len(self._failed) < _DIFFERENT_FAILURES:
                return
            self._failed.clear()
            self._pause_s = _FIRST_PAUSE_S
            self._pause()
        if self.state.condition != condition:
            refused = condition == "refused"
            said = "refuses our credentials" if refused else "does not answer"
            log.warning("the API %s, what is cached stays readable: %s", said, failure)
            self.state = ApiState(condition, time.time(), str(failure))

    def _pause(self) -> None:
        self._ask_at = trio.current_time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
