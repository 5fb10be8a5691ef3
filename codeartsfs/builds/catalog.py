"""The catalog: what is known of build records, their stages and their logs.

Plain methods answer from memory at once. ``async`` ones look into the index on disk next, and
ask the API where that is not enough: at most once at a time per record, and never again
for a record that is over. Where an API does not offer or does not permit the call, the catalog
says so (``None``), and logs can still be read by name.
"""

import time
from dataclasses import dataclass, field
from typing import Protocol

import cachetools
import trio

from codeartsfs.builds.answer import ABSENCE_TTL_S, Answer
from codeartsfs.builds.index import Index, IndexedRecord, RecordTimes
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BuildNotFound,
    CallUnavailable,
    Forbidden,
)
from codeartsfs.model import BuildRecord, LogNote, StageRun
from codeartsfs.names import LogKey, RecordId

__all__ = ["ABSENCE_TTL_S", "BuildSource", "Catalog", "RecordTimes"]

TTL_S = 5.0
_STATE_PATIENCE_S = 5.0  # a log is read without its state where that takes longer
_NOT_OFFERED_TTL_S = 300.0  # by the gateway, for all records
_UNTOLD_S = {CallUnavailable: _NOT_OFFERED_TTL_S, Forbidden: 30.0}
_SETTLING_NS = 600 * 10**9  # after its last stage finished, a record may still get another one
_RECORDS_IN_MEMORY = 20_000
_MOST_AHEAD = 64


class BuildSource(Protocol):
    async def stages(self, record: RecordId) -> tuple[StageRun, ...]: ...

    async def record(self, record: RecordId) -> BuildRecord: ...


@dataclass(eq=False, slots=True)
class _Known:
    """One record."""

    stages: Answer[tuple[StageRun, ...]] = field(default_factory=Answer)
    build: Answer[BuildRecord] = field(default_factory=Answer)
    logs: dict[str, LogNote] = field(default_factory=dict)
    times: RecordTimes | None = None  # once they can no longer change
    recalled: bool = False  # from the index

    def learn(self, build: BuildRecord) -> None:
        if build.final and not self.build.final:
            self.stages.expire()  # what was told of its stages while it ran
        self.build.value, self.build.final = build, build.final

    @property
    def runs(self) -> tuple[StageRun, ...] | None:
        return self.stages.value

    def run(self, stage: str) -> StageRun | None:
        return next((run for run in self.runs or () if run.stage.name == stage), None)


