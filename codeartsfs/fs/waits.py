"""How long the kernel, and so whoever reads, had to wait for us; and the longest of late."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from types import TracebackType

from codeartsfs import human
from codeartsfs.fs import callers
from codeartsfs.fs.nodes import LogFile, Node
from codeartsfs.logs.store import LogStore
from codeartsfs.timing import Durations, Trail

_SLOW_S = 0.1  # what took less is only counted
_MOST_SLOW = 20
_LATE_S = 900.0


@dataclass(frozen=True, slots=True)
class SlowOperation:
    """An operation that somebody waited long for.

    Attributes:
        path: from the root of the mount.
        at_s: when it began, in seconds since the epoch.
        waited_for: what the seconds were spent on, the most first; ``other`` is what no download
            was part of: the disk, a listing, this processor.
        error: how it ended; empty where it ended well.
    """

    operation: str
    path: str
    program: str
    at_s: float
    took_s: float
    waited_for: dict[str, float]
    size_bytes: int | None
    error: str


class Waits:
    """All operations of one mount, by their kind: ``open``, ``read``, ``stat`` and ``list``."""

    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.durations: defaultdict[str, Durations] = defaultdict(Durations)
        self.failures: Counter[str] = Counter()
        self._slow: list[SlowOperation] = []

    def timed(self, operation: str, node: Node, pid: int) -> "_Timed":
        """Take note of what is done inside a ``with`` for a process."""
        return _Timed(self, operation, node, pid)

    def slowest(self) -> list[SlowOperation]:
        """Return the slowest operations of the last quarter of an hour, the slowest first."""
        self._forget()
        return sorted(self._slow, key=lambda slow: -slow.took_s)

    def keep(self, slow: SlowOperation) -> None:
        """Remember an operation, if it is among the slowest of late."""
        self._forget()
        self._slow.append(slow)
        if len(self._slow) > _MOST_SLOW:
            self._slow.remove(min(self._slow, key=lambda other: other.took_s))

    def _forget(self) -> None:
        late = time.time() - _LATE_S
        self._slow = [slow for slow in self._slow if slow.at_s > late]


class _Timed:
    """One operation; a class, since ``contextmanager`` would cost each read twice as much."""

    __slots__ = ("_began", "_node", "_operation", "_pid", "_waits")

    def __init__(self, waits: Waits, operation: str, node: Node, pid: int) -> None:
        self._waits = waits
        self._operation = operation
        self._node = node
        self._pid = pid

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        now = time.monotonic()
        waits, took_s = self._waits, now - self._began
        waits.durations[self._operation].add(took_s)
        if failure is not None:
            waits.failures[self._operation] += 1
        if took_s >= _SLOW_S:
            slow = self._explained(now)
            if isinstance(failure, callers.DeadlineExceeded):
                self._explain(failure, slow.waited_for)
            if failure is not None:
                slow = replace(slow, error=str(failure) or type(failure).__name__)
            waits.keep(slow)

    def _explain(self, failure: callers.DeadlineExceeded, waited_for: dict[str, float]) -> None:
        """Say why it took so long, and if the API said something meanwhile, what."""
        spent = ", ".join(f"{what} {human.span(seconds)}" for what, seconds in waited_for.items())
        failure.waited_for = f"spent on {spent}"
        trail = self._trail()
        if trail is not None and trail.trouble:
            failure.waited_for += f"; last tried in vain: {trail.trouble}"
            failure.facts = trail.facts

    def _trail(self) -> Trail | None:
        return self._waits.store.trail(self._node.key) if isinstance(self._node, LogFile) else None

    def _explained(self, now: float) -> SlowOperation:
        took_s, trail = now - self._began, self._trail()
        spent = trail.between(self._began, now) if trail else {}
        size_bytes = None
        if isinstance(self._node, LogFile):
            known = self._waits.store.peek(self._node.key)
            size_bytes = known.size_bytes if known else None
        spent["other"] = max(0.0, took_s - sum(spent.values()))
        return SlowOperation(
            self._operation,
            path=str(self._node).lstrip("/") or ".",
            program=callers.program(self._pid),
            at_s=time.time() - took_s,
            took_s=took_s,
            waited_for={
                what: round(seconds, 3)
                for what, seconds in sorted(spent.items(), key=lambda item: -item[1])
                if seconds >= 0.001
            },
            size_bytes=size_bytes,
            error="",
        )
