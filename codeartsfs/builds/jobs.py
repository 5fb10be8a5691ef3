"""Jobs and their builds: which there are, what they are called, which one is the latest.

As in the catalog of records, plain methods answer from memory, and ``async`` ones look into
the index and then ask the API, at most once at a time and only for what is too old.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import cachetools
import trio

from codeartsfs.builds.answer import Answer, told_or_known
from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import Index
from codeartsfs.errors import NotFound
from codeartsfs.model import BuildRecord, Job
from codeartsfs.names import ProjectId, RecordId, parse_build_number
from codeartsfs.spelling import spell_all

JOBS_TTL_S = 30.0
BUILDS_TTL_S = 5.0
_NAMES_TTL_S = 300.0  # which job a name means
_BUILDS_IN_MEMORY = 20_000
_NUMBERS_IN_MEMORY = 10_000


class JobSource(Protocol):
    async def jobs(self, project: ProjectId) -> tuple[Job, ...]: ...

    async def builds(self, job: Job, limit: int) -> tuple[BuildRecord, ...]: ...

    async def record_by_number(self, job_id: str, build_no: int) -> BuildRecord: ...


class Latest(Enum):
    """The newest build of a job, of all or of those in one state."""

    ANY = "latest"
    FAILED = "latest-failed"
    SUCCESS = "latest-success"
    RUNNING = "latest-running"

    def among(self, builds: Iterable[BuildRecord]) -> BuildRecord | None:
        """Return the one meant from builds that come newest first."""
        return next(filter(self._means, builds), None)

    def _means(self, build: BuildRecord) -> bool:
        match self:
            case Latest.FAILED:
                return build.failed
            case Latest.SUCCESS:
                return build.succeeded
            case Latest.RUNNING:
                return not build.final
        return True


Which = Latest | int
"""One build of a job: a latest one, or the one of a number."""


def parse_which(name: str) -> Which | None:
    """Return the build of a job that a name means, None for any other name."""
    try:
        return Latest(name)
    except ValueError:
        return parse_build_number(name)


@dataclass(eq=False, slots=True)
class _Project:
    """The jobs of one project. ``by_name`` follows what ``told`` holds."""

    told: Answer[tuple[Job, ...]] = field(default_factory=Answer)
    by_name: Mapping[str, Job] = field(default_factory=dict)
    by_build_project: Mapping[str, Job] = field(default_factory=dict)
    named_at: float = -float("inf")  # trio's clock
    recalled: bool = False

    def take(self, jobs: tuple[Job, ...]) -> None:
        self.named_at = trio.current_time()
        self.by_name = _by_name(jobs)
        self.by_build_project = {job.build_project_id: job for job in jobs if job.build_project_id}


class Jobs:
    def __init__(
        self,
        source: JobSource,
        catalog: Catalog,
        projects: Sequence[ProjectId],
        nursery: trio.Nursery,
        *,
        builds_per_job: int,
        index: Index | None = None,
    ) -> None:
        """Start empty.

        Args:
            catalog: is told what lists of builds say of records.
            projects: the CodeArts projects whose jobs are wanted.
            nursery: where questions to the API go on when nobody waits for them any more.
            builds_per_job: how many builds of a job are listed.
            index: what outlives this process, None for nothing.
        """
        self.projects = tuple(projects)
        self.builds_per_job = builds_per_job
        self._source = source
        self._nursery = nursery
        self._catalog = catalog
        self._index = index
        self._projects = {project: _Project() for project in projects}
        self._builds: cachetools.LRUCache[str, Answer[tuple[BuildRecord, ...]]] = (
            cachetools.LRUCache(max(16, _BUILDS_IN_MEMORY // builds_per_job))
        )
        self._numbered: cachetools.LRUCache[tuple[str, int], Answer[BuildRecord]] = (
            cachetools.LRUCache(_NUMBERS_IN_MEMORY)
        )

    # From memory. Jobs go by the names that their directories have.

    def known_jobs(self, project: ProjectId) -> Mapping[str, Job]:
        return self._projects[project].by_name

    def job_of(self, build: BuildRecord) -> Job | None:
        """Return the job of a build, None where that is not known."""
        projects = self._projects.values()
        jobs = (known.by_build_project.get(build.build_project_id) for known in projects)
        return next(filter(None, jobs), None)

    def rules_out(self, project: ProjectId, name: str) -> bool:
        """Whether the API said just now that a project has no job of that name."""
        known = self._projects[project]
        return (
            name not in known.by_name
            and known.told.value is not None
            and known.told.settled(BUILDS_TTL_S)
        )

    def known_build(self, job: Job, which: Which) -> BuildRecord | None:
        """Return a build as last told, None where it was never told."""
        if isinstance(which, Latest):
            return which.among(self._known_builds(job))
        numbered = (b for b in self._known_builds(job) if b.build_no == which)
        older = self._numbered.get((job.job_id, which))
        build = next(numbered, None) or (older.value if older else None)
        newer = self._catalog.known_build(build.record) if build and not build.final else None
        return newer or build

    def fresh(self, job: Job) -> bool:
        """Whether the builds of a job need not be asked for just now."""
        told = self._builds.get(job.job_id)
        return told is not None and told.value is not None and told.settled(BUILDS_TTL_S)

    def _known_builds(self, job: Job) -> tuple[BuildRecord, ...]:
        told = self._builds.get(job.job_id)
        return told.value or () if told else ()

    # From the index, then from the API.

    async def recall(self, project: ProjectId) -> None:
        """Make what the index knows of a project's jobs known to the plain methods."""
        known = self._projects[project]
        if known.recalled or self._index is None:
            return
        saved = await self._index.jobs(project)
        known.recalled = True
        if saved and known.told.value is None:
            known.told.value = saved
            known.take(saved)

    async def recall_all(self) -> None:
        for project in self.projects:
            await self.recall(project)

    async def jobs(
        self,
        project: ProjectId,
        ttl_s: float = JOBS_TTL_S,
        *,
        force: bool = False,
        patience_s: float = float("inf"),
    ) -> Mapping[str, Job]:
        """Return the jobs of a project by name, at most half a minute old.

        Args:
            force: ask in any case.
            patience_s: how long the API may take for them.

        Raises:
            CodeArtsError: the API could not be asked.
        """
        await self.recall(project)
        known = self._projects[project]

        async def ask() -> tuple[Job, ...]:
            jobs = await self._source.jobs(project)
            if self._index and jobs != known.told.value:
                self._index.keep_jobs(project, jobs)
            known.take(jobs)
            return jobs

        await known.told.get(ask, self._nursery, ttl_s, force=force, patience_s=patience_s)
        return known.by_name

    async def job(self, project: ProjectId, name: str) -> Job:
        """Return one job of a project.

        Raises:
            NotFound: there is none of that name.
            CodeArtsError: the API could not be asked.
        """
        await self.recall(project)
        known = self._projects[project]
        job = known.by_name.get(name)
        if job is not None and trio.current_time() - known.named_at < _NAMES_TTL_S:
            return job
        jobs = await told_or_known(
            lambda patience_s: self.jobs(project, patience_s=patience_s),
            known.by_name if job else None,
        )
        # A job that is new may be missing from a list that is not.
        job = (jobs or {}).get(name) or (await self.jobs(project, BUILDS_TTL_S)).get(name)
        if job is None:
            raise NotFound(f"no job {name!r} in project {project}")
        return job

    async def recall_builds(self, job: Job) -> tuple[BuildRecord, ...]:
        """Return the builds of a job that are known here, newest first, without the API."""
        here = self._known_builds(job)
        if here or self._index is None or not job.build_project_id:
            return here
        return await self._index.builds(job.build_project_id, self.builds_per_job)

    async def builds(
        self, job: Job, *, force: bool = False, patience_s: float = float("inf")
    ) -> tuple[BuildRecord, ...]:
        """Return the newest builds of a job, newest first, as of the last seconds.

        Args:
            force: ask in any case.
            patience_s: how long the API may take for them.

        Raises:
            NotFound: there is no such job any more.
            CodeArtsError: the API could not be asked.
        """
        told = self._builds.get(job.job_id)
        if told is None:
            told = self._builds[job.job_id] = Answer()

        async def ask() -> tuple[BuildRecord, ...]:
            try:
                builds = await self._source.builds(job, self.builds_per_job)
            except NotFound:
                for project in self._projects.values():
                    project.named_at = -float("inf")  # the name may be another job's by now
                raise
            before = set(told.value or ())
            changed = [build for build in builds if build not in before]
            for build in changed:
                self._catalog.learn(build)
            if self._index and changed:
                self._index.keep_builds(changed)
            return builds

        answer = await told.get(
            ask, self._nursery, BUILDS_TTL_S, force=force, patience_s=patience_s
        )
        return answer or ()

    async def record(self, job: Job, which: Which, patience_s: float = float("inf")) -> RecordId:
        """Return the record of one build of a job.

        Args:
            patience_s: how long the API may take for the list of builds.

        Raises:
            NotFound: there is no such build.
            CodeArtsError: the API could not be asked.
        """
        if isinstance(which, Latest):
            build = which.among(await self.builds(job, patience_s=patience_s))
            if build is None:
                raise NotFound(f"job {job.name!r} has no build that is {which.value}")
            return build.record
        known = self.known_build(job, which)
        return (known or await self._by_number(job, which)).record

    async def _by_number(self, job: Job, number: int) -> BuildRecord:
        key = (job.job_id, number)
        told = self._numbered.get(key)
        if told is None:
            told = self._numbered[key] = Answer()
        if told.value is None:

            async def ask() -> BuildRecord:
                if self._index and job.build_project_id:
                    saved = await self._index.build(job.build_project_id, number)
                    if saved is not None:
                        return saved
                build = await self._source.record_by_number(job.job_id, number)
                self._catalog.learn(build)
                if self._index:
                    self._index.keep_builds([build])
                return build

            await told.get(ask, self._nursery, BUILDS_TTL_S)
        assert told.value is not None
        return told.value  # which record a number means never changes


def _by_name(jobs: tuple[Job, ...]) -> dict[str, Job]:
    by_id = {job.job_id: job for job in jobs}
    names = spell_all({job.job_id: job.name for job in jobs})
    return {name: by_id[job_id] for name, job_id in names.items()}
