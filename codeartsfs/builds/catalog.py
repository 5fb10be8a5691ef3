"""The catalog: what is known of build records and their stages.

Plain methods answer from memory at once; ``async`` ones ask the API where memory is
not enough: at most once at a time per record, and never again for a record that is over.
Where an API does not offer or does not permit the call, the catalog says so (``None``),
and logs can still be read by name.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Protocol

import cachetools
import trio

from codeartsfs.errors import (
    AccessDenied,
    BuildNotFound,
    CallUnavailable,
    CodeArtsError,
    Forbidden,
)
from codeartsfs.model import StageRun
from codeartsfs.names import LogKey, RecordId

log = logging.getLogger(__name__)

ABSENCE_TTL_S = 5.0
_LISTING_TTL_S = 5.0
_FAILURE_TTL_S = 1.0  # spares the API a stampede of those who waited for one answer
_NOT_OFFERED_TTL_S = 300.0  # by the gateway, for all records
_FORBIDDEN_TTL_S = 30.0  # for one record
_SETTLING_NS = 600 * 10**9  # after its last stage finished, a record may still get another one
_RECORDS = 100_000


class BuildSource(Protocol):
    async def stages(self, record: RecordId) -> tuple[StageRun, ...]: ...


@dataclass(eq=False, slots=True)
class _Known:
    """One record. ``stages`` is None until the API has told them, or where it tells none."""

    stages: dict[str, StageRun] | None = None
    final: bool = False
    asked_at: float = -float("inf")  # trio's clock
    failure: CodeArtsError | None = None
    retry_at: float = -float("inf")
    asking: trio.Lock = field(default_factory=trio.Lock)


class Catalog:
    def __init__(self, source: BuildSource, *, refresh_s: float) -> None:
        """Start empty.

        Args:
            refresh_s: how old the state of a running stage may be when a log is refreshed.
        """
        self._source = source
        self._refresh_s = refresh_s
        self._records: cachetools.LRUCache[RecordId, _Known] = cachetools.LRUCache(_RECORDS)
        self._not_offered_until = -float("inf")

    def records(self) -> tuple[RecordId, ...]:
        """Return the records that the API has told something about."""
        return tuple(record for record, known in self._records.items() if known.stages is not None)

    def known_stages(self, record: RecordId) -> tuple[StageRun, ...] | None:
        """Return the stages of a record as last told, None where they were never told."""
        known = self._records.get(record)
        return None if known is None or known.stages is None else tuple(known.stages.values())

    def rules_out(self, key: LogKey) -> bool:
        """Whether the API said, just now or for good, that a record has no such stage."""
        known = self._records.get(key.record)
        return (
            known is not None
            and known.stages is not None
            and key.stage.name not in known.stages
            and (known.final or trio.current_time() - known.asked_at < _LISTING_TTL_S)
        )

    def absent(self, record: RecordId) -> bool:
        """Whether the API said within the last seconds that there is no such record."""
        known = self._records.get(record)
        return (
            known is not None
            and isinstance(known.failure, BuildNotFound)
            and trio.current_time() < known.retry_at
        )

    async def stages(self, record: RecordId) -> tuple[StageRun, ...] | None:
        """Return the stages of a record, at most a few seconds old unless they are final.

        Returns:
            The stages in order, None where the API gives no stages.

        Raises:
            BuildNotFound: there is no such record.
            CodeArtsError: the API could not be asked.
        """
        known = await self._fresh(record, _LISTING_TTL_S)
        return None if known.stages is None else tuple(known.stages.values())

    async def stage(self, key: LogKey) -> StageRun | None:
        """Return the stage of a log as it is now, None where the API gives no state.

        Raises:
            CodeArtsError: the API could not be asked.
        """
        known = self._records.get(key.record)
        run = known.stages.get(key.stage.name) if known and known.stages else None
        if run is not None and run.final:
            return run
        try:
            known = await self._fresh(key.record, self._refresh_s)
        except BuildNotFound:
            return None  # the log itself knows better
        except AccessDenied:
            if known is not None and known.stages is not None:
                raise  # a state is known, it only cannot be asked just now
            return None  # the log itself will tell whether it can be had
        return known.stages.get(key.stage.name) if known.stages else None

    async def _fresh(self, record: RecordId, ttl_s: float) -> _Known:
        known = self._records.get(record)
        if known is None:
            known = self._records[record] = _Known()
        if self._stale(known, ttl_s):
            async with known.asking:
                if self._stale(known, ttl_s):  # nobody asked while we waited
                    await self._ask(record, known)
        if known.failure is not None:
            raise known.failure.with_traceback(None)
        return known

    def _stale(self, known: _Known, ttl_s: float) -> bool:
        now = trio.current_time()
        if now < known.retry_at:
            return False
        return known.failure is not None or not (
            known.final or now - known.asked_at < ttl_s or now < self._not_offered_until
        )

    async def _ask(self, record: RecordId, known: _Known) -> None:
        asked_at = trio.current_time()
        try:
            runs = await self._source.stages(record)
        except (CallUnavailable, Forbidden) as failure:
            log.info("no stages of %s: %s", record, failure)
            known.failure = None
            if isinstance(failure, CallUnavailable):
                self._not_offered_until = trio.current_time() + _NOT_OFFERED_TTL_S
            else:
                known.retry_at = trio.current_time() + _FORBIDDEN_TTL_S
        except CodeArtsError as failure:
            told = isinstance(failure, BuildNotFound | AccessDenied)
            ttl_s = ABSENCE_TTL_S if told else _FAILURE_TTL_S
            known.failure = failure
            known.retry_at = trio.current_time() + ttl_s
        else:
            known.failure = None
            known.stages = {run.stage.name: run for run in runs}
            known.asked_at = asked_at
            known.final = _all_over(runs)


def _all_over(runs: tuple[StageRun, ...]) -> bool:
    """Whether a record's list of stages can no longer change."""
    if not runs or not all(run.final for run in runs):
        return False
    if any(run.stage.name == "final" for run in runs):
        return True
    finished_ns = [run.finished_ns for run in runs if run.finished_ns is not None]
    return len(finished_ns) == len(runs) and time.time_ns() - max(finished_ns) > _SETTLING_NS
