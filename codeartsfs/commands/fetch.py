"""``codeartsfs fetch``."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from codeartsfs import human
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
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from codeartsfs.batch import Batch, Wanted
    from codeartsfs.names import LogKey, RecordId
    from codeartsfs.selection import Selection
    from codeartsfs.session import Session

_MOST_BARS = 8
_DRAW_EVERY_S = 0.1
_LABEL_LENGTH = 32


@click.command()
@click.argument(
    "names",
    metavar="RECORD|JOB...",
    nargs=-1,
    required=True,
    shell_complete=completion.records_and_jobs,
)
@selection_options
@click.option("--pin", is_flag=True, help="Never evict the records; see cache pin.")
@click.option(
    "-j",
    "--jobs",
    type=WholeNumber(min=1),
    metavar="N",
    help="Logs downloaded at the same time.  [default: --max-downloads]",
)
@click.option("-q", "--quiet", is_flag=True, help="Say only what could not be had.")
@api_options
@cache_options
@logging_options
@config_option
def fetch(
    names: tuple[str, ...],
    level: str,
    stages: tuple[str, ...],
    builds: int,
    pin: bool,
    jobs: int | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Download logs into the cache, where mounts find them.

    What is there is not asked for again, so that the same command goes on where it was
    interrupted. Give a record, RECORD/stage3.info.log, a job of a --project (its latest
    build), JOB/412, JOB/latest-failed, or a path in a mount.

    Exit codes: 0 all is in the cache, 1 not all, 2 usage or configuration, 3 credentials,
    130 interrupted.
    """
    if settings["cache_dir"] == "none":
        raise click.UsageError("there is nothing to fetch into with --cache-dir none")
    settings["max_downloads"] = jobs or settings["max_downloads"]
    settings["builds_per_job"] = max(settings["builds_per_job"], builds)
    report = _Report(quiet)

    async def run(session: "Session", selection: "Selection") -> None:
        import trio

        from codeartsfs.batch import Batch

        disk = session.store.disk
        assert disk is not None

        async def keep(record: "RecordId") -> None:
            await trio.to_thread.run_sync(disk.pin, record)

        report.batch = Batch(
            session.store,
            selection,
            names,
            levels(level),
            stages,
            builds=builds,
            at_once=settings["max_downloads"],
            on_record=keep if pin else None,
        )
        with report:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(report.draw)
                await report.batch.run(report.take)
                nursery.cancel_scope.cancel()
            present = await trio.to_thread.run_sync(lambda: {entry.key for entry in disk.entries()})
            report.evicted = len(report.kept - present)

    try:
        use_session(settings, run)
    finally:
        report.sum_up()
    if report.failed or report.not_kept or report.evicted:
        sys.exit(exits.FAILURE)


class _Report:
    """What is said meanwhile and in the end: bars on a terminal, else a line for each log."""

    batch: "Batch | None" = None

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._console: Console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._bars: Progress | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and not quiet:
            self._bars = _bars(self._console)
        self._begun = time.monotonic()
        self._whole = False
        self._here_bytes = self._received_bytes = 0
        self._downloaded = self._cached = self._growing = 0
        self.failed = self.not_kept = self.evicted = 0
        self.kept: set[LogKey] = set()

    def __enter__(self) -> None:
        if self._bars is not None:
            self._bars.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._whole = kind is None
        if self._bars is not None:
            self._bars.stop()

    async def take(self, wanted: "Wanted") -> None:
        """Count one log that is here, or failed, and say so."""
        if trouble := wanted.failure or wanted.doubt:
            self.failed += 1
            said = f"{wanted.label}: {trouble}" if wanted.key else trouble
            # Through the bars, where there are some: they are drawn again below it.
            self._console.print(f"Error: {said}", markup=False, emoji=False, soft_wrap=True)
            return
        stat, received_bytes = wanted.stat, wanted.received_bytes
        growing = not (stat.final or stat.stateless)
        self._here_bytes += stat.size_bytes
        self._received_bytes += received_bytes
        cached = stat.size_bytes > 0 and not received_bytes
        self._cached += cached
        self._downloaded += not cached
        self._growing += growing
        self.not_kept += not wanted.kept
        if wanted.kept and wanted.key:
            self.kept.add(wanted.key)
        if not self._quiet and self._bars is None:
            word = "cached" if cached else "fetched"
            notes = " (may still grow)" * growing + " (not kept)" * (not wanted.kept)
            click.echo(f"{word:7} {human.size(stat.size_bytes):>9}  {wanted.label}{notes}")

    async def draw(self) -> None:
        """Keep the bars as they should be, until cancelled."""
        import trio

        if self._bars is None:
            return
        total = self._bars.add_task("", total=None, amount="", bytes=0)
        shown: dict[Wanted, TaskID] = {}
        assert self.batch is not None
        while True:
            coming = [wanted for wanted in self.batch.coming if wanted.log is not None]
            for wanted in [wanted for wanted in shown if wanted not in coming]:
                self._bars.remove_task(shown.pop(wanted))
            for wanted in coming:
                if wanted not in shown and len(shown) < _MOST_BARS:
                    shown[wanted] = self._bars.add_task(_short(wanted.label), amount="")
            for wanted, bar in shown.items():
                assert wanted.log is not None
                here_bytes, size_bytes = wanted.log.landed_bytes, wanted.stat.size_bytes
                self._bars.update(
                    bar,
                    completed=here_bytes,
                    total=size_bytes,
                    amount=f"{human.size(here_bytes)} of {human.size(size_bytes)}",
                )
            received_bytes = self._received_bytes + sum(each.received_bytes for each in coming)
            rate = received_bytes / max(time.monotonic() - self._begun, 0.1)
            self._bars.update(
                total,
                completed=self.batch.finished,
                total=self.batch.found or None,
                description=f"{self.batch.finished:,} of {human.count(self.batch.found, 'log')}",
                amount=f"{human.size(received_bytes)}, {human.size(rate)}/s",
            )
            await trio.sleep(_DRAW_EVERY_S)

    def sum_up(self) -> None:
        """Say in the end what became of it."""
        if self.batch is None:
            return
        here = self._downloaded + self._cached
        parts = []
        if self._downloaded:
            took_s = time.monotonic() - self._begun
            parts.append(
                f"{self._downloaded:,} downloaded ({human.size(self._received_bytes)}"
                f" in {took_s:.1f} s)"
            )
        if self._cached:
            parts.append(f"{self._cached:,} from the cache")
        if self._growing:
            parts.append(f"{self._growing:,} may still grow (fetched as far as written)")
        if self.not_kept:
            parts.append(f"{self.not_kept:,} not kept, see codeartsfs cache info")
        if self.evicted:
            parts.append(f"{self.evicted:,} evicted again by the others, see --cache-size")
        if self.failed:
            parts.append(f"{self.failed:,} could not be had")
        text = f"{human.count(here, 'log')}, {human.size(self._here_bytes)}"
        text += ": " + ", ".join(parts) if parts else ""
        if not self._whole:
            click.echo(f"Interrupted: {text}; the same command goes on with the rest", err=True)
        elif not self._quiet:
            click.echo(text)


def _short(label: str) -> str:
    """Cut a label in its middle to what leaves a bar room beside it."""
    half = _LABEL_LENGTH // 2
    return label if len(label) <= _LABEL_LENGTH else f"{label[: half - 1]}…{label[-half:]}"


def _bars(console: "Console") -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
