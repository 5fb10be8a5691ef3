"""Everything that can go wrong between the mount and the API, in everything the mount is used for.

A *cell* is one fault in one use. All cells of a *scene* share one mount and happen at the same
time, each to records and jobs of its own: what one of them suffers, no other may notice. A scene
has four acts: what is there before, what is seen while the fault lasts, how it recovers when the
fault ends, and what another mount has of it later without any server. Each test is one cell.

What is missing in the matrix, and why, is in `NOT_PLAYED`.
"""

import errno
import os
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from codeartsfs.emulator.iam import Accounts

from . import crooked
from .conftest import SUMMARIES
from .crooked import CrookedServer, Exchange, crooked_server
from .rig import (
    COMMAND,
    TOKEN,
    Emulator,
    Mounted,
    Outcome,
    Rig,
    open_rig,
    record_id,
    wait_until,
    write_live_record,
    write_record,
)

pytestmark = pytest.mark.fuse

DEADLINE_S = 14  # the longest back-off takes 7.5 s: what fails for good fails before
RIGHT = "right"
_AT_ONCE = 256

_DEMO = Accounts()
_BY_TOKEN = {"CODEARTSFS_TOKEN": TOKEN}


def text_of(record: str, stage: int = 1) -> bytes:
    """What is in a log: more than is kept of what was only looked at, and like no other."""
    line = f"[INFO] {record} stage {stage} 开始 line %d\n"
    return "".join(line % number for number in range(1200)).encode()


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and what that is to those who use the mount: RIGHT, or the errno, or a|b.

    Attributes:
        log: to who reads a log for the first time, alone or in a walk.
        listing: to who lists what was never listed.
        once: to who reads a log where only the first answer is spoiled.
        midway: to who waits in the middle of a download.
        running: to who opens a running log that was read before.
    """

    name: str
    spoil: Callable[[Exchange], None] | None  # None for what befalls all requests
    log: str
    listing: str = ""
    once: str = RIGHT
    midway: str = ""
    running: str = ""

    def __post_init__(self) -> None:
        for name in ("listing", "midway", "running"):
            object.__setattr__(self, name, getattr(self, name) or self.log)


def _api_error(status: int, code: str) -> Callable[[Exchange], None]:
    body = f'{{"error_code": "{code}", "error_msg": "of a test"}}'
    return crooked.reply(status, body)


def _throttled(retry_after: str) -> Callable[[Exchange], None]:
    headers = {"Retry-After": retry_after} if retry_after else {}
    body = '{"error_code": "APIGW.0308", "error_msg": "too many requests"}'
    return crooked.reply(429, body, headers=headers)


_HTML = "<html><body><h1>Please log in</h1></body></html>"
_ENVELOPE = '{"status": "fail", "error": {"code": "CB.00060101", "reason": "x"}, "result": null}'

FAULTS = [
    Fault("reset at once", crooked.reset_at_once, "EIO"),
    Fault("reset half-way", crooked.reset_half_way, "EIO"),
    Fault("short body", crooked.short_body, "EIO"),
    Fault("stall before headers", crooked.stall_before_headers, "ETIMEDOUT", once="ETIMEDOUT"),
    # Mended after 15 s of silence, which may have begun before the read that waits for the end.
    Fault("stall half-way", crooked.stall_half_way, "ETIMEDOUT", once="right|ETIMEDOUT"),
    Fault("slow drip", crooked.slow_drip, "ETIMEDOUT", once="ETIMEDOUT"),
    Fault("500", _api_error(500, "CB.00060101"), "EIO"),
    Fault("502", crooked.reply(502, _HTML, kind="text/html"), "EIO"),
    Fault("503", crooked.reply(503, "", kind="text/plain"), "EIO"),
    Fault("429", _throttled(""), "EIO"),
    Fault("429, retry after 1 s", _throttled("1"), "EIO"),
    Fault("429, retry after an hour", _throttled("3600"), "EIO", once="EIO"),
    Fault("401", _api_error(401, "APIGW.0307"), "EACCES", once="EACCES"),
    Fault("403", _api_error(403, "APIGW.0302"), "EACCES", once="EACCES"),
    Fault("404", _api_error(404, "CB.00060204"), "ENOENT", once="ENOENT", running=RIGHT),
    Fault("400", _api_error(400, "CB.00060200"), "ENOENT", "EIO", once="ENOENT", running=RIGHT),
    Fault("error envelope in 200", crooked.reply(200, _ENVELOPE), "EIO"),
    Fault("HTML in 200", crooked.reply(200, _HTML, kind="text/html"), "EIO", once="EIO"),
    Fault("redirect to another host", crooked.redirect, RIGHT),
    Fault("redirect to no host", crooked.redirect_nowhere, "EIO"),
    Fault("length too small", crooked.length_too_small, "EIO", once="right|EIO"),
    # Until it shows that what was promised does not exist, there is nothing but to wait for it.
    Fault(
        "length too large",
        crooked.length_too_large,
        "ETIMEDOUT|ESTALE",
        "ETIMEDOUT",
        once="right|ETIMEDOUT|ESTALE",
        midway=RIGHT,
        running="right|ETIMEDOUT",  # right as of a look that was under way
    ),
    Fault("broken gzip", crooked.broken_gzip, "EIO"),
    Fault("gzip bomb", crooked.gzip_bomb, "ETIMEDOUT", "EIO", once="ETIMEDOUT", midway="EIO"),
    Fault("10 GB", crooked.huge_body, RIGHT, "EIO", running="ETIMEDOUT", midway=RIGHT),
]
_REWRITE = {"broken gzip", "length too small", "length too large", "gzip bomb", "10 GB"}
_STALLS = {"stall before headers", "stall half-way", "slow drip", "length too large"}


# The scene.


@dataclass
class Scene:
    """One mount, the servers behind it, and what happens to them."""

    rig: Rig
    emulator: Emulator
    server: CrookedServer
    cells: "list[Cell]"
    options: tuple[str, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=_BY_TOKEN.copy)
    problems: dict[str, list[str]] = field(default_factory=dict)
    mounted: Mounted = field(init=False)

    def __post_init__(self) -> None:
        for cell in self.cells:
            cell.scene = self
            if isinstance(cell, ProjectListing):
                self.options += ("--project", cell.project)
        self.options += ("--project", PROJECT, "--project", PROJECT[::-1])

    def mount(self) -> None:
        options: tuple[str, ...] = (
            "--deadline",
            f"{DEADLINE_S}",
            "--max-downloads",
            "200",
            "--settle",
            "0.1",
        )
        options += ("--cache-size", "128M", "--refresh", "0.2", *self.options)
        self.mounted = self.rig.mount(self.server, *options, credentials=self.credentials)

    def run(self, *command: str | Path) -> Outcome:
        return self.rig.run(*command, timeout_s=3 * DEADLINE_S)

    def play(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Play all cells at once, act by act; what they find wrong is in ``problems``."""
        self.mount()
        self._act("before", lambda cell: cell.before())
        self._act("eve", lambda cell: cell.eve())
        for cell in self.cells:
            cell.strike()
        begin()
        self._act("during", lambda cell: cell.during())
        end()
        self.server.relent()
        self._act("after", lambda cell: cell.after())
        wait_until(lambda: self.mounted.status()["logs"]["downloading"] == 0)
        self._act("log", lambda cell: cell.check_log(self.mounted.log.read_text()))
        self.mounted.stop()
        self.server.refuse()
        self.mount()
        self._act("later", lambda cell: cell.later())
        self.mounted.stop()

    def _act(self, act: str, play: "Callable[[Cell], None]") -> None:
        def try_to(cell: Cell) -> None:
            try:
                play(cell)
            except Exception as problem:
                self.problems.setdefault(cell.name, []).append(f"{act}: {problem!r:.2000}")

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(try_to, self.cells))


