"""A growing log by offset: ``/v1/log/task/step``, where the server honours no ranges.

The documents leave open what a step id is, which unit offsets have and what a page ends with.
So nothing is believed: a page is asked for from a little before what is here already, its
offsets must count the bytes that come, and these must begin with the bytes that are here.
Where anything else happens, pages are of no use, and the whole log is asked for.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from codeartsfs.api.health import NotAsked
from codeartsfs.api.pace import TemporaryFailure
from codeartsfs.api.wire import LogPage
from codeartsfs.errors import CallUnavailable, CodeArtsError, Forbidden

PAGE_LINES = 1000  # the documents: "fixed 1000"
_OVERLAP_BYTES = 4 << 10
_MOST_MISFITS = 3

FetchPage = Callable[[int, int], Awaitable[LogPage]]
"""Fetch a page by step id and offset."""


@dataclass(slots=True)
class LogAccess:
    """What this server was seen to offer for logs that grow; None: not tried yet."""

    ranges: bool | None = None
    pages: bool | None = None
    step: int = 0  # which of the numbers of a stage its step id is
    misfits: int = 0  # logs in a row for which pages were of no use


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where pages of a stage's log are: its job and run, and the numbers its step id may be."""

    job_id: str
    build_no: int
    steps: tuple[int, ...]


class LogPages:
    """The bytes of a log from an offset on, page by page; reads like ``Chunks``."""

    identity = True

    def __init__(
        self, fetch: Callable[[int], Awaitable[LogPage]], offset: int, known: bytes
    ) -> None:
        """Begin at ``offset``; what comes must begin with ``known``, which is passed over."""
        self._fetch = fetch
        self._offset = offset
        self._known = known
        self._new = b""
        self._ended = False

    async def turn(self) -> bool:
        """Fetch the next page. Return whether it is what it has to be."""
        page = await self._fetch(self._offset)
        content = page.log.encode("utf-8", "surrogatepass")
        if page.end_offset != self._offset + len(content):
            return False
        passed = min(len(self._known), len(content))
        if content[:passed] != self._known[:passed]:
            return False
        self._known = self._known[passed:]
        self._new = content[passed:]
        self._offset = page.end_offset
        self._ended = content.count(b"\n") < PAGE_LINES
        return True

    async def next(self) -> bytes:
        """Return bytes that are new, nothing at the end.

        Raises:
            TemporaryFailure: pages turned out to be of no use after all.
        """
        while not self._new and not self._ended:
            if not await self.turn():
                raise TemporaryFailure("pages of the log do not fit together")
        new, self._new = self._new, b""
        return new

    async def aclose(self) -> None:
        self._ended = True


async def open_pages(
    access: LogAccess, place: LogPlace, fetch: FetchPage, offset: int, tail: bytes
) -> LogPages | None:
    """Return the pages of a log after ``offset``, whose last bytes are ``tail``; None: no use.

    Raises:
        ApiUnavailable: no answer, after all retries.
    """
    # A page begins with a line; half a character would not come as it is.
    start = tail.find(b"\n", max(0, len(tail) - _OVERLAP_BYTES)) + 1
    known = tail[start:]
    if access.pages is False or start == 0 or not known:
        return None
    for step in place.steps[access.step :] if access.pages else place.steps:

        async def turn(at: int, step: int = step) -> LogPage:
            return await fetch(step, at)

        pages = LogPages(turn, offset - len(known), known)
        try:
            fits = await pages.turn()
        except (CallUnavailable, Forbidden):
            access.pages = False
            return None
        except NotAsked:
            raise
        except CodeArtsError:
            if access.pages:
                raise
            fits = False
        if fits:
            access.pages, access.step, access.misfits = True, place.steps.index(step), 0
            return pages
    access.misfits += 1  # a log may be special: rewritten just now, or not UTF-8
    if access.misfits >= _MOST_MISFITS:
        access.pages = False
    return None
