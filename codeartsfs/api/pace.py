"""How fast, how many at once, how often again: the one place that says no.

Downloads and metadata calls have a cap of their own each, so that long logs cannot starve
listings. Every request, whatever its purpose, passes one token bucket. What fails for reasons
that pass is tried again with exponential back-off and full jitter, within a budget.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType

import trio

from codeartsfs.errors import NO_FACTS, ApiUnavailable, Facts
from codeartsfs.priority import in_background
from codeartsfs.timing import spent_on, tried_in_vain

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 20.0
_GIVE_WAY_S = 2.0


class TemporaryFailure(Exception):
    """One try failed for a reason that may pass; never leaves ``codeartsfs.api``.

    Attributes:
        retry_after_s: How long the server asks to be left alone, None where it does not say.
        throttled: Whether the server said that there were too many requests.
        no_answer: Whether nobody answered for the server: trouble of the network or a gateway.
        facts: What the message says of the answer, as ``CodeArtsError`` has it.
    """

    facts: Facts = NO_FACTS

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        throttled: bool = False,
        no_answer: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.throttled = throttled
        self.no_answer = no_answer


@dataclass(frozen=True, slots=True)
class PaceCounts:
    """What was sent since the start: requests, retries among them, and refusals for speed.

    Attributes:
        waited_s: how long all together waited, and what for.
    """

    requests: int
    retries: int
    throttled: int
    waited_s: Mapping[str, float]


class Permit:
    """The right to have one response open; given back once, by ``release`` or by ``with``."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._limiter.release_on_behalf_of(self)

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Pace:
    """Caps on concurrency and rate, and the retry policy, for one client.

    Args:
        max_downloads: Log bodies open at the same time.
        max_calls: Metadata calls under way at the same time.
        requests_per_second: Sustained rate of all requests together; 0 means no limit.
        burst: Requests that may go at once after a quiet time.
        retry_limit_s: Time from the first failure after which nothing is tried again.
        attempts: Tries without progress, the first one included.
        random: Source of jitter in [0, 1).
    """

    def __init__(
        self,
        max_downloads: int = 8,
        max_calls: int = 4,
        requests_per_second: float = 10.0,
        burst: int = 20,
        retry_limit_s: float = 60.0,
        attempts: int = 5,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.max_downloads = max_downloads
        self.max_calls = max_calls
        self.retry_limit_s = retry_limit_s
        self.attempts = attempts
        self._downloads = trio.CapacityLimiter(max_downloads)
        self._calls = trio.CapacityLimiter(max_calls)
        self._interval_s = 1 / requests_per_second if requests_per_second else 0.0
        self._slack_s = (max(burst, 1) - 1) * self._interval_s
        self._full_at = -math.inf  # when the bucket will be full again
        self._turn = trio.StrictFIFOLock()
        self._random = random
        self._requests = 0
        self._retries = 0
        self._throttled = 0
        self._waited_s = {"slot": 0.0, "pace": 0.0, "retry": 0.0, "throttled": 0.0}

    async def download_permit(self) -> Permit:
        """Wait until one more log body may be open."""
        return await self._permit(self._downloads)

    async def call_permit(self) -> Permit:
        """Wait until one more metadata call may be under way."""
        return await self._permit(self._calls)

    async def _permit(self, limiter: trio.CapacityLimiter) -> Permit:
        permit = Permit(limiter)
        with self._waiting("slot"):
            await limiter.acquire_on_behalf_of(permit)
        return permit

    @contextmanager
    def _waiting(self, reason: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            with spent_on(reason):
                yield
        finally:
            self._waited_s[reason] += time.monotonic() - began

    async def admit(self) -> None:
        """Wait until one more request may leave; first come, first served.

        What nobody waits for leaves half of the burst to others, but not for ever: somebody
        may have begun to wait for it. A caller that is cancelled while it waits has taken nothing.
        """
        with self._waiting("pace"):
            if in_background():
                half_full_at = self._full_at - self._slack_s / 2
                await trio.sleep_until(min(half_full_at, trio.current_time() + _GIVE_WAY_S))
            async with self._turn:
                may_go_at = self._full_at - self._slack_s
                if may_go_at > trio.current_time():
                    await trio.sleep_until(may_go_at)
                self._full_at = max(self._full_at, trio.current_time()) + self._interval_s
                self._requests += 1

    def start(self) -> "Attempts":
        """Return the retry budget of one operation."""
        return Attempts(self)

    def counts(self) -> PaceCounts:
        return PaceCounts(self._requests, self._retries, self._throttled, dict(self._waited_s))

    @property
    def downloads_open(self) -> int:
        return self._downloads.borrowed_tokens

    @property
    def calls_open(self) -> int:
        return self._calls.borrowed_tokens

    def _decide(self, failure: TemporaryFailure, failed: int, left_s: float) -> float:
        """Seconds to wait before the next try; raises ApiUnavailable where there is none."""
        self._throttled += failure.throttled
        if failed >= self.attempts:
            raise ApiUnavailable(f"{failure}; gave up after {failed} attempts") from failure
        if failure.retry_after_s is not None:
            wait_s = failure.retry_after_s
            if wait_s > left_s:
                raise ApiUnavailable(
                    f"{failure}; gave up: asked to wait {wait_s:.0f} s, "
                    f"with {max(left_s, 0):.0f} s left for retries"
                ) from failure
        else:
            ceiling_s = min(_FIRST_BACKOFF_S * 2.0 ** (failed - 1), _LONGEST_BACKOFF_S)
            wait_s = self._random() * ceiling_s
            if wait_s > left_s:
                raise ApiUnavailable(
                    f"{failure}; gave up after {failed} attempts in {self.retry_limit_s:g} s"
                ) from failure
        self._retries += 1
        return wait_s


class Attempts:
    """The tries of one operation; progress makes the count start anew."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._failed = 0
        self._give_up_at = math.inf

    def progressed(self) -> None:
        self._failed = 0

    async def after(self, failure: TemporaryFailure) -> None:
        """Wait as long as is right before the next try.

        Raises:
            ApiUnavailable: there will be no next try.
        """
        now = trio.current_time()
        self._failed += 1
        if self._failed == 1:
            self._give_up_at = now + self._pace.retry_limit_s
        wait_s = self._pace._decide(failure, self._failed, self._give_up_at - now)
        level = logging.DEBUG if self._failed == 1 else logging.INFO
        log.log(
            level,
            "trying again in %.1f s, after attempt %d of %d: %s",
            wait_s,
            self._failed,
            self._pace.attempts,
            failure,
            extra={"attempt": self._failed, "wait_s": round(wait_s, 1)},
        )
        tried_in_vain(str(failure), failure.facts)
        with self._pace._waiting("throttled" if failure.throttled else "retry"):
            await trio.sleep(wait_s)


def parse_retry_after(value: str | None) -> float | None:
    """Read a ``Retry-After`` header, seconds or an HTTP date; None where it is neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    at_s = parse_date(text)
    return None if at_s is None else max(0.0, at_s - time.time())


def parse_date(value: str | None) -> float | None:
    """Read an HTTP date, in seconds since the epoch; None where it is none."""
    try:
        return parsedate_to_datetime(value).timestamp() if value else None
    except (ValueError, TypeError, OverflowError):
        return None
