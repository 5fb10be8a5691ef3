"""``codeartsfs mount``, ``umount`` and ``refresh``."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from codeartsfs.commands import completion, exits
from codeartsfs.commands.connect import run_session, session_config
from codeartsfs.commands.options import (
    api_options,
    cache_options,
    config_option,
    logging_options,
    mount_options,
)
from codeartsfs.config import MountConfig, MountOptions, mount_point

_ANSWER_TIMEOUT_S = 5.0
_REFRESH_TIMEOUT_S = 600.0


@click.command()
@click.argument("mountpoint", type=mount_point, shell_complete=completion.directories)
@api_options
@cache_options
@mount_options
@click.option("--daemon", is_flag=True, help="Go to the background once the mount answers.")
@logging_options
@config_option
def mount(
    mountpoint: Path,
    deadline: float,
    stat_size: str,
    prefetch: int,
    crawlers: frozenset[str] | None,
    options: MountOptions,
    daemon: bool,
    log_level: str,
    log_format: str,
    log_file: str | None,
    **settings: Any,
) -> None:
    """Show build logs as files below MOUNTPOINT.

    Credentials come from the environment: CODEARTSFS_TOKEN or CODEARTSFS_TOKEN_FILE,
    HUAWEICLOUD_SDK_AK and _SK, CODEARTSFS_USER, _PASSWORD and _ACCOUNT, or from
    ~/.huaweicloud/credentials.

    Exit codes: 0 unmounted, 1 failure, 2 usage or configuration, 3 credentials,
    4 mount point, 5 no FUSE here.
    """
    from codeartsfs import background
    from codeartsfs.diagnostics import set_up_logging
    from codeartsfs.fs import mountpoint as mountpoints

    background.occupy_standard_files()
    session, credentials = session_config(settings)
    with _refusing():
        mountpoints.check_fuse()
        mountpoints.check_options(options.kernel)
        mountpoints.check_owner(options.uid, options.gid, 0o555 & ~options.directory_mask)
        where = mountpoints.prepare(mountpoint)
    cache = session.cache_dir
    if cache is not None and cache.resolve().is_relative_to(where):
        raise click.UsageError(f"the cache directory {cache} must not lie below the mount point")
    config = MountConfig(
        mountpoint=where,
        session=session,
        deadline_s=deadline,
        stat_size=stat_size,
        prefetch=prefetch,
        crawlers=crawlers,
        options=options,
    )
    told = set_up_logging(log_level, log_format, log_file, background=where if daemon else None)
    if daemon:
        with background.detached() as ready:

            def on_ready() -> None:
                if told:
                    click.echo(told, err=True)
                ready()

            _serve(config, credentials, on_ready)
    else:
        _serve(config, credentials, lambda: None)


def _serve(config: MountConfig, credentials: Any, on_ready: Callable[[], None]) -> None:
    from codeartsfs.daemon import serve
    from codeartsfs.notify import Notifier

    with _refusing():
        run_session(serve, config, credentials, Notifier(), on_ready)


@contextmanager
def _refusing() -> Iterator[None]:
    """End the command where a mount point cannot be used as asked, or FUSE not at all."""
    from codeartsfs.fs import mountpoint as mountpoints

    try:
        yield
    except mountpoints.NoFuseError as error:
        exits.refuse(str(error), exits.NO_FUSE)
    except mountpoints.MountPointError as error:
        exits.refuse(str(error), exits.MOUNT_POINT)


@click.command()
@click.argument("mountpoint", type=mount_point, shell_complete=completion.mounts)
@click.option("--lazy", is_flag=True, help="Even if busy: open files stay open until closed.")
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount MOUNTPOINT, also after its daemon died."""
    from codeartsfs.fs import mountpoint as mountpoints

    with _refusing():
        mountpoints.unmount(mountpoint, lazy=lazy)


@click.command(short_help="Look at the API now, however new what is known.")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, shell_complete=completion.files
)
def refresh(paths: tuple[str, ...]) -> None:
    """Look at the API now for each PATH in a mount, however new what is known of it is.

    Of use where the API does not tell whether a log can still grow. A PATH may be a log, a
    record, a job or by-job itself. Exit code 1 where one could not be refreshed.
    """
    from codeartsfs.asking import NoAnswer, asked
    from codeartsfs.commands.status import mount_of

    failed = False
    for path in paths:
        try:
            point = mount_of(Path(path))
            if point is not None:  # a daemon that is there may take as long as its --deadline
                asked(partial(_answers, point), _ANSWER_TIMEOUT_S)
            refreshed = partial(os.getxattr, path, "user.codearts.refresh")
            outcome = asked(refreshed, _REFRESH_TIMEOUT_S).decode()
        except NoAnswer as error:
            click.echo(f"Error: {path}: {error}", err=True)
            failed = True
        except OSError as error:
            not_ours = error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)
            reason = "nothing that a mount of codeartsfs shows" if not_ours else error.strerror
            click.echo(f"Error: {path}: {reason}", err=True)
            failed = True
        else:
            click.echo(f"{path}: {outcome}")
    if failed:
        sys.exit(exits.FAILURE)


def _answers(point: Path) -> None:
    """Return when the daemon of a mount answers; raises OSError where it is gone."""
    os.statvfs(point)
