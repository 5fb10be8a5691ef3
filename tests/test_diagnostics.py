"""The log: what a line says, to people and to programs, and what becomes of too many of them."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeartsfs import diagnostics
from codeartsfs.diagnostics import Summing, log_file_of
from codeartsfs.errors import ApiUnavailable, CodeArtsError
from codeartsfs.names import LogKey, LogLevel, Stage, parse_record_id

RECORD = parse_record_id("2cc26382-b2cb-4234-8eb0-b37d362f4d4c")
assert RECORD is not None
KEY = LogKey(RECORD, Stage("stage3"), LogLevel.DEBUG)

log = logging.getLogger("codeartsfs.of_tests")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, raises = root.level, logging.raiseExceptions
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, Summing)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    logging.raiseExceptions = raises
    diagnostics._configured_level = None


def set_up_logging(level: str, form: str, file: Path | None) -> None:
    """Set up logging, though pytest has done so before."""
    root = logging.getLogger()
    of_pytest, root.handlers[:] = root.handlers[:], []
    diagnostics.set_up_logging(level, form, os.fspath(file) if file else None)
    root.handlers += of_pytest


class Kept(logging.Handler):
    """Keeps the messages it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(diagnostics.message_of(record))


@pytest.fixture
def kept() -> Kept:
    return Kept()


def say(handler: logging.Handler, level: int, message: str, *about: object) -> None:
    handler.handle(logging.LogRecord("codeartsfs.of_tests", level, "", 0, message, about, None))


def failure(status: int, code: str = "CB.1") -> CodeArtsError:
    error = ApiUnavailable(f"GET /v4/x: HTTP {status} (request r-1) {code}")
    error.facts = {"asked": "GET /v4/x", "status": status, "code": code, "request_id": "r-1"}
    return error


# Lines.


def test_a_line_of_json_names_what_it_is_about(file: Path) -> None:
    set_up_logging("info", "json", file)
    about = {"operation": "open", "errno": "EIO", "path": "/x"}
    log.warning("%s cannot be had: %s", KEY, failure(500), extra=about)
    line = json.loads(file.read_text())
    del line["time"], line["message"]
    assert line == {
        "level": "warning",
        "logger": "codeartsfs.of_tests",
        "record": RECORD,
        "stage": "stage3",
        "log_level": "debug",
        "asked": "GET /v4/x",
        "status": 500,
        "code": "CB.1",
        "request_id": "r-1",
        **about,
    }


def test_a_retry_that_gave_up_is_about_the_answer_that_it_got(file: Path) -> None:
    set_up_logging("info", "json", file)
    try:
        raise ApiUnavailable("gave up") from failure(503)
    except ApiUnavailable as error:
        log.warning("%s", error)
    assert json.loads(file.read_text())["request_id"] == "r-1"


HOSTILE = "a\nb\r\x1b[2J\x9b\u202e\ud800é构建"


def test_what_comes_from_outside_cannot_begin_a_line_or_command_a_terminal(file: Path) -> None:
    set_up_logging("info", "text", file)
    log.info("job %s", HOSTILE)
    [line] = file.read_text().split("\n")[:-1]
    assert line.isprintable()
    assert line.endswith(r"job a\nb\r\x1b[2J\x9b\u202e\ud800é构建")


def test_a_line_of_json_is_harmless_and_true(file: Path) -> None:
    set_up_logging("info", "json", file)
    log.info("job %s", HOSTILE)
    [line] = file.read_text().split("\n")[:-1]
    assert line.isprintable()
    assert json.loads(line)["message"] == f"job {HOSTILE}"


def test_a_log_file_that_was_moved_away_is_begun_anew(file: Path) -> None:
    set_up_logging("info", "text", file)
    log.info("before")
    file.rename(file.with_suffix(".1"))
    log.info("after")
    assert "after" in file.read_text()
    assert "before" not in file.read_text()


def test_a_log_file_that_cannot_be_opened_again_harms_nobody(file: Path) -> None:
    folder = file.parent / "logs"
    folder.mkdir()
    set_up_logging("info", "text", folder / "log")
    log.info("before")
    (folder / "log").unlink()
    folder.rmdir()
    log.info("after")


