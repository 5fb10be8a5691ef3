"""The nodes of the tree: what an inode can stand for. Their ``str`` is the path in the mount."""

from dataclasses import dataclass

from codeartsfs.builds.jobs import Latest, Which
from codeartsfs.names import (
    CONTROL_DIR,
    METRICS_FILE,
    STATUS_FILE,
    LogKey,
    ProjectId,
    RecordId,
)

CONTROL_FILES = (STATUS_FILE, METRICS_FILE)
BY_JOB_DIR = "by-job"
BY_NAME_DIR = "by-name"
RECORD_FILE = "record.json"
FAILED_LINK = "failed.info.log"


@dataclass(frozen=True, slots=True)
class RootDir:
    def __str__(self) -> str:
        return "/"


@dataclass(frozen=True, slots=True)
class ControlDir:
    """Not listed, but there: what the mount says of itself."""

    def __str__(self) -> str:
        return f"/{CONTROL_DIR}"


@dataclass(frozen=True, slots=True)
class ControlFile:
    name: str

    def __str__(self) -> str:
        return f"/{CONTROL_DIR}/{self.name}"


@dataclass(frozen=True, slots=True)
class JobsDir:
    """All jobs of the one project there is, or, of several, the projects."""

    def __str__(self) -> str:
        return f"/{BY_JOB_DIR}"


@dataclass(frozen=True, slots=True)
class ProjectDir:
    project: ProjectId

    def __str__(self) -> str:
        return f"/{BY_JOB_DIR}/{self.project}"


@dataclass(frozen=True, slots=True)
class JobDir:
    """A job, by the name of its directory."""

    project: ProjectId
    name: str

    def __str__(self) -> str:
        return f"/{BY_JOB_DIR}/.../{self.name}"


@dataclass(frozen=True, slots=True)
class BuildLink:
    job: JobDir
    which: Which

    @property
    def name(self) -> str:
        return self.which.value if isinstance(self.which, Latest) else str(self.which)

    def __str__(self) -> str:
        return f"{self.job}/{self.name}"


@dataclass(frozen=True, slots=True)
class RecordDir:
    record: RecordId

    def __str__(self) -> str:
        return f"/{self.record}"


@dataclass(frozen=True, slots=True)
class RecordFile:
    record: RecordId

    def __str__(self) -> str:
        return f"/{self.record}/{RECORD_FILE}"


@dataclass(frozen=True, slots=True)
class FailedLink:
    record: RecordId

    def __str__(self) -> str:
        return f"/{self.record}/{FAILED_LINK}"


@dataclass(frozen=True, slots=True)
class NamesDir:
    record: RecordId

    def __str__(self) -> str:
        return f"/{self.record}/{BY_NAME_DIR}"


@dataclass(frozen=True, slots=True)
class NameLink:
    """A log by the display name of its stage; ``name`` may turn out not to be the stage's."""

    key: LogKey
    name: str

    def __str__(self) -> str:
        return f"/{self.key.record}/{BY_NAME_DIR}/{self.name}"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log; ``generation`` makes a log that the server rewrote another file."""

    key: LogKey
    generation: int = 0

    def __str__(self) -> str:
        return f"/{self.key}"


Directory = RootDir | ControlDir | JobsDir | ProjectDir | JobDir | RecordDir | NamesDir
Link = BuildLink | FailedLink | NameLink
Node = Directory | Link | ControlFile | RecordFile | LogFile

ROOT = RootDir()
