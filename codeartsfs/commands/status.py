"""``codeartsfs status``: what mounts do, looked at in a way that no mount can hang."""

import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codeartsfs import human
from codeartsfs.asking import NoAnswer, Question, asked
from codeartsfs.commands import completion, exits
from codeartsfs.config import mount_point
from codeartsfs.names import CONTROL_DIR, STATUS_FILE
from codeartsfs.spelling import spell_part, spell_path

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT_S = 3.0
_EVERY_S = 1.0
_MOST_LINES = 5  # of what is under way, and of what was slow; --json has all
_WORDS = {
    "slot": "other downloads",
    "pace": "the rate limit",
    "bytes": "its bytes",
    "first_byte": "the first byte",
    "save": "the disk",
}
_CONDITIONS = {"down": "the API is down", "refused": "the API refuses the credentials"}
_WELL = frozenset({"ok", "private"})  # private ones are for somebody else to judge

Look = dict[str, Any]
"""What status.json says, with ``state``; of a mount that says nothing only why (``error``)."""
Row = tuple[str, str]


@click.command(short_help="Tell what mounts are doing, and what was slow.")
@click.argument("mountpoint", required=False, type=mount_point, shell_complete=completion.mounts)
@click.option("--json", "as_json", is_flag=True, help="For programs: a list, one object per mount.")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
def status(mountpoint: Path | None, as_json: bool, watch: bool) -> None:
    """Tell what the mount at MOUNTPOINT is doing, or what all mounts are.

    How the API is, what is being downloaded, how good the cache is, what was slow and why.

    Exit codes: 0 all is well, 1 something is wrong (the API is down or refuses the credentials, a
    mount is dead or does not answer), 2 usage, 4 nothing is mounted there, or anywhere.
    """
    dumb = not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    if watch and not as_json and dumb:
        raise click.UsageError("--watch needs a terminal; for programs there is --json --watch")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may have ignored it
    with suppress(KeyboardInterrupt) if watch else nullcontext():
        # One that is named is looked at even when it is gone, should it come back.
        named = None if mountpoint is None else mount_of(mountpoint)
        if mountpoint is not None and named is None:
            exits.refuse(
                f"{spell_path(mountpoint)} is not a mount of codeartsfs", exits.MOUNT_POINT
            )
        looker = _Looker(named)
        looks = looker.look()
        if not looks:
            if as_json:
                click.echo("[]")
            exits.refuse("nothing is mounted here by codeartsfs", exits.MOUNT_POINT)
        if watch:
            _watch(_from_now_on(looks, looker), as_json)
        elif as_json:
            click.echo(json.dumps(looks, indent=2))
        else:
            _print(looks)
        well = {"ok"} if named else _WELL
        sys.exit(0 if all(look["state"] in well for look in looks) else exits.FAILURE)


