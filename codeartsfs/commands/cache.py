"""``codeartsfs cache``: looks after the cache directory, without API and without a mount."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codeartsfs import human
from codeartsfs.commands import completion, exits
from codeartsfs.commands.connect import cache_directory
from codeartsfs.commands.options import cache_dir_option, cache_size_option, config_option
from codeartsfs.config import size_bytes
from codeartsfs.names import CACHE_FORMAT, INDEX_FILE
from codeartsfs.spelling import spell, spell_part

if TYPE_CHECKING:
    from codeartsfs.builds.index import IndexedRecord
    from codeartsfs.logs.disk import DiskTier, Entry
    from codeartsfs.model import Job
    from codeartsfs.names import RecordId

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)")
_AGE_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _age_s(text: str) -> float:
    match = _AGE.fullmatch(str(text).strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not an age such as 12h, 30d or 2w")
    return float(match[1]) * _AGE_UNITS_S[match[2]]


@click.group()
def cache() -> None:
    """Look after the cache of logs. Needs neither the API nor a mount, and disturbs none.

    Exit codes: 0 done, 1 damaged entries found or something could not be done, 2 usage.
    """


def _on_cache(command: Callable[..., None], *, creates: bool = False) -> Any:
    """Give a command the disk tier, of a directory that is there unless the command creates it."""

    @cache_dir_option
    @cache_size_option
    @config_option
    @wraps(command)
    def with_tier(*, cache_dir: str | None, cache_size: int, **rest: Any) -> None:
        from codeartsfs.logs.disk import CacheDirectoryError, DiskTier

        root = cache_directory(cache_dir)
        if root is None:
            raise click.UsageError("there is no cache with --cache-dir none")
        if not creates and not root.is_dir():
            exits.refuse(f"there is no cache at {root}", exits.FAILURE)
        try:
            tier = DiskTier(root, cache_size)
        except CacheDirectoryError as error:
            exits.refuse(str(error), exits.USAGE)
        try:
            command(tier, root, **rest)
        except OSError as error:
            if exits.from_output(error):
                raise
            exits.refuse(f"{root}: {error.strerror or error}", exits.FAILURE)

    return with_tier


json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@cache.command()
@json_option
@_on_cache
def info(tier: "DiskTier", root: Path, as_json: bool) -> None:
    """Say what is in the cache, and how much may be."""
    entries = list(tier.entries())
    final: list[Entry] = []
    growing: list[Entry] = []
    damaged: list[Entry] = []
    for entry in entries:
        footer = tier.footer(entry.key)
        (damaged if footer is None else final if footer.final else growing).append(entry)
    pinned = [entry for entry in entries if entry.pinned]
    records, pinned_records = {entry.key.record for entry in entries}, tier.pinned_records()
    used_bytes, limit_bytes = _bytes(entries), tier.limit_bytes
    index_bytes = sum(file.stat().st_size for file in _index(root))
    file_system = os.statvfs(root)
    free_bytes = file_system.f_bavail * file_system.f_frsize
    if as_json:
        content = {
            "path": os.fspath(root),
            "format": CACHE_FORMAT,
            "limit_bytes": limit_bytes,
            "used_bytes": used_bytes,
            "logs": len(entries),
            "records": len(records),
            "final": _counted(final),
            "growing": _counted(growing),
            "damaged": _counted(damaged),
            "pinned": {**_counted(pinned), "records": len(pinned_records)},
            "index_bytes": index_bytes,
            "free_bytes": free_bytes,
        }
        click.echo(json.dumps(content, indent=2))
        return
    share = f", {used_bytes / limit_bytes:.0%} used" if limit_bytes else ""
    broken = [("  damaged", f"{_amount(damaged)} (see cache verify)")] if damaged else []
    _table(
        [
            ("cache", f"{root} (format {CACHE_FORMAT})"),
            ("limit", human.size(limit_bytes) + share),
            ("logs", f"{_amount(entries)}, of {human.count(len(records), 'record')}"),
            ("  final", _amount(final)),
            ("  may still grow", _amount(growing)),
            *broken,
            ("pinned", f"{_amount(pinned)}, of {human.count(len(pinned_records), 'record')}"),
            ("index", human.size(index_bytes)),
            ("free on disk", human.size(free_bytes)),
        ]
    )
    if _bytes(pinned) > limit_bytes:
        click.echo(
            "What is pinned is more than the limit: other logs are not kept."
            " Raise --cache-size, or unpin some."
        )


@cache.command("list")
@click.option("--logs", is_flag=True, help="Each log, not only records.")
@json_option
@_on_cache
def list_(tier: "DiskTier", root: Path, logs: bool, as_json: bool) -> None:
    """List the records in the cache, those used last first."""
    by_record: dict[RecordId, list[Entry]] = {record: [] for record in tier.pinned_records()}
    pinned = set(by_record)
    for entry in tier.entries():
        by_record.setdefault(entry.key.record, []).append(entry)
    indexed, jobs = _told(root, by_record)
    newest_first = sorted(by_record, key=lambda record: -_used_ns(by_record[record]))
    rows: list[tuple[str, ...]] = []
    documents = []
    now_s = time.time()
    for record in newest_first:
        entries = sorted(by_record[record], key=lambda entry: entry.key.file_name)
        build = indexed[record].build if record in indexed else None
        job = jobs.get(build.build_project_id) if build else None
        status = _status(indexed.get(record))
        used_ns = _used_ns(entries)
        documents.append(
            {
                "record": record,
                "bytes": _bytes(entries),
                "logs": [_log_document(tier, entry) for entry in entries] if logs else len(entries),
                "used_at_s": used_ns // 10**9 if entries else None,
                "pinned": record in pinned,
                "job": job.name if job else None,
                "build_number": build.build_no if build else None,
                "status": status or None,
            }
        )
        rows.append(
            (
                record,
                human.size(_bytes(entries)),
                human.count(len(entries), "log"),
                f"{human.span(now_s - used_ns / 1e9)} ago" if entries else "",
                "pinned" if record in pinned else "",
                _named(build.build_no if build else None, job),
                status,
            )
        )
        if logs:
            rows += [
                (
                    f"  {entry.key.file_name}",
                    human.size(entry.size_bytes),
                    "",
                    f"{human.span(now_s - entry.used_ns / 1e9)} ago",
                    "",
                    "",
                    _state(tier, entry),
                )
                for entry in entries
            ]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
    else:
        _table(rows, right={1, 2, 3})


@cache.command(short_help="Compare checksums, remove what is damaged.")
@click.option("--keep", is_flag=True, help="Leave damaged entries where they are.")
@_on_cache
def verify(tier: "DiskTier", root: Path, keep: bool) -> None:
    """Read all logs and compare their checksums; remove those that are damaged."""
    entries = list(tier.entries())
    damaged = unread = 0
    for entry in _with_progress(entries):
        try:
            if not tier.damaged(entry.key):
                continue
        except OSError as error:
            unread += 1
            click.echo(f"Error: {entry.key}: {error.strerror}", err=True)
            continue
        damaged += 1
        gone = not keep and tier.discard(entry.key)
        click.echo(f"{entry.key}: damaged{', removed' if gone else ''}")
    said = [f"{damaged:,} damaged"] * bool(damaged) + [f"{unread:,} cannot be read"] * bool(unread)
    click.echo(f"{_amount(entries)}: {', '.join(said) or 'all as they were saved'}")
    if said:
        sys.exit(exits.FAILURE)


@cache.command()
@click.option("--size", "to_size", type=size_bytes, metavar="SIZE", help="Down to this size.")
@click.option(
    "--older-than", type=_age_s, metavar="AGE", help="What was not opened since: 12h, 30d, 2w."
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go.")
@_on_cache
def prune(
    tier: "DiskTier", root: Path, to_size: int | None, older_than: float | None, dry_run: bool
) -> None:
    """Evict what was opened longest ago, but nothing pinned.

    Without options, down to --cache-size.
    """
    if to_size is None and older_than is None:
        to_size = tier.limit_bytes
    evicted = tier.evict(
        math.inf if to_size is None else to_size,
        0 if older_than is None else time.time_ns() - older_than * 1e9,
        dry_run=dry_run,
    )
    if dry_run:
        for entry in evicted:
            click.echo(f"{human.size(entry.size_bytes):>9}  {entry.key}")
    kept = _bytes(tier.entries()) - (_bytes(evicted) if dry_run else 0)
    verb = "would be evicted" if dry_run else "evicted"
    click.echo(f"{_amount(evicted)} {verb}, {human.size(kept)} left")
    if to_size is not None and kept > to_size:
        click.echo(f"Error: what is left is pinned, more than {human.size(to_size)}", err=True)
        sys.exit(exits.FAILURE)


@cache.command()
@click.option("--pinned-too", is_flag=True, help="Unpin all records, too.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_on_cache
def clear(tier: "DiskTier", root: Path, pinned_too: bool, yes: bool) -> None:
    """Remove all logs but those of pinned records."""
    going = [entry for entry in tier.entries() if pinned_too or not entry.pinned]
    if not yes:
        try:
            sure = click.confirm(f"Remove {_amount(going)} from {root}?")
        except click.Abort:
            click.echo()
            exits.refuse("nobody answered, nothing was removed; --yes does not ask", exits.FAILURE)
        if not sure:
            exits.refuse("nothing was removed", exits.FAILURE)
    if pinned_too:
        for record in tier.pinned_records():
            tier.unpin(record)
    evicted = tier.evict(0)
    left = list(tier.entries())
    click.echo(f"{_amount(evicted)} removed, {human.size(_bytes(left))} left")
    stuck = {entry.key for entry in going}.difference(entry.key for entry in evicted)
    if any(entry.key in stuck and not entry.pinned for entry in left):
        exits.refuse("not all could be removed", exits.FAILURE)


records_argument = click.argument(
    "records",
    metavar="RECORD...",
    nargs=-1,
    required=True,
    shell_complete=completion.records,
)


@cache.command(short_help="Never evict the logs of RECORD.")
@records_argument
@partial(_on_cache, creates=True)
def pin(tier: "DiskTier", root: Path, records: tuple[str, ...]) -> None:
    """Never evict the logs of RECORD, those that are here and those to come."""
    here = {entry.key.record for entry in tier.entries()}
    for record in _record_ids(records):
        try:
            tier.pin(record)
        except OSError as error:
            exits.refuse(f"{record} cannot be pinned: {error.strerror or error}", exits.FAILURE)
        note = "" if record in here else "; nothing of it is here yet, what comes will be kept"
        click.echo(f"{record}: pinned{note}")


@cache.command()
@records_argument
@_on_cache
def unpin(tier: "DiskTier", root: Path, records: tuple[str, ...]) -> None:
    """Let RECORD be evicted again."""
    for record in _record_ids(records):
        click.echo(f"{record}: {'unpinned' if tier.unpin(record) else 'was not pinned'}")


def _record_ids(texts: Iterable[str]) -> "list[RecordId]":
    """Parse record ids, also where they are the beginning of a path."""
    from codeartsfs.names import parse_record_id

    records = []
    for text in texts:
        record = parse_record_id(text.rstrip("/"))
        if record is None:
            raise click.UsageError(
                f"{text!r} is not the id of a record: 36 of 0-9, a-z and -; codeartsfs cache list"
                " shows it, and fetch --pin takes names of jobs, too"
            )
        records.append(record)
    return records


def _bytes(entries: "Iterable[Entry]") -> int:
    return sum(entry.size_bytes for entry in entries)


def _counted(entries: "Sequence[Entry]") -> dict[str, int]:
    return {"logs": len(entries), "bytes": _bytes(entries)}


def _amount(entries: "Sequence[Entry]") -> str:
    return f"{human.count(len(entries), 'log')}, {human.size(_bytes(entries))}"


def _used_ns(entries: "Iterable[Entry]") -> int:
    return max((entry.used_ns for entry in entries), default=0)


def _state(tier: "DiskTier", entry: "Entry") -> str:
    footer = tier.footer(entry.key)
    return "damaged" if footer is None else "final" if footer.final else "may grow"


def _log_document(tier: "DiskTier", entry: "Entry") -> dict[str, Any]:
    footer = tier.footer(entry.key)
    return {
        "log": entry.key.file_name,
        "bytes": entry.size_bytes,
        "used_at_s": entry.used_ns // 10**9,
        "final": footer.final if footer else None,
        "sha256": footer.sha256 if footer else None,
    }


def _named(number: int | None, job: "Job | None") -> str:
    name = spell(job.name) if job else ""
    return f"{name}/{number}" if name and number else name or (f"#{number}" if number else "")


def _status(known: "IndexedRecord | None") -> str:
    """Return how a build ended, as it or its stages were last told; empty where they were not."""
    from codeartsfs.builds.document import first_failed

    if known is None:
        return ""
    if known.build is not None and known.build.status:
        return spell_part(known.build.status.lower())
    return "failure" if first_failed(known.stages or ()) else ""


def _index(root: Path) -> list[Path]:
    return list((root / CACHE_FORMAT).glob(f"{INDEX_FILE}*"))


def _told(
    root: Path, records: "Iterable[RecordId]"
) -> "tuple[dict[RecordId, IndexedRecord], dict[str, Job]]":
    """Return what the index knows of records, and the jobs by the project of their builds."""
    if not _index(root):
        return {}, {}
    import trio

    from codeartsfs.builds.index import open_index

    async def ask() -> "tuple[dict[RecordId, IndexedRecord], dict[str, Job]]":
        async with open_index(root) as index:
            indexed = {record: (await index.records_from(record, 1))[record] for record in records}
            jobs = {job.build_project_id: job for job in await index.all_jobs()}
            return indexed, jobs

    return trio.run(ask)


def _with_progress(entries: "Sequence[Entry]") -> "Iterator[Entry]":
    """Yield entries, with a bar on a terminal for the bytes of those that are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield from entries
        return
    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=_bytes(entries))
        for entry in entries:
            yield entry
            progress.advance(bar, entry.size_bytes)


def _table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Print rows in columns, the last one as long as it is."""
    from rich.cells import cell_len  # Chinese takes two columns a character

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for number, (text, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - cell_len(text))
            cells.append(blanks + text if number in right else text + blanks)
        click.echo("  ".join(cells).rstrip())
