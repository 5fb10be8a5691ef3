"""The builds the emulator knows: recorded ones, and live ones that happen while it runs.

A library is a directory with one folder per record id. A folder holds either a recording,
``record.json`` and ``<stage>.<level>.log`` files, plain or ``.xz``, or a ``live.json``: a list of
stages whose commands are really run, or are scripted from outside where the command is null.
Beside them there may be a synthetic project, see `synthetic`, that is on no disk.
"""

import contextlib
import io
import json
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import trio

from codeartsfs.emulator.bodies import COPY_BYTES, LogBody, nameless_file
from codeartsfs.emulator.jobs import BuildJob, job_row, log_stamp
from codeartsfs.emulator.synthetic import SYNTHETIC_PROJECT, SyntheticBuild, SyntheticProject
from codeartsfs.model import BuildRecord, Job, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage, parse_record_id

DEFAULT_RECORDINGS = Path(__file__).with_name("recordings")

Clock = Callable[[], float]
"""Seconds since the epoch."""


class BadRecording(Exception):
    """A recordings directory that cannot be served; the text names the file."""


class RecordedBuild:
    """A build that is over: what ``record.json`` and the log files beside it say.

    Attributes:
        job: the job it is a run of.
    """

    def __init__(self, folder: Path) -> None:
        document = _read_json(folder / "record.json")
        try:
            self.job = BuildJob(**document["job"])
            self._record = _record_from(folder.name, document["record"], self.job)
            self._stages = [_stage_from(entry) for entry in document["stages"]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecording(f"{folder / 'record.json'}: {error!r}") from error
        self._folder = folder
        self._unpacked: dict[str, BinaryIO] = {}
        self._unpacking = trio.Lock()

    def record(self) -> BuildRecord:
        return self._record

    def stages(self) -> list[StageRun]:
        return list(self._stages)

    async def open_log(self, key: LogKey) -> BinaryIO | None:
        """Open a log, unpacked; None where there is none. Reads are to be by position."""
        plain = self._folder / key.file_name
        if plain.exists():
            return plain.open("rb")
        packed = plain.with_name(plain.name + ".xz")
        if not packed.exists():
            return None
        async with self._unpacking:
            if packed.name not in self._unpacked:
                self._unpacked[packed.name] = await trio.to_thread.run_sync(_unpack, packed)
        # A descriptor of its own for each caller: closing it leaves the unpacked file alone.
        return os.fdopen(os.dup(self._unpacked[packed.name].fileno()), "rb")

    def close(self) -> None:
        for file in self._unpacked.values():
            file.close()


@dataclass(slots=True)
class _LiveStage:
    run: StageRun
    command: list[str] | None
    pace_s: float
    done: trio.Event = field(default_factory=trio.Event)


class LiveBuild:
    """A build that happens while the emulator runs, and is final when its last stage is.

    It begins when somebody first looks, so that no demo comes too late for it.

    INVARIANT: stages are final from the first to the current one, and have not begun after it,
    except that a scripted stage begins as soon as somebody writes to it.
    """

    def __init__(self, folder: Path, workspace: Path, build_no: int, clock: Clock) -> None:
        document = _read_json(folder / "live.json")
        try:
            self.job = BuildJob(**document["job"])
            self._stages = [
                _LiveStage(
                    StageRun(
                        _stage_name(entry["stage"]),
                        entry.get("display_name", entry["stage"]),
                        entry.get("sequence", number),
                        "PENDING",
                    ),
                    entry["command"],
                    float(entry.get("pace_s") or 0),
                )
                for number, entry in enumerate(document["stages"], 1)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise BadRecording(f"{folder / 'live.json'}: {error!r}") from error
        if not self._stages:
            raise BadRecording(f"{folder / 'live.json'}: no stages")
        self._record = BuildRecord(
            record=RecordId(folder.name),
            build_no=int(document.get("build_no", build_no)),
            build_project_id=self.job.build_project_id,
            status="PENDING",
            branch=document.get("branch", ""),
            trigger="MANUAL",
        )
        self._workspace = workspace
        self._clock = clock
        self._begun = trio.Event()

    def record(self) -> BuildRecord:
        self._look()
        return self._record

    def stages(self) -> list[StageRun]:
        self._look()
        return [stage.run for stage in self._stages]

    async def open_log(self, key: LogKey) -> BinaryIO | None:
        """Open a log as far as it has got; None before its stage has begun."""
        self._look()
        try:
            return self._log_path(key.stage, key.level).open("rb")
        except FileNotFoundError:
            return None

    def close(self) -> None:
        pass

    def grow(
        self,
        stage_name: str,
        text: str,
        levels: Sequence[LogLevel],
        status: str | None,
        rewrite: bool = False,
    ) -> None:
        """Append to (or rewrite) the logs of a scripted stage; end it where a status is given.

        Raises:
            ValueError: no such stage, or it runs a command, or it is over.
        """
        self._look()
        stage = next((s for s in self._stages if s.run.stage.name == stage_name), None)
        if stage is None or stage.command is not None or stage.run.final:
            raise ValueError(f"{stage_name} is not a scripted stage that can still grow")
        self._begin(stage)
        for level in levels:
            path = self._log_path(stage.run.stage, level)
            if rewrite:
                # A new file: whoever is being sent the old one still gets all of it.
                path.unlink(missing_ok=True)
            with path.open("ab") as file:
                file.write(text.encode())
        if status is not None:
            self._end(stage, status)

    async def run(self) -> None:
        """Wait for the first look, then run the commands of the stages one after another."""
        await self._begun.wait()
        for stage in self._stages:
            if stage.run.final:
                continue
            if stage.command is None:
                await stage.done.wait()
            else:
                self._end(stage, await self._run_command(stage, stage.command))

    async def _run_command(self, stage: _LiveStage, command: list[str]) -> str:
        """Run a stage's command, log it the way recordings look, and return the stage's status."""
        shown = ["python" if word == "{python}" else word for word in command]
        argv = [sys.executable if word == "{python}" else word for word in command]
        # Of the emulator's own environment a log must not show anything: it may hold secrets.
        environment = {
            "HOME": str(self._workspace),
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONUNBUFFERED": "1",
        }
        unlocal = _unlocal(self._workspace)
        began_s = self._clock()
        with contextlib.ExitStack() as stack:
            info = stack.enter_context(self._open_to_append(stage, LogLevel.INFO))
            debug = stack.enter_context(self._open_to_append(stage, LogLevel.DEBUG))

            def say(level: bytes, text: bytes) -> None:
                line = b"[%s] %s%s\n" % (self._stamp(), level, unlocal(text))
                debug.write(line)
                if level != b"[DEBUG] ":
                    info.write(line)

            async def log_stream(stream: trio.abc.ReceiveStream, level: bytes) -> None:
                async with contextlib.aclosing(_lines(stream)) as lines:
                    async for line in lines:
                        say(level, line)
                        await trio.sleep(stage.pace_s)

            for name, value in environment.items():
                if name != "PATH":
                    say(b"[DEBUG] ", f"env: {name}={value}".encode())
            say(b"", f"$ {' '.join(map(_quoted, shown))}".encode())
            try:
                # Its own process group, so that what the command itself started ends with it.
                process = await trio.lowlevel.open_process(
                    argv,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=self._workspace,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                say(b"[ERROR] ", f"cannot run {shown[0]}: {error.strerror}".encode())
                exit_code = None
            else:
                assert process.stdout is not None
                assert process.stderr is not None
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(log_stream, process.stdout, b"[INFO] ")
                        nursery.start_soon(log_stream, process.stderr, b"[DEBUG] ")
                    exit_code = await process.wait()
                finally:
                    if process.returncode is None:
                        os.killpg(process.pid, signal.SIGKILL)
                    with trio.CancelScope(shield=True):
                        await process.wait()
                        await process.stdout.aclose()
                        await process.stderr.aclose()
                if exit_code != 0:
                    say(b"[ERROR] ", b"command ended with exit status %d" % exit_code)
            status = "SUCCESS" if exit_code == 0 else "FAILURE"
            took_s = self._clock() - began_s
            say(b"[INFO] ", f"{stage.run.display_name}: {status} in {took_s:.1f} s".encode())
        return status

    def _look(self) -> None:
        if not self._begun.is_set():
            self._begun.set()
            now = self._now_ns()
            self._record = replace(self._record, status="RUNNING", created_ns=now, started_ns=now)
            for stage in self._stages:
                stage.run = replace(stage.run, created_ns=now)
            self._begin(self._stages[0])

    def _begin(self, stage: _LiveStage) -> None:
        if stage.run.started_ns is None:
            stage.run = replace(stage.run, status="RUNNING", started_ns=self._now_ns())
            for level in LogLevel:
                self._log_path(stage.run.stage, level).touch()

    def _end(self, stage: _LiveStage, status: str) -> None:
        now = self._now_ns()
        stage.run = replace(
            stage.run,
            status=status,
            finished_ns=now,
            duration_ms=(now - (stage.run.started_ns or now)) // 1_000_000,
        )
        stage.done.set()
        following = next((s for s in self._stages if not s.run.final), None)
        if following is not None and status == "SUCCESS":
            self._begin(following)
            return
        for skipped in self._stages:
            if not skipped.run.final:
                skipped.run = replace(skipped.run, status="ABORTED", finished_ns=now)
                skipped.done.set()
        failed = any(s.run.status != "SUCCESS" for s in self._stages)
        self._record = replace(
            self._record,
            status="FAILURE" if failed else "SUCCESS",
            finished_ns=now,
            duration_ms=(now - (self._record.started_ns or now)) // 1_000_000,
        )

    def _open_to_append(self, stage: _LiveStage, level: LogLevel) -> io.FileIO:
        return self._log_path(stage.run.stage, level).open("ab", buffering=0)

    def _log_path(self, stage: Stage, level: LogLevel) -> Path:
        key = LogKey(self._record.record, stage, level)
        return self._workspace.with_name(f"{key.record}.{key.file_name}")

    def _now_ns(self) -> int:
        return int(self._clock() * 1000) * 1_000_000

    def _stamp(self) -> bytes:
        return log_stamp(self._clock()).encode()


Build = RecordedBuild | LiveBuild | SyntheticBuild


class Library:
    """All builds there are. Use it as a context manager: it owns temporary files.

    Args:
        directory: the recordings; folders whose names are no record ids are ignored.
        clock: what time it is for live builds; synthetic ones have it from the start.
        synthetic: how many jobs of how many builds the synthetic project has; None for no such.

    Raises:
        BadRecording: a folder cannot be understood, or the directory is not there.
    """

    def __init__(
        self, directory: Path, clock: Clock, synthetic: tuple[int, int] | None = None
    ) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="codeartsfs-emulator-"))
        self._builds: dict[str, RecordedBuild | LiveBuild] = {}
        self._synthetic = SyntheticProject(*(synthetic or (0, 0)), clock())
        try:
            self._load(directory, clock)
        except BaseException:
            self.close()
            raise

    def _load(self, directory: Path, clock: Clock) -> None:
        try:
            folders = sorted(f for f in directory.iterdir() if parse_record_id(f.name))
        except OSError as error:
            raise BadRecording(f"{directory}: {error.strerror}") from error
        for folder in folders:
            if (folder / "record.json").exists():
                self._builds[folder.name] = RecordedBuild(folder)
        for folder in folders:
            if (folder / "live.json").exists():
                job_id = str(_read_json(folder / "live.json").get("job", {}).get("job_id"))
                last = max((b.record().build_no or 0 for b in self._recorded(job_id)), default=0)
                earlier = sum(
                    isinstance(b, LiveBuild) and b.job.job_id == job_id
                    for b in self._builds.values()
                )
                workspace = self._temporary / folder.name
                workspace.mkdir()
                self._builds[folder.name] = LiveBuild(folder, workspace, last + earlier + 1, clock)

    def _recorded(self, job_id: str) -> Iterator[RecordedBuild]:
        for build in self._builds.values():
            if isinstance(build, RecordedBuild) and build.job.job_id == job_id:
                yield build

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for build in self._builds.values():
            build.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    async def run_live_builds(self) -> None:
        """Run the commands of live builds until all are over; cancelling kills the processes."""
        async with trio.open_nursery() as nursery:
            for build in self._builds.values():
                if isinstance(build, LiveBuild):
                    nursery.start_soon(build.run)

    def build(self, record: str) -> Build | None:
        return self._builds.get(record) or self._synthetic.build(record)

    def numbered(self, job_id: str, build_no: int) -> Build | None:
        real = self._real_of_job(job_id)
        return self._synthetic.numbered(job_id, build_no) or next(
            (build for build in real if build.record().build_no == build_no), None
        )

    def of_job(self, job_id: str) -> Sequence[Build]:
        """Return the builds of a job, newest first."""
        return self._synthetic.of_job(job_id) or self._real_of_job(job_id)

    def _real_of_job(self, job_id: str) -> list[Build]:
        return _newest_first(b for b in self._builds.values() if b.job.job_id == job_id)

    def of_build_project(self, build_project_id: str) -> Sequence[Build]:
        """Return the builds of a build project, which is a job by its other name, newest first."""
        return self._synthetic.of_build_project(build_project_id) or _newest_first(
            b for b in self._builds.values() if b.job.build_project_id == build_project_id
        )

    def projects(self) -> list[str]:
        """Return the ids of all CodeArts projects there are."""
        known = {build.job.project_id for build in self._builds.values()}
        return sorted(known | ({SYNTHETIC_PROJECT} if self._synthetic.jobs else set()))

    def jobs(self, project_id: str) -> list[Job]:
        """Return the jobs of a CodeArts project by name, with their last builds."""
        last: dict[str, Build] = {}
        for build in _newest_first(
            b for b in self._builds.values() if b.job.project_id == project_id
        ):
            last.setdefault(build.job.job_id, build)
        jobs = [job_row(build.job, build.record()) for build in last.values()]
        if project_id == SYNTHETIC_PROJECT:
            jobs += self._synthetic.job_rows
        return sorted(jobs, key=lambda job: job.name)

    async def open_logs(self, build: Build, level: LogLevel) -> LogBody:
        """Open all logs of a build at a level, in the order of its stages."""
        stages = sorted((run.stage for run in build.stages()), key=lambda stage: stage.order)
        files = []
        for stage in stages:
            file = await build.open_log(LogKey(build.record().record, stage, level))
            if file is not None:
                files.append(file)
        return LogBody.of(files)


def created_ns(record: BuildRecord) -> int:
    """Return the time by which builds are sorted."""
    return record.created_ns or record.started_ns or 0


def created_between(
    builds: Sequence[Build], since_ns: int | None, until_ns: int | None
) -> Sequence[Build]:
    """Return those of builds that come newest first which were created in a span of time."""

    def age(build: Build) -> int:
        return -created_ns(build.record())

    first = 0 if until_ns is None else bisect_left(builds, -until_ns, key=age)
    end = len(builds) if since_ns is None else bisect_right(builds, -since_ns, key=age)
    return builds[first:end]


def _newest_first(builds: Iterable[Build]) -> list[Build]:
    def order(build: Build) -> tuple[int, int]:
        record = build.record()
        return (created_ns(record), record.build_no or 0)

    return sorted(builds, key=order, reverse=True)


def _quoted(word: str) -> str:
    """Quote a word for a shell the way a person would: no backslash mountains in a log."""
    if "'" in word and not set(word) & set("$`\\!"):
        return '"' + word.replace('"', '\\"') + '"'
    return shlex.quote(word)


def _unlocal(workspace: Path) -> Callable[[bytes], bytes]:
    """Return what rewrites this machine's paths to those the recordings show."""
    shown = {str(workspace): b"/workspace", str(workspace.resolve()): b"/workspace"}
    for prefix in (sys.prefix, sys.base_prefix):
        if not prefix.startswith("/usr"):
            shown[prefix] = b"/opt/python"
    shown[sys.executable] = b"python"
    local = sorted(map(os.fsencode, shown), key=len, reverse=True)
    hidden = re.compile(b"|".join(map(re.escape, local)))
    return lambda text: hidden.sub(lambda found: shown[os.fsdecode(found[0])], text)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a stream without their ends; the last one may be unended."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def _unpack(packed: Path) -> BinaryIO:
    with lzma.open(packed) as source:
        return nameless_file(lambda target: shutil.copyfileobj(source, target, COPY_BYTES))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadRecording(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise BadRecording(f"{path}: not an object")
    return document


def _stage_name(text: str) -> Stage:
    stage = Stage.parse(text)
    if stage is None:
        raise ValueError(f"no stage name: {text!r}")
    return stage


def _stage_from(entry: Mapping[str, Any]) -> StageRun:
    return StageRun(
        stage=_stage_name(entry["stage"]),
        display_name=entry.get("display_name", ""),
        sequence=entry.get("sequence"),
        status=entry.get("status", ""),
        created_ns=_time_ns(entry.get("created")),
        started_ns=_time_ns(entry.get("started")),
        finished_ns=_time_ns(entry.get("finished")),
        duration_ms=entry.get("duration_ms"),
    )


def _record_from(folder_name: str, entry: Mapping[str, Any], job: BuildJob) -> BuildRecord:
    if entry["record_id"] != folder_name:
        raise ValueError(f"record_id {entry['record_id']!r} is not the folder's name")
    return BuildRecord(
        record=RecordId(folder_name),
        build_no=entry.get("build_no"),
        build_project_id=job.build_project_id,
        status=entry.get("status", ""),
        created_ns=_time_ns(entry.get("created")),
        started_ns=_time_ns(entry.get("started")),
        finished_ns=_time_ns(entry.get("finished")),
        duration_ms=entry.get("duration_ms"),
        branch=entry.get("branch", ""),
        revision=entry.get("revision", ""),
        trigger=entry.get("trigger", ""),
    )


def _time_ns(text: str | None) -> int | None:
    if text is None:
        return None
    since_epoch = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return since_epoch // timedelta(microseconds=1) * 1000
