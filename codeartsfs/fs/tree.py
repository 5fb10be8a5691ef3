"""The tree: which names a directory has and what a name leads to.

Look-ups answer from what is known here, so that no directory ever freezes on the network;
listings are fetched when a directory is opened. Names that cannot exist fail the grammar and
cost nothing. Names that could exist are believed until the API says otherwise: a look-up
believes them, and whoever asks for more than the name waits for ``confirm``.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

import cachetools
import trio

from codeartsfs.builds.answer import told_or_known
from codeartsfs.builds.catalog import Catalog, RecordTimes
from codeartsfs.builds.document import first_failed, record_document
from codeartsfs.builds.jobs import Jobs, Latest, Which, parse_which
from codeartsfs.errors import BuildNotFound, CodeArtsError, NotFound
from codeartsfs.fs.nodes import (
    BY_JOB_DIR,
    BY_NAME_DIR,
    CONTROL_FILES,
    FAILED_LINK,
    RECORD_FILE,
    ROOT,
    BuildLink,
    ControlDir,
    ControlFile,
    FailedLink,
    JobDir,
    JobsDir,
    Link,
    LogFile,
    NameLink,
    NamesDir,
    Node,
    ProjectDir,
    RecordDir,
    RecordFile,
    RootDir,
)
from codeartsfs.logs.store import LogStore
from codeartsfs.model import BuildRecord, StageRun
from codeartsfs.names import (
    CONTROL_DIR,
    LogKey,
    LogLevel,
    ProjectId,
    RecordId,
    Stage,
    parse_build_number,
    parse_record_id,
)
from codeartsfs.spelling import NAME_MAX_BYTES, shorten, spell_part

_DOCUMENT_SIZES = 20_000
_LOOK_UPS = 1000
_NAMED_LOG = re.compile(r"(0[1-9]|[1-9][0-9]{1,3})-.+\.(info|debug)\.log", re.DOTALL)

Entry = tuple[str, Node, RecordTimes | None]
"""Name and node; the times of a record, which need not be in memory otherwise."""
Entries = tuple[Entry, ...]


class Tree:
    def __init__(self, catalog: Catalog, jobs: Jobs, store: LogStore) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._store = store
        self._kept: set[RecordId] = set()  # seen in the cache: there, whatever the API says
        self._last_listed: list[RecordId] = []
        self._looked_up: dict[RecordId, None] = {}  # in the order of first look-ups
        # Of record.json, as long as it would be rendered from the same.
        self._document_sizes: cachetools.LRUCache[
            RecordId, tuple[BuildRecord | None, tuple[StageRun, ...] | None, int]
        ] = cachetools.LRUCache(_DOCUMENT_SIZES)

    # Names.

    async def lookup(self, parent: Node, name: str) -> Node | None:
        """Return what a name in a directory leads to, None where there is nothing.

        May look into the index on disk; never waits for the API.
        """
        if self.impossible(parent, name):
            return None
        match parent:
            case RootDir():
                record = parse_record_id(name)
                if record is not None:
                    self._note_look_up(record)
                    await self._catalog.recall(record)
            case RecordDir(record) | NamesDir(record):
                await self._catalog.recall(record)
            case JobsDir() | ProjectDir() | JobDir():
                await self._jobs.recall_all()
        return self.child(parent, name)

    def child(self, parent: Node, name: str) -> Node | None:
        """``lookup`` from memory alone."""
        if self.impossible(parent, name):
            return None
        match parent:
            case RootDir():
                return self._in_root(name)
            case ControlDir():
                return ControlFile(name)
            case JobsDir():
                project = self._only_project()
                return self._job(project, name) if project else ProjectDir(ProjectId(name))
            case ProjectDir(project):
                return self._job(project, name)
            case JobDir():
                return self._build(parent, name)
            case RecordDir(record):
                return self._in_record(record, name)
            case NamesDir(record):
                return self._named(record, name)
        return None

    def impossible(self, parent: Node, name: str) -> bool:
        """Whether a name can never come to exist in a directory, whatever the API says."""
        match parent:
            case RootDir():
                if name == BY_JOB_DIR:
                    return not self._jobs.projects
                return name != CONTROL_DIR and parse_record_id(name) is None
            case ControlDir():
                return name not in CONTROL_FILES
            case JobsDir() if self._only_project() is None:
                return name not in self._jobs.projects
            case JobsDir() | ProjectDir():
                return not name or name.startswith(".")
            case JobDir():
                return parse_which(name) is None
            case RecordDir(record):
                other = name in (RECORD_FILE, FAILED_LINK, BY_NAME_DIR)
                return not other and LogKey.parse(record, name) is None
            case NamesDir(record):
                return _named_key(record, name) is None
        return True

    def parent(self, node: Node) -> Node:
        match node:
            case ControlFile():
                return ControlDir()
            case ProjectDir():
                return JobsDir()
            case JobDir(project):
                return JobsDir() if self._only_project() else ProjectDir(project)
            case BuildLink(job):
                return job
            case RecordFile(record) | FailedLink(record) | NamesDir(record):
                return RecordDir(record)
            case NameLink(key):
                return NamesDir(key.record)
            case LogFile(key):
                return RecordDir(key.record)
        return ROOT

    def _only_project(self) -> ProjectId | None:
        projects = self._jobs.projects
        return projects[0] if len(projects) == 1 else None

    def _in_root(self, name: str) -> Node | None:
        if name == CONTROL_DIR:
            return ControlDir()
        if name == BY_JOB_DIR:
            return JobsDir()
        record = RecordId(name)
        gone = self._catalog.absent(record) and record not in self._kept
        return None if gone else RecordDir(record)

    def _job(self, project: ProjectId, name: str) -> JobDir | None:
        return None if self._jobs.rules_out(project, name) else JobDir(project, name)

    def _build(self, directory: JobDir, name: str) -> BuildLink | None:
        which = parse_which(name)
        assert which is not None
        link = BuildLink(directory, which)
        # Which build is the latest is told by the list; a number may be older than its end.
        if isinstance(which, Latest) and self.certain(link) and self.build(link) is None:
            return None
        return link

    def _in_record(self, record: RecordId, name: str) -> Node | None:
        runs = self._catalog.known_stages(record)
        if name == RECORD_FILE:
            return RecordFile(record)
        if name == BY_NAME_DIR:
            ruled_out = self._catalog.fresh(record) and not _with_logs(runs or ())
            return None if ruled_out else NamesDir(record)
        if name == FAILED_LINK:
            ruled_out = self._catalog.fresh(record) and first_failed(runs or ()) is None
            return None if ruled_out else FailedLink(record)
        key = LogKey.parse(record, name)
        assert key is not None
        return self._log(key) if self._may_exist(key) else None

    def _named(self, record: RecordId, name: str) -> NameLink | None:
        key = _named_key(record, name)
        assert key is not None
        run = self._catalog.known_run(key)
        named = run is not None and _log_name(run, key.level) == name
        return NameLink(key, name) if named or not self._catalog.fresh(record) else None

    def _may_exist(self, key: LogKey) -> bool:
        if self._store.absent(key):
            return False
        # The API documents no logs of `initial` and `final`, but may have them.
        possible = not key.stage.numbered or not self._catalog.rules_out(key)
        return possible or self._store.peek(key) is not None

    def _log(self, key: LogKey) -> LogFile:
        return LogFile(key, self._store.generation(key))

    # What is believed, and what is known.

    def certain(self, node: Node) -> bool:
        """Whether a node needs no ``confirm`` before it is described."""
        match node:
            case JobDir():
                return node.name in self._jobs.known_jobs(node.project)
            case BuildLink(directory, which):
                job = self._jobs.known_jobs(directory.project).get(directory.name)
                if job is None:
                    return False
                if isinstance(which, Latest):
                    return self._jobs.fresh(job)
                return self._jobs.known_build(job, which) is not None
            case RecordFile(record):
                return self._catalog.told(record)
            case NamesDir(record):
                return bool(_with_logs(self._catalog.known_stages(record) or ()))
            case NameLink(key, name):
                run = self._catalog.known_run(key)
                return run is not None and _log_name(run, key.level) == name
            case FailedLink(record):
                return self._catalog.fresh(record)
        return True

    async def confirm(self, node: Node) -> None:
        """Ask the API what is not certain.

        Raises:
            NotFound: there is no such thing after all.
            CodeArtsError: the API could not be asked.
        """
        match node:
            case JobDir():
                await self._jobs.job(node.project, node.name)
            case RecordFile(record):
                await self.document(record)
            case NamesDir(record):
                if not _with_logs(await self._runs(record) or ()):
                    raise NotFound(f"the API tells no stages of {record}")
            case BuildLink() | FailedLink() | NameLink():
                await self.target(node)

    def times(self, record: RecordId) -> RecordTimes | None:
        """Return the times of a record as last told."""
        return self._catalog.times(record)

    def run(self, key: LogKey) -> StageRun | None:
        """Return the stage of a log as last told."""
        return self._catalog.known_run(key)

    def last_build_ns(self, node: JobDir) -> int | None:
        """Return when a job's last build began, as last told."""
        job = self._jobs.known_jobs(node.project).get(node.name)
        return job.last_build_ns if job else None

    def build(self, link: BuildLink) -> BuildRecord | None:
        """Return the build a link leads to, as last told."""
        job = self._jobs.known_jobs(link.job.project).get(link.job.name)
        return self._jobs.known_build(job, link.which) if job else None

    # Links.

    async def target(self, link: Link) -> str:
        """Return where a link leads, relative to its directory.

        Raises:
            NotFound: nowhere.
            CodeArtsError: the API could not be asked.
        """
        match link:
            case BuildLink(directory, which):
                return self._up_from(directory) + await self.record_of(directory, which)
            case FailedLink(record):
                failed = first_failed(await self._runs(record) or ())
                if failed is None:
                    raise NotFound(f"no stage of {record} failed")
                return LogKey(record, failed.stage, LogLevel.INFO).file_name
            case NameLink(key, name):
                if not self.certain(link):
                    await self._runs(key.record)
                run = self._catalog.known_run(key)
                if run is None or _log_name(run, key.level) != name:
                    raise NotFound(f"no stage of {key.record} is called {name!r}")
                return f"../{key.file_name}"

    async def record_of(self, directory: JobDir, which: Which) -> RecordId:
        """Return the record of a build, as last told where the API is down or slow.

        Raises:
            NotFound: there is no such build.
            CodeArtsError: nothing is known and the API could not be asked.
        """
        job = await self._jobs.job(directory.project, directory.name)
        known = None
        if isinstance(which, Latest):
            known = which.among(await self._jobs.recall_builds(job))
        record = await told_or_known(
            lambda patience_s: self._jobs.record(job, which, patience_s),
            known.record if known else None,
        )
        assert record is not None  # either an answer or what was known
        return record

    def target_bytes(self, link: Link) -> int:
        """Return the length of a link's target, 0 where it is not known yet."""
        match link:
            case BuildLink(directory):
                return len(self._up_from(directory)) + 36  # like every record id
            case FailedLink(record):
                failed = self.failed_log(record)
                return len(failed.file_name) if failed else 0
            case NameLink(key):
                return len(f"../{key.file_name}")

    def _up_from(self, directory: JobDir) -> str:
        return "../../" if self.parent(directory) == JobsDir() else "../../../"

    async def refresh(self, node: Node) -> None:
        """Ask for what a directory, or the one a node is in, has; however new what is known is.

        Raises:
            CodeArtsError: the API could not be asked.
        """
        match node:
            case RecordDir(record) | RecordFile(record) | FailedLink(record) | NamesDir(record):
                await self._catalog.stages(record, force=True)
                await self._catalog.build(record, force=True)
            case NameLink(key):
                await self._catalog.stages(key.record, force=True)
            case JobDir() | BuildLink():
                directory = node if isinstance(node, JobDir) else node.job
                job = await self._jobs.job(directory.project, directory.name)
                await self._jobs.builds(job, force=True)
            case JobsDir() | ProjectDir():
                projects = (node.project,) if isinstance(node, ProjectDir) else self._jobs.projects
                for project in projects:
                    await self._jobs.jobs(project, force=True)

    # Listings.

    async def entries(self, directory: Node) -> Entries:
        """Return what a directory has, asking the API where that is not known.

        Raises:
            NotFound: the directory of something that does not exist.
            CodeArtsError: nothing is known and the API could not be asked.
        """
        match directory:
            case RootDir():
                return await self._all_records()
            case ControlDir():
                return tuple((name, ControlFile(name), None) for name in CONTROL_FILES)
            case JobsDir():
                project = self._only_project()
                if project is not None:
                    return await self._all_jobs(project)
                return tuple((name, ProjectDir(name), None) for name in self._jobs.projects)
            case ProjectDir(project):
                return await self._all_jobs(project)
            case JobDir():
                return await self._all_builds(directory)
            case RecordDir(record):
                return await self._all_of_record(record)
            case NamesDir(record):
                return tuple(
                    (name, NameLink(key, name), None)
                    for run in _with_logs(await self._runs(record) or ())
                    for key in _keys(record, run)
                    for name in [_log_name(run, key.level)]
                )
        return ()

    async def listed(self, directory: Node) -> bool:
        """Whether ``entries`` of a directory need no question to the API just now."""
        match directory:
            case RecordDir(record) | NamesDir(record):
                await self._catalog.recall(record)
                return self._catalog.fresh(record)
            case JobDir(project, name):
                job = self._jobs.known_jobs(project).get(name)
                return job is not None and self._jobs.fresh(job)
            case JobsDir() | ProjectDir():
                return False
        return True

    async def _all_records(self) -> Entries:
        known: dict[RecordId, RecordTimes | None] = {**await self._catalog.records()}
        for record in await self._store.cached_records():
            known.setdefault(record, None)
        self._last_listed = sorted(known)
        records: Entries = tuple((name, RecordDir(name), known[name]) for name in self._last_listed)
        return ((BY_JOB_DIR, JobsDir(), None), *records) if self._jobs.projects else records

    async def _all_jobs(self, project: ProjectId) -> Entries:
        await self._jobs.recall(project)
        known = self._jobs.known_jobs(project) or None
        jobs = await told_or_known(
            lambda patience_s: self._jobs.jobs(project, patience_s=patience_s), known
        )
        return tuple((name, JobDir(project, name), None) for name in jobs or ())

    async def _all_builds(self, directory: JobDir) -> Entries:
        job = await self._jobs.job(directory.project, directory.name)
        known = await self._jobs.recall_builds(job) or None
        builds = await told_or_known(
            lambda patience_s: self._jobs.builds(job, patience_s=patience_s), known
        )
        builds = builds or ()
        which: list[Which] = [latest for latest in Latest if latest.among(builds)]
        # Numbers that no name can mean are not listed.
        numbers = (parse_build_number(str(build.build_no)) for build in builds)
        which += dict.fromkeys(number for number in numbers if number is not None)
        links = (BuildLink(directory, one) for one in which)
        return tuple((link.name, link, None) for link in links)

    async def _all_of_record(self, record: RecordId) -> Entries:
        kept = await self._kept_logs(record)
        runs = await self._runs(record)
        keys = {*kept, *(key for run in _with_logs(runs or ()) for key in _keys(record, run))}
        logs = sorted(keys, key=lambda key: (key.stage.order, key.level.value != "INFO"))
        entries: list[Entry] = [(key.file_name, self._log(key), None) for key in logs]
        if runs is not None or self._catalog.known_build(record) is not None:
            entries.append((RECORD_FILE, RecordFile(record), None))
        if first_failed(runs or ()):
            entries.append((FAILED_LINK, FailedLink(record), None))
        if _with_logs(runs or ()):
            entries.append((BY_NAME_DIR, NamesDir(record), None))
        return tuple(entries)

    # What comes next, for who fetches ahead.

    async def logs_of(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the logs of a record, in the order of its listing.

        Raises:
            CodeArtsError: the API could not be asked.
        """
        entries = await self._all_of_record(record)
        return tuple(node.key for _, node, _ in entries if isinstance(node, LogFile))

    async def places(self, paths: Iterable[str]) -> tuple[RecordId | LogKey, ...]:
        """Return the records and logs that paths lead to, links followed, nothing else."""
        found: list[RecordId | LogKey] = []
        for path in paths:
            await trio.lowlevel.checkpoint()  # there may be thousands
            with suppress(CodeArtsError):
                match await self.follow(path):
                    case RecordDir(record):
                        found.append(record)
                    case LogFile(key):
                        found.append(key)
        return tuple(found)

    async def follow(self, path: str) -> Node | None:
        """Return what a path leads to, links followed; None where it can lead nowhere.

        Raises:
            CodeArtsError: a link on it leads nowhere, or the API could not be asked.
        """
        node: Node | None = ROOT
        for name in path.split("/"):
            node = self.child(node, name) if node else None
            match node:
                case BuildLink(directory, which):
                    node = RecordDir(await self.record_of(directory, which))
                case FailedLink(record):
                    failed = LogKey.parse(record, await self.target(node))
                    node = self._log(failed) if failed else None
                case NameLink(key):
                    node = self._log(key)
        return node

    def failed_log(self, record: RecordId) -> LogKey | None:
        """Return the log of the stage that failed first, as last told."""
        failed = first_failed(self._catalog.known_stages(record) or ())
        return LogKey(record, failed.stage, LogLevel.INFO) if failed else None

    def records_after(self, record: RecordId, most: int) -> tuple[RecordId, ...]:
        """Return the records that follow in the last listing of the root, or of look-ups.

        ``grep -r`` looks up all that it was given before it reads the first.
        """
        start = bisect_left(self._last_listed, record)
        if self._last_listed[start : start + 1] == [record]:
            return tuple(self._last_listed[start + 1 : start + 1 + most])
        looked_up = iter(self._looked_up)
        if record in self._looked_up:
            while next(looked_up) != record:
                pass
        return tuple(islice(looked_up, most))

    def _note_look_up(self, record: RecordId) -> None:
        self._looked_up.setdefault(record)
        if len(self._looked_up) > _LOOK_UPS:
            del self._looked_up[next(iter(self._looked_up))]

    async def _kept_logs(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the logs that are here, whatever the API says."""
        await self._catalog.recall(record)
        times = self._catalog.times(record)
        if times is not None and times.final:  # all that can be here was noted
            return self._catalog.noted_logs(record)
        kept = await self._store.cached_logs(record)
        if kept:
            self._kept.add(record)
        return kept

    async def _runs(self, record: RecordId) -> tuple[StageRun, ...] | None:
        """Return the stages of a record, as last told where the API is of no help."""
        await self._catalog.recall(record)
        known = self._catalog.known_stages(record)
        return await told_or_known(
            lambda patience_s: self._catalog.stages(record, patience_s=patience_s),
            known,
            kept=record in self._kept,
        )

    # record.json.

    async def document(self, record: RecordId) -> bytes:
        """Return the contents of ``record.json``.

        Raises:
            BuildNotFound: there is no such record, or the API tells nothing of any.
            CodeArtsError: part of it is not known and the API could not be asked.
        """
        # First the record: where it is over, its stages are asked for anew.
        await self._catalog.recall(record)
        await self._jobs.recall_all()  # whose build it is
        known = self._catalog.known_build(record)
        build = await told_or_known(
            lambda patience_s: self._catalog.build(record, patience_s=patience_s), known
        )
        runs = await self._runs(record)
        if runs is None and build is None:
            raise BuildNotFound(record, "the API does not tell of it here")
        job = self._jobs.job_of(build) if build else None
        text = record_document(record, build, runs, job.name if job else None)
        self._document_sizes[record] = (build, runs, len(text))
        return text

    def document_bytes(self, record: RecordId) -> int:
        """Return the size of ``record.json``, 0 where it was not rendered since it changed."""
        known = self._document_sizes.get(record)
        if known is None:
            return 0
        build, runs, size_bytes = known
        current = build is self._catalog.known_build(record)
        return size_bytes if current and runs is self._catalog.known_stages(record) else 0


def _with_logs(runs: tuple[StageRun, ...]) -> list[StageRun]:
    return [run for run in runs if run.stage.numbered and not run.skipped]


def _keys(record: RecordId, run: StageRun) -> list[LogKey]:
    return [LogKey(record, run.stage, level) for level in LogLevel]


def _log_name(run: StageRun, level: LogLevel) -> str:
    """Return the name of a log by its stage's display name: ``03-Maven build.info.log``.

    The number makes it unique, so a name that is too long may be cut.
    """
    start, end = f"{run.stage.order[1]:02}-", f".{level.value.lower()}.log"
    name = spell_part(run.display_name) or run.stage.name
    room_bytes = NAME_MAX_BYTES - len(start) - len(end)
    if len(name.encode()) > room_bytes:
        name = shorten(name, room_bytes - 1) + "~"
    return start + name + end


def _named_key(record: RecordId, name: str) -> LogKey | None:
    """Return the log that a name of ``_log_name`` can only mean, None for any other name."""
    match = _NAMED_LOG.fullmatch(name)
    stage = Stage.parse(f"stage{int(match[1])}") if match else None
    if match is None or stage is None:
        return None
    return LogKey(record, stage, LogLevel(match[2].upper()))
