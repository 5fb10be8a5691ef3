"""``codeartsfs emulator``: the API on loopback, from recordings, for demos and experiments."""

import importlib.util
import os
import re
import signal
import time
from pathlib import Path

import click
import trio

from codeartsfs.emulator.faults import FaultPlan, UnknownFault, describe
from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.library import DEFAULT_RECORDINGS, BadRecording, Library
from codeartsfs.emulator.synthetic import MOST_BUILDS, MOST_JOBS


def _list_faults(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        for how, what in describe():
            click.echo(f"  {how:24} {what}")
        context.exit()


def _jobs_and_builds(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    jobs, builds = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= jobs <= MOST_JOBS and 1 <= builds <= MOST_BUILDS):
        raise click.BadParameter(
            f"{text!r} is not JOBS:BUILDS, from 1:1 to {MOST_JOBS}:{MOST_BUILDS}"
        )
    return jobs, builds


@click.command("emulator")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: any free one.")
@click.option(
    "--recordings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of recorded and live builds; default: those in the package.",
)
@click.option(
    "--synthetic",
    metavar="JOBS:BUILDS",
    callback=_jobs_and_builds,
    help="Serve a made-up project too, of so many jobs of so many builds each.",
)
@click.option(
    "--list-faults",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_faults,
    help="Show every fault word and end.",
)
@click.argument("faults", nargs=-1, metavar="[FAULT]...")
def emulator_command(
    port: int,
    recordings: Path | None,
    synthetic: tuple[int, int] | None,
    faults: tuple[str, ...],
) -> None:
    """Serve the CodeArts Build API on 127.0.0.1 from recordings, misbehaving on request.

    A FAULT is a word like throttle=3,retry-after=1 or task_log:error500=2.
    """
    for module in ("hypercorn", "starlette"):
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(
                "the emulator needs an extra: pip install 'codeartsfs[demo]'"
            )
    # Only now: the server is what needs the extra, and the command line must load without it.
    from codeartsfs.emulator.server import serving

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
