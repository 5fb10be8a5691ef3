"""The jobs that builds are runs of, and what builds of all kinds say alike."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from codeartsfs.model import BuildRecord, Job

LOG_ZONE = timezone(timedelta(hours=8))


@dataclass(frozen=True, slots=True)
class BuildJob:
    """The job a record belongs to, and the CodeArts project the job belongs to."""

    job_id: str
    name: str
    build_project_id: str
    project_id: str


# The jobs list speaks of balls of colour, as its ancestor did; only it does.
_JOB_WORDS = {"SUCCESS": "blue", "FAILURE": "red", "RUNNING": "building", "PENDING": "building"}


def job_row(job: BuildJob, last: BuildRecord) -> Job:
    """Return what the jobs list says of a job whose last build is ``last``."""
    return Job(
        job_id=job.job_id,
        name=job.name,
        build_project_id=job.build_project_id,
        last_build_ns=last.started_ns or last.created_ns,
        last_status=_JOB_WORDS.get(last.status, last.status.lower()),
    )


def log_stamp(since_epoch_s: float) -> str:
    """Return a time as lines of logs begin with it, inside their brackets."""
    moment = datetime.fromtimestamp(since_epoch_s, LOG_ZONE)
    return f"{moment:%Y/%m/%d %H:%M:%S}.{moment.microsecond // 1000:03d} GMT+08:00"
