"""What a mount is told to do, once all sources are merged, checked and frozen.

Precedence is click's own: flag > environment > file > default. This module has the types of
the values.
"""

import grp
import math
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import click
import platformdirs

from codeartsfs.names import ProjectId, parse_project_id

_SECRET = re.compile(
    r"(.*[_.])?(token|password|passwd|secret|sk|secret_key|secret_access_key)", re.I
)
_HIGHEST_ID = 2**32 - 2  # the one above means: none

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
# Options of mount(8) and fstab that say nothing to a file system.
_FSTAB_ONLY = re.compile(
    r"(no)?auto|nofail|_netdev|(no)?(users?|owner|group)|users?=.*|defaults|[xX]-.*|comment=.*"
)
# What the kernel or libfuse takes as it is. Read-only and without programs we are anyway.
PASSED_ON = frozenset({"allow_other", "allow_root", "async", "noatime", "nodiratime", "relatime"})
_ALWAYS = frozenset({"ro", "nosuid", "nodev", "noexec", "default_permissions"})
WITH_VALUES = ("uid=", "gid=", "umask=", "fmask=", "dmask=", "fsname=")


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """One use of the API and of the cache."""

    endpoint: str
    ca_file: str | None
    projects: tuple[ProjectId, ...]
    builds_per_job: int
    max_downloads: int
    max_requests_per_second: float
    cache_dir: Path | None
    cache_size_bytes: int
    memory_cache_bytes: int
    refresh_s: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What ``-o`` says, as far as it says something to this file system.

    Attributes:
        kernel: what the kernel or libfuse takes as it is.
        uid: who owns what is shown, None: whoever mounts; ``gid`` likewise.
        file_mask: permissions that files do not have; ``directory_mask`` likewise.
        source: what df(1) and mount(8) show, None: the API's host.
    """

    kernel: frozenset[str] = frozenset()
    uid: int | None = None
    gid: int | None = None
    file_mask: int = 0
    directory_mask: int = 0
    source: str | None = None


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount."""

    mountpoint: Path
    session: SessionConfig
    deadline_s: float
    stat_size: str
    prefetch: int
    crawlers: frozenset[str] | None  # None: those that are known
    options: MountOptions


def default_cache_dir() -> Path:
    return Path(platformdirs.user_cache_dir("codeartsfs"))


def size_bytes(text: str) -> int:
    """Parse a number of bytes: ``512M``, ``2G``, ``1.5GiB``, ``4096``; units are powers of 1024."""
    match = _SIZE.fullmatch(str(text).strip())
    size = float(match[1]) * 1024.0 ** " KMGT".index(match[2].upper() or " ") if match else math.inf
    if not size < 2.0**63:
        raise click.BadParameter(f"{text!r} is not a size such as 512M or 2G")
    return int(size)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which is in no range


def seconds(text: str) -> float:
    """Parse a time in seconds, at least 0.1."""
    value = _number(text)
    if not 0.1 <= value < math.inf:
        raise click.BadParameter(f"{text!r} is not a number of seconds from 0.1 upwards")
    return value


def rate(text: str) -> float:
    """Parse a number per second, 0 for no limit."""
    value = _number(text)
    if not value >= 0:
        raise click.BadParameter(f"{text!r} is not a rate from 0 upwards")
    return value


def mount_point(text: str | Path) -> Path:
    """Parse a mount point; an empty one is a variable that was not set, not this directory."""
    if not os.fspath(text):
        raise click.BadParameter("the mount point is empty")
    return Path(text)


def names(text: str) -> frozenset[str]:
    """Parse a list of names separated by commas; ``none`` or nothing is an empty one."""
    chosen = frozenset(filter(None, (name.strip() for name in str(text).split(","))))
    return frozenset() if chosen == {"none"} else chosen


def project_id(text: str) -> ProjectId:
    """Parse the id of a CodeArts project."""
    project = parse_project_id(str(text).strip())
    if project is None:
        raise click.BadParameter(
            f"{text!r} is not the id of a CodeArts project: 32 of 0-9 and a-z, as in the"
            " address of the project's page"
        )
    return project


def mount_options(text: str) -> MountOptions:
    """Parse ``-o`` as mount(8) has it; of two that contradict each other the last one counts."""
    kernel, values = set(), {}
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if option in PASSED_ON:
            kernel.add(option)
        elif name + equals in WITH_VALUES:
            values[name] = value
        elif option == "rw":
            raise click.BadParameter("the mount is read-only: leave rw out, or say ro")
        elif option not in _ALWAYS and not _FSTAB_ONLY.fullmatch(option):
            known = sorted({*PASSED_ON, *WITH_VALUES})
            advice = did_you_mean(name + equals, known) or f"; known are: {', '.join(known)}"
            raise click.BadParameter(f"unknown mount option {option!r}{advice}")
    mask = _mask("umask", values.get("umask", "0"))
    source = values.get("fsname")
    if source is not None and not (source and source.isprintable() and "\\" not in source):
        raise click.BadParameter(f"fsname={source}: not a name that can be shown")
    return MountOptions(
        frozenset(kernel),
        uid=_owner("uid", values["uid"]) if "uid" in values else None,
        gid=_owner("gid", values["gid"]) if "gid" in values else None,
        file_mask=_mask("fmask", values["fmask"]) if "fmask" in values else mask,
        directory_mask=_mask("dmask", values["dmask"]) if "dmask" in values else mask,
        source=source,
    )


def _owner(kind: str, text: str) -> int:
    """Parse a user's (``uid``) or group's (``gid``) name or number."""
    if text.isascii() and text.isdigit():
        if int(text[:20]) <= _HIGHEST_ID:
            return int(text)
        raise click.BadParameter(f"{kind}={text} is larger than {_HIGHEST_ID}")
    try:
        return pwd.getpwnam(text).pw_uid if kind == "uid" else grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):  # a ValueError where no name can be so
        what = "user" if kind == "uid" else "group"
        raise click.BadParameter(f"{kind}={text}: there is no such {what} here") from None


def _mask(kind: str, text: str) -> int:
    if not re.fullmatch("0*[0-7]{1,3}", text):
        raise click.BadParameter(f"{kind}={text} is not octal from 000 to 777, such as 027")
    return int(text, 8)


class WholeNumber(click.IntRange):
    """A number from ``min`` upwards. The largest one is only what formats can hold."""

    def _describe_range(self) -> str:
        return f"from {self.min} upwards"


def is_secret(name: str) -> bool:
    """Tell whether a setting or variable of this name holds a secret, not the name of a file."""
    return _SECRET.fullmatch(name.replace("-", "_")) is not None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: what may have been meant, if anything."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