def _watch(stream: Iterator[list[Look]], as_json: bool) -> None:
    """Show what comes until Ctrl-C; other ends leave the terminal as it was, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not as_json:
        _show_live(stream)
    for looks in stream:
        click.echo(json.dumps(looks))


def _from_now_on(looks: list[Look], looker: "_Looker") -> Iterator[list[Look]]:
    while True:
        yield looks
        time.sleep(_EVERY_S)
        looks = looker.look()


def mount_of(path: Path) -> Path | None:
    """Return the mount of ours that a path is, or is in; None where there is none."""
    from codeartsfs.fs.mountpoint import mounts

    def among(path: str) -> Path | None:
        return next((p for p in (Path(path), *Path(path).parents) if p in ours), None)

    ours = set(mounts())
    # By words alone first: following links in a mount that hangs would hang.
    found = among(os.path.abspath(path))
    if found is None:
        with suppress(OSError, NoAnswer):
            found = among(asked(lambda: os.path.realpath(path), _TIMEOUT_S))
    return found


class _Looker:
    """Looks at one mount, or all there are."""

    def __init__(self, only: Path | None) -> None:
        self._only = only
        self._stuck: dict[Path, Question[bytes]] = {}  # whose processes could not be ended yet

    def look(self) -> list[Look]:
        """Return what each mount says; of several that hang, none waits for the other."""
        from codeartsfs.fs.mountpoint import mounts

        paths = [path for path in mounts() if self._only in (None, path)]
        self._stuck = {path: asked for path, asked in self._stuck.items() if not asked.over()}
        questions = {
            path: self._stuck.get(path)
            or Question((path / CONTROL_DIR / STATUS_FILE).read_bytes, _TIMEOUT_S)
            for path in paths
        }
        return [self._look_at(path, question) for path, question in questions.items()]

    def _look_at(self, path: Path, question: Question[bytes]) -> Look:
        try:
            said = json.loads(question.answer())
            # Before the API is taken for one that refuses us, it has to do so three times.
            refused = said.get("authentication", {}).get("refused")
            return {**said, "state": "refused" if refused else said["api"]["condition"]}
        except NoAnswer as failure:
            self._stuck[path] = question
            end = f"codeartsfs umount --lazy {shlex.quote(spell_path(path))}"
            state, error = "stuck", f"{failure}; end it, or: {end}"
        except OSError as failure:
            state, error = "unreadable", f"{STATUS_FILE} cannot be read: {failure.strerror}"
            if failure.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                clear = f"codeartsfs umount {shlex.quote(spell_path(path))}"
                state, error = "dead", f"its daemon is gone; clear it away with: {clear}"
            elif failure.errno == errno.EACCES:
                state, error = "private", "somebody else's: only who mounted it, and root, may look"
        except (ValueError, KeyError, TypeError):
            state, error = "unreadable", f"{STATUS_FILE} is not what it should be"
        return {"mountpoint": os.fspath(path), "state": state, "error": error}


# As text.


def _print(looks: Sequence[Look]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(_rendered(looks))
        return
    # As it is, whatever the width: this is for grep.
    for look in looks:
        click.echo(f"{spell_path(look['mountpoint'])}  {_heading(look)}")
        for label, value in _rows(look):
            click.echo(f"  {label:<12} {value}".rstrip())


def _show_live(stream: Iterator[list[Look]]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for looks in stream:
            live.update(_rendered(looks), refresh=True)


def _rendered(looks: Sequence[Look]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not looks:
        return Text("nothing is mounted")
    parts: list[RenderableType] = []
    for look in looks:
        colour = "green" if look["state"] in _WELL else "bold red"
        head = Text(f"{spell_path(look['mountpoint'])}  ", style="bold")
        parts.append(head.append(_heading(look), style=colour))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(min_width=14, style="dim")
        grid.add_column(overflow="fold")
        for label, value in _rows(look):
            grid.add_row(Text(f"  {label}"), Text(value))
        parts.append(grid)
    return Group(*parts)


def _heading(look: Look) -> str:
    if "pid" not in look:
        return f"{look['state']}: {look['error']}"
    since = human.span(max(0.0, time.time() - look["mounted_at_s"]))
    state = _CONDITIONS.get(look["state"], look["state"])
    return f"{state}, mounted {since} ago, pid {look['pid']}, version {look['version']}"


def _rows(look: Look) -> Iterator[Row]:
    """Yield labels and values; a daemon of another version may not tell all of it."""
    if "pid" not in look:
        return
    api, logs, kernel = look["api"], look["logs"], look["kernel"]
    yield "api", f"{api['condition']}{_since(api['since_s'])}, {look['endpoint']}"
    if api["error"]:
        pause_s = (api.get("next_try_at_s") or 0) - time.time()
        when = f"in {human.span(pause_s)}" if pause_s > 0 else "at the next request"
        yield "", f"{api['error']}; asked again {when}"
    elif api.get("last_error"):
        yield "", f"last error{_since(api['last_error_at_s'])}: {api['last_error']}"
    yield (
        "requests",
        f"{api['requests']:,}, {human.count(api['retries'], 'retry', 'retries')},"
        f" {api['throttled']:,} throttled,"
        f" {human.size(api.get('received_bytes', 0))} received",
    )
    yield "credentials", _credentials(look)
    for label, tier in (("disk cache", look["disk_cache"]), ("memory cache", look["memory_cache"])):
        if tier is not None:
            yield label, _tier(tier)
    hit_rate = logs.get("hit_rate")
    served = f", {hit_rate:.0%} without the API" if hit_rate is not None else ""
    yield "opens", f"{kernel['opens']:,}{served}; {logs['open_logs']} open now"
    flights = look.get("in_flight", [])
    yield "downloads", f"{logs['downloads']:,}; {len(flights)} under way"
    for flight in flights[:_MOST_LINES]:
        yield "", _flight(flight)
    for place, slow in enumerate(look.get("slowest", [])[:_MOST_LINES]):
        yield "" if place else "slowest", _slow(slow)


def _credentials(look: Look) -> str:
    told = look.get("authentication", {})
    text = str(look["credentials"])
    if told.get("expires_at_s"):
        text += f", expires in {human.span(max(0.0, told['expires_at_s'] - time.time()))}"
    if told.get("refused"):
        text += f", refused{_since(told['last_refusal_at_s'])}: {told['last_refusal']}"
    return text


def _tier(tier: Mapping[str, Any]) -> str:
    used = tier["used_bytes"]
    text = "not counted yet" if used is None else human.size(used)
    text += f" of {human.size(tier['limit_bytes'])}"
    if tier.get("logs") is not None:
        text += f", {human.count(tier['logs'], 'log')}"
    if tier.get("hit_rate") is not None:
        text += f", {tier['hit_rate']:.0%} found"
    return text


def _flight(flight: Mapping[str, Any]) -> str:
    size_bytes = flight["size_bytes"]
    of = f" of {human.size(size_bytes)}" if size_bytes is not None else ""
    who = "fetched ahead" if flight["background"] else f"{flight['waiters']} waiting"
    return (
        f"{flight['path']}: {human.size(flight['landed_bytes'])}{of},"
        f" {human.size(flight['bytes_per_s'])}/s, {human.span(flight['age_s'])},"
        f" {who}, now for {_word(flight['doing'])}"
    )


def _slow(slow: Mapping[str, Any]) -> str:
    spent = slow["waited_for"].items()
    reasons = ", ".join(f"{_word(what)} {human.span(seconds)}" for what, seconds in spent)
    ended = f"; failed: {slow['error']}" if slow["error"] else ""
    program = spell_part(slow["program"]) or "somebody"
    return (
        f"{human.span(slow['took_s'])} {slow['operation']} of {spell_path(slow['path'])} by"
        f" {program}{_since(slow['at_s'])}: {reasons}{ended}"
    )


def _word(what: str) -> str:
    return _WORDS.get(what, what)


def _since(at_s: float | None) -> str:
    return f" {human.span(max(0.0, time.time() - at_s))} ago" if at_s else ""
