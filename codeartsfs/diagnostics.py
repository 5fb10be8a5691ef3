"""What the process says of itself: the log.

A line is one event. What it is about (the log, the answer of the API, the errno that somebody
got) is taken from the arguments of its message, so that who logs an event says it once, and
is there by name in JSON. What happens over and over is summed up.
"""

import errno
import functools
import json
import logging
import logging.handlers
import os
import select
import socket
import stat
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import click
import platformdirs

from codeartsfs.names import LogKey

_SYSLOG = Path("/dev/log")
_KEPT_BYTES = 1 << 20  # of a log that nobody else rotates, and as much again of the one before
_FEW = 5  # of a kind, in a window, get a line each
_WINDOW_S = 60.0
_MOST_KINDS = 500
# What events have beside their message, where whoever logs them says so with ``extra``.
_EXTRA = ("operation", "path", "errno", "attempt", "wait_s")
# syslog(3), as sd-daemon(3) has it too
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_CRITICAL = 2


def set_up_logging(level: str, form: str, file: str | None, background: Path | None = None) -> str:
    """Log to a file, or to standard error.

    Args:
        background: the mount point of a process that will have no standard error: it logs to the
            system log, or to a file of its own where there is none.

    Returns:
        Where the log is, to be told to the user, where he could not know.

    Raises:
        click.UsageError: the file cannot be written.
    """
    logging.raiseExceptions = False  # a log that cannot be written is no reason to say more
    begin = "%(asctime)s %(levelname)s %(name)s: "
    every_line, told = "", ""
    handler: logging.Handler
    if file:
        try:
            handler = logging.handlers.WatchedFileHandler(  # logrotate(8) may move it
                file, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise click.UsageError(f"cannot log to {file}: {error.strerror}") from None
    elif background is None:
        handler = stderr = _StandardError()
        if _is_journal(stderr.stream):  # which knows the time and the process
            begin, every_line = "%(name)s: ", "<%(priority)d>"
    elif _SYSLOG.exists():
        handler = _SystemLog(os.fspath(_SYSLOG), _SystemLog.LOG_DAEMON)
        begin, every_line = "%(levelname)s %(name)s: ", "codeartsfs[%(process)d]: "
    else:
        handler, told = _file_of_its_own(log_file_of(background))
    formatter = _JsonLines() if form == "json" else _TextLines(begin)
    handler.setFormatter(_Begun(every_line, formatter))
    logging.basicConfig(level=level.upper(), handlers=[Summing(handler)])
    return told


class _Lossy(logging.Handler):
    """Loses lines, and counts them, where whoever shall read them does not."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            said = "%d lines were lost, because nobody read them"
            super().emit(logging.LogRecord(__name__, logging.WARNING, "", 0, said, (lost,), None))
            if self._lost:  # that one, which counts for this one
                self._lost += lost
                return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging
        self._lost += 1


class _StandardError(_Lossy, logging.StreamHandler[TextIO]):
    """A terminal or a pipe that nobody reads (Ctrl-S, a network that is gone) stops no mount."""

    def __init__(self) -> None:
        super().__init__()
        with suppress(OSError, ValueError, AttributeError):  # closed before we began
            self.stream = cast(TextIO, _Unblocked(self.stream))


class _Unblocked:
    """A stream that takes what there is room for now, and raises BlockingIOError where it is not.

    Descriptors are shared with other programs, which may not be ready for O_NONBLOCK. So what can
    be opened once more is, and sockets have a flag for each write.
    """

    _PATIENCE_MS = 100  # once

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._write: Callable[[bytes], int] = functools.partial(os.write, descriptor)
        self._patient = True
        self._within_line = False
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(descriptor))
            self._write = lambda data: self._socket.send(data, socket.MSG_DONTWAIT)
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            again = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            with suppress(OSError):  # a terminal of another user
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", again)
                self._write = functools.partial(os.write, self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> None:
        line = "\n" * self._within_line + text
        left = line.encode(self._encoding, "backslashreplace")
        while left:
            if not self._takes_more():
                raise BlockingIOError
            # As much as a pipe takes that takes anything.
            written = self._write(left[: select.PIPE_BUF])
            self._within_line = left[written - 1 : written] != b"\n"
            left = left[written:]
            self._patient = True

    def flush(self) -> None:
        pass

    def _takes_more(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        takes = bool(poll.poll(self._PATIENCE_MS if self._patient else 0))
        self._patient = takes
        return takes


class _SystemLog(_Lossy, logging.handlers.SysLogHandler):
    """A system log that does not read stops no mount either."""

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]  # opens and connects, anew at need
        self.socket.setblocking(False)  # type: ignore[attr-defined]


def log_file_of(mountpoint: Path) -> Path:
    """Return where a mount in the background logs to without a system log."""
    place = os.fspath(mountpoint)
    name = place.strip("/").replace("/", "-") or "root"
    if "-" in place:  # else /mnt/ci-logs would share one with /mnt/ci/logs
        name += f"~{zlib.crc32(os.fsencode(place)):08x}"
    return Path(platformdirs.user_log_dir("codeartsfs")) / f"{name}.log"


def _file_of_its_own(path: Path) -> tuple[logging.Handler, str]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=_KEPT_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        nowhere = "there is no system log here: nothing is logged without --log-file"
        return logging.NullHandler(), f"Warning: {nowhere} ({path}: {error.strerror})"
    return handler, f"There is no system log here, the log is {path}"


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream goes to the journal, by systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # closed before we began
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


# --- levels -----------------------------------------------------------------------------------

_configured_level: int | None = None  # where it is another now


def set_level(name: str) -> str:
    """Log what is worth it by another level from now on; return what is to be said of it."""
    global _configured_level
    root = logging.getLogger()
    if _configured_level is None:
        _configured_level = root.level
    before = logging.getLevelName(root.level).lower()
    root.setLevel(name.upper())
    return f"log level {name.lower()}, was {before}"


def toggle_debug() -> str:
    """Change between debug and the level that was configured."""
    at_debug = logging.getLogger().level == logging.DEBUG
    configured = logging.INFO if _configured_level in (None, logging.DEBUG) else _configured_level
    return set_level(logging.getLevelName(configured) if at_debug else "debug")


# --- lines ------------------------------------------------------------------------------------


class _TextLines(logging.Formatter):
    def __init__(self, begin: str) -> None:
        super().__init__()
        self._begin = begin

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record)
        lines = [self._begin % record.__dict__ + _harmless(message_of(record))]
        if record.exc_info:  # a mistake of ours
            lines += map(_harmless, self.formatException(record.exc_info).split("\n"))
        return "\n".join(lines)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
            **facts_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line, ensure_ascii=False)
        return text if text.isprintable() else "".join(map(_json_character, text))


class _Begun(logging.Formatter):
    """Begins each line with what its reader wants there, such as sd-daemon(3)'s priority."""

    def __init__(self, begin: str, lines: logging.Formatter) -> None:
        super().__init__()
        self._begin = begin
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        record.priority = _PRIORITIES.get(record.levelno, _CRITICAL)
        begin = self._begin % record.__dict__
        return "\n".join(begin + line for line in self._lines.format(record).split("\n"))


def _harmless(text: str) -> str:
    """Return text that can neither begin a line of its own nor command a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json_character(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


# --- what an event is about -------------------------------------------------------------------


def message_of(record: logging.LogRecord) -> str:
    if isinstance(record, _Summary):
        within_s = max(record.within_s, 1)
        return f"{record.msg} ... {record.more} more like this in the last {within_s:.0f} s"
    return record.getMessage()


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what an event is about by name: of its arguments, and of its ``extra``."""
    if isinstance(record, _Summary):
        return {**record.facts, "repeated": record.more}
    facts: dict[str, object] = {}
    for argument in _arguments(record):
        if isinstance(argument, BaseException):
            facts |= _facts_of_failure(argument)
        else:
            facts |= _facts_of_place(argument)
    return facts | {name: value for name in _EXTRA if (value := getattr(record, name, None))}


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _facts_of_place(place: object) -> dict[str, object]:
    key = getattr(place, "key", place)
    if isinstance(key, LogKey):
        level = key.level.value.lower()
        return {"record": key.record, "stage": str(key.stage), "log_level": level}
    record = getattr(place, "record", None)
    return {"record": record} if isinstance(record, str) else {}


def _facts_of_failure(failure: BaseException) -> dict[str, object]:
    facts: dict[str, object] = {}
    cause: BaseException | None = failure
    while cause is not None and not facts:
        facts = dict(getattr(cause, "facts", {}))
        if isinstance(cause, OSError) and cause.errno:
            facts["errno"] = errno.errorcode.get(cause.errno, str(cause.errno))
        cause = cause.__cause__
    return facts


# --- what happens over and over ---------------------------------------------------------------


class _Summary(logging.LogRecord):
    """The last of several events of a kind, for all that got no line of their own."""

    def __init__(self, last: "_Last", more: int, within_s: float) -> None:
        super().__init__(last.name, last.level, "", 0, last.text, None, None)
        self.facts = last.facts
        self.more = more
        self.within_s = within_s


@dataclass(frozen=True, slots=True)
class _Last:
    """What is kept of an event: not its arguments, which may hold anything."""

    name: str
    level: int
    text: str
    facts: dict[str, object]


@dataclass(slots=True)
class _Run:
    """Events of one kind since a moment; ``last`` is one without a line of its own."""

    since: float
    count: int = 0
    last: _Last | None = None


class Summing(logging.Handler):
    """Passes on the first few events of a kind within a time, and sums up the rest after it.

    Alike are events of one logger and message about things of one sort: logs, say, that fail with
    the same status, whichever logs they are. What was asked for (debug, a dump) is never summed up.
    """

    def __init__(
        self, target: logging.Handler, few: int = _FEW, window_s: float = _WINDOW_S
    ) -> None:
        super().__init__()
        self._target = target
        self._few = few
        self._window_s = window_s
        self._runs: dict[object, _Run] = {}  # the one that began first at the beginning
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._consider(record)
        except Exception:  # whoever logs has other things to do
            self.handleError(record)

    def _consider(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.DEBUG or getattr(record, "asked_for", False):
            self._target.handle(record)
            return
        now = time.monotonic()
        self._sum_up(now - self._window_s)
        run = self._runs.setdefault(_kind_of(record), _Run(now))
        run.count += 1
        if run.count <= self._few:
            self._target.handle(record)
        else:
            text, facts = record.getMessage(), facts_of(record)
            run.last = _Last(record.name, record.levelno, text, facts)
            self._wake_after(self._window_s - (now - run.since))
        while len(self._runs) > _MOST_KINDS:
            self._end(next(iter(self._runs)))

    def flush(self) -> None:
        """Sum up all that has got no line yet: it is the end."""
        with suppress(Exception):
            self._sum_up(float("inf"))
            self._target.flush()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.flush()
        self._target.close()
        super().close()

    def _sum_up(self, begun_before: float) -> None:
        """End what began before a moment."""
        while self._runs:
            kind, run = next(iter(self._runs.items()))
            if run.since > begun_before:
                break
            self._end(kind)

    def _end(self, kind: object) -> None:
        run = self._runs.pop(kind)
        if run.last is not None:
            within_s = time.monotonic() - run.since
            with suppress(OSError):  # of a file that cannot be opened again
                self._target.handle(_Summary(run.last, run.count - self._few, within_s))

    def _wake_after(self, wait_s: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(max(wait_s, 0.0), self._wake)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:  # no thread to be had: the next event will do it
                self._timer = None

    def _wake(self) -> None:
        self.acquire()
        try:
            self._timer = None
            now = time.monotonic()
            self._sum_up(now - self._window_s)
            waiting = [run.since for run in self._runs.values() if run.last is not None]
            if waiting:
                self._wake_after(min(waiting) + self._window_s - now)
        finally:
            self.release()


def _kind_of(record: logging.LogRecord) -> object:
    sorts: list[object] = []
    for argument in _arguments(record):
        sorts.append(type(argument))
        if isinstance(argument, BaseException):
            facts = _facts_of_failure(argument)
            sorts += [facts.get("status"), facts.get("code")]
    about = (getattr(record, "operation", None), getattr(record, "errno", None))
    return (record.name, record.levelno, str(record.msg), about, *sorts)