# The uses.


class Cell:
    """One fault in one use; an act that goes otherwise than promised raises."""

    use = ""
    stages = 1

    def __init__(self, fault: Fault, number: int) -> None:
        self.fault = fault
        self.name = f"{fault.name} - {self.use}"
        self.scene: Scene
        self.record, self.other = record_id(2 * number), record_id(2 * number + 1)
        self._number = number

    def write(self, recordings: Path) -> None:
        """Write what the emulator serves for this cell."""
        for number in (2 * self._number, 2 * self._number + 1):
            logs = {f"stage{n}.info.log": text_of(record_id(number), n) for n in self._stages}
            write_record(recordings, number, logs)

    @property
    def _stages(self) -> range:
        return range(1, self.stages + 1)

    @property
    def expected(self) -> str:
        return self.fault.log

    def before(self) -> None:
        """See to what shall be there when it strikes."""

    def eve(self) -> None:
        """Begin what shall be under way when it strikes."""

    def strike(self) -> None:
        """Begin to spoil what this cell asks for; nothing where all is spoiled anyway."""
        if self.fault.spoil is not None:
            self.scene.server.spoil(self.pattern, self.fault.spoil, self.times)

    times: int | None = None

    @property
    def pattern(self) -> str:
        return f"{self.record}/task-log.*=stage{self.stages}$"

    def during(self) -> None:
        raise NotImplementedError

    def after(self) -> None:
        self.eventually_right(self.record, self.stages)

    def later(self) -> None:
        """What was read whole once is here, whatever becomes of the server."""
        self.require(self.cat(self.record, self.stages), RIGHT, text_of(self.record, self.stages))

    # What they have in common.

    def path(self, record: str, stage: int = 1) -> Path:
        return self.scene.mounted / f"{record}/stage{stage}.info.log"

    def cat(self, record: str, stage: int = 1) -> Outcome:
        return self.scene.run("cat", self.path(record, stage))

    def require(self, outcome: Outcome, expected: str, text: bytes) -> None:
        """Require the right bytes, or the beginning of them and an error."""
        shown = replace(outcome, out=outcome.out[-100:])
        errors = [word for word in expected.split("|") if word != RIGHT]
        if RIGHT in expected and (outcome.code == 0 or not errors):
            assert outcome.code == 0, shown
            assert outcome.out == text, (shown, len(outcome.out), len(text))
        else:
            assert outcome.code in (1, 2), (shown, len(outcome.out))  # ls ends with 2
            assert text.startswith(outcome.out), shown
            endings = tuple(f": {_words(name)}\n".encode() for name in errors)
            assert outcome.err.endswith(endings), (expected, shown)

    def check_others(self) -> None:
        """Require that another log can be read meanwhile."""
        if self.fault.spoil is not None:
            self.require(self.cat(self.other), RIGHT, text_of(self.other))

    def eventually_right(self, record: str, stage: int = 1) -> None:
        """Require the right bytes soon, and until then nothing but errors that were expected."""
        allowed = {*self.expected.split("|"), "ESTALE", "EIO"} - {RIGHT}

        def right() -> bool:
            outcome = self.cat(record, stage)
            if outcome.code:
                known = [_words(name).encode() for name in allowed]
                assert any(outcome.err.endswith(words + b"\n") for words in known), outcome
                return False
            self.require(outcome, RIGHT, text_of(record, stage))
            return True

        wait_until(right, DEADLINE_S)

    def check_log(self, log: str) -> None:
        """Require that the daemon complains of this cell as expected, and of nothing else."""
        allowed = {"ESTALE", *self.expected.split("|")}
        for line in log.splitlines():
            if "codeartsfs.api.health" in line:  # that an outage is one is said once for all
                continue
            if self.record in line and "INFO" not in line and "DEBUG" not in line:
                if "the server rewrote" in line:
                    assert self.fault.name in _REWRITE, line
                else:
                    found = re.search(r"WARNING codeartsfs\.fs\.reply: \w+: (E\w+): ", line)
                    assert found, line
                    assert found[1] in allowed, (line, self.expected)
            assert self.other not in line or "INFO" in line or "DEBUG" in line, line


def _words(name: str) -> str:
    return os.strerror(getattr(errno, name))


class FirstRead(Cell):
    use = "first read"

    def before(self) -> None:
        if self.fault.spoil is None:  # else two calls fail one after the other, past the deadline
            assert self.scene.run("ls", self.scene.mounted / self.record).code == 0

    def during(self) -> None:
        text = text_of(self.record)
        if self.fault.spoil is crooked.huge_body:
            # All of it would take too long.
            head = self.scene.run("head", "-c", f"{len(text)}", self.path(self.record))
            self.require(head, RIGHT, text)
        else:
            self.require(self.cat(self.record), self.expected, text)
        self.check_others()


class FirstReadStruckOnce(FirstRead):
    use = "first read, struck once"
    times = 1

    @property
    def expected(self) -> str:
        return self.fault.once


class StageList(FirstRead):
    """The log could be had, but not the list of stages that says whether it is over."""

    use = "first read, list of stages"
    expected = RIGHT

    def during(self) -> None:
        self.require(self.cat(self.record), RIGHT, text_of(self.record))
        self.check_others()

    @property
    def pattern(self) -> str:
        return f"{self.record}/full-stages"


class MidDownload(Cell):
    use = "mid-download"
    readers = 4

    def eve(self) -> None:
        hold = self.scene.server.spoil(self.pattern, crooked.hold_half_way)
        self._hold = hold
        self._readers = [
            self.scene.rig.start("cat", self.path(self.record)) for _ in range(self.readers)
        ]
        wait_until(hold.held.is_set)
        time.sleep(1)  # nothing outside tells that all of them have got as far as read

    @property
    def expected(self) -> str:
        return self.fault.midway

    def during(self) -> None:
        self.scene.server.relent(self._hold)
        for reader in self._readers:
            outcome = self.scene.rig.finish(reader, 3 * DEADLINE_S)
            self.require(outcome, self.expected, text_of(self.record))
        self.check_others()


