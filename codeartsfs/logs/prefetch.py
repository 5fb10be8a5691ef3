"""Downloads ahead of somebody who walks through logs, as ``grep -r`` and ``cat *`` do.

Who opens a second log of a record is taken to want the others too, of the levels opened so
far; who has walked through a record like that, also those of the next ones. What is fetched
ahead is bounded in number, size and time, gives way to what somebody waits for, and ends with
the walk.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import cachetools
import trio

from codeartsfs.errors import CodeArtsError
from codeartsfs.logs.store import LogStore
from codeartsfs.names import LogKey, LogLevel, RecordId
from codeartsfs.priority import background

log = logging.getLogger(__name__)

_RECORDS_AHEAD = 2
_WALK_TTL_S = 5.0  # without another open a walk is over
_LARGEST_BYTES = 32 << 20  # a larger log pays for its own latency
_WALKS = 1000


class Siblings(Protocol):
    """Who knows what comes next."""

    async def logs_of(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the logs of a record.

        Raises:
            CodeArtsError: the API could not be asked.
        """

    def failed_log(self, record: RecordId) -> LogKey | None:
        """Return the log of the stage that failed first, None where none did."""

    def records_after(self, record: RecordId, most: int) -> tuple[RecordId, ...]:
        """Return the records that follow in the order of listings."""


@dataclass(eq=False, slots=True)
class _Walk:
    """What one process has opened of late."""

    record: RecordId
    opened: set[LogKey] = field(default_factory=set)
    levels: set[LogLevel] = field(default_factory=set)
    steady: bool = False  # it has walked through a record before this one
    last_at: float = -float("inf")  # trio's clock

    def take(self, key: LogKey, now: float) -> None:
        if now - self.last_at > _WALK_TTL_S:
            self.steady, self.opened, self.levels = False, set(), set()
        elif key.record != self.record:
            self.steady, self.opened = self.steady or len(self.opened) > 1, set()
            if not self.steady:
                self.levels = set()
        self.record, self.last_at = key.record, now
        self.opened.add(key)
        self.levels.add(key.level)

    @property
    def goes_on(self) -> bool:
        return trio.current_time() - self.last_at <= _WALK_TTL_S


class Prefetcher:
    def __init__(
        self, store: LogStore, siblings: Siblings, nursery: trio.Nursery, most: int
    ) -> None:
        """Fetch nothing yet.

        Args:
            most: logs fetched ahead at the same time; 0 for none ever.
        """
        self._store = store
        self._siblings = siblings
        self._nursery = nursery
        self._most = most
        self._limit = trio.CapacityLimiter(max(most, 1))
        self._walks: cachetools.LRUCache[int, _Walk] = cachetools.LRUCache(_WALKS)
        self._busy: set[RecordId | LogKey] = set()

    def opened(self, key: LogKey, process: int) -> None:
        """Take note that a process opened a log. Never waits."""
        if not self._most:
            return
        walk = self._walks.get(process)
        if walk is None:
            walk = self._walks[process] = _Walk(key.record)
        walk.take(key, trio.current_time())
        failed = self._siblings.failed_log(key.record)
        if failed is not None and failed != key:
            self._start(walk, failed)
        if walk.steady or len(walk.opened) > 1:
            self._start(walk, key.record)
        if walk.steady:
            for record in self._siblings.records_after(key.record, _RECORDS_AHEAD):
                self._start(walk, record)

    def _start(self, walk: _Walk, what: RecordId | LogKey) -> None:
        if what not in self._busy:
            self._busy.add(what)
            self._nursery.start_soon(self._fetch, walk, what)

    async def _fetch(self, walk: _Walk, what: RecordId | LogKey) -> None:
        with background():
            try:
                if isinstance(what, LogKey):
                    await self._fetch_all(walk, (what,))
                else:
                    keys = await self._siblings.logs_of(what)
                    await self._fetch_all(walk, (key for key in keys if key.level in walk.levels))
            except CodeArtsError as failure:
                log.info("nothing fetched ahead of %s: %s", what, failure)
            finally:
                self._busy.discard(what)

    async def _fetch_all(self, walk: _Walk, keys: Iterable[LogKey]) -> None:
        async with trio.open_nursery() as nursery:
            for key in keys:
                if key in walk.opened:
                    continue
                await self._limit.acquire_on_behalf_of(key)
                if not walk.goes_on:
                    self._limit.release_on_behalf_of(key)
                    return
                nursery.start_soon(self._fetch_one, key)

    async def _fetch_one(self, key: LogKey) -> None:
        try:
            await self._store.fetch(key, _LARGEST_BYTES)
        except CodeArtsError as failure:
            log.info("%s was not fetched ahead: %s", key, failure)
        finally:
            self._limit.release_on_behalf_of(key)
