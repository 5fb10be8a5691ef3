"""The emulator as a process: the API on loopback, from recordings, for demos and experiments."""

import os
import signal
import time
from pathlib import Path

import click
import trio

from codeartsfs.emulator.faults import FaultPlan, UnknownFault
from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.library import DEFAULT_RECORDINGS, BadRecording, Library
from codeartsfs.emulator.server import serving


def serve(
    port: int, recordings: Path | None, synthetic: tuple[int, int] | None, faults: tuple[str, ...]
) -> None:
    """Serve until told to stop by a signal.

    Raises:
        click.ClickException: a mistake in what was asked for, or the port is in use.
    """
    accounts = Accounts.from_environment(os.environ)

    async def serve_until_told(library: Library, plan: FaultPlan) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with serving(library, plan, accounts, time.time, port) as url:
                click.echo(f"emulator: {url}")
                click.echo(_how_to_use(url, accounts, library.projects()))
                await signals.__anext__()

    try:
        plan = FaultPlan(faults)
        with Library(recordings or DEFAULT_RECORDINGS, time.time, synthetic) as library:
            trio.run(serve_until_told, library, plan)
    except (BadRecording, UnknownFault) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot listen on port {port}: {error.strerror}") from error


def _how_to_use(url: str, accounts: Accounts, projects: list[str]) -> str:
    demo = Accounts()

    def shown(name: str, suffix: str) -> str:
        # The demo's own secrets are no secrets; those from the environment are not repeated.
        default = getattr(demo, name)
        is_demo = getattr(accounts, name) == default
        return str(default) if is_demo else f"$CODEARTSFS_EMULATOR_{suffix}"

    return "\n".join(
        [
            f"  endpoint and IAM: {url}",
            f"  token:            {shown('token', 'TOKEN')}",
            f"  AK, SK:           {shown('access_key', 'AK')} {shown('secret_key', 'SK')}",
            f"  user, password:   {shown('user', 'USER')} {shown('password', 'PASSWORD')}"
            f"  (account {demo.domain}, project {demo.region})",
            f"  mount --project:  {' '.join(projects)}",
            f"  faults:           curl -d '[\"throttle=3\"]' {url}/_emulator/faults",
            f"  calls so far:     curl {url}/_emulator/calls",
        ]
    )
