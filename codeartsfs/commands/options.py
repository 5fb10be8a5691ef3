"""The options, declared once: each command takes the groups that it needs.

They can be set by the environment and in a file, too, and so are the same for all commands.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import click

from codeartsfs.commands import completion, files
from codeartsfs.config import WholeNumber, names, project_id, rate, seconds, size_bytes
from codeartsfs.config import mount_options as parse_mount_options

Decorator = Callable[[Any], Any]

# What is said to one command, once, and so not in a file.
_NOT_IN_FILES = {"config", "mountpoint", "daemon", "help"}


def _option(*names: str, **settings: Any) -> Decorator:
    """Declare an option that the environment can set too."""
    flag = next(name for name in names if name.startswith("--"))
    variable = "CODEARTSFS_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, **settings)


def _group(*options: Decorator) -> Decorator:
    """Make one decorator of several, which show in this order in --help."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def settable() -> Iterator[click.Option]:
    """Return the options that a file can set, too."""
    from codeartsfs.commands.mount import mount

    for option in mount.params:
        if isinstance(option, click.Option) and option.name not in _NOT_IN_FILES:
            yield option


def _use_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    given = files.in_effect(value, settable())
    ctx.default_map = {name: setting.value for name, setting in given.items()}
    ctx.meta[files.__name__] = given


api_options = _group(
    _option(
        "--region",
        metavar="NAME",
        shell_complete=completion.regions,
        help="Huawei Cloud region, such as cn-north-4.",
    ),
    _option("--endpoint", metavar="URL", help="API address, instead of a region's."),
    _option(
        "--project",
        type=project_id,
        multiple=True,
        metavar="ID",
        help="CodeArts project whose jobs are shown below by-job/; repeatable.",
    ),
    _option(
        "--builds-per-job",
        type=WholeNumber(min=1, max=2**31 - 1),
        metavar="N",
        default=100,
        show_default=True,
        help="Newest builds listed of a job.",
    ),
    _option(
        "--max-downloads",
        type=WholeNumber(min=1),
        metavar="N",
        default=16,
        show_default=True,
        help="Logs downloaded at the same time.",
    ),
    _option(
        "--max-requests-per-second",
        type=rate,
        metavar="R",
        default=10.0,
        show_default=True,
        help="Rate of API requests, 0 for no limit.",
    ),
    _option(
        "--ca-file",
        type=click.Path(resolve_path=True),
        metavar="F",
        help="PEM file of certificate authorities to add.",
    ),
)

cache_dir_option = _option(
    "--cache-dir", metavar="DIR|none", help="Where logs are kept.  [default: ~/.cache/codeartsfs]"
)

cache_size_option = _option(
    "--cache-size",
    type=size_bytes,
    metavar="SIZE",
    default="2G",
    show_default=True,
    help="Disk cache limit.",
)

cache_options = _group(
    cache_dir_option,
    cache_size_option,
    _option(
        "--memory-cache",
        type=size_bytes,
        metavar="SIZE",
        default="64M",
        show_default=True,
        help="Memory cache limit.",
    ),
    _option(
        "--refresh",
        type=seconds,
        metavar="SECONDS",
        default=1.0,
        show_default=True,
        help="How old a running log may be when it is looked at.",
    ),
    _option(
        "--settle",
        type=seconds,
        metavar="SECONDS",
        default=10.0,
        show_default=True,
        help="How long after its stage was over a log may still get its last lines.",
    ),
)

mount_options = _group(
    _option(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        default=60.0,
        show_default=True,
        help="No file operation waits longer.",
    ),
    _option(
        "--stat-size",
        type=click.Choice(["auto", "probe", "zero"]),
        default="auto",
        show_default=True,
        help="Size shown of a log not opened yet: ask, but not for ls and the like; ask; 0.",
    ),
    _option(
        "--prefetch",
        type=WholeNumber(min=0),
        metavar="N",
        default=12,
        show_default=True,
        help="Logs fetched ahead at the same time of who walks through them; 0 for none.",
    ),
    _option(
        "--crawlers",
        type=names,
        metavar="NAME[,NAME...]|none",
        help="Programs that get nothing that would have to be downloaded.  [default: updatedb,"
        " desktop search, thumbnailers]",
    ),
    click.option(
        "-o",
        "options",
        envvar="CODEARTSFS_OPTIONS",
        type=parse_mount_options,
        metavar="OPT[,OPT...]",
        default="",
        help="Mount options, such as allow_other,gid=devs,umask=027.",
    ),
)

# Which logs are meant where a record or a job is named.
selection_options = _group(
    click.option(
        "--level",
        type=click.Choice(["info", "debug", "all"]),
        default="info",
        show_default=True,
        help="Logs of this level.",
    ),
    click.option(
        "--stage",
        "stages",
        multiple=True,
        metavar="STAGE",
        help="Logs of this stage, by number or by name; repeatable.",
    ),
    click.option(
        "--builds",
        type=WholeNumber(min=1, max=2**31 - 1),
        default=1,
        metavar="N",
        show_default=True,
        help="Newest builds of a job that is named without one.",
    ),
)

logging_options = _group(
    _option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        default="warning",
        show_default=True,
        help="What is worth a line in the log.",
    ),
    _option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How lines of the log look.",
    ),
    _option("--log-file", type=click.Path(), metavar="F", help="Log there, not to standard error."),
)


def _config_option(
    callback: Callable[[click.Context, click.Parameter, Path | None], None],
) -> Decorator:
    return _option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=callback,
        help="TOML file, instead of /etc/codeartsfs.toml and ~/.config/codeartsfs/config.toml.",
    )


config_option = _config_option(_use_file)

CONFIG_ERROR = "codeartsfs.config-error"
"""What is wrong with the file, in the ``meta`` of a context with ``lenient_config_option``."""


def _use_file_or_note(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    try:
        _use_file(ctx, param, value)
    except click.UsageError as error:
        ctx.meta[CONFIG_ERROR] = error.format_message()


lenient_config_option = _config_option(_use_file_or_note)
