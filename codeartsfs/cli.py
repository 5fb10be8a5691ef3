"""The command line. A user's mistake ends in one clear line and a documented exit code."""

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click

from codeartsfs import __version__
from codeartsfs.config import (
    MountConfig,
    default_cache_dir,
    mount_options,
    mount_point,
    names,
    project_id,
    rate,
    read_files,
    seconds,
    size_bytes,
)
from codeartsfs.names import ProjectId

EXIT_FAILURE = 1
EXIT_USAGE = 2  # click's own
EXIT_CREDENTIALS = 3
EXIT_MOUNT_POINT = 4
EXIT_NO_FUSE = 5


class _Commands(click.Group):
    """Loads what belongs to a command only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "demo", "emulator"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "emulator":
            from codeartsfs.emulator.command import emulator_command

            return emulator_command
        if cmd_name == "demo":
            from codeartsfs.emulator.demo import demo_command

            return demo_command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="codeartsfs")
def main() -> None:
    """Huawei Cloud CodeArts build logs as ordinary files."""


def _use_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    not_in_file = {"config", "mountpoint", "daemon", "help"}
    known = {p.name for p in ctx.command.params if p.name} - not_in_file
    repeatable = {p.name for p in ctx.command.params if p.name and p.multiple}
    ctx.default_map = read_files(value, known, repeatable)


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Declare an option that the environment can set too."""
    flag = next(name for name in names if name.startswith("--"))
    variable = "CODEARTSFS_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, **settings)