class Running(Cell):
    use = "refresh of a running log"

    def write(self, recordings: Path) -> None:
        super().write(recordings)
        for file in (recordings / self.record).iterdir():
            file.unlink()
        (recordings / self.record).rmdir()
        write_live_record(recordings, 2 * self._number)
        self._text = b""

    def grow(self, lines: int) -> None:
        with _GROWING:
            for number in range(lines):
                line = f"{self.record} {len(self._text)} 开始 {number}\n" * 50
                self.scene.emulator.grow(self.record, stage="stage1", append=line)
                self._text += line.encode()

    @property
    def expected(self) -> str:
        return self.fault.running

    def before(self) -> None:
        self.grow(30)
        self.require(self.cat(self.record), RIGHT, self._text)
        self._seen = self.scene.rig.folder / f"seen-{self.record}"
        with self._seen.open("wb") as file:
            follow = ("tail", "-n", "+1", "-f", self.path(self.record))
            self._follower = self.scene.rig.start(*follow, stdout=file)
        wait_until(lambda: self._seen.read_bytes() == self._text)

    def during(self) -> None:
        known = self._text
        self.grow(3)
        time.sleep(0.3)  # older than --refresh now
        outcome = self.cat(self.record)
        if outcome.code == 0 and RIGHT in self.expected:
            assert outcome.out in (known, self._text), len(outcome.out)
        else:
            self.require(outcome, self.expected, self._text)
        assert self._text.startswith(self._seen.read_bytes())
        self.check_others()

    def after(self) -> None:
        self.grow(1)

        def right() -> bool:
            outcome = self.cat(self.record)
            assert self._text.startswith(outcome.out), len(outcome.out)
            return outcome.out == self._text

        wait_until(right, DEADLINE_S)
        if self.fault.name not in _REWRITE:
            wait_until(lambda: self._seen.read_bytes() == self._text, DEADLINE_S)
            self._follower.terminate()
            assert self.scene.rig.finish(self._follower).err == b""
        with _GROWING:
            self.scene.emulator.grow(self.record, stage="stage1", finish=True)
        final = ("getfattr", "-n", "user.codearts.final", self.path(self.record))

        def sealed() -> bool:
            self.require(self.cat(self.record), RIGHT, self._text)
            return b'final="true"' in self.scene.run(*final).out

        wait_until(sealed)

    def later(self) -> None:
        self.require(self.cat(self.record), RIGHT, self._text)


class Walk(Cell):
    use = "walk"
    stages = 4

    def before(self) -> None:
        if self.fault.spoil is None:
            for stage in range(1, self.stages):
                self.require(self.cat(self.record, stage), RIGHT, text_of(self.record, stage))

    def during(self) -> None:
        # The last one is spoiled, and fetched ahead before it is opened.
        good = b"".join(text_of(self.record, stage) for stage in range(1, self.stages))
        logs = [self.path(self.record, stage) for stage in self._stages]
        if self.fault.spoil is crooked.huge_body:
            self.require(self.scene.run("cat", *logs[:-1]), RIGHT, good)
        else:
            text = good + text_of(self.record, self.stages)
            outcome = self.scene.run("cat", *logs)
            assert outcome.out.startswith(good), outcome.err
            self.require(outcome, self.expected, text)
        self.check_others()

    def after(self) -> None:
        for stage in self._stages:
            self.eventually_right(self.record, stage)

    def later(self) -> None:
        for stage in self._stages:
            text = text_of(self.record, stage)
            self.require(self.cat(self.record, stage), RIGHT, text)


