"""How long the kernel, and so whoever reads, had to wait for us; and the longest of late."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from codeartsfs.fs import callers
from codeartsfs.fs.nodes import LogFile, Node
from codeartsfs.logs.store import LogStore
from codeartsfs.timing import Durations

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
        self._store = store
        self.durations: defaultdict[str, Durations] = defaultdict(Durations)
        self.failures: Counter[str] = Counter()
        self._slow: list[SlowOperation] = []

    @contextmanager
    def timed(self, operation: str, node: Node, pid: int) -> Iterator[None]:
        """Take note of what is done inside for a process."""
        began = time.monotonic()
        try:
            yield
        except Exception as failure:
            self._note(operation, node, pid, began, failure)
            raise
        self._note(operation, node, pid, began, None)

    def _note(
        self, operation: str, node: Node, pid: int, began: float, failure: Exception | None
    ) -> None:
        now = time.monotonic()
        took_s = now - began
        self.durations[operation].add(took_s)
        if failure is not None:
            self.failures[operation] += 1
        if took_s >= _SLOW_S:
            self._keep(self._explained(operation, node, pid, began, now, failure))

    def slowest(self) -> list[SlowOperation]:
        """Return the slowest operations of the last quarter of an hour, the slowest first."""
        self._forget()
        return sorted(self._slow, key=lambda slow: -slow.took_s)

    def _explained(
        self,
        operation: str,
        node: Node,
        pid: int,
        began: float,
        now: float,
        failure: Exception | None,
    ) -> SlowOperation:
        spent, size_bytes = {}, None
        if isinstance(node, LogFile):
            spent = self._store.spent(node.key, began, now)
            known = self._store.peek(node.key)
            size_bytes = known.size_bytes if known else None
        spent["other"] = max(0.0, now - began - sum(spent.values()))
        return SlowOperation(
            operation,
            path=str(node).lstrip("/") or ".",
            program=callers.program(pid),
            at_s=time.time() - (now - began),
            took_s=now - began,
            waited_for={
                what: round(seconds, 3)
                for what, seconds in sorted(spent.items(), key=lambda item: -item[1])
                if seconds >= 0.001
            },
            size_bytes=size_bytes,
            error=(str(failure) or type(failure).__name__) if failure else "",
        )

    def _keep(self, slow: SlowOperation) -> None:
        self._forget()
        self._slow.append(slow)
        if len(self._slow) > _MOST_SLOW:
            self._slow.remove(min(self._slow, key=lambda other: other.took_s))

    def _forget(self) -> None:
        late = time.time() - _LATE_S
        self._slow = [slow for slow in self._slow if slow.at_s > late]
