"""``codeartsfs emulator`` and ``codeartsfs demo``: what can be tried without an account."""

import importlib.util
import re
import sys
from pathlib import Path

import click

from codeartsfs.commands import exits


def _need_extra(command: str) -> None:
    for module in ("hypercorn", "starlette"):
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(
                f"the {command} needs an extra: pip install 'codeartsfs[demo]'"
            )


def _list_faults(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from codeartsfs.emulator.faults import describe

        for how, what in describe():
            click.echo(f"  {how:24} {what}")
        context.exit()


def _jobs_and_builds(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    from codeartsfs.emulator.synthetic import MOST_BUILDS, MOST_JOBS

    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    jobs, builds = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= jobs <= MOST_JOBS and 1 <= builds <= MOST_BUILDS):
        raise click.BadParameter(
            f"{text!r} is not JOBS:BUILDS, from 1:1 to {MOST_JOBS}:{MOST_BUILDS}"
        )
    return jobs, builds


@click.command(short_help="Serve the API on 127.0.0.1, from recordings.")
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
def emulator(
    port: int,
    recordings: Path | None,
    synthetic: tuple[int, int] | None,
    faults: tuple[str, ...],
) -> None:
    """Serve the CodeArts Build API on 127.0.0.1 from recordings, misbehaving on request.

    A FAULT is a word like throttle=3,retry-after=1 or task_log:error500=2.
    """
    _need_extra("emulator")
    from codeartsfs.emulator.command import serve

    serve(port, recordings, synthetic, faults)


@click.command(short_help="Show recorded builds: no account, no network.")
@click.option("--stay", is_flag=True, help="No tour: keep the mount to play with, until Ctrl-C.")
def demo(stay: bool) -> None:
    """Mount recorded builds, with no account and no network, and show what that is good for.

    Takes half a minute and leaves nothing behind.

    Exit codes: 0 done, 1 failure, 5 no FUSE here.
    """
    _need_extra("demo")
    from codeartsfs.emulator.demo import show
    from codeartsfs.fs import mountpoint

    try:
        mountpoint.check_fuse()
    except mountpoint.NoFuseError as error:
        exits.refuse(str(error), exits.NO_FUSE)
    sys.exit(show(stay=stay))
