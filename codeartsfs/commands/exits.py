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


def from_output(error: OSError) -> bool:
    """Whether an error is of what we print to, and not of what we work on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that nurseries have grouped."""
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner
