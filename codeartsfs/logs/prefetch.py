"""Downloads ahead of somebody who walks through logs, as ``grep -r`` and ``cat *`` do.

What a process will read is often on its command line: shells have spelled it out. Who was
given logs gets those that follow, who was given records the logs of these. Otherwise who opens
a second log of a record is taken to want the others too, of the levels opened so far, and who
has walked through a record like that, also those of the next ones. What is fetched ahead is
bounded in number, size and time, gives way to what somebody waits for, and ends with the walk.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import cachetools
import trio

from codeartsfs.errors import CodeArtsError
from codeartsfs.logs.store import LogStore
from codeartsfs.names import LogKey, LogLevel, RecordId
from codeartsfs.priority import background

log = logging.getLogger(__name__)

_LOGS_AHEAD = 32
_LOGS_OF_A_RECORD = 8  # about; what a record counts among them
_WALK_TTL_S = 5.0  # without another open a walk is over
_LARGEST_BYTES = 32 << 20  # a larger log pays for its own latency
_WALKS = 1000
_MOST_BEGUN = 10_000

What = RecordId | LogKey


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
    """What one process has opened of late, and what was fetched ahead of it.

    Attributes:
        given: what its command line names, once that was read.
        begun: what is on its way or here; a record once more for every level that is added.
    """

    record: RecordId
    given: Sequence[What] = ()
    places: dict[What, int] = field(default_factory=dict)
    opened: set[LogKey] = field(default_factory=set)
    levels: set[LogLevel] = field(default_factory=set)
    begun: set[tuple[What, int]] = field(default_factory=set)
    steady: bool = False  # it has walked through a record before this one
    last_at: float = -float("inf")  # trio's clock

    def take(self, key: LogKey, now: float) -> None:
        if key.record != self.record:
            self.steady, self.opened = self.steady or len(self.opened) > 1, set()
            if not (self.steady or self.places):
                self.levels = set()
        self.record, self.last_at = key.record, now
        self.opened.add(key)
        self.levels.add(key.level)

    def goes_on(self, now: float) -> bool:
        return now - self.last_at <= _WALK_TTL_S

    def take_given(self, given: Sequence[What]) -> None:
        self.given = given
        self.places = {what: place for place, what in enumerate(given)}

    def given_after(self, key: LogKey) -> Iterator[What]:
        """Yield what follows a log on the command line, or the record that it belongs to."""
        place = self.places.get(key, self.places.get(key.record))
        if place is None:
            return
        left = _LOGS_AHEAD
        for what in islice(self.given, place + 1, place + 1 + _LOGS_AHEAD):
            left -= 1 if isinstance(what, LogKey) else _LOGS_OF_A_RECORD
            if left < 0:
                return
            yield what


class Prefetcher:
    def __init__(
        self,
        store: LogStore,
        siblings: Siblings,
        given: Callable[[int], Awaitable[Sequence[What]]],
        nursery: trio.Nursery,
        most: int,
    ) -> None:
        """Fetch nothing yet.

        Args:
            given: returns what of the mount is on the command line of a process, in order.
            most: logs fetched ahead at the same time; 0 for none ever.
        """
        self._store = store
        self._siblings = siblings
        self._given = given
        self._nursery = nursery
        self._most = most
        self._limit = trio.CapacityLimiter(max(most, 1))
        self._walks: cachetools.LRUCache[int, _Walk] = cachetools.LRUCache(_WALKS)
        self._fetching: set[LogKey] = set()
        self._busy = 0

    def opened(self, key: LogKey, process: int) -> None:
        """Take note that a process opened a log. Never waits."""
        if not self._most:
            return
        now = trio.current_time()
        walk = self._walks.get(process)
        if walk is None or not walk.goes_on(now):
            walk = self._walks[process] = _Walk(key.record)
            self._run(self._read_command_line, walk, process)
        walk.take(key, now)
        self._go_ahead(walk, key)

    def _go_ahead(self, walk: _Walk, key: LogKey) -> None:
        """Begin to fetch what comes after a log that was just opened."""
        failed = self._siblings.failed_log(key.record)
        if failed is not None and failed != key:
            self._start(walk, failed)
        if walk.steady or len(walk.opened) > 1 or key.record in walk.places:
            self._start(walk, key.record)
        for what in walk.given_after(key):
            self._start(walk, what)
        if walk.steady and not walk.places:
            most = _LOGS_AHEAD // _LOGS_OF_A_RECORD
            for record in self._siblings.records_after(key.record, most):
                self._start(walk, record)

    async def _read_command_line(self, walk: _Walk, process: int) -> None:
        walk.take_given(await self._given(process))
        for key in tuple(walk.opened):
            self._go_ahead(walk, key)

    def _start(self, walk: _Walk, what: What) -> None:
        levels = 0 if isinstance(what, LogKey) else len(walk.levels)
        if (what, levels) not in walk.begun:
            if len(walk.begun) >= _MOST_BEGUN:  # by who never pauses
                walk.begun.clear()  # what is here is not fetched again
            walk.begun.add((what, levels))
            self._run(self._fetch, walk, what)

    def _run(self, task: Callable[..., Awaitable[None]], walk: _Walk, *args: object) -> None:
        self._busy += 1
        self._nursery.start_soon(self._in_background, task, walk, *args)

    async def _in_background(
        self, task: Callable[..., Awaitable[None]], walk: _Walk, *args: object
    ) -> None:
        try:
            with background():
                await task(walk, *args)
        except (CodeArtsError, OSError) as failure:
            log.info("nothing fetched ahead: %s", failure)
        except Exception:  # nobody waits for this: it must not end the mount
            log.exception("fetching ahead failed in an unforeseen way")
        finally:
            self._busy -= 1

    async def _fetch(self, walk: _Walk, what: What) -> None:
        if isinstance(what, LogKey):
            await self._fetch_all(walk, (what,))
        else:
            keys = await self._siblings.logs_of(what)
            await self._fetch_all(walk, (key for key in keys if key.level in walk.levels))

    async def _fetch_all(self, walk: _Walk, keys: Iterable[LogKey]) -> None:
        async with trio.open_nursery() as nursery:
            for key in keys:
                if key in walk.opened or key in self._fetching:
                    continue
                self._fetching.add(key)
                try:
                    await self._limit.acquire_on_behalf_of(key)
                except trio.Cancelled:
                    self._fetching.discard(key)
                    raise
                if not walk.goes_on(trio.current_time()):
                    self._let_go(key)
                    return
                nursery.start_soon(self._fetch_one, key)

    async def _fetch_one(self, key: LogKey) -> None:
        try:
            await self._store.fetch(key, _LARGEST_BYTES)
        except (CodeArtsError, OSError) as failure:  # no room, for one
            log.info("%s was not fetched ahead: %s", key, failure)
        except Exception:  # a mistake of ours: nobody waits for it, and the mount goes on
            log.exception("%s was not fetched ahead", key)
        finally:
            self._let_go(key)

    def _let_go(self, key: LogKey) -> None:
        self._limit.release_on_behalf_of(key)
        self._fetching.discard(key)