@main.command()
@click.argument("mountpoint", type=mount_point)
@_option("--region", metavar="NAME", help="Huawei Cloud region, such as cn-north-4.")
@_option("--endpoint", metavar="URL", help="API address, instead of a region's.")
@_option(
    "--project",
    type=project_id,
    multiple=True,
    metavar="ID",
    help="CodeArts project whose jobs are shown below by-job/; repeatable.",
)
@_option(
    "--builds-per-job",
    type=click.IntRange(min=1, max=2**31 - 1),
    metavar="N",
    default=100,
    show_default=True,
    help="Newest builds listed of a job.",
)
@_option(
    "--cache-dir", metavar="DIR|none", help="Where logs are kept.  [default: ~/.cache/codeartsfs]"
)
@_option(
    "--cache-size",
    type=size_bytes,
    metavar="SIZE",
    default="2G",
    show_default=True,
    help="Disk cache limit.",
)
@_option(
    "--memory-cache",
    type=size_bytes,
    metavar="SIZE",
    default="64M",
    show_default=True,
    help="Memory cache limit.",
)
@_option(
    "--deadline",
    type=seconds,
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="No file operation waits longer.",
)
@_option(
    "--stat-size",
    type=click.Choice(["auto", "probe", "zero"]),
    default="auto",
    show_default=True,
    help="Size shown of a log not opened yet: ask, but not for ls and the like; ask; 0.",
)
@_option(
    "--max-downloads",
    type=click.IntRange(min=1),
    metavar="N",
    default=16,
    show_default=True,
    help="Logs downloaded at the same time.",
)
@_option(
    "--max-requests-per-second",
    type=rate,
    metavar="R",
    default=10.0,
    show_default=True,
    help="Rate of API requests, 0 for no limit.",
)
@_option(
    "--refresh",
    type=seconds,
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="How old a running log may be when it is looked at.",
)
@_option(
    "--settle",
    type=seconds,
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="How long after its stage was over a log may still get its last lines.",
)
@_option(
    "--prefetch",
    type=click.IntRange(min=0),
    metavar="N",
    default=12,
    show_default=True,
    help="Logs fetched ahead at the same time of who walks through them; 0 for none.",
)
@_option(
    "--crawlers",
    type=names,
    metavar="NAME[,NAME...]|none",
    help="Programs that get nothing that would have to be downloaded.  [default: updatedb,"
    " desktop search, thumbnailers]",
)
@_option(
    "--ca-file",
    type=click.Path(resolve_path=True),
    metavar="F",
    help="PEM file of certificate authorities to add.",
)
@click.option(
    "-o",
    "options",
    envvar="CODEARTSFS_OPTIONS",
    type=mount_options,
    metavar="OPT[,OPT...]",
    default="",
    help="Mount options, such as allow_other.",
)
@click.option("--daemon", is_flag=True, help="Go to the background once the mount answers.")
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
)
@_option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_option("--log-file", type=click.Path(), metavar="F", help="Log there, not to standard error.")
@_option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_use_file,
    help="TOML file, instead of /etc/codeartsfs.toml and ~/.config/codeartsfs/config.toml.",
)
def mount(
    mountpoint: Path,
    region: str | None,
    endpoint: str | None,
    project: tuple[ProjectId, ...],
    builds_per_job: int,
    cache_dir: str | None,
    cache_size: int,
    memory_cache: int,
    deadline: float,
    stat_size: str,
    max_downloads: int,
    max_requests_per_second: float,
    refresh: float,
    settle: float,
    prefetch: int,
    crawlers: frozenset[str] | None,
    ca_file: str | None,
    options: frozenset[str],
    daemon: bool,
    log_level: str,
    log_format: str,
    log_file: str | None,
) -> None:
    """Show build logs as files below MOUNTPOINT.

    Credentials come from the environment: CODEARTSFS_TOKEN or CODEARTSFS_TOKEN_FILE,
    HUAWEICLOUD_SDK_AK and _SK, CODEARTSFS_USER, _PASSWORD and _ACCOUNT, or from
    ~/.huaweicloud/credentials.

    Exit codes: 0 unmounted, 1 failure, 2 usage or configuration, 3 credentials,
    4 mount point, 5 no FUSE here.
    """
    # What a mount needs is loaded here, so that --help and completion stay instant.
    from codeartsfs.api.auth import CredentialsError, load_credentials
    from codeartsfs.api.endpoints import (
        EndpointError,
        check_endpoint,
        endpoint_for_region,
        is_loopback,
    )
    from codeartsfs.fs import mountpoint as mountpoints

    if endpoint and region:
        if _distance("endpoint") == _distance("region") == 0:
            raise click.UsageError("give --region or --endpoint, not both")
        if _distance("region") < _distance("endpoint"):
            endpoint = None
    if not endpoint and not region:
        raise click.UsageError("which API? give --region NAME or --endpoint URL")
    try:
        address = check_endpoint(endpoint) if endpoint else endpoint_for_region(region or "")
    except EndpointError as error:
        raise click.UsageError(str(error)) from None
    try:
        credentials = load_credentials(
            os.environ,
            Path.home(),
            region=region or "",
            # What listens on this machine is its own IAM: a password must not leave it.
            iam_endpoint=address if is_loopback(urlsplit(address).hostname or "") else "",
        )
    except CredentialsError as error:
        _refuse(str(error), EXIT_CREDENTIALS)
    if credentials is None:
        _refuse(
            "no credentials: set CODEARTSFS_TOKEN, CODEARTSFS_TOKEN_FILE, HUAWEICLOUD_SDK_AK and"
            " HUAWEICLOUD_SDK_SK, or CODEARTSFS_USER, CODEARTSFS_PASSWORD and CODEARTSFS_ACCOUNT",
            EXIT_CREDENTIALS,
        )
    try:
        mountpoints.check_fuse()
        mountpoints.check_options(options)
        where = mountpoints.prepare(mountpoint)
    except mountpoints.NoFuseError as error:
        _refuse(str(error), EXIT_NO_FUSE)
    except mountpoints.MountPointError as error:
        _refuse(str(error), EXIT_MOUNT_POINT)
    cache = _cache_dir(cache_dir)
    if cache is not None and cache.resolve().is_relative_to(where):
        raise click.UsageError(f"the cache directory {cache} must not lie below the mount point")
    config = MountConfig(
        mountpoint=where,
        endpoint=address,
        cache_dir=cache,
        cache_size_bytes=cache_size,
        memory_cache_bytes=memory_cache,
        deadline_s=deadline,
        stat_size=stat_size,
        max_downloads=max_downloads,
        max_requests_per_second=max_requests_per_second,
        refresh_s=refresh,
        settle_s=settle,
        crawlers=crawlers,
        prefetch=prefetch,
        ca_file=ca_file,
        mount_options=options,
        projects=tuple(dict.fromkeys(project)),
        builds_per_job=builds_per_job,
    )
    _set_up_logging(log_level, log_format, log_file)
    if daemon:
        from codeartsfs import background

        with background.detached(syslog=log_file is None) as ready:
            _serve(config, credentials, ready)
    else:
        _serve(config, credentials, lambda: None)


