"""What people name on a command line: records, logs, jobs and their builds, paths in a mount.

All of it is read as the mount would read it, by the same tree. Paths are never looked at below
a mount point, so a mount that hangs cannot hang who names a file in it.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from codeartsfs.builds.jobs import Latest, Which, parse_which
from codeartsfs.fs.nodes import (
    BY_JOB_DIR,
    BuildLink,
    JobDir,
    LogFile,
    NamesDir,
    ProjectDir,
    RecordDir,
)
from codeartsfs.fs.tree import Tree
from codeartsfs.names import LogKey, LogLevel, ProjectId, RecordId, Stage, parse_record_id
from codeartsfs.session import Session
from codeartsfs.spelling import spell_part

_MOST_LINKS = 40  # as the kernel follows on one path
_FEW = 10  # names that fit into a message


class UnknownName(Exception):
    """Something named leads nowhere; the message is one line and says what might be meant."""


@dataclass(frozen=True, slots=True)
class Named:
    """One record that was named, or one log of it.

    Attributes:
        label: how its directory is shown: as it was named, a build by its number.
        key: the log; None for those of the whole record.
    """

    label: str
    record: RecordId
    key: LogKey | None = None


class Selection:
    """Finds what is named.

    Args:
        mounts: where our file systems are mounted.
        directory: where paths begin that begin nowhere.
    """

    def __init__(self, session: Session, mounts: Collection[Path], directory: Path) -> None:
        self._catalog = session.catalog
        self._jobs = session.jobs
        self._tree = Tree(session.catalog, session.jobs, session.store)
        self._mounts = mounts
        self._directory = directory

    async def named(self, text: str, builds: int = 1) -> list[Named]:
        """Return what a name means.

        Args:
            builds: how many of the newest builds a job stands for.

        Raises:
            UnknownName: nothing.
            CodeArtsError: the API says so, or could not be asked.
        """
        if parse_record_id(text.partition("/")[0]):
            return await self._at("", text, builds)
        inside = inside_mount(self._directory / text, self._mounts)
        is_path = text.startswith(("/", "."))
        if inside is None:
            if is_path:
                raise UnknownName(f"{text!r} is not in a mount of codeartsfs")
            return await self._at("", text, builds)
        try:
            found = await self._at(f"{inside[0]}/", inside[1], builds)
        except UnknownName:
            if is_path or inside_mount(self._directory, self._mounts) is None:
                raise
            # Where one stands in a mount, jobs can be named all the same.
            return await self._at("", text, builds)
        if os.path.isabs(text):
            return found
        return [replace(each, label=_relative(each.label, self._directory)) for each in found]

    async def logs(
        self, named: Named, levels: Collection[LogLevel], stages: Sequence[str] = ()
    ) -> list[tuple[str, LogKey]]:
        """Return labels and keys of the logs meant; of a whole record those of levels and stages.

        Raises as ``named`` does.
        """
        if named.key is not None:
            return [(_below(named.label, named.key), named.key)]
        keys = await self._tree.logs_of(named.record)
        if stages:
            wanted = [self._stage(named, text) for text in stages]
            listed = {key.stage for key in keys}
            if self._catalog.known_stages(named.record) is None:  # nor does the API list logs
                listed.update(wanted)
            keys = tuple(
                LogKey(named.record, stage, level)
                for stage in dict.fromkeys(wanted)
                for level in LogLevel
                if stage in listed
            )
        elif not keys and self._catalog.known_stages(named.record) is None:
            raise UnknownName(f"{named.label}: the API lists no stages here, so say --stage")
        return [(_below(named.label, key), key) for key in keys if key.level in levels]

    def doubt(self, named: Named, stages: Sequence[str] = ()) -> str:
        """Why a record may have more logs than ``logs`` has found; empty where it has all."""
        if named.key is not None or stages:
            return ""
        why = self._catalog.doubt(named.record)
        return why and f"{named.label}: there may be other stages (--stage NAME names one): {why}"

    def _stage(self, named: Named, text: str) -> Stage:
        """Return the stage of a record that is called so: by the API, by number or by people."""
        runs = self._catalog.known_stages(named.record)
        stage = Stage.parse(f"stage{text}" if text.isdigit() else text)
        if runs is None and stage is not None:
            return stage
        for run in runs or ():
            if run.stage == stage or run.display_name.casefold() == text.casefold():
                return run.stage
        names = [name for run in runs or () for name in (run.stage.name, run.display_name) if name]
        one_each = [run.display_name or run.stage.name for run in runs or ()]
        advice = _suggestion(text, names, one_each)
        raise UnknownName(f"{named.label} has no stage {text!r}{advice}")

    async def _at(self, prefix: str, path: str, builds: int) -> list[Named]:
        """Return what a path means that begins at the root of a mount, or with a job."""
        first, _, rest = path.partition("/")
        record = parse_record_id(first)
        if record is not None:
            return [await self._in_record(prefix + record, record, rest)]
        if path in ("", BY_JOB_DIR):
            raise UnknownName("name records or jobs, not all there are")
        directory, shown, rest = await self._job(path)
        build, _, rest = rest.partition("/")
        found = []
        for link in await self._builds(directory, build, builds):
            record = await self._tree.record_of(link.job, link.which)
            told = self._tree.build(link)
            number = told.build_no if told else None
            label = f"{prefix}{shown}/{number or link.name}"
            found.append(await self._in_record(label, record, rest))
        return found

    async def _in_record(self, label: str, record: RecordId, rest: str) -> Named:
        rest = rest.rstrip("/")
        if not rest:
            return Named(label, record)
        match await self._tree.follow(f"{record}/{rest}"):
            case LogFile(key):
                return Named(label, record, key)
            case NamesDir():
                return Named(label, record)
        entries = await self._tree.entries(RecordDir(record))
        logs = [name for name, node, _ in entries if isinstance(node, LogFile)]
        raise UnknownName(f"{label} has no log {rest!r}" + _suggestion(rest, logs))

    async def _job(self, path: str) -> tuple[JobDir, str, str]:
        """Return the directory of a job, how it is shown, and the rest of the path."""
        first, _, rest = path.rstrip("/").partition("/")
        shown = ""
        projects = self._jobs.projects
        if first == BY_JOB_DIR and rest:
            shown = f"{first}/"
            first, _, rest = rest.partition("/")
        if first in projects and rest:
            shown += f"{first}/"
            projects = (ProjectId(first),)
            first, _, rest = rest.partition("/")
        if not projects:
            length = f" (it has {len(first)} characters)" if len(first) in range(30, 43) else ""
            raise UnknownName(
                f"{first!r} is not the id of a record, 36 of 0-9, a-z and -{length};"
                " for jobs to be known by name give --project"
            )
        found = await self._jobs_called(first, projects)
        if len(found) > 1:
            several = ", ".join(
                f"{BY_JOB_DIR}/{job.project}/{spell_part(job.name)}" for job in found[:3]
            )
            raise UnknownName(f"several jobs are called {first!r}; name one of: {several}")
        if not found:
            names = [name for project in projects for name in self._jobs.known_jobs(project)]
            raise UnknownName(f"no record or job is called {first!r}" + _suggestion(first, names))
        return found[0], shown + found[0].name, rest

    async def _jobs_called(self, name: str, projects: Iterable[ProjectId]) -> list[JobDir]:
        """Return the jobs of a name or an id; the API is asked where none is known."""
        for ask in (False, True):
            known: list[tuple[int, JobDir]] = []
            for project in projects:
                if ask:
                    await self._tree.entries(ProjectDir(project))
                else:
                    await self._jobs.recall(project)
                for file, job in self._jobs.known_jobs(project).items():
                    names = (file, job.job_id, job.name)
                    if name in names:
                        known.append((names.index(name), JobDir(project, file)))
            if known:  # what a directory is called counts before anything else
                best = min(rank for rank, _ in known)
                return [job for rank, job in known if rank == best]
        return []

    async def _builds(self, directory: JobDir, name: str, most: int) -> list[BuildLink]:
        if name or most == 1:
            which = parse_which(name or Latest.ANY.value)
            if which is None:
                latest = [each.value for each in Latest]
                raise UnknownName(
                    f"{name!r} is no number of a build of {directory.name}"
                    + _suggestion(name, latest)
                )
            return [BuildLink(directory, which)]
        links = [node for _, node, _ in await self._tree.entries(directory)]
        numbered = [link for link in links if isinstance(link, BuildLink) and _number(link.which)]
        return numbered[:most]


def inside_mount(path: Path, mounts: Collection[Path]) -> tuple[Path, str] | None:
    """Split a path into a mount point and what follows it, looking at nothing inside.

    Symbolic links are followed up to the mount point; None where a path leads to none.
    """
    here, rest, links = Path("/"), list(reversed(path.parts)), 0
    while rest and here not in mounts:
        part = rest.pop()
        if part == "..":
            here = here.parent
            continue
        here /= part
        if here in mounts:
            break
        try:
            target = os.readlink(here)
        except OSError:
            continue  # no link, or not there
        links += 1
        if links > _MOST_LINKS:
            return None
        here = here.parent
        rest += reversed(Path(target).parts)
    inner = os.path.normpath("/".join(reversed(rest))) if rest else ""
    if here not in mounts or inner.startswith(".."):
        return None
    return here, "" if inner == "." else inner


def _relative(label: str, directory: Path) -> str:
    return os.path.relpath(label, directory)


def _below(label: str, key: LogKey) -> str:
    return key.file_name if label == "." else f"{label}/{key.file_name}"


def _number(which: Which) -> bool:
    return isinstance(which, int)


def _suggestion(name: str, names: Iterable[str], listed: Collection[str] = ()) -> str:
    """Return what may have been meant, else what there is: ``listed``, or all names, if few."""
    by_folded = {known.casefold(): known for known in names}
    close = get_close_matches(name.casefold(), by_folded, n=1)
    if close:
        return f"; did you mean {by_folded[close[0]]!r}?"
    there = listed or by_folded.values()
    few = len(there) in range(1, _FEW + 1)
    return f"; there are: {', '.join(map(repr, there))}" if few else ""
