"""``codeartsfs log-level``."""

import errno
import os
from pathlib import Path

import click

from codeartsfs.commands import completion, exits
from codeartsfs.config import mount_point

_TIMEOUT_S = 10.0
_REASONS = {
    errno.EPERM: "only who mounted it, or root, may change that",
    errno.EACCES: "somebody else's: only who mounted it, or root, may change that",
    errno.ENOTCONN: "its daemon is gone; clear it away with codeartsfs umount, or mount again",
}


@click.command("log-level", short_help="Log more, or less, without a restart.")
@click.argument("mountpoint", type=mount_point, shell_complete=completion.mounts)
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"]))
def log_level(mountpoint: Path, level: str) -> None:
    """Say what is worth a line in the log of the mount at MOUNTPOINT, until it is unmounted.

    Exit code 4 where it is no mount of codeartsfs, or one that does not answer.
    """
    from codeartsfs.asking import NoAnswer, asked

    def order() -> bytes:
        return os.getxattr(mountpoint, f"user.codearts.log_level.{level}")

    try:
        outcome = asked(order, _TIMEOUT_S)
    except NoAnswer as failure:
        advice = f"end it, or: codeartsfs umount --lazy {mountpoint}"
        exits.refuse(f"{mountpoint}: {failure}; {advice}", exits.MOUNT_POINT)
    except OSError as failure:
        if failure.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            exits.refuse(f"{mountpoint} is not a mount of codeartsfs", exits.MOUNT_POINT)
        reason = _REASONS.get(failure.errno or 0, failure.strerror)
        exits.refuse(f"{mountpoint}: {reason}", exits.MOUNT_POINT)
    click.echo(f"{mountpoint}: {outcome.decode()}")
