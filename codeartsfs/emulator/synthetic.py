"""A made-up CodeArts project of any size: every job and build is worked out when it is asked for.

Job J is one of 0 ... JOBS-1. Its builds have the numbers 1 ... BUILDS; the age of a build is
BUILDS minus its number, so that the newest has age 0. All else follows from J, the number, the
age and the time at which the project was made, and is the same whenever it is asked for.

Names: job 0 is ``web-app``, jobs 1 ... 16 have the `HOSTILE_NAMES`, job J > 16 is ``job-JJJJ``.

States, see `status_of`: the newest build of every job with J % 4 == 3 is RUNNING, for ever. Of
all others (J + age) % 5 == 4 are FAILURE, (J + age) % 20 == 17 ABORTED, the rest SUCCESS. So the
newest build of job 0 is SUCCESS, and its newest FAILURE has age 4.

Stages, see `last_stage_of`: all builds have initial, stage1, stage2, stage3 and final. A RUNNING
build is in stage2, and what follows is PENDING. A build that is FAILURE or ABORTED ended so in
one of stage1 ... stage3, and what follows is ABORTED and never started. Where J % 3 == 2 the
name shown for stage2 has a slash in it.

Times: job J's newest build was created 180 + J % 240 seconds before the project was made and was
over by then, unless it is RUNNING; each older one was created 600 seconds earlier.

Branches: every seventh build number is on ``release/1.0``, the others on ``main``.

Logs: about 1 to 4 kB for each stage that began; DEBUG has the lines of INFO and others between
them. The log of the RUNNING stage stops half-way and does not grow.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import BinaryIO, overload

from codeartsfs.emulator.bodies import nameless_file
from codeartsfs.emulator.jobs import BuildJob, job_row, log_stamp
from codeartsfs.model import BuildRecord, Job, StageRun
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage

SYNTHETIC_PROJECT = "c0dea275b11d50000000000000000000"
"""The id of the CodeArts project."""

MOST_JOBS = 100_000
MOST_BUILDS = 1_000_000

STAGES = tuple(map(Stage, ("initial", "stage1", "stage2", "stage3", "final")))
_COMMANDS = (
    "mkdir -p /workspace",
    "git clone --depth 1 origin source",
    "mvn -B package",
    "sh build.sh",
    "rm -rf /workspace",
)

_NEWEST_AGE_S = 180
_SPACING_S = 600
_QUEUED_MS = 2_000
# What each stage takes at least; with the spread on top all builds end well within _NEWEST_AGE_S.
_LEAST_MS = (1_000, 5_000, 50_000, 20_000, 1_000)
_SPREAD_MS = 10_000
_LOG_LINES = 20

_RECORD_ID = re.compile(r"([0-9a-f]{8})-b11d-4000-9000-([0-9a-f]{12})")
_JOB_ID = re.compile(r"10b5([0-9a-f]{28})")
_BUILD_PROJECT_ID = re.compile(r"([0-9a-f]{8})-10b5-4000-9000-0{12}")


def record_id(job: int, build_no: int) -> RecordId:
    return RecordId(f"{job:08x}-b11d-4000-9000-{build_no:012x}")


def job_id(job: int) -> str:
    return f"10b5{job:028x}"


def build_project_id(job: int) -> str:
    return f"{job:08x}-10b5-4000-9000-{0:012x}"


HOSTILE_NAMES = (
    "group/web-app",
    "..",
    ".hidden",
    "-rf",
    "two\nlines",
    "nul\0byte",
    "\x1b[31mred\x1b[0m",
    "group%2Fweb-app",
    "构建日志" * 33 + "long",  # 400 bytes
    "twin",
    "twin",
    "lone \ud800 surrogate",
    "",
    f"web-app~{job_id(0)}",
    "latest",
    "right\u202eto left",
)


def job_name(job: int) -> str:
    if job == 0:
        return "web-app"
    return HOSTILE_NAMES[job - 1] if job <= len(HOSTILE_NAMES) else f"job-{job:04}"


def status_of(job: int, age: int) -> str:
    """Return the state of a job's build of an age; the newest has age 0."""
    if age == 0 and job % 4 == 3:
        return "RUNNING"
    if (job + age) % 5 == 4:
        return "FAILURE"
    return "ABORTED" if (job + age) % 20 == 17 else "SUCCESS"


