"""``codeartsfs grep``."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from codeartsfs.commands import completion, exits
from codeartsfs.commands.connect import levels, use_session
from codeartsfs.commands.options import (
    api_options,
    cache_options,
    config_option,
    logging_options,
    selection_options,
)
from codeartsfs.config import WholeNumber

if TYPE_CHECKING:
    from codeartsfs.batch import Wanted
    from codeartsfs.logs.store import OpenLog
    from codeartsfs.selection import Selection
    from codeartsfs.session import Session

log = logging.getLogger(__name__)

NOTHING_FOUND, TROUBLE = 1, 2  # grep's own
_READ_BYTES = 1 << 20

_flags = {
    "-i": "Ignore case.",
    "-F": "PATTERN is text.",
    "-E": "PATTERN is an extended regular expression.",
    "-P": "PATTERN is a regular expression of Perl.",
    "-w": "Match whole words.",
    "-x": "Match whole lines.",
    "-v": "Lines that do not match.",
    "-c": "Count lines.",
    "-l": "Only names of logs.",
    "-o": "Only what matches.",
    "-a": "Take binary logs for text.",
    "-q": "Only the exit code.",
}
_values = {
    "-m": "Lines of each log, at most.",
    "-A": "Lines after each match.",
    "-B": "Lines before each match.",
    "-C": "Lines around each match.",
}
_long_names = {
    "-i": "--ignore-case",
    "-F": "--fixed-strings",
    "-E": "--extended-regexp",
    "-P": "--perl-regexp",
    "-w": "--word-regexp",
    "-x": "--line-regexp",
    "-v": "--invert-match",
    "-c": "--count",
    "-l": "--files-with-matches",
    "-o": "--only-matching",
    "-a": "--text",
    "-q": "--quiet",
    "-m": "--max-count",
    "-A": "--after-context",
    "-B": "--before-context",
    "-C": "--context",
}


def _grep_options(command: Any) -> Any:
    for flag, text in reversed(_values.items()):
        names = (flag, _long_names[flag], f"value_{flag[1:]}")
        command = click.option(*names, type=WholeNumber(min=0), metavar="N", help=text)(command)
    for flag, text in reversed(_flags.items()):
        names = (flag, _long_names[flag], f"flag_{flag[1:]}")
        command = click.option(*names, is_flag=True, help=text)(command)
    return command


@click.command(
    short_help="Search logs, downloading ahead.",
    context_settings={"help_option_names": ["--help"]},
)
@click.argument(
    "words",
    metavar="PATTERN RECORD|JOB...",
    nargs=-1,
    required=True,
    shell_complete=completion.records_and_jobs,
)
@_grep_options
@click.option("-e", "patterns", multiple=True, metavar="PATTERN", help="A pattern; repeatable.")
@click.option(
    "--color",
    "--colour",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Mark what matches.",
)
# Habit types them; it is what happens anyway.
@click.option("-n", "-r", "-R", "-H", "habit", is_flag=True, hidden=True, expose_value=False)
@selection_options
@api_options
@cache_options
@logging_options
@config_option
def grep(
    words: tuple[str, ...],
    patterns: tuple[str, ...],
    color: str,
    level: str,
    stages: tuple[str, ...],
    builds: int,
    **settings: Any,
) -> None:
    """Search logs, downloading ahead; prints path:line:text in the order of the names.

    Give a record, RECORD/stage3.info.log, a job of a --project (its latest build), JOB/412,
    JOB/latest-failed, or a path in a mount. What is downloaded stays in the cache.

    Exit codes: 0 found, 1 nothing found, 2 a log could not be had, or usage;
    3 credentials, 130 interrupted.
    """
    if not patterns:
        patterns, words = words[:1], words[1:]
    if not words:
        raise click.UsageError("in which logs? name a record or a job")
    options = [flag for flag in _flags if settings.pop(f"flag_{flag[1:]}")]
    for flag in _values:
        value = settings.pop(f"value_{flag[1:]}")
        options += [] if value is None else [f"{flag}{value}"]
    for pattern in patterns:
        options += ["-e", pattern]
    quiet = "-q" in options
    matcher = _Matcher([*options, f"--color={'never' if os.environ.get('NO_COLOR') else color}"])
    settings["builds_per_job"] = max(settings["builds_per_job"], builds)
    failed = False

    async def run(session: "Session", selection: "Selection") -> None:
        from codeartsfs.batch import Batch
        from codeartsfs.errors import CodeArtsError

        async def take(wanted: "Wanted") -> None:
            nonlocal failed
            if wanted.failure:
                failed = True
                said = f"{wanted.label}: {wanted.failure}" if wanted.key else wanted.failure
                click.echo(f"Error: {said}", err=True)
            elif wanted.log is not None:
                trouble = wanted.doubt
                try:
                    await matcher.search(wanted.label, wanted.log)
                except (CodeArtsError, OSError) as error:
                    trouble = str(error)
                if trouble:
                    failed = True
                    click.echo(f"Error: {wanted.label}: {trouble}", err=True)
                if matcher.ended or (quiet and matcher.found):
                    raise _Enough

        batch = Batch(
            session.store,
            selection,
            words,
            levels(level),
            stages,
            builds=builds,
            at_once=settings["max_downloads"],
        )
        await batch.run(take, in_order=True)

    try:
        use_session(settings, run)
    except _Enough:
        if matcher.ended:
            sys.exit(matcher.ended)
    except click.ClickException:
        raise
    except Exception as error:  # whose own exit code would say: nothing found
        log.debug("search ended", exc_info=True)
        exits.refuse(f"{type(error).__name__}: {error}", TROUBLE)
    if failed and not (quiet and matcher.found):
        sys.exit(TROUBLE)
    if not matcher.found:
        sys.exit(NOTHING_FOUND)


class _Enough(Exception):
    """Nothing more needs to be searched."""


class _Matcher:
    """Hands logs to grep(1), one process each, which writes where we would.

    A file in the cache is more than the log, and may be evicted: so the bytes come by a pipe.
    """

    def __init__(self, options: list[str]) -> None:
        if shutil.which("grep") is None:
            exits.refuse("there is no grep on this machine", TROUBLE)
        self._command = ["grep", "-n", "-H", *options]
        self.found = False
        self.ended = 0  # exit code, once it makes no sense to go on
        # Its complaint about a pattern is worth hearing before anything is downloaded.
        try:
            trial = subprocess.run(
                [*self._command, "--label=log"], stdin=subprocess.DEVNULL, capture_output=True
            )
        except OSError as error:
            exits.refuse(f"grep cannot be started: {error.strerror}", TROUBLE)
        if trial.returncode > NOTHING_FOUND:
            said = trial.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            gnu = "" if said[0].startswith("grep:") else " (GNU grep is needed)"
            exits.refuse(said[0] + gnu, TROUBLE)

    async def search(self, label: str, log: "OpenLog") -> None:
        """Let grep search one log, whose lines it calls by a label."""
        import trio

        process = await trio.lowlevel.open_process(
            [*self._command, f"--label={label}"], stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        size_bytes = log.stat.size_bytes
        try:
            async with process.stdin as pipe:
                for offset in range(0, size_bytes, _READ_BYTES):
                    wanted = min(_READ_BYTES, size_bytes - offset)
                    await pipe.send_all(await log.read(offset, wanted))
        except trio.BrokenResourceError:
            pass  # it has seen enough
        code = await process.wait()
        if code == 0:
            self.found = True
        elif code == -signal.SIGPIPE:
            self.ended = 128 + signal.SIGPIPE  # nobody reads what is found any more
        elif code != NOTHING_FOUND:
            self.ended = TROUBLE
