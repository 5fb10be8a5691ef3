"""The command line. A user's mistake ends in one clear line and a documented exit code."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from codeartsfs import __version__
from codeartsfs.commands import exits
from codeartsfs.config import did_you_mean

# Each is loaded when it is called, and light enough for all to be loaded for --help.
_COMMANDS = {
    "cache": "codeartsfs.commands.cache:cache",
    "completion": "codeartsfs.commands.completion:completion",
    "config": "codeartsfs.commands.config:config",
    "demo": "codeartsfs.commands.emulator:demo",
    "doctor": "codeartsfs.commands.doctor:doctor",
    "emulator": "codeartsfs.commands.emulator:emulator",
    "fetch": "codeartsfs.commands.fetch:fetch",
    "grep": "codeartsfs.commands.grep:grep",
    "log-level": "codeartsfs.commands.log_level:log_level",
    "mount": "codeartsfs.commands.mount:mount",
    "open": "codeartsfs.commands.open:open_log",
    "refresh": "codeartsfs.commands.mount:refresh",
    "status": "codeartsfs.commands.status:status",
    "umount": "codeartsfs.commands.mount:umount",
}

if "_CODEARTSFS_COMPLETE" in os.environ:  # click chooses the shell before it loads a command
    import_module("codeartsfs.commands.completion")


class _Commands(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        if sys.stdout is None:  # it was closed; what is opened now takes its number
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # to the end
        # Click itself ends quietly where nobody reads any more.
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if not exits.from_output(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # no second try at the end
            exits.refuse(f"cannot write the output: {error.strerror}", exits.FAILURE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Click's own suggestions are among commands that are loaded already.
        if args[0] not in _COMMANDS and not ctx.resilient_parsing and args[0][:1] != "-":
            advice = did_you_mean(args[0], _COMMANDS)
            raise click.UsageError(f"No such command {args[0]!r}{advice}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # of which click would make 1: of grep "nothing found"
            if sys.stderr.isatty():
                click.echo(err=True)  # the shell's prompt, not behind the ^C
            sys.exit(exits.INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="codeartsfs")
def main() -> None:
    """Huawei Cloud CodeArts build logs as ordinary files."""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Return all commands, those of groups too, with their full names."""
    waiting: list[tuple[str, click.Command]] = [("codeartsfs", main)]
    while waiting:
        name, command = waiting.pop(0)
        yield name, command
        if isinstance(command, click.Group):
            ctx = click.Context(command)
            for each in command.list_commands(ctx):
                inner = command.get_command(ctx, each)
                assert inner is not None
                waiting.append((f"{name} {each}", inner))