class RecordListing(Cell):
    """Of a record that was never listed, and of one that runs and was."""

    use = "ls of a record"

    def write(self, recordings: Path) -> None:
        super().write(recordings)
        self._seen = write_live_record(recordings, _LIVE + self._number)

    @property
    def pattern(self) -> str:
        return f"({self.record}|{self._seen})/full-stages"

    names = b"by-name\nrecord.json\nstage1.debug.log\nstage1.info.log\n"

    @property
    def expected(self) -> str:
        if self.forbidden:
            return RIGHT
        # Two calls, one after the other, may take longer than the deadline to fail for good.
        return self.fault.listing.replace("EIO", "EIO|ETIMEDOUT")

    @property
    def known(self) -> str:
        """What is seen of what was listed before: all, unless the API says that it is gone."""
        return "ENOENT" if self.fault.listing == "ENOENT" else RIGHT

    @property
    def forbidden(self) -> bool:
        """Whether the list is, and nothing else: then what is cached is shown, which is nothing."""
        return self.fault.name == "403" and self.use == RecordListing.use

    def ls(self, record: str) -> Outcome:
        return self.scene.run("ls", self.scene.mounted / record)

    def before(self) -> None:
        self.require(self.ls(self._seen), RIGHT, self.names)
        self._told_at = time.monotonic()

    def during(self) -> None:
        names = b"" if self.forbidden else self.names
        self.require(self.ls(self.record), self.expected, names)
        time.sleep(max(0, self._told_at + 5.5 - time.monotonic()))  # told too long ago by now
        if self.known != RIGHT:  # what is known is shown while other faults make the API look down
            wait_until(lambda: self.ls(self._seen).code != 0, DEADLINE_S)
        self.require(self.ls(self._seen), self.known, self.names)
        self.check_others()

    def after(self) -> None:
        if self.forbidden:  # which is believed for half a minute
            self.scene.run(*COMMAND, "refresh", self.scene.mounted / self.record)
        for record in (self.record, self._seen):
            wait_until(lambda record=record: self.ls(record).code == 0, DEADLINE_S)  # type: ignore[misc]
            self.require(self.ls(record), RIGHT, self.names)

    def later(self) -> None:
        for record in (self.record, self._seen):
            self.require(self.ls(record), RIGHT, self.names)


class JobListing(RecordListing):
    """Of a job that was never listed, and of one that was."""

    use = "ls of a job"

    def write(self, recordings: Path) -> None:
        Cell.write(self, recordings)
        self.record, self._seen = (
            _write_job(recordings, 2 * self._number + n, PROJECT) for n in (0, 1)
        )

    @property
    def pattern(self) -> str:
        return (
            f"({_build_project(2 * self._number)}|{_build_project(2 * self._number + 1)})/records"
        )

    names = b"1\nlatest\nlatest-success\n"

    def ls(self, record: str) -> Outcome:
        return self.scene.run("ls", self.scene.mounted / f"by-job/{PROJECT}/{record}")


class ProjectListing(JobListing):
    """Of all jobs of a project that was never listed, and of no other: they hold half a minute."""

    use = "ls of by-job"

    def __init__(self, fault: Fault, number: int) -> None:
        super().__init__(fault, number)
        self.project = f"c0de{number:028x}"

    def write(self, recordings: Path) -> None:
        Cell.write(self, recordings)
        self.names = f"{_write_job(recordings, 2 * self._number, self.project)}\n".encode()
        self.record = self._seen = self.project

    @property
    def pattern(self) -> str:
        return f"/{self.project}/"

    def ls(self, record: str) -> Outcome:
        return self.scene.run("ls", self.scene.mounted / f"by-job/{record}")

    def before(self) -> None:
        pass

    def during(self) -> None:
        self.require(self.ls(self.record), self.expected, self.names)
        self.check_others()


class CachedLog(Cell):
    """One that was read before: whatever happens, it is there. Not from the kernel's cache."""

    use = "cached log"
    expected = RIGHT

    def before(self) -> None:
        self.require(self.cat(self.record), RIGHT, text_of(self.record))

    def strike(self) -> None:
        pass

    def during(self) -> None:
        direct = ("dd", f"if={self.path(self.record)}", "iflag=direct", "bs=128k", "status=none")
        for _ in range(10):
            self.require(self.scene.run(*direct), RIGHT, text_of(self.record))
            time.sleep(0.5)


