"""How commands end: documented exit codes, and one line that says why."""

import sys
from typing import NoReturn

import click

FAILURE = 1
USAGE = 2  # click's own
CREDENTIALS = 3
MOUNT_POINT = 4
NO_FUSE = 5
INTERRUPTED = 130  # as the shell has it for Ctrl-C


def refuse(message: str, code: int) -> NoReturn:
    """End the command with one line and an exit code."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that nurseries have grouped."""
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner
