"""``codeartsfs open``."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codeartsfs.asking import NoAnswer, asked
from codeartsfs.commands import completion, exits
from codeartsfs.commands.connect import levels, use_session
from codeartsfs.commands.options import (
    api_options,
    cache_options,
    config_option,
    logging_options,
)
from codeartsfs.names import CONTROL_DIR

if TYPE_CHECKING:
    from codeartsfs.logs.store import OpenLog
    from codeartsfs.names import LogKey, LogLevel
    from codeartsfs.selection import Selection
    from codeartsfs.session import Session

_READ_BYTES = 1 << 20
_MOUNT_PATIENCE_S = 2.0


@click.command("open", short_help="Show the log that matters, in a pager or an editor.")
@click.argument("name", metavar="RECORD|JOB", shell_complete=completion.records_and_jobs)
@click.argument("stage", required=False)
@click.option("--pager", "how", flag_value="pager", help="In $PAGER, or less.  [on a terminal]")
@click.option("--editor", "how", flag_value="editor", help="In $VISUAL or $EDITOR.")
@click.option("--print", "how", flag_value="print", help="Print the path.  [not on a terminal]")
@click.option(
    "--level",
    type=click.Choice(["info", "debug"]),
    default="info",
    show_default=True,
    help="The log of this level.",
)
@api_options
@cache_options
@logging_options
@config_option
def open_log(
    name: str,
    stage: str | None,
    how: str | None,
    level: str,
    **settings: Any,
) -> None:
    """Show one log: of STAGE, else of the stage that failed, else of the last one that began.

    In a mount, where one shows it; else a copy, which is removed when the program ends. With
    --print it stays, in a private directory among the temporary files.

    Exit codes: 0, 1 it could not be had or shown, 2 usage or configuration, 3 credentials.
    """
    how = how or ("pager" if sys.stdout.isatty() else "print")
    program = _program(how)
    shown: Path | None = None
    failure = ""

    with tempfile.TemporaryDirectory(prefix="codeartsfs-") as folder:

        async def run(session: "Session", selection: "Selection") -> None:
            from codeartsfs.batch import PERHAPS_NOT_ALL
            from codeartsfs.errors import CodeArtsError
            from codeartsfs.selection import UnknownName

            nonlocal shown, failure
            try:
                key = await _chosen(session, selection, name, stage, levels(level))
                shown = _in_mount(key, settings)
                if shown is None:
                    log = await session.store.open(key)
                    try:
                        shown = await _copy(log, _copies() if how == "print" else Path(folder))
                        await log.kept()
                        if log.doubt:
                            click.echo(f"Warning: {PERHAPS_NOT_ALL}: {log.doubt}", err=True)
                    finally:
                        log.close()
            except (CodeArtsError, UnknownName, OSError) as error:
                failure = str(error)

        use_session(settings, run)
        if shown is None:
            exits.refuse(failure, exits.FAILURE)
        if how == "print":
            click.echo(os.fspath(shown))
            return
        # Ctrl-C is for the program; a handler, unlike what is ignored, is not handed down to it.
        signal.signal(signal.SIGINT, lambda *_: None)
        for ending in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal: the copy goes, too
            if signal.getsignal(ending) is not signal.SIG_IGN:
                signal.signal(ending, lambda number, _: sys.exit(128 + number))
        try:
            environment = {"LESS": "-R", **os.environ}  # colours, and no other escapes
            code = subprocess.run([*program, os.fspath(shown)], env=environment).returncode
        except OSError as error:
            variable = "EDITOR" if how == "editor" else "PAGER"
            advice = f"see to {variable}, or use --print"
            exits.refuse(f"cannot run {program[0]}: {error.strerror}; {advice}", exits.FAILURE)
    if code:
        sys.exit(exits.FAILURE)


def _program(how: str) -> list[str]:
    if how == "editor":
        command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    else:
        command = os.environ.get("PAGER") or "less"
    try:
        return shlex.split(command) or ["less"]
    except ValueError as error:
        raise click.UsageError(f"{command!r} is not a command: {error}") from None


async def _chosen(
    session: "Session",
    selection: "Selection",
    name: str,
    stage: str | None,
    wanted: "tuple[LogLevel, ...]",
) -> "LogKey":
    from codeartsfs.builds.document import first_failed
    from codeartsfs.selection import UnknownName

    [named] = await selection.named(name)
    logs = [key for _, key in await selection.logs(named, wanted, [stage] if stage else [])]
    runs = session.catalog.known_stages(named.record) or ()
    failed = first_failed(runs)
    begun = {run.stage for run in runs if run.started_ns is not None}
    if not logs:
        raise UnknownName(f"{named.label} has no such log")
    of_failed = [key for key in logs if failed and key.stage == failed.stage]
    return (of_failed or [key for key in logs if key.stage in begun] or logs)[-1]


def _in_mount(key: "LogKey", settings: dict[str, Any]) -> Path | None:
    """Return the path of a log in a mount of the same API that answers, None without one."""
    from codeartsfs.commands.connect import api_address
    from codeartsfs.fs.mountpoint import mounts, source_of

    region, address = settings["region"], api_address(settings)
    # An fstab calls it by other names.
    there = mounts({source_of(address), address, str(region), f"codearts:{region}"})
    return next((path / str(key) for path in there if _answers(path)), None)


def _answers(mountpoint: Path) -> bool:
    """Whether a mount can be read by us."""
    try:
        return asked((mountpoint / CONTROL_DIR).is_dir, _MOUNT_PATIENCE_S)
    except (NoAnswer, OSError):
        return False


def _copies() -> Path:
    """Return a directory of ours for copies that stay.

    Raises:
        OSError: there is one that is not private.
    """
    folder = Path(tempfile.gettempdir()) / f"codeartsfs-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    if not private or status.st_uid != os.geteuid():
        raise OSError(f"{folder} is not a private directory")
    return folder


async def _copy(log: "OpenLog", folder: Path) -> Path:
    """Write a log to a file of its name, whole or not at all."""
    target = folder / str(log.key)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    size_bytes = log.stat.size_bytes
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        try:
            for offset in range(0, size_bytes, _READ_BYTES):
                file.write(await log.read(offset, min(_READ_BYTES, size_bytes - offset)))
            file.flush()
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    return target
