"""Whether the API answers at all, as all requests together see it: a circuit breaker.

One log that fails is that log's trouble. When requests for several different things gave up
one after the other and nothing was answered for a second, the API is down or refuses us. From
then on requests fail at once, but for one every few seconds that finds out whether it is over;
who comes while that one is under way waits for what it finds.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from codeartsfs.api.pace import TemporaryFailure
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    CallUnavailable,
    CodeArtsError,
    Forbidden,
)

log = logging.getLogger(__name__)

_DIFFERENT_FAILURES = 3
_SILENCE_S = 1.0  # many things may fail at the same moment, each for a reason of its own
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


@dataclass(frozen=True, slots=True)
class Mishap:
    """What the API, or the network on the way to it, said some time ago.

    Attributes:
        at_s: seconds since the epoch.
    """

    at_s: float
    error: str


class StillRefused(AccessDenied):
    """The API refused our credentials of late; says nothing new."""


class Health:
    """What became of requests of late.

    INVARIANT: while the condition is not ``ok``, at most one request is sent per pause.
    """

    def __init__(self) -> None:
        self.state = ApiState()
        self.last_failure: Mishap | None = None
        self.last_refusal: Mishap | None = None  # of our credentials
        self.refused = False  # and nothing was answered since
        self._failed: set[str] = set()
        self._answered_at = -float("inf")  # trio's clock
        self._pause_s = _FIRST_PAUSE_S
        self._ask_at = 0.0  # trio's clock
        self._probe: trio.Event | None = None  # set when it is over

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Let a request pass, or raise what it would find anyway.

        Raises:
            NotAsked: the API is down.
            AccessDenied: it refuses our credentials.
        """
        if self.state.condition != "ok" and self._probe is not None:
            with trio.move_on_at(self._ask_at):
                await self._probe.wait()
        if self.state.condition == "ok":
            yield
            return
        for_s = self._ask_at - trio.current_time()
        if for_s > 0:
            told = f"{self.state.error} (not asked again for {for_s:.1f} s)"
            raise StillRefused(told) if self.state.condition == "refused" else NotAsked(told, for_s)
        self._pause()
        probe = self._probe = trio.Event()
        try:
            yield
        finally:
            probe.set()
            if self._probe is probe:
                self._probe = None

    @property
    def asks_again_in_s(self) -> float | None:
        """Seconds until a request is let pass; None while all are."""
        if self.state.condition == "ok":
            return None
        return max(0.0, self._ask_at - trio.current_time())

    def answered(self) -> None:
        """Take note of an answer to some request, be it a pleasant one or not."""
        self._failed.clear()
        self.refused = False
        self._answered_at = trio.current_time()
        if self.state.condition != "ok":
            log.warning("the API answers again")
            self.state = ApiState(since_s=time.time())

    def gave_up(self, what: str, failure: CodeArtsError) -> None:
        """Take note that a request failed for good.

        Args:
            what: was asked for; the same again is the same trouble.
        """
        if isinstance(failure, NotAsked | StillRefused | CallUnavailable):
            return  # nothing went wrong just now
        self.last_failure = Mishap(time.time(), str(failure))
        if isinstance(failure, AccessDenied) and not isinstance(failure, Forbidden):
            condition, self.last_refusal = "refused", self.last_failure
            self.refused = True
        elif isinstance(failure.__cause__, TemporaryFailure) and failure.__cause__.no_answer:
            condition = "down"
        else:
            return
        if self.state.condition == "ok":
            self._failed.add(what)
            silent_s = trio.current_time() - self._answered_at
            if len(self._failed) < _DIFFERENT_FAILURES or silent_s < _SILENCE_S:
                return
            self._failed.clear()
            self._pause_s = _FIRST_PAUSE_S
            self._pause()
        self._is(condition, failure)

    def unanswered(self, failure: Exception) -> None:
        """Take note that a request got no answer, whether or not it will be sent again.

        Who asks whether we are still refused does not come to send it again, nor to give it up.
        """
        if self.state.condition == "refused":
            self.last_failure = Mishap(time.time(), str(failure))
            self._is("down", failure)

    def _is(self, condition: str, failure: Exception) -> None:
        if self.state.condition != condition:
            refused = condition == "refused"
            said = "refuses our credentials" if refused else "does not answer"
            log.warning("the API %s, what is cached stays readable: %s", said, failure)
            self.state = ApiState(condition, time.time(), str(failure))

    def _pause(self) -> None:
        self._ask_at = trio.current_time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