def last_stage_of(job: int, age: int) -> int:
    """Return the last of a build's stages that began, as its place in `STAGES`."""
    match status_of(job, age):
        case "SUCCESS":
            return 4
        case "RUNNING":
            return 2
        case _:
            return 1 + (job + age) // 5 % 3


@dataclass(frozen=True, slots=True)
class SyntheticBuild:
    """One build, worked out from these few numbers."""

    job_number: int
    build_no: int
    age: int
    created_ns: int

    @property
    def job(self) -> BuildJob:
        job = self.job_number
        return BuildJob(job_id(job), job_name(job), build_project_id(job), SYNTHETIC_PROJECT)

    def record(self) -> BuildRecord:
        status = status_of(self.job_number, self.age)
        started_ns = self._starts_ns(0)
        finished_ns = None if status == "RUNNING" else self._starts_ns(self._last_stage + 1)
        return BuildRecord(
            record=record_id(self.job_number, self.build_no),
            build_no=self.build_no,
            build_project_id=build_project_id(self.job_number),
            status=status,
            created_ns=self.created_ns,
            started_ns=started_ns,
            finished_ns=finished_ns,
            duration_ms=finished_ns and (finished_ns - started_ns) // 1_000_000,
            branch="release/1.0" if self.build_no % 7 == 0 else "main",
            revision=f"{self.job_number:020x}{self.build_no:020x}",
            trigger="MANUAL",
        )

    def stages(self) -> list[StageRun]:
        return [self._stage_run(number) for number in range(len(STAGES))]

    async def open_log(self, key: LogKey) -> BinaryIO | None:
        """Open a log; None where its stage never began."""
        if key.stage not in STAGES or STAGES.index(key.stage) > self._last_stage:
            return None
        text = self._log_text(STAGES.index(key.stage), key.level).encode()
        return nameless_file(lambda file: file.write(text))

    @property
    def _last_stage(self) -> int:
        return last_stage_of(self.job_number, self.age)

    def _stage_run(self, number: int) -> StageRun:
        status = status_of(self.job_number, self.age)
        running, began = status == "RUNNING", number <= self._last_stage
        if number < self._last_stage:
            status = "SUCCESS"
        elif not began:
            status = "PENDING" if running else "ABORTED"
        # What never began is over when the build is.
        over = number < self._last_stage or not running
        return StageRun(
            stage=STAGES[number],
            display_name=self._display_name(number),
            sequence=number,
            status=status,
            created_ns=self.created_ns,
            started_ns=self._starts_ns(number) if began else None,
            finished_ns=self._starts_ns(min(number, self._last_stage) + 1) if over else None,
            duration_ms=self._takes_ms(number) if began and over else None,
        )

    def _display_name(self, number: int) -> str:
        maven = "Maven build / unit tests" if self.job_number % 3 == 2 else "Maven build"
        return ("initial", "Code CheckOut", maven, "执行shell命令", "final")[number]

    def _takes_ms(self, number: int) -> int:
        some = self.job_number * 7_919 + self.build_no * 104_729 + number * 1_299_709
        return _LEAST_MS[number] + some % _SPREAD_MS

    def _starts_ns(self, number: int) -> int:
        """When a stage starts if all goes well, which is when the one before it is over."""
        after_ms = _QUEUED_MS + sum(map(self._takes_ms, range(number)))
        return self.created_ns + after_ms * 1_000_000

    def _log_text(self, number: int, level: LogLevel) -> str:
        run = self._stage_run(number)
        lines = _LOG_LINES if run.final else _LOG_LINES // 2
        begins_s, step_s = self._starts_ns(number) / 1e9, self._takes_ms(number) / 1e3 / _LOG_LINES
        said = [f"$ {_COMMANDS[number]}"]
        for line in range(1, lines):
            said += [
                f"[DEBUG] build {self.build_no} of job {self.job_number}: at step {line}",
                f"[INFO] {run.display_name}: 第 {line} 步完成, step {line} of {_LOG_LINES - 1}",
            ]
        if run.final:
            word = "INFO" if run.status == "SUCCESS" else "ERROR"
            said.append(f"[{word}] {run.display_name}: {run.status}")
        return "".join(
            f"[{log_stamp(begins_s + place // 2 * step_s)}] {text}\n"
            for place, text in enumerate(said, 1)
            if level is LogLevel.DEBUG or not text.startswith("[DEBUG]")
        )


