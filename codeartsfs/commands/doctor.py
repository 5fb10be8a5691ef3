"""``codeartsfs doctor``."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codeartsfs.commands import completion, exits
from codeartsfs.commands.connect import api_address, cache_directory, credentials_for
from codeartsfs.commands.files import SYSTEM_FILE, user_file
from codeartsfs.commands.options import (
    CONFIG_ERROR,
    api_options,
    cache_options,
    lenient_config_option,
)
from codeartsfs.config import mount_point

if TYPE_CHECKING:
    from codeartsfs.doctor.findings import Finding

_NAME_WIDTH = 13
_MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "-"}
_ASCII_MARKS = {"ok": "ok  ", "warning": "warn", "failed": "FAIL", "skipped": "-   "}


@click.command(short_help="Find out why it does not work, and say what to do.")
@click.argument("mountpoint", type=mount_point, required=False, shell_complete=completion.mounts)
@click.option("--json", "as_json", is_flag=True, help="A list of findings for programs.")
@api_options
@cache_options
@lenient_config_option
def doctor(mountpoint: Path | None, as_json: bool, **settings: Any) -> None:
    """Find out why mounting or reading does not work, and say what to do.

    Looks at FUSE, mounts, settings, credentials, the way to the API, the cache and this
    machine, with one call of the API. With MOUNTPOINT, at that mount, and at its API unless
    another is given.

    Exit codes: 0 all well, warnings included, 1 something failed, 2 usage.
    """
    findings = []
    for finding in _findings(mountpoint, settings):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        listed = [{**asdict(finding), "state": finding.state.value} for finding in findings]
        click.echo(json.dumps(listed, indent=2))
    failed = any(finding.state.value == "failed" for finding in findings)
    sys.stdout.flush()
    os._exit(exits.FAILURE if failed else 0)  # whatever hangs


def _findings(mountpoint: Path | None, settings: dict[str, Any]) -> Iterator["Finding"]:
    from codeartsfs.api.auth import CredentialsError
    from codeartsfs.doctor import access, cache, machine, mounts
    from codeartsfs.doctor.findings import examine, failed, ok

    # In processes of their own, before there are threads.
    yield from mounts.mounts(mountpoint)
    if mountpoint is not None and not settings["region"] and not settings["endpoint"]:
        settings = {**settings, "endpoint": mounts.endpoint(mountpoint)}
    yield from examine("FUSE device", machine.fuse_device)
    yield from examine("fusermount3", machine.fusermount)
    yield from examine("fuse.conf", machine.fuse_conf)
    yield from examine("kernel", machine.kernel)
    yield from examine("user", machine.user)
    yield from examine("limits", machine.limits)
    yield from examine("memory", lambda: machine.memory(settings["memory_cache"]))
    yield from examine("updatedb", machine.updatedb)
    yield from examine("versions", machine.versions)
    cache_dir = cache_directory(settings["cache_dir"])
    yield from examine("cache", lambda: cache.cache(cache_dir, settings["cache_size"]))
    yield _configuration()

    try:
        address = api_address(settings)
    except click.UsageError as error:
        fix = "see codeartsfs mount --help; they can be in a file or in the environment, too"
        yield failed("endpoint", error.format_message(), fix)
        yield from access.rest(("credentials", *access.STEPS), "there is no endpoint")
        return
    yield ok("endpoint", address)
    found = None
    try:
        found = known = credentials_for(address, settings)
    except CredentialsError as error:
        fix = "see README.md, Use: by the environment, by files, never by options"
        yield failed("credentials", str(error), fix)
    else:
        yield from examine("credentials", lambda: access.credentials(known))
    project = next(iter(settings["project"]), None)
    yield from access.way(address, settings["ca_file"], found, project)


def _configuration() -> "Finding":
    from codeartsfs.doctor.findings import failed, ok

    error = click.get_current_context().meta.get(CONFIG_ERROR)
    if error:
        return failed("configuration", error, "correct the file; without it defaults are used here")
    there = [os.fspath(path) for path in (SYSTEM_FILE, user_file()) if path.exists()]
    return ok("configuration", ", ".join(there) or "no files; environment and options only")


def _show(finding: "Finding") -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "✓✗→".encode(encoding)
        marks, arrow = _MARKS, "→"
    except UnicodeEncodeError:
        marks, arrow = _ASCII_MARKS, "->"
    mark = marks[finding.state.value]
    lines = [f"{mark} {finding.name:<{_NAME_WIDTH}} {finding.found}"]
    if finding.fix:
        lines.append(" " * (len(mark) + _NAME_WIDTH + 2) + f"{arrow} {finding.fix}")
    for line in lines:
        text = "".join(c if c.isprintable() else "?" for c in line)
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding))