# Standard error that goes to the journal.


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_journal_is_told_how_urgent_each_line_is(
    file: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file.open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr("sys.stderr", stream)
        set_up_logging("debug", form, None)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(level, "said at %d", level)
        try:
            raise ValueError("a bug")
        except ValueError:
            log.critical("a bug", exc_info=True)
    lines = file.read_text().splitlines()
    assert [line[:3] for line in lines[:4]] == ["<7>", "<6>", "<4>", "<3>"]
    assert len(lines) > 4
    assert {line[:3] for line in lines[4:]} == {"<2>"}
    if form == "text":  # the journal knows the time
        assert lines[1] == "<6>codeartsfs.of_tests: said at 20"
    else:
        assert json.loads(lines[1].removeprefix("<6>"))["message"] == "said at 20"


def test_what_is_no_journal_is_told_the_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")  # of the session that started us
    with file.open("w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        set_up_logging("info", "text", None)
        log.info("said")
    assert file.read_text().startswith(time.strftime("20%y-"))


# Logs that nobody reads.

MANY_LINES = """
import logging, pathlib, sys
from codeartsfs import diagnostics
diagnostics._SYSLOG = pathlib.Path("log")
background = pathlib.Path("/mnt") if sys.argv[1] == "system log" else None
diagnostics.set_up_logging("debug", "text", None, background)
for _ in range(2000):
    logging.debug("%s", "x" * int(sys.argv[2]))
"""


def unread(kind: str) -> tuple[int, int]:
    """Return where to write, and where nobody reads that."""
    if kind == "terminal":
        return os.openpty()[::-1]
    if kind == "pipe":
        return os.pipe()[::-1]
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return one.detach(), other.detach()


@pytest.mark.parametrize("length", [100, 20_000])
@pytest.mark.parametrize("kind", ["terminal", "pipe", "socket"])
def test_standard_error_that_nobody_reads_stops_nobody(kind: str, length: int) -> None:
    write, read = unread(kind)
    command = [sys.executable, "-c", MANY_LINES, kind, str(length)]
    assert subprocess.run(command, stderr=write, timeout=30, check=False).returncode == 0
    os.close(write)
    os.close(read)


def test_a_system_log_that_nobody_reads_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    command = [sys.executable, "-c", MANY_LINES, "system log", "100"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unread:
        unread.bind("log")
        assert subprocess.run(command, timeout=30, check=False).returncode == 0
        assert b"x" * 100 in unread.recv(65536)


def test_a_line_that_was_cut_off_is_ended_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)  # who would wait here fails instead
    with open(read, "rb") as reader, open(write, "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        set_up_logging("debug", "text", None)
        for _ in range(2):
            log.debug("%s", "x" * 100_000)
        reader.read(1 << 16)
        log.debug("again")
        log_text = os.read(read, 1 << 16).decode()
    lines = [line.partition(": ")[2] for line in log_text.splitlines()]
    assert lines[-2:] == ["2 lines were lost, because nobody read them", "again"]


def test_a_log_file_is_utf_8_whatever_the_locale(file: Path) -> None:
    script = """
import logging, sys
from codeartsfs import diagnostics
diagnostics.set_up_logging("info", "json", sys.argv[1])
logging.info(chr(0x6784) + chr(0x5efa))
"""
    command = [sys.executable, "-X", "utf8=0", "-c", script, os.fspath(file)]
    subprocess.run(command, env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, check=True)
    assert json.loads(file.read_bytes())["message"] == "构建"


# Repeats.


def test_the_first_few_of_a_kind_get_a_line_each_and_the_rest_one_together(kept: Kept) -> None:
    summing = Summing(kept, few=3)
    for number in range(315):
        say(summing, logging.WARNING, "%s: %s", KEY, f"failed {number}")
    assert [line[-8:] for line in kept.lines] == ["failed 0", "failed 1", "failed 2"]
    summing.flush()
    assert kept.lines[3:] == [f"{KEY}: failed 314 ... 312 more like this in the last 1 s"]


@pytest.mark.parametrize(
    "another",
    [
        (logging.WARNING, "another message %s", failure(500)),
        (logging.ERROR, "message %s", failure(500)),
        (logging.WARNING, "message %s", failure(503)),
        (logging.WARNING, "message %s", failure(500, "CB.2")),
        (logging.WARNING, "message %s", KEY),
    ],
    ids=["message", "level", "status", "code", "what it is about"],
)
def test_the_first_of_another_kind_is_never_lost(
    kept: Kept, another: tuple[int, str, object]
) -> None:
    summing = Summing(kept, few=1)
    for _ in range(10):
        say(summing, logging.WARNING, "message %s", failure(500))
    assert len(kept.lines) == 1
    say(summing, *another)
    assert len(kept.lines) == 2


def test_a_sum_comes_in_time_though_nothing_else_happens(kept: Kept) -> None:
    summing = Summing(kept, few=1, window_s=0.05)
    for _ in range(3):
        say(summing, logging.INFO, "again")
    give_up_at = time.monotonic() + 10
    while len(kept.lines) < 2:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    assert kept.lines == ["again", "again ... 2 more like this in the last 1 s"]


def test_what_begins_again_later_gets_lines_again(kept: Kept) -> None:
    summing = Summing(kept, few=1, window_s=0)
    for _ in range(3):
        say(summing, logging.INFO, "again")
    assert kept.lines == ["again"] * 3


def test_kinds_without_end_take_no_memory_without_end(kept: Kept) -> None:
    summing = Summing(kept, few=1)
    for number in range(diagnostics._MOST_KINDS * 3):
        say(summing, logging.INFO, f"message {number}")
    assert len(kept.lines) == diagnostics._MOST_KINDS * 3
    assert len(summing._runs) == diagnostics._MOST_KINDS


def test_whoever_asks_for_debug_gets_all_of_it(kept: Kept) -> None:
    summing = Summing(kept, few=1)
    for _ in range(10):
        say(summing, logging.DEBUG, "again")
    assert len(kept.lines) == 10


def test_the_log_at_the_end_says_what_was_held_back(file: Path) -> None:
    set_up_logging("info", "json", file)
    for _ in range(20):
        log.warning("%s: %s", KEY, failure(500))
    logging.getLogger().handlers[0].close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line.get("repeated") for line in lines] == [None] * 5 + [15]
    assert lines[-1]["request_id"] == "r-1"


# Levels.


def test_debug_is_switched_on_and_off(file: Path) -> None:
    set_up_logging("warning", "text", file)
    assert diagnostics.toggle_debug() == "log level debug, was warning"
    assert diagnostics.toggle_debug() == "log level warning, was debug"
    assert logging.getLogger().level == logging.WARNING


def test_mounts_in_the_background_do_not_share_a_log() -> None:
    places = map(Path, ("/mnt/ci-logs", "/mnt/ci/logs", "/mnt-ci/logs", "/mnt/builds", "/"))
    files = [log_file_of(place) for place in places]
    assert len(set(files)) == 5
    assert files[3].name == "mnt-builds.log"
