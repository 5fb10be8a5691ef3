"""One question to the API, and the latest answer to it."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from codeartsfs.errors import AccessDenied, ApiUnavailable, CodeArtsError, NotFound

log = logging.getLogger(__name__)

ABSENCE_TTL_S = 5.0
_PATIENCE_S = 5.0  # what is known is shown after this long, whatever the API does
_FAILURE_TTL_S = 1.0  # spares the API a stampede of those who waited for one answer

_T = TypeVar("_T")


@dataclass(eq=False, slots=True)
class Answer(Generic[_T]):
    """The latest answer to one question; asked again only where it is too old.

    Asking is a task of its own: whoever waits may leave, and the answer still comes, for the
    others and for the next.

    Attributes:
        value: None until the question was answered for the first time, and where it never is.
        final: whether the answer can no longer change.
        failure: why the last try failed. It is told to all who ask within the next seconds.
    """

    value: _T | None = None
    final: bool = False
    failure: Exception | None = None
    _told_at: float = -float("inf")  # trio's clock
    _retry_at: float = -float("inf")
    _asked_at: float = -float("inf")
    _asking: trio.Event | None = None

    def fresh(self, ttl_s: float) -> bool:
        """Whether there is no need to ask."""
        now = trio.current_time()
        if now < self._retry_at:
            return True
        return self.failure is None and (self.final or now - self._told_at < ttl_s)

    def settled(self, ttl_s: float) -> bool:
        """Whether it is fresh, and not because of a failure: that is no news."""
        return self.failure is None and self.fresh(ttl_s)

    @property
    def asking(self) -> bool:
        """Whether an answer is on its way."""
        return self._asking is not None

    def expire(self) -> None:
        """Something else shows that the answer, unless final, is no longer true."""
        self._told_at = -float("inf")

    @property
    def absent(self) -> bool:
        """Whether the API said within the last seconds that there is no such thing."""
        return isinstance(self.failure, NotFound) and trio.current_time() < self._retry_at

    async def get(
        self,
        ask: Callable[[], Awaitable[_T]],
        nursery: trio.Nursery,
        ttl_s: float,
        *,
        force: bool = False,
        patience_s: float = float("inf"),
        untold_s: Mapping[type[CodeArtsError], float] | None = None,
    ) -> _T | None:
        """Return the answer, asking at most once at a time where it is older than ``ttl_s``.

        Args:
            nursery: where the asking goes on when nobody waits any more.
            force: ask, however new, final or failed the last answer is.
            patience_s: how long an answer may take, from when it was asked for, not from now.
            untold_s: errors that mean that the API does not tell, and for how many seconds
                not to ask again: what was told before stays, there is no failure.

        Raises:
            ApiUnavailable: it takes longer than ``patience_s``.
            CodeArtsError: ``ask`` raised it, now or within the last seconds.
        """
        if force or not self.fresh(ttl_s):
            if self._asking is None:
                self._asking, self._asked_at = trio.Event(), trio.current_time()
                nursery.start_soon(self._ask, ask, self._asking, untold_s or {})
            asking = self._asking
            with trio.move_on_at(self._asked_at + patience_s):
                await asking.wait()
            if not asking.is_set():
                raise ApiUnavailable(f"no answer yet after {patience_s:.0f} s")
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        return self.value

    async def _ask(
        self,
        ask: Callable[[], Awaitable[_T]],
        asking: trio.Event,
        untold_s: Mapping[type[CodeArtsError], float],
    ) -> None:
        try:
            value = await ask()
        except CodeArtsError as failure:
            untold = next((untold_s[kind] for kind in untold_s if isinstance(failure, kind)), None)
            if untold:
                log.info("the API does not tell: %s", failure)
            told = isinstance(failure, NotFound | AccessDenied)
            pause_s = untold or (ABSENCE_TTL_S if told else _FAILURE_TTL_S)
            self.failure = None if untold else failure
            self._retry_at = trio.current_time() + pause_s
        except Exception as failure:  # a mistake of ours: for who waits, not the end of all
            self.failure = failure
        else:
            # The age of an answer counts from the question.
            self.value, self.failure, self._told_at = value, None, self._asked_at
        finally:
            self._asking = None
            asking.set()


async def told_or_known(
    ask: Callable[[float], Awaitable[_T | None]], known: _T | None, *, kept: bool = False
) -> _T | None:
    """Return the API's answer, or what is known where the API is down or slow.

    Args:
        ask: called with the seconds that the API may take.
        kept: something of it is here for good, so not even the API's "no such thing" counts.
    """
    here = kept or known is not None
    try:
        return await ask(_PATIENCE_S if here else float("inf"))
    except NotFound:
        if not kept:
            raise
    except CodeArtsError:
        if not here:
            raise
    return known
