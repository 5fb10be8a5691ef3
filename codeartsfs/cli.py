"""The command line. A user's mistake ends in one clear line and a documented exit code."""

from importlib import import_module

import click

from codeartsfs import __version__

# Each is loaded when it is called, and light enough for all to be loaded for --help.
_COMMANDS = {
    "cache": "codeartsfs.commands.cache:cache",
    "demo": "codeartsfs.emulator.demo:demo_command",
    "emulator": "codeartsfs.emulator.command:emulator_command",
    "fetch": "codeartsfs.commands.fetch:fetch",
    "grep": "codeartsfs.commands.grep:grep",
    "mount": "codeartsfs.commands.mount:mount",
    "open": "codeartsfs.commands.open:open_log",
    "refresh": "codeartsfs.commands.mount:refresh",
    "status": "codeartsfs.commands.status:status",
    "umount": "codeartsfs.commands.mount:umount",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="codeartsfs")
def main() -> None:
    """Huawei Cloud CodeArts build logs as ordinary files."""