class Catalog:
    def __init__(
        self, source: BuildSource, nursery: trio.Nursery, index: Index | None = None
    ) -> None:
        """Start empty.

        Args:
            nursery: where questions to the API go on when nobody waits for them any more.
            index: what outlives this process, None for nothing.
        """
        self._source = source
        self._nursery = nursery
        self._index = index
        self._records: cachetools.LRUCache[RecordId, _Known] = cachetools.LRUCache(
            _RECORDS_IN_MEMORY
        )
        self._last_recalled = "~"  # after every id
        self._ahead = 1
        self._not_offered: CallUnavailable | None = None
        self._not_offered_until = -float("inf")

    # From memory.

    def known_stages(self, record: RecordId) -> tuple[StageRun, ...] | None:
        """Return the stages of a record as last told, None where they were never told."""
        known = self._records.get(record)
        return None if known is None else known.runs

    def known_build(self, record: RecordId) -> BuildRecord | None:
        """Return the record as last told, None where it was never told."""
        known = self._records.get(record)
        return None if known is None else known.build.value

    def known_run(self, key: LogKey) -> StageRun | None:
        """Return the stage of a log as last told."""
        known = self._records.get(key.record)
        return None if known is None else known.run(key.stage.name)

    def times(self, record: RecordId) -> RecordTimes | None:
        """Return what a listing shows of a record, None where its stages were never told."""
        known = self._records.get(record)
        if known is None or known.runs is None:
            return None
        if known.times is not None:
            return known.times
        times = _times_of(known.runs, final=known.stages.final)
        if times.final:
            known.times = times
        return times

    def fresh(self, record: RecordId) -> bool:
        """Whether the stages of a record were told, and need not be asked for just now."""
        known = self._records.get(record)
        return known is not None and known.runs is not None and known.stages.settled(TTL_S)

    def doubt(self, record: RecordId) -> str:
        """Why a record may have other stages than those last told; empty where nothing says so."""
        stages = self._known(record).stages
        if stages.final and stages.value is not None:
            return ""
        if stages.failure is not None:
            return str(stages.failure)
        if stages.asking:
            return "the API has not answered yet"
        return "the API lists no stages here" if stages.value is None else ""

    def told(self, record: RecordId) -> bool:
        """Whether all of a record was told that ever is, and need not be asked for just now."""
        known = self._records.get(record)
        return known is not None and known.stages.settled(TTL_S) and known.build.settled(TTL_S)

    def rules_out(self, key: LogKey) -> bool:
        """Whether the API said, just now or for good, that a record has no such stage."""
        return self.fresh(key.record) and self.known_run(key) is None

    def absent(self, record: RecordId) -> bool:
        """Whether the API said within the last seconds that there is no such record."""
        known = self._records.get(record)
        return known is not None and known.stages.absent

    def last_error(self, record: RecordId) -> str:
        """Return why the last question about a record failed; empty where it did not."""
        known = self._records.get(record)
        failure = known and (known.stages.failure or known.build.failure)
        return str(failure) if failure else ""

    # What was seen of logs.

    def log_note(self, key: LogKey) -> LogNote | None:
        """Return what is remembered of a log, None where it was never seen."""
        known = self._records.get(key.record)
        return None if known is None else known.logs.get(key.file_name)

    def note_log(self, key: LogKey, note: LogNote | None) -> None:
        """Remember a log beyond this process; None forgets it."""
        logs = self._known(key.record).logs
        if logs.get(key.file_name) == note:
            return
        if note is None:
            del logs[key.file_name]
        else:
            logs[key.file_name] = note
        if self._index:
            self._index.keep_log(key, note)

    def noted_logs(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the logs of a record of which something is remembered."""
        known = self._records.get(record)
        keys = (LogKey.parse(record, name) for name in (known.logs if known else ()))
        return tuple(key for key in keys if key is not None)

    # From the index, then from the API.

    async def recall(self, record: RecordId) -> None:
        """Make what the index knows of a record known to the plain methods."""
        known = self._known(record)
        if known.recalled or self._index is None:
            return
        # Who walks through records in the order of a listing gets the next ones read ahead.
        self._ahead = min(self._ahead * 2, _MOST_AHEAD) if record > self._last_recalled else 1
        self._last_recalled = record
        saved = await self._index.records_from(record, self._ahead)
        known.recalled = True
        for one, indexed in saved.items():
            self._take(one, indexed)
            self._last_recalled = max(self._last_recalled, one)

    def _take(self, record: RecordId, indexed: IndexedRecord) -> None:
        known = self._known(record)
        known.recalled = True
        if known.stages.value is None and indexed.stages is not None:
            known.stages.value, known.stages.final = indexed.stages, indexed.final
        if known.build.value is None and indexed.build is not None:
            known.build.value, known.build.final = indexed.build, indexed.build.final
        known.logs = indexed.logs | known.logs

    async def records(self) -> dict[RecordId, RecordTimes]:
        """Return the records whose stages the API has ever told, and their times."""
        indexed = await self._index.records() if self._index else {}
        here = {
            record: _times_of(known.runs, final=known.stages.final)
            for record, known in tuple(self._records.items())
            if known.runs is not None
        }
        return indexed | here

    async def stages(
        self, record: RecordId, *, force: bool = False, patience_s: float = float("inf")
    ) -> tuple[StageRun, ...] | None:
        """Return the stages of a record, at most a few seconds old unless they are final.

        Args:
            force: ask in any case.
            patience_s: how long the API may take for them.

        Returns:
            The stages in order, None where the API gives no stages.

        Raises:
            BuildNotFound: there is no such record.
            CodeArtsError: the API could not be asked.
        """
        await self.recall(record)
        known = self._known(record)

        async def ask() -> tuple[StageRun, ...]:
            if self._not_offered and trio.current_time() < self._not_offered_until:
                raise self._not_offered.with_traceback(None)
            try:
                runs = await self._source.stages(record)
            except CallUnavailable as failure:
                self._not_offered = failure
                self._not_offered_until = trio.current_time() + _NOT_OFFERED_TTL_S
                raise
            final = _all_over(runs)
            if self._index and (runs, final) != (known.runs, known.stages.final):
                self._index.keep_stages(record, runs, _times_of(runs, final=final))
            known.stages.final, known.times = final, None
            return runs

        return await known.stages.get(
            ask, self._nursery, TTL_S, force=force, patience_s=patience_s, untold_s=_UNTOLD_S
        )

    async def build(
        self, record: RecordId, *, force: bool = False, patience_s: float = float("inf")
    ) -> BuildRecord | None:
        """Return the record itself, at most a few seconds old unless it is over.

        Args:
            force: ask in any case.
            patience_s: how long the API may take for it.

        Returns:
            None where the API does not tell.

        Raises:
            BuildNotFound: there is no such record.
            CodeArtsError: the API could not be asked.
        """
        await self.recall(record)
        known = self._known(record)

        async def ask() -> BuildRecord:
            build = await self._source.record(record)
            if self._index and build != known.build.value:
                self._index.keep_builds([build])
            known.learn(build)
            return build

        return await known.build.get(
            ask, self._nursery, TTL_S, force=force, patience_s=patience_s, untold_s=_UNTOLD_S
        )

    async def stage(self, key: LogKey) -> StageRun | None:
        """Return the stage of a log as of the last seconds, None where the API gives no state.

        A log is looked at more often than its stage: that its last bytes are here shows at
        once, that they were the last may show a little later.

        Raises:
            CodeArtsError: the API could not be asked.
        """
        await self.recall(key.record)
        run = self.known_run(key)
        if run is not None and run.final:
            return run
        try:
            await self.stages(key.record, patience_s=_STATE_PATIENCE_S)
        except BuildNotFound:
            return None  # the log itself knows better
        except AccessDenied:
            if self.known_stages(key.record) is not None:
                raise  # a state is known, it only cannot be asked just now
            return None  # the log itself will tell whether it can be had
        except ApiUnavailable:
            if run is None:
                raise
        return self.known_run(key)  # a stage that was not over may be by now: late, never early

    def learn(self, build: BuildRecord) -> None:
        """Take in what a list of builds said of a record whose directory is in use."""
        known = self._records.get(build.record)
        if known is not None and not known.build.final:
            known.learn(build)

    def _known(self, record: RecordId) -> _Known:
        known = self._records.get(record)
        if known is None:
            known = self._records[record] = _Known()
        return known


def _times_of(runs: tuple[StageRun, ...], *, final: bool) -> RecordTimes:
    """A record is as old as its newest stage, and new as long as one of them runs."""
    if any(run.running for run in runs):
        return RecordTimes(time.time_ns(), final=False)
    times = [run.finished_ns or run.started_ns or run.created_ns or 0 for run in runs]
    return RecordTimes(max(times, default=0) or None, final)


def _all_over(runs: tuple[StageRun, ...]) -> bool:
    """Whether a record's list of stages can no longer change."""
    if not runs or not all(run.final for run in runs):
        return False
    if any(run.stage.name == "final" for run in runs):
        return True
    finished_ns = [run.finished_ns for run in runs if run.finished_ns is not None]
    return len(finished_ns) == len(runs) and time.time_ns() - max(finished_ns) > _SETTLING_NS