_LIVE, _JOBS = 0x100000, 0x200000  # numbers of records from here on are builds of jobs
PROJECT = "c0de" + "f" * 28  # not that of the other builds: logs of its jobs come by offset too
_GROWING = threading.Lock()


def _build_project(number: int) -> str:
    return f"b0000000-0000-0000-0000-{number:012x}"


def _write_job(recordings: Path, number: int, project: str) -> str:
    """Write a job with one build, and return its name."""
    job = {
        "job_id": f"10b{number:029x}",
        "name": f"job-{number}",
        "build_project_id": _build_project(number),
        "project_id": project,
    }
    logs = {"stage1.info.log": b"x"}
    write_record(recordings, _JOBS + number, logs, job=job, build_no=1)
    return job["name"]


# All scenes.

_LOG_USES = (FirstRead, FirstReadStruckOnce, MidDownload, Running, Walk)
_LIST_USES = (StageList, RecordListing, JobListing, ProjectListing)
_OUTAGE_USES = (FirstRead, MidDownload, Running, Walk, RecordListing, JobListing, ProjectListing)

OUTAGES = [
    Fault("connection refused", None, "EIO"),
    Fault("name not resolved", None, "EIO"),
    Fault("certificate not trusted", None, "EIO"),
    Fault("no TLS", None, "EIO"),
    Fault("wrong token", None, "EACCES"),
    Fault("expired token", None, RIGHT),
    Fault("clock skew", None, "EACCES"),
]

NOT_PLAYED = {
    "outages - struck once": "an outage does not choose its requests; scoped faults do",
    "outages - list of stages": "then the log cannot be had either, which is the first read",
    "10 GB - walk, all of it": "cat would copy it; that it is not fetched ahead is played",
}


def _cells() -> dict[str, list[Cell]]:
    """Return the cells of each scene."""
    cells: dict[str, list[Cell]] = {"spoiled answers": [], "stalled lists": []}
    numbers = iter(range(1, 10_000))
    for fault in FAULTS:
        lists = "stalled lists" if fault.name in _STALLS else "spoiled answers"
        cells["spoiled answers"] += [use(fault, next(numbers)) for use in _LOG_USES]
        cells[lists] += [use(fault, next(numbers)) for use in _LIST_USES]
    for fault in OUTAGES:
        cells[fault.name] = [use(fault, next(numbers)) for use in _OUTAGE_USES]
    for some in cells.values():
        some.append(CachedLog(some[0].fault, next(numbers)))
    return cells


CELLS = _cells()
_LOG = "the daemon's log"
_OTHER_HOST = "no credentials for the other host"


def _play_all(rig: Rig) -> dict[tuple[str, str], list[str]]:
    """Play all scenes at the same time; return what went wrong in each cell."""
    recordings = rig.folder / "recordings"
    for cells in CELLS.values():
        for cell in cells:
            cell.write(recordings)
    emulator, expiring = rig.emulator(recordings), rig.emulator(recordings)
    tls, untrusted = _certificate(rig.folder, "trusted"), _certificate(rig.folder, "untrusted")
    problems: dict[tuple[str, str], list[str]] = {}

    def play(name: str) -> None:
        with ExitStack() as stack:
            folder = rig.folder / name.replace(" ", "-").replace("'", "")
            folder.mkdir()
            own = expiring if name == "expired token" else emulator
            encrypted = name in ("name not resolved", "certificate not trusted", "no TLS")
            server = stack.enter_context(crooked_server(own.url, tls=tls if encrypted else None))
            other = crooked_server(own.url, "127.0.0.2", extra={"X-Auth-Token": TOKEN})
            server.other = stack.enter_context(other)
            scene_rig = stack.enter_context(open_rig(folder))
            scene = Scene(scene_rig, own, server, CELLS[name])
            begin, end = _outage(name, scene, untrusted)
            if encrypted:
                scene.options += ("--ca-file", os.fspath(rig.folder / "trusted.pem"))
            scene.play(begin, end)
            for cell in scene.cells:
                problems[name, cell.name] = scene.problems.get(cell.name, [])
            problems[name, _LOG] = []
            told = [head for head in server.other.heads if b"token" in head.lower()]
            problems[name, _OTHER_HOST] = [f"it was told {head!r}" for head in told]
            try:
                for mounted in scene_rig.mounts:
                    mounted.permit_logged(r"WARNING codeartsfs\.api\.health: the API ")
                    mounted.permit_logged(r"WARNING codeartsfs\.fs\.reply: \w+: E\w+: ")
                    mounted.permit_logged("WARNING codeartsfs.logs.store: the server rewrote ")
                    mounted.check_log()
            except AssertionError as surprise:
                problems[name, _LOG].append(str(surprise))

    with ThreadPoolExecutor(len(CELLS)) as threads:
        list(threads.map(play, CELLS))
    return problems


