"""``codeartsfs config``: which settings are in effect, where they come from, what is wrong."""

import copy
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from codeartsfs.commands import exits, files
from codeartsfs.commands.connect import CREDENTIAL_VARIABLES, api_address, find_credentials
from codeartsfs.commands.options import config_option, settable
from codeartsfs.config import default_cache_dir, did_you_mean


@click.group()
def config() -> None:
    """Show the settings in effect, check those in files."""


def _as_given(option: click.Option) -> Callable[[Any], Any]:
    """Return a type that checks values as the option's own does, and leaves them as written."""

    def convert(value: Any) -> Any:
        parsed = option.type.convert(value, option, None)
        if isinstance(parsed, bool):
            return parsed
        with suppress(ValueError):  # 8G is a number only once it is parsed
            if isinstance(parsed, int | float) and math.isfinite(float(str(value))):
                return parsed
        return value

    return convert


def _takes_all_settings(command: click.Command) -> click.Command:
    for option in settable():
        taken = copy.copy(option)
        taken.type = click.types.FuncParamType(_as_given(option))
        taken.hidden = True  # they are those of mount
        command.params.append(taken)
    return command


def _default_crawlers() -> str:
    from codeartsfs.fs.callers import CRAWLERS

    return ",".join(sorted(CRAWLERS))


# What is in effect where an option has no default of its own.
_DEFAULTS: Mapping[str, Callable[[], str]] = {
    "cache_dir": lambda: os.fspath(default_cache_dir()),
    "crawlers": _default_crawlers,
}


@_takes_all_settings
@config.command("show", short_help="Show every setting as mount would have it.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with origins.")
@click.option("--origin", is_flag=True, help="Say where each comes from.")
@config_option
@click.pass_context
def show(ctx: click.Context, /, as_json: bool, origin: bool, **values: Any) -> None:
    """Show every setting as mount would have it, with the options of mount.

    What is printed can be a configuration file. Credentials are shown by their kind and source
    only. Nothing is asked of the API.
    """
    settings = {
        option.name: _in_effect(ctx, option, values[option.name])
        for option in ctx.command.params
        if isinstance(option, click.Option) and option.name in values
    }
    api, credentials = _connection(values)
    if as_json:
        document = {
            "settings": {
                _key(name): {"value": value, "origin": said}
                for name, (value, said) in settings.items()
            },
            "api": api,
            "credentials": credentials,
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        lines = [(_line(_key(name), value), said) for name, (value, said) in settings.items()]
        width = max(len(line) for line, _ in lines if len(line) <= 60)
        for line, said in lines:
            click.echo(f"{line:{width}}  # {said}" if origin else line)
        click.echo(f"# api: {api['endpoint'] or api['error']}")
        if credentials["error"]:
            click.echo(f"# credentials: {credentials['error']}")
        else:
            click.echo(f"# credentials: {credentials['kind']}, from {credentials['source']}")
    _warn_of_variables()


def _key(name: str) -> str:
    return name.replace("_", "-")


def _line(key: str, value: Any) -> str:
    if value is None:
        return f"# {key} is not set"
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"  # which is TOML, too


def _in_effect(ctx: click.Context, option: click.Option, value: Any) -> tuple[Any, str]:
    """Return a value as a file would have it, and where it comes from."""
    name = str(option.name)
    kinds = click.core.ParameterSource
    match ctx.get_parameter_source(name):
        case kinds.COMMANDLINE:
            origin = f"flag {option.opts[0]}"
        case kinds.ENVIRONMENT:
            origin = str(option.envvar)
        case kinds.DEFAULT_MAP:
            given = ctx.meta[files.__name__][name]
            origin = f"{given.file}:{given.key}"
        case _:
            if value is None and name in _DEFAULTS:
                value = _DEFAULTS[name]()
            origin = "default"
    if isinstance(value, str):  # an endpoint may not hold a password, but is shown even so
        value = re.sub("://[^/]*@", "://***@", value)
    return (list(value) if isinstance(value, tuple) else value), origin


def _connection(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Say what mount would connect to and as whom, without doing so."""
    from codeartsfs.api.auth import CredentialsError

    api: dict[str, Any] = {"endpoint": None, "error": None}
    who: dict[str, Any] = {"kind": None, "source": None, "error": None}
    try:
        api["endpoint"] = api_address(values)
    except click.UsageError as error:
        api["error"] = error.message
    try:
        credentials = find_credentials(api["endpoint"] or "", values["region"])
    except CredentialsError as error:
        who["error"] = str(error)
    else:
        if credentials is None:
            who["error"] = "none"
        else:
            who |= {"kind": credentials.kind, "source": credentials.source}
    return api, who


@config.command("check", short_help="Check files and the environment.")
@click.argument("paths", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
def check(paths: tuple[Path, ...]) -> None:
    """Check FILE, else the files and the environment that mount would read.

    Exit codes: 0 nothing is wrong, 2 something is.
    """
    options = list(settable())
    mistakes: list[str] = []
    chosen = os.environ.get("CODEARTSFS_CONFIG")
    named = paths or ((Path(chosen),) if chosen else ())
    for path in named or (files.SYSTEM_FILE, files.user_file()):
        content = files.read(path, options, required=bool(named))
        if not content.mistakes:
            many = len(content.given)
            said = (
                "not there" if content.missing else f"{many} setting{'s' * (many != 1)}, all well"
            )
            click.echo(f"{path}: {said}")
        mistakes += content.mistakes
    if not paths:
        mistakes += _mistakes_in_variables(options)
        _warn_of_variables()
    for mistake in mistakes:
        click.echo(f"Error: {mistake}", err=True)
    if mistakes:
        sys.exit(exits.USAGE)


def _mistakes_in_variables(options: Iterable[click.Option]) -> list[str]:
    mistakes = []
    for option in options:
        context = click.Context(click.Command(None))
        try:
            value = option.value_from_envvar(context)
            option.type_cast_value(context, value)
        except click.BadParameter as error:
            mistakes.append(f"{option.envvar}: {error.message}")
    return mistakes


def _warn_of_variables() -> None:
    known = known_variables()
    for name in sorted(os.environ):
        ours = name.startswith("CODEARTSFS_") and not name.startswith("CODEARTSFS_EMULATOR_")
        if ours and name not in known:
            click.echo(f"Warning: nothing reads {name}{did_you_mean(name, known)}", err=True)


def known_variables() -> set[str]:
    """Return all variables that any command reads."""
    from codeartsfs.cli import commands

    names = {
        str(param.envvar)
        for _, command in commands()
        for param in command.params
        if param.envvar is not None
    }
    return {*names, *CREDENTIAL_VARIABLES}
