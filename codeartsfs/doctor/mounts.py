"""Mounts of ours that are there already: whether they answer, asked so that nothing can hang."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from codeartsfs.asking import NoAnswer, asked
from codeartsfs.doctor.findings import Finding, State, failed, ok, warning
from codeartsfs.fs import mountpoint
from codeartsfs.names import CONTROL_DIR, STATUS_FILE
from codeartsfs.spelling import spell_path

_TIMEOUT_S = 3.0


def mounts(chosen: Path | None) -> Sequence[Finding]:
    """Look at the chosen mount, or at all."""
    ours = mountpoint.mounts(by=os.geteuid())
    if chosen is None:
        return [_answers(path) for path in ours] or [ok("mount", "none just now")]
    try:
        path = mountpoint.real_path(chosen.parent) / chosen.name
        if path not in ours:
            path = mountpoint.real_path(path)
    except mountpoint.MountPointError as error:
        return [failed("mount", spell_path(str(error)), "give the directory that is mounted")]
    if path not in ours and path in mountpoint.mounts():
        found = f"{spell_path(path)} is somebody else's mount"
        return [warning("mount", found, "ask as who mounted it, or as root")]
    if path not in ours:
        found = f"{spell_path(path)} is not a mount of this user"
        return [failed("mount", found, f"mount it: codeartsfs mount {spell_path(path)}")]
    return [_chosen(path)]


def endpoint(chosen: Path) -> str | None:
    """Return the API of a mount of this user, as the mount tells it; None where it does not."""
    path = chosen.parent.resolve() / chosen.name
    if path not in mountpoint.mounts(by=os.geteuid()):
        return None
    try:
        told = json.loads(asked((path / CONTROL_DIR / STATUS_FILE).read_bytes, _TIMEOUT_S))
    except (NoAnswer, OSError, ValueError):
        return None
    address = told.get("endpoint")
    return address if isinstance(address, str) else None


def _answers(path: Path) -> Finding:
    """Find out whether a mount answers: by statfs, which always reaches the daemon."""
    name, shown = "mount", spell_path(path)
    try:
        asked(lambda: tuple(os.statvfs(path)), _TIMEOUT_S)
    except NoAnswer as failure:
        fix = f"end its process (pgrep -af 'codeartsfs mount'), then: codeartsfs umount {shown}"
        return failed(name, f"{shown}: {failure}", fix)
    except OSError as failure:
        if failure.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return failed(
                name,
                f"{shown} is dead: its daemon has ended",
                f"codeartsfs umount {shown}, or mount there again",
            )
        return warning(
            name, f"{shown}: {failure.strerror}", "it may be another user's: ask as who mounted it"
        )
    return ok(name, f"{shown} answers")


def _chosen(path: Path) -> Finding:
    answers = _answers(path)
    if answers.state is not State.OK:
        return answers
    witness = path / CONTROL_DIR / STATUS_FILE
    try:
        status = json.loads(asked(witness.read_bytes, _TIMEOUT_S))
    except (NoAnswer, OSError, ValueError) as failure:
        return warning(
            "mount", f"{answers.found}, but tells no state: {failure}", "ask as who mounted it"
        )
    api = status.get("api", {})
    found = f"{answers.found} (process {status.get('pid')}); its API is {api.get('condition')}"
    if api.get("condition") != "ok":
        return warning("mount", f"{found}: {api.get('error')}", "see API call below")
    return ok("mount", found)
