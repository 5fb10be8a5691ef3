"""Mount points: what is mounted where, what stands in the way, and unmounting."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from codeartsfs.asking import NoAnswer, asked

FS_TYPE = "fuse.codeartsfs"
_UNMOUNT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 5.0


class MountPointError(Exception):
    """The mount point cannot be used as asked; the message says why and what to do."""


class NoFuseError(Exception):
    """This machine or user cannot mount FUSE file systems; the message says what is missing."""


def mounted_type(path: Path) -> str | None:
    """Return the file system type of the topmost mount at exactly this path, None for none."""
    fields = _mounted().get(path)
    return _type(fields) if fields else None


def mounts(sources: Collection[str] | None = None, *, by: int | None = None) -> list[Path]:
    """Return where something of ours is mounted, dead or alive, without touching it.

    Args:
        sources: only what is mounted from one of these; see ``source_of``.
        by: only what this user, a uid, has mounted.
    """
    return [
        path
        for path, fields in _mounted().items()
        if _type(fields) == FS_TYPE
        and (sources is None or _unescape(fields[-2]) in sources)
        and (by is None or f"user_id={by}" in fields[-1].split(","))
    ]


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that a path is on."""
    mounted, resolved = _mounted(), path.resolve()
    above = (resolved, *resolved.parents)
    return _type(next(mounted[point] for point in above if point in mounted))


def _mounted() -> dict[Path, list[str]]:
    """Return by mount point what proc(5) mountinfo says of it, of several the topmost.

    The fifth field is the mount point; behind the lone dash are type, source and options.
    """
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    lines = [line.split(" ") for line in text.splitlines()]
    return {Path(_unescape(fields[4])): fields for fields in lines}


def _type(fields: list[str]) -> str:
    return fields[fields.index("-") + 1]


def source_of(endpoint: str) -> str:
    """Return what a mount of an endpoint is mounted from, as mount(8) and df(1) show it."""
    # The colon says that it is not on this machine.
    return f"codearts:{urlsplit(endpoint).netloc}"


def check_fuse() -> None:
    """Make sure that mounting can work here.

    Raises:
        NoFuseError: it cannot.
    """
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise NoFuseError(
            "there is no /dev/fuse here: load the kernel module (modprobe fuse), or give the"
            " container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
        ) from None
    except OSError as error:
        raise NoFuseError(f"/dev/fuse cannot be opened: {error.strerror}") from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise NoFuseError("fusermount3 is missing: install the package fuse3")


def check_options(options: frozenset[str]) -> None:
    """Make sure that fuse.conf(5) permits what was asked for.

    Raises:
        MountPointError: it does not.
    """
    others = options & {"allow_other", "allow_root"}
    if not others or os.geteuid() == 0:
        return
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise MountPointError(f"-o {min(others)} needs the line user_allow_other in /etc/fuse.conf")


def check_owner(uid: int | None, gid: int | None, directory_mode: int) -> None:
    """Make sure that who mounts can enter what is shown: the watchdog reads through the mount.

    Raises:
        MountPointError: he cannot.
    """
    if os.geteuid() == 0:
        return
    if uid in (None, os.geteuid()):
        permitted = directory_mode >> 6
    elif gid is None or gid in (os.getegid(), *os.getgroups()):
        permitted = directory_mode >> 3
    else:
        permitted = directory_mode
    if permitted & 0o5 != 0o5:
        raise MountPointError(
            f"uid {os.geteuid()}, who mounts, could not enter directories of mode"
            f" {directory_mode:03o} himself: change uid=, gid=, umask= or dmask="
        )


def prepare(path: Path) -> Path:
    """Return the real path of a mount point, cleared of a dead mount of ours.

    Raises:
        MountPointError: it is missing, no directory, or something is mounted there already.
    """
    if _is_dead(path):
        resolved = real_path(path.parent) / path.name
        if mounted_type(resolved) != FS_TYPE:
            raise MountPointError(f"{path}: a dead mount of another kind is in the way")
        unmount(path)
    try:
        resolved = real_path(path, strict=True)
    except OSError as error:
        if error.errno == errno.ELOOP:
            said = f"mount point {path} is a symbolic link in a circle"
            raise MountPointError(said) from None
        raise MountPointError(
            f"mount point {path}: {error.strerror}; create it with: mkdir -p {path}"
        ) from None
    if not resolved.is_dir():
        raise MountPointError(f"mount point {path} is not a directory")
    kind = mounted_type(resolved)
    if kind == FS_TYPE:
        raise MountPointError(f"{path} is mounted already; end that with: codeartsfs umount {path}")
    return resolved


def unmount(path: Path, *, lazy: bool = True) -> None:
    """Unmount a mount of ours, dead or alive. A lazy one leaves open files open.

    Raises:
        MountPointError: nothing of ours is mounted there, or it is busy.
    """
    resolved = Path(os.path.abspath(path))
    kind = mounted_type(resolved)
    if kind != FS_TYPE:  # else it is not looked at: one that hangs would hang us
        dead = _is_dead(path)
        resolved = real_path(path.parent) / path.name if dead else real_path(path)
        kind = mounted_type(resolved)
    if kind != FS_TYPE:
        raise MountPointError(f"{path} is not a mount of codeartsfs")
    if os.geteuid() != 0 and resolved not in mounts(by=os.geteuid()):
        raise MountPointError(f"{path} is somebody else's: who mounted it, or root, can unmount it")
    if not lazy:
        _is_dead(resolved)  # raises where the daemon does not answer: unmounting would wait for it
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), os.fspath(resolved)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), os.fspath(resolved)]
    try:
        outcome = subprocess.run(
            command, capture_output=True, text=True, timeout=_UNMOUNT_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise NoFuseError(f"{command[0]} is missing: install the package fuse3") from None
    except subprocess.TimeoutExpired:
        raise MountPointError(f"{path}: {command[0]} did not come back") from None
    if outcome.returncode != 0:
        # umount(8) says "umount: DIR: target is busy.", fusermount3 much the same.
        said = " ".join(outcome.stderr.split()).rstrip(".")
        reason = said.rpartition(": ")[2] or f"exit code {outcome.returncode}"
        advice = "" if lazy else "; close what is open there and leave the directory, or use --lazy"
        raise MountPointError(f"cannot unmount {path}: {reason}{advice}")


def _is_dead(path: Path) -> bool:
    """Whether a FUSE mount is there whose daemon is gone ("endpoint is not connected").

    Asked by statfs, which always reaches the daemon: stat is answered from the kernel's
    memory for as long as the attributes of the root live, daemon or not. Only of FUSE: what
    is mounted when somebody looks would be mounted by the question.

    Raises:
        MountPointError: the daemon is there, but does not answer.
    """
    kind = mounted_type(real_path(path.parent) / path.name)
    if kind is None or not kind.startswith("fuse"):
        return False
    try:
        asked(lambda: tuple(os.statvfs(path)), _ANSWER_TIMEOUT_S)
    except NoAnswer as error:
        advice = f"end it, or: codeartsfs umount --lazy {path}"
        raise MountPointError(f"{path}: {error}; {advice}") from None
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def real_path(path: Path, *, strict: bool = False) -> Path:
    """Return a path without symbolic links, though it may lie in a mount that hangs.

    Raises:
        MountPointError: it does.
        OSError: it is to be there, and is not (``strict``).
    """
    try:
        return Path(asked(lambda: os.path.realpath(path, strict=strict), _ANSWER_TIMEOUT_S))
    except NoAnswer as error:
        raise MountPointError(f"{path}: {error}") from None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