@main.command()
@click.argument("mountpoint", type=mount_point)
@click.option("--lazy", is_flag=True, help="Even if busy: open files stay open until closed.")
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount MOUNTPOINT, also after its daemon died."""
    from codeartsfs.fs import mountpoint as mountpoints

    try:
        mountpoints.unmount(mountpoint, lazy=lazy)
    except mountpoints.NoFuseError as error:
        _refuse(str(error), EXIT_NO_FUSE)
    except mountpoints.MountPointError as error:
        _refuse(str(error), EXIT_MOUNT_POINT)


@main.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
def refresh(paths: tuple[str, ...]) -> None:
    """Look at the API now for each PATH in a mount, however new what is known of it is.

    Of use where the API does not tell whether a log can still grow. A PATH may be a log, a
    record, a job or by-job itself. Exit code 1 where one could not be refreshed.
    """
    failed = False
    for path in paths:
        try:
            outcome = os.getxattr(path, "user.codearts.refresh").decode()
        except OSError as error:
            not_ours = error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)
            reason = "nothing that a mount of codeartsfs shows" if not_ours else error.strerror
            click.echo(f"Error: {path}: {reason}", err=True)
            failed = True
        else:
            click.echo(f"{path}: {outcome}")
    if failed:
        sys.exit(EXIT_FAILURE)


def _serve(config: MountConfig, credentials: Any, on_ready: Callable[[], None]) -> None:
    import trio

    from codeartsfs.api.endpoints import EndpointError
    from codeartsfs.daemon import serve
    from codeartsfs.fs.mountpoint import MountPointError
    from codeartsfs.logs.disk import CacheDirectoryError
    from codeartsfs.notify import Notifier

    # Nurseries group what they raise; of a failed start there is only one thing to say.
    try:
        try:
            trio.run(serve, config, credentials, Notifier(), on_ready)
        except BaseExceptionGroup as group:
            raise _first(group) from group
    except (EndpointError, CacheDirectoryError) as error:
        _refuse(str(error), EXIT_USAGE)
    except MountPointError as error:
        _refuse(str(error), EXIT_MOUNT_POINT)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _refuse(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _distance(name: str) -> int:
    """How far from the command line (0) an option was set: there, environment, file, default."""
    kinds = click.core.ParameterSource
    order = (kinds.COMMANDLINE, kinds.ENVIRONMENT, kinds.DEFAULT_MAP, kinds.DEFAULT)
    source = click.get_current_context().get_parameter_source(name)
    return order.index(source) if source in order else len(order)


def _cache_dir(chosen: str | None) -> Path | None:
    if chosen == "none":
        return None
    return Path(chosen).expanduser().absolute() if chosen else default_cache_dir()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _set_up_logging(level: str, form: str, file: str | None) -> None:
    try:
        handler = logging.FileHandler(file) if file else logging.StreamHandler()
    except OSError as error:
        raise click.UsageError(f"cannot log to {file}: {error.strerror}") from None
    handler.setFormatter(
        _JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
