"""How long things take, and what the time is spent on; cheap enough to be counted always."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise

BOUNDS_S = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MOST_TURNS = 64


class Durations:
    """How often something was done, and how long it took, in classes."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  # the last one: longer than all bounds
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def copy(self) -> "Durations":
        copied = Durations()
        copied.counts, copied.total_s = self.counts.copy(), self.total_s
        return copied

    def at_most_s(self, share: float) -> float | None:
        """Return a bound that this share of all took no longer than; None where there is none."""
        reached, wanted = 0, share * self.count
        for bound_s, count in zip(BOUNDS_S, self.counts, strict=False):
            reached += count
            if reached and reached >= wanted:
                return bound_s
        return None


class Trail:
    """What one piece of work spent its time on, one thing after the other.

    ``spent_on`` writes it, from far below where the work is known. Whoever waited for a part of
    the work asks what that part was spent on.

    Attributes:
        trouble: what went wrong last, and was tried again; empty where nothing was.
        facts: the same by name, as ``CodeArtsError`` has it.
    """

    def __init__(self, doing: str) -> None:
        self.trouble = ""
        self.facts: Mapping[str, str | int] = {}
        self._turns: deque[tuple[float, str]] = deque([(time.monotonic(), doing)], _MOST_TURNS)

    @property
    def doing(self) -> str:
        return self._turns[-1][1]

    def turn_to(self, doing: str) -> None:
        self._turns.append((time.monotonic(), doing))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Return the seconds spent on each thing between two times of ``time.monotonic``."""
        spent: dict[str, float] = {}
        for (since, doing), (until, _) in pairwise((*self._turns, (end, ""))):
            seconds = min(until, end) - max(since, begin)
            if doing and seconds > 0:
                spent[doing] = spent.get(doing, 0.0) + seconds
        return spent


class _Part:
    """A part of the work of a trail; what tasks that it started do later counts no more."""

    __slots__ = ("over", "trail")

    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.over = False


_PART: ContextVar[_Part | None] = ContextVar("part", default=None)


def tried_in_vain(trouble: str, facts: Mapping[str, str | int]) -> None:
    """Say what has gone wrong just now, and will be tried again."""
    part = _PART.get()
    if part is not None and not part.over:
        part.trail.trouble, part.trail.facts = trouble, facts


@contextmanager
def recorded(trail: Trail) -> Iterator[None]:
    """Have what is done inside, and the tasks begun inside, write a trail."""
    part = _Part(trail)
    token = _PART.set(part)
    try:
        yield
    finally:
        _PART.reset(token)
        part.over = True
        trail.turn_to("")


@contextmanager
def spent_on(doing: str) -> Iterator[None]:
    """Say what the time inside is spent on; to nobody where nobody records it."""
    outer = _PART.get()
    if outer is None or outer.over:
        yield
        return
    trail = outer.trail
    before, part = trail.doing, _Part(trail)
    trail.turn_to(doing)
    token = _PART.set(part)
    try:
        yield
    finally:
        _PART.reset(token)
        part.over = True
        if not outer.over:
            trail.turn_to(before)
