"""Configuration files and ``codeartsfs config``: what is in effect, from where, what is wrong."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from codeartsfs import cli
from codeartsfs.api import auth
from codeartsfs.commands import exits, files
from codeartsfs.commands.config import known_variables
from codeartsfs.commands.connect import CREDENTIAL_VARIABLES
from codeartsfs.commands.options import settable

PROJECT = "0a" * 16
SECRET = "a-secret-0123456789"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def run(*arguments: str | Path, **environment: str) -> Result:
    """Run ``codeartsfs config`` with no settings but those given."""
    foreign = {name: None for name in os.environ if re.match("CODEARTSFS|HUAWEI|CLOUD_", name)}
    return CliRunner().invoke(
        cli.main,
        ["config", *map(str, arguments)],
        env=foreign | {"HOME": "/nonexistent"} | environment,
    )


def shown(*arguments: str | Path, **environment: str) -> dict[str, Any]:
    outcome = run("show", "--json", *arguments, **environment)
    assert outcome.exit_code == 0, outcome.output
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document


# Reading.


def test_a_file_gives_settings_as_text(file: Path) -> None:
    file.write_text(f'cache-size = "2G"\nmax_downloads = 4\nproject = "{PROJECT}"\n')
    given = files.in_effect(file, settable())
    assert {name: setting.value for name, setting in given.items()} == {
        "cache_size": "2G",
        "max_downloads": "4",
        "project": [PROJECT],
    }


@pytest.mark.parametrize(
    ("content", "mistakes"),
    [
        ("endpoint = \nrefresh = 1", ["cannot read configuration file FILE: .*line 1"]),
        ("region = 'a'\n\ncache-sise = '1G'", ["FILE:3: unknown key 'cache-sise'; did you mean"]),
        ("'zzz' = 1", ["FILE:1: unknown key 'zzz'; known are: builds-per-job, "]),
        ("[cache]\nsize = 1", ["FILE:1: unknown key 'cache'"]),
        ("[endpoint]\nx = 1", ["FILE:1: endpoint must be a single value"]),
        ("endpoint = ['x']", ["FILE:1: endpoint must be a single value"]),
        ("refresh = 'soon'", ["FILE:1: refresh: 'soon' is not a number of seconds"]),
        ("prefetch = -1\nsettle = 0", ["FILE:1: prefetch: -1 is not", "FILE:2: settle: '0' is"]),
        ("refresh = 1\ncache-size = 1\ncache_size = 2", ["FILE:3: cache_size was set before"]),
        (f"token = '{SECRET}'", ["FILE:1: unknown key 'token'; secrets belong into"]),
    ],
)
def test_all_that_is_wrong_in_a_file_is_told_with_its_line(
    file: Path, content: str, mistakes: list[str]
) -> None:
    file.write_text(content)
    outcome = run("check", file)
    assert outcome.exit_code == exits.USAGE
    lines = outcome.stderr.splitlines()
    assert len(lines) == len(mistakes)
    for line, mistake in zip(lines, mistakes, strict=True):
        assert re.match("Error: " + mistake.replace("FILE", re.escape(str(file))), line)
        assert SECRET not in line
    with pytest.raises(click.UsageError) as error:
        files.in_effect(file, settable())
    assert f"Error: {error.value.message}" == lines[0]


def test_a_chosen_file_must_be_there_and_be_a_file(tmp_path: Path) -> None:
    missing = run("check", tmp_path / "missing.toml")
    assert "there is no configuration file" in missing.stderr
    assert "cannot read configuration file" in run("check", tmp_path).stderr
    with pytest.raises(click.UsageError, match="there is no configuration file"):
        files.in_effect(tmp_path / "missing.toml", settable())


# Showing.


def test_each_setting_is_shown_with_where_it_comes_from(file: Path) -> None:
    file.write_text("cache_size = '3G'\nrefresh = 2\nsettle = 3\n")
    settings = shown("--config", file, "--settle", "4", CODEARTSFS_REFRESH="5")["settings"]
    assert settings["settle"] == {"value": 4, "origin": "flag --settle"}
    assert settings["refresh"] == {"value": 5, "origin": "CODEARTSFS_REFRESH"}
    assert settings["cache-size"] == {"value": "3G", "origin": f"{file}:cache_size"}
    assert settings["prefetch"] == {"value": 12, "origin": "default"}
    assert settings["cache-dir"]["value"] == "/nonexistent/.cache/codeartsfs"
    assert set(settings) == {str(option.name).replace("_", "-") for option in settable()}


def test_what_is_shown_is_a_configuration_file_that_says_the_same(file: Path) -> None:
    before = run("show", "--origin", "--project", PROJECT, "--cache-size", "9G", "-o", "umask=7")
    file.write_text(before.stdout)
    assert tomllib.loads(before.stdout)["project"] == [PROJECT]
    assert run("check", file).exit_code == 0
    assert run("show", "--config", file).stdout == re.sub(
        r" +# (default|flag .*|CODEARTS.*)\n", "\n", before.stdout
    )


def test_names_that_look_like_numbers_are_shown_as_names() -> None:
    settings = shown("--crawlers", "5", "--log-file", "1e3", "--cache-size", "4096")["settings"]
    assert settings["crawlers"]["value"] == "5"
    assert settings["log-file"]["value"] == "1e3"
    assert settings["cache-size"]["value"] == 4096


def test_a_password_in_an_address_is_not_shown() -> None:
    endpoint = shown("--endpoint", f"https://me:{SECRET}@example.com")["settings"]["endpoint"]
    assert endpoint["value"] == "https://***@example.com"


def test_a_wrong_setting_is_not_shown_but_refused() -> None:
    outcome = run("show", CODEARTSFS_CACHE_SIZE="lots")
    assert outcome.exit_code == exits.USAGE
    assert "'lots' is not a size" in outcome.stderr


@pytest.mark.parametrize(
    ("environment", "kind", "source"),
    [
        ({"CODEARTSFS_TOKEN": SECRET}, "token", "CODEARTSFS_TOKEN"),
        (
            {"CODEARTSFS_TOKEN_FILE": "token"},
            "token file",
            "CODEARTSFS_TOKEN_FILE, {folder}/token",
        ),
        (
            {"HUAWEICLOUD_SDK_AK": SECRET, "HUAWEICLOUD_SDK_SK": SECRET},
            "AK/SK",
            "HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK",
        ),
        (
            {
                "CODEARTSFS_USER": "me",
                "CODEARTSFS_PASSWORD": SECRET,
                "CODEARTSFS_ACCOUNT": "us",
                "CODEARTSFS_REGION": "cn-north-4",
            },
            "IAM password",
            "CODEARTSFS_USER and CODEARTSFS_PASSWORD",
        ),
        ({"CREDENTIALS_DIRECTORY": "."}, "token file", "systemd, {folder}"),
        ({"HUAWEICLOUD_SDK_CREDENTIALS_FILE": "profile"}, "AK/SK", "{folder}/profile"),
    ],
    ids=["token", "token file", "AK", "password", "systemd", "profile"],
)
def test_credentials_are_shown_by_kind_and_source_and_never_themselves(
    tmp_path: Path, environment: dict[str, str], kind: str, source: str
) -> None:
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "profile").write_text(f"[basic]\nak = {SECRET}\nsk = {SECRET}\n")
    for name, value in environment.items():
        if (tmp_path / value).exists():
            environment = environment | {name: str(tmp_path / value)}
    credentials = shown(**environment)["credentials"]
    expected = {"kind": kind, "source": source.format(folder=tmp_path), "error": None}
    assert credentials == expected
    assert SECRET not in run("show", "--origin", **environment).output


def test_half_given_credentials_are_told_and_do_not_keep_the_rest_from_being_shown() -> None:
    document = shown(HUAWEICLOUD_SDK_SK=SECRET)
    assert "without HUAWEICLOUD_SDK_AK" in document["credentials"]["error"]
    assert document["api"]["error"] == "which API? give --region NAME or --endpoint URL"


# The environment.


@pytest.mark.parametrize("command", ["show", "check"])
def test_variables_that_nothing_reads_are_warned_of(command: str) -> None:
    outcome = run(command, CODEARTSFS_CACHE_SISE="1G", CODEARTSFS_EMULATOR_TOKEN="t")
    assert outcome.exit_code == 0
    assert outcome.stderr == (
        "Warning: nothing reads CODEARTSFS_CACHE_SISE; did you mean CODEARTSFS_CACHE_SIZE?\n"
    )


def test_check_looks_at_the_environment_too() -> None:
    outcome = run("check", CODEARTSFS_CACHE_SIZE="lots")
    assert outcome.exit_code == exits.USAGE
    assert "Error: CODEARTSFS_CACHE_SIZE: 'lots' is not a size" in outcome.stderr


def test_all_variables_with_credentials_are_known() -> None:
    source = Path(auth.__file__).read_text()
    read = set(re.findall(r'"((?:CODEARTSFS|HUAWEICLOUD_SDK|CREDENTIALS)_[A-Z_]*[A-Z])"', source))
    assert read - {"HUAWEICLOUD_SDK_IAM_ENDPOINT"} <= set(CREDENTIAL_VARIABLES)
    assert set(CREDENTIAL_VARIABLES) <= known_variables()


# Commands.


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["mout"], "did you mean mount?"),
        (["umount", "--lasy", "/"], "Did you mean '--lazy'?"),
        (["config", "chekc"], "check"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(words: list[str], suggestion: str) -> None:
    outcome = CliRunner().invoke(cli.main, words)
    assert outcome.exit_code == exits.USAGE
    assert suggestion in outcome.stderr