def _outage(
    name: str, scene: Scene, untrusted: ssl.SSLContext
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return how the fault of a scene begins and ends, after what the mount needs for it."""
    server, tls, folder = scene.server, scene.server.tls, scene.rig.folder

    def speak(how: ssl.SSLContext | None) -> None:
        server.tls = how
        server.hang_up()

    match name:
        case "connection refused":
            return server.refuse, server.listen
        case "certificate not trusted":
            return lambda: speak(untrusted), lambda: speak(tls)
        case "no TLS":
            return lambda: speak(None), lambda: speak(tls)
        case "name not resolved":
            (folder / "sitecustomize.py").write_text(_RESOLVER)
            no_names = folder / "no-names"
            paths = {"PYTHONPATH": os.fspath(folder), "NO_NAMES": os.fspath(no_names)}
            scene.credentials = {**_BY_TOKEN, **paths}

            def forget() -> None:
                no_names.touch()
                server.hang_up()

            return forget, no_names.unlink
        case "wrong token":
            file = folder / "token"
            file.write_text(TOKEN)
            scene.credentials = {"CODEARTSFS_TOKEN_FILE": os.fspath(file)}

            def write(token: str) -> None:
                file.write_text(token)
                server.hang_up()

            return lambda: write("of somebody else"), lambda: write(TOKEN)
        case "expired token":
            scene.credentials = {
                "CODEARTSFS_USER": _DEMO.user,
                "CODEARTSFS_PASSWORD": _DEMO.password,
                "CODEARTSFS_ACCOUNT": _DEMO.domain,
                "CODEARTSFS_IAM_PROJECT": _DEMO.region,
                "CODEARTSFS_IAM_ENDPOINT": scene.emulator.url,
            }
            return lambda: scene.emulator.faults("expire-token"), scene.emulator.faults
        case "clock skew":
            scene.credentials = {
                "HUAWEICLOUD_SDK_AK": _DEMO.access_key,
                "HUAWEICLOUD_SDK_SK": _DEMO.secret_key,
            }

            def skew(*words: str) -> None:
                scene.emulator.faults(*words)
                server.hang_up()

            return lambda: skew("clock-ahead=1000"), skew
    return lambda: None, lambda: None


_RESOLVER = """
import os, socket
resolve = socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    if os.path.exists(os.environ["NO_NAMES"]) and host == "localhost":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return resolve(host, *rest, **more)

socket.getaddrinfo = getaddrinfo
"""


def _certificate(folder: Path, name: str) -> ssl.SSLContext:
    """Make a certificate for localhost that signs itself, and a server's context with it."""
    key, pem = folder / f"{name}.key", folder / f"{name}.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", key, "-out", pem)
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[dict[tuple[str, str], list[str]]]:
    with open_rig(tmp_path_factory.mktemp("faults")) as rig:
        problems = _play_all(rig)
        well = sum(not problem for problem in problems.values())
        summary = f"faults: {well} of {len(problems)} cells as promised"
        reasons = "".join(f"\n  not played: {what}: {why}" for what, why in NOT_PLAYED.items())
        pytestconfig.stash.setdefault(SUMMARIES, []).append(summary + reasons)
        yield problems


@pytest.mark.parametrize(
    ("scene", "cell"),
    [
        (scene, name)
        for scene, cells in CELLS.items()
        for name in [*(cell.name for cell in cells), _LOG, _OTHER_HOST]
    ],
)
def test_a_fault_is_an_error_and_ends_with_it(
    played: dict[tuple[str, str], list[str]], scene: str, cell: str
) -> None:
    assert not played[scene, cell], "\n".join(played[scene, cell])