class SyntheticProject:
    """All jobs and builds of the project; no build is kept.

    Args:
        jobs: how many jobs, up to `MOST_JOBS`; none means that there is no such project.
        builds: how many builds each job has, up to `MOST_BUILDS`.
        now_s: what times are relative to, in seconds since the epoch.
    """

    def __init__(self, jobs: int, builds: int, now_s: float) -> None:
        self.jobs = jobs
        self.builds = builds
        self._now_ms = int(now_s * 1000)

    @cached_property
    def job_rows(self) -> list[Job]:
        """What the jobs list says of the jobs."""
        last_builds = (self._aged(job, 0) for job in range(self.jobs))
        return [job_row(build.job, build.record()) for build in last_builds]

    def build(self, record: str) -> SyntheticBuild | None:
        match = _RECORD_ID.fullmatch(record)
        return _numbered(self._of(match), int(match[2], 16)) if match else None

    def numbered(self, job_id: str, build_no: int) -> SyntheticBuild | None:
        return _numbered(self.of_job(job_id), build_no)

    def of_job(self, job_id: str) -> Sequence[SyntheticBuild]:
        """Return the builds of a job, newest first; none where the job is not of this project."""
        return self._of(_JOB_ID.fullmatch(job_id))

    def of_build_project(self, build_project_id: str) -> Sequence[SyntheticBuild]:
        """Return the builds of a job by its other name, as `of_job` does."""
        return self._of(_BUILD_PROJECT_ID.fullmatch(build_project_id))

    def _of(self, match: re.Match[str] | None) -> Sequence[SyntheticBuild]:
        """Return the builds of the job whose number is in the first group of a match."""
        job = int(match[1], 16) if match else self.jobs
        if job >= self.jobs:
            return ()
        return _Builds(partial(self._aged, job), range(self.builds))

    def _aged(self, job: int, age: int) -> SyntheticBuild:
        since_s = _NEWEST_AGE_S + job % 240 + age * _SPACING_S
        created_ns = (self._now_ms - since_s * 1000) * 1_000_000
        return SyntheticBuild(job, self.builds - age, age, created_ns)


class _Builds(Sequence[SyntheticBuild]):
    """Builds of one job by their ages; a slice of them costs no more than one does."""

    def __init__(self, aged: Callable[[int], SyntheticBuild], ages: range) -> None:
        self._aged = aged
        self._ages = ages

    def __len__(self) -> int:
        return len(self._ages)

    @overload
    def __getitem__(self, place: int) -> SyntheticBuild: ...
    @overload
    def __getitem__(self, place: slice) -> "_Builds": ...
    def __getitem__(self, place: int | slice) -> "SyntheticBuild | _Builds":
        if isinstance(place, slice):
            return _Builds(self._aged, self._ages[place])
        return self._aged(self._ages[place])


def _numbered(builds: Sequence[SyntheticBuild], build_no: int) -> SyntheticBuild | None:
    """Return a build by its number out of all builds of a job."""
    return builds[len(builds) - build_no] if 0 < build_no <= len(builds) else None
