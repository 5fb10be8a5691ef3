"""What things are called: records, projects, stages, log levels, and the names files get.

Names are parsed here, once, at the edge. Inside the program only the types below
travel, so a ``LogKey`` in hand is proof that its parts are well formed.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NewType

CONTROL_DIR = ".codeartsfs"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics"

CACHE_FORMAT = "v1"  # the directory of the layout of a cache directory
INDEX_FILE = "builds.sqlite3"  # what is known of builds, in there

RecordId = NewType("RecordId", str)
"""One build run: 36 characters, the API's own pattern ``^[0-9a-z-]{36}$`` (a UUID in practice)."""

ProjectId = NewType("ProjectId", str)
"""One CodeArts project (not: IAM project): 32 characters, ``^[0-9a-z]{32}$`` in the API's words."""

_PROJECT_ID = re.compile(r"[0-9a-z]{32}")
_BUILD_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_RECORD_ID = re.compile(r"[0-9a-z-]{36}")
_STAGE = re.compile(r"initial|final|stage[1-9][0-9]{0,3}")
_LOG_FILE = re.compile(r"(?P<stage>[a-z]+[0-9]*)\.(?P<level>info|debug)\.log")


def parse_record_id(text: str) -> RecordId | None:
    """Return ``text`` as a record id, or None where it cannot be one."""
    return RecordId(text) if _RECORD_ID.fullmatch(text) else None


def parse_project_id(text: str) -> ProjectId | None:
    """Return ``text`` as the id of a CodeArts project, or None where it cannot be one."""
    return ProjectId(text) if _PROJECT_ID.fullmatch(text) else None


def parse_build_number(text: str) -> int | None:
    """Return the number of a run within its job, 1 to 2147483647, or None."""
    number = int(text) if _BUILD_NUMBER.fullmatch(text) else 0
    return number if 0 < number < 2**31 else None


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a build by its API name: ``initial``, ``stage1`` ... ``stageN``, ``final``.

    The name is both the key of ``build_stages`` and the ``task_name`` of a log.
    """

    name: str

    @staticmethod
    def parse(text: str) -> "Stage | None":
        return _stage(text) if _STAGE.fullmatch(text) else None

    @property
    def numbered(self) -> bool:
        """Whether it is one of ``stage1`` ... ``stageN``, which are documented to have logs."""
        return self.name.startswith("stage")

    @property
    def order(self) -> tuple[int, int]:
        """Sorts ``initial`` first, then stages by number, ``final`` last."""
        if self.name == "initial":
            return (0, 0)
        if self.name == "final":
            return (2, 0)
        return (1, int(self.name.removeprefix("stage")))

    def __str__(self) -> str:
        return self.name


_stage = lru_cache(maxsize=256)(Stage)  # one object for all records that have such a stage


class LogLevel(Enum):
    INFO = "INFO"
    DEBUG = "DEBUG"


@dataclass(frozen=True, slots=True)
class LogKey:
    """One log: a stage of a record at a level."""

    record: RecordId
    stage: Stage
    level: LogLevel

    def __hash__(self) -> int:  # the one that is generated calls two more; this is asked a lot
        return hash((self.record, self.stage.name, id(self.level)))

    @property
    def file_name(self) -> str:
        return f"{self.stage}.{self.level.value.lower()}.log"

    def __str__(self) -> str:
        return f"{self.record}/{self.file_name}"

    @staticmethod
    def parse(record: RecordId, file_name: str) -> "LogKey | None":
        """Return the key of ``<stage>.<level>.log`` in a record, None for any other name."""
        match = _LOG_FILE.fullmatch(file_name)
        stage = Stage.parse(match["stage"]) if match else None
        if match is None or stage is None:
            return None
        return LogKey(record, stage, LogLevel(match["level"].upper()))
