"""``codeartsfs completion``, and what completes the arguments of commands at TAB.

Nothing here asks the API or looks into a mount: a TAB must neither cost nor hang. Names come from
outside and end on a command line, so each is quoted, by the shell or here.
"""

import json
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from codeartsfs.commands import exits
from codeartsfs.commands.connect import cache_directory
from codeartsfs.names import CACHE_FORMAT, INDEX_FILE
from codeartsfs.spelling import spell, spell_all

VARIABLE = "_CODEARTSFS_COMPLETE"
_Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_MOST_SHOWN = 200
_BUSY_S = 0.2
_LATEST = ("latest", "latest-failed", "latest-running", "latest-success")


@add_completion_class
class _QuotingBash(BashComplete):
    """Bash takes what it is given as if it had been typed; zsh and fish quote by themselves."""

    def format_completion(self, item: CompletionItem) -> str:
        if item.type != "plain":
            return f"{item.type},{item.value}"
        quoted = shlex.quote(item.value)
        return f"{item.type},{quoted}".replace("\\", r"\\")  # click's script takes one away


@add_completion_class
class _LoadedZsh(ZshComplete):
    """Works at the second TAB, too: then zsh calls the script that it loaded at the first."""

    source_template = ZshComplete.source_template.replace(
        "== loadautofunc ]]", "== (loadautofunc|shfunc) ]]"
    )


@add_completion_class
class _WholeFish(FishComplete):
    """Offers names and descriptions with commas whole."""

    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


# What completes arguments: for ``shell_complete=``.


def directories(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What ``click.Path`` completes, for arguments that click must not look at: it could hang."""
    return [CompletionItem(incomplete, type="file")]


def mounts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete mounts of ours, dead or alive; other directories where none fits."""
    from codeartsfs.fs import mountpoint

    paths = map(os.fspath, mountpoint.mounts())
    found = [CompletionItem(path) for path in paths if path.isprintable()]
    return _fitting(found, incomplete) or directories(ctx, param, incomplete)


def regions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from codeartsfs.api.endpoints import REGIONS

    return _fitting([CompletionItem(region) for region in REGIONS], incomplete)


def _forgiving(complete: _Completer) -> _Completer:
    """Let a completer offer nothing where the cache holds what it does not understand."""

    @wraps(complete)
    def forgiving(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            return complete(ctx, param, incomplete)
        except (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError):
            return []

    return forgiving


@_forgiving
def records(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete ids of records that the cache has heard of, those heard of last first."""
    sql = (
        "SELECT record, build, build_project FROM records"
        " WHERE substr(record, 1, ?) = ? ORDER BY told_s DESC LIMIT ?"
    )
    rows = _rows(ctx, sql, len(incomplete), incomplete, _MOST_SHOWN)
    jobs = {project: name for name, project in _jobs(ctx)}
    return [
        CompletionItem(record, help=_described(build, jobs.get(project, "")))
        for record, build, project in rows
    ]


@_forgiving
def jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of jobs, as in by-job/; after the slash, their builds."""
    name, slash, _ = incomplete.partition("/")
    if not slash:
        return _fitting([CompletionItem(name) for name, _ in _jobs(ctx)], incomplete)
    sql = (
        "SELECT build_no, build FROM records WHERE build_project = ? AND build_no IS NOT NULL"
        " ORDER BY build_no DESC LIMIT ?"
    )
    found = [CompletionItem(f"{name}/{latest}") for latest in _LATEST]
    for job, project in _jobs(ctx):
        if job == name:
            found += [
                CompletionItem(f"{name}/{number}", help=_described(stored))
                for number, stored in _rows(ctx, sql, project, _MOST_SHOWN)
            ]
    return _fitting(found, incomplete) if len(found) > len(_LATEST) else []


def records_and_jobs(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete what names builds: a record, a job, a job's build, a path in a mount."""
    if incomplete.startswith(("/", ".", "~")):
        return [CompletionItem(incomplete, type="file")]
    return jobs(ctx, param, incomplete) + records(ctx, param, incomplete)


def _fitting(items: list[CompletionItem], incomplete: str) -> list[CompletionItem]:
    return [item for item in items if item.value.startswith(incomplete)]


# A quick look at the index of builds, as builds/index.py writes it.


def _jobs(ctx: click.Context) -> Iterator[tuple[str, str]]:
    """Return jobs: names as in by-job/, and the ids their builds know them by."""
    for [stored] in _rows(ctx, "SELECT jobs FROM projects"):
        told = {row[0]: row for row in _unsealed(stored)}
        names = spell_all({identity: row[1] for identity, row in told.items()})
        for name, identity in names.items():
            if not name.startswith("-"):  # which would be taken for an option
                yield name, told[identity][2]


def _described(build: str | None, job: str = "") -> str:
    """Say what a build is: ``web-app #412 failure on master``."""
    if build is None:
        return job
    _, number, _, status, _, _, _, _, branch, *_ = _unsealed(build)
    words = (job, number and f"#{number}", status.lower(), branch and f"on {branch}")
    text = " ".join(word for word in words if word)
    return text if text.isprintable() else spell(text)


def _unsealed(stored: str) -> Any:
    return json.loads(stored[8:])  # after the checksum


def _rows(ctx: click.Context, sql: str, *values: object) -> list[Any]:
    chosen = ctx.params.get("cache_dir") or os.environ.get("CODEARTSFS_CACHE_DIR")
    directory = cache_directory(chosen)
    if directory is None or not (index := directory / CACHE_FORMAT / INDEX_FILE).is_file():
        return []
    # What nobody writes is read without leaving SQLite's side files behind.
    written = index.with_name(index.name + "-wal").exists()
    uri = f"{index.as_uri()}?{'mode=ro' if written else 'immutable=1'}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as file:
        return file.execute(sql, values).fetchall()


# The command.


@click.command(short_help="Print or install what completes commands at TAB.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--install", is_flag=True, help="Write it to where the shell looks, for this user.")
def completion(shell: str, install: bool) -> None:
    """Print the script that makes SHELL complete commands, options, records and jobs."""
    from codeartsfs.cli import main

    shell_class = get_completion_class(shell)
    assert shell_class is not None
    script = shell_class(main, {}, "codeartsfs", VARIABLE).source().strip() + "\n"
    if not install:
        click.echo(script, nl=False)
        return
    file, advice = _place(shell)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script)
    except OSError as error:
        exits.refuse(f"cannot write {file}: {error.strerror}", exits.FAILURE)
    click.echo(f"{file}: written; {advice}")


def _place(shell: str) -> tuple[Path, str]:
    """Return where a shell looks for completions of a user, and what else it takes."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    if shell == "fish":
        return settings / "fish/completions/codeartsfs.fish", "fish finds it by itself"
    if shell == "bash":
        folder = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data / "bash-completion")
        file = folder / "completions/codeartsfs"
        return file, "new shells find it where the package bash-completion is installed"
    folder = data / "zsh/site-functions"
    return folder / "_codeartsfs", (
        "it needs these lines in ~/.zshrc, once:\n"
        f"  fpath=({shlex.quote(os.fspath(folder))} $fpath)\n"
        "  autoload -Uz compinit && compinit"
    )
