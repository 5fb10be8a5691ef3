"""Configuration files: TOML, whose keys are options of ``codeartsfs mount``."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import platformdirs

from codeartsfs.config import did_you_mean, is_secret

SYSTEM_FILE = Path("/etc/codeartsfs.toml")


@dataclass(frozen=True, slots=True)
class Given:
    """What a file gives an option, as text, as the command line has it, and where."""

    value: str | list[str]
    file: Path
    key: str


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file: values by the names of their options, and what is wrong, in words."""

    given: Mapping[str, Given]
    mistakes: tuple[str, ...]
    missing: bool = False


def user_file() -> Path:
    return Path(platformdirs.user_config_dir("codeartsfs")) / "config.toml"


def in_effect(chosen: Path | None, options: Iterable[click.Option]) -> dict[str, Given]:
    """Return the settings of the chosen file, else those of the system's and the user's.

    Raises:
        click.UsageError: there is something wrong with one.
    """
    options = list(options)
    settings: dict[str, Given] = {}
    for path in [chosen] if chosen else [SYSTEM_FILE, user_file()]:
        content = read(path, options, required=chosen is not None)
        if content.mistakes:
            raise click.UsageError(content.mistakes[0])
        settings.update(content.given)
    return settings


def read(path: Path, options: Iterable[click.Option], *, required: bool) -> Content:
    """Read a file; one that is not there is a mistake where it is ``required``, else empty."""
    try:
        text = path.read_text()
        values = tomllib.loads(text)
    except FileNotFoundError:
        mistakes = (f"there is no configuration file {path}",) if required else ()
        return Content({}, mistakes, missing=True)
    except (OSError, ValueError, RecursionError) as error:
        return Content({}, (f"cannot read configuration file {path}: {error}",))
    known = {option.name: option for option in options if option.name}
    given: dict[str, Given] = {}
    wrong = []
    for key, value in values.items():
        name = key.replace("-", "_")
        try:
            if name in given:
                raise click.UsageError(f"{key} was set before, as {given[name].key}")
            setting = _checked(name, value, known)
        except click.UsageError as mistake:
            wrong.append(f"{_place(path, text, key)}: {mistake.message}")
        else:
            given[name] = Given(setting, path, key)
    return Content(given, tuple(wrong))


def _checked(name: str, value: Any, known: Mapping[str, click.Option]) -> str | list[str]:
    key = name.replace("_", "-")
    option = known.get(name)
    if option is None:
        keys = sorted(name.replace("_", "-") for name in known)
        if is_secret(name):
            advice = "; secrets belong into the environment or files of their own"
        else:
            advice = did_you_mean(key, keys) or f"; known are: {', '.join(keys)}"
        raise click.UsageError(f"unknown key {key!r}{advice}")
    if isinstance(value, dict) or (isinstance(value, list) and not option.multiple):
        raise click.UsageError(f"{key} must be a single value")
    values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
    setting = values if option.multiple else values[0]
    try:
        option.type_cast_value(click.Context(click.Command(None)), setting)
    except click.BadParameter as error:
        raise click.UsageError(f"{key}: {error.message}") from None
    return setting


def _place(path: Path, text: str, key: str) -> str:
    """Say where in a file a key is, as far as that can be told without parsing TOML again."""
    match = re.search(rf"^[ \t\[]*[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]", text, re.MULTILINE)
    return f"{path}:{text.count(chr(10), 0, match.start()) + 1}" if match else f"{path}"
