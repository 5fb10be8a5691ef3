"""Settings of any kind: taken, or refused in one line with the exit code that is documented."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeartsfs import cli
from codeartsfs.commands import exits, files
from codeartsfs.commands.mount import mount
from codeartsfs.commands.options import settable
from codeartsfs.config import mount_options
from tests.scale import scaled

unhurried = settings(
    max_examples=scaled(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

OPTIONS = sorted(
    option.name
    for option in mount.params
    if isinstance(option, click.Option) and option.name not in (None, "config", "daemon")
)
WORDS = ["0", "-1", "1e9", "nan", "inf", "-inf", "512M", "9" * 400, "9" * 5000, "1.5GiB", "none"]
WORDS += ["", " ", "auto", "json", "\N{ARABIC-INDIC DIGIT THREE}", "allow_other", "a,b", "/", "~"]
WORDS += ["http://127.0.0.1:9", "https://[::1", "https://x/y", "cn-north-4", "ftp://x", "0a" * 16]

words = st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8", exclude_characters="\0"))
values = st.recursive(
    st.sampled_from(["true", "inf", "nan", "-0.0", "9" * 5000, "0x_", "1979-05-27", "'", '"""'])
    | st.integers().map(str)
    | words.map(lambda word: f"'''{word}'''"),
    lambda inner: st.lists(inner, max_size=3).map(lambda some: f"[{','.join(some)}]"),
    max_leaves=5,
)
keys = st.sampled_from([*OPTIONS, "unknown", "[table]", "a.b", "config"]) | st.text(max_size=5)
lines = st.tuples(keys, values).map(lambda pair: f"{pair[0].replace('_', '-')} = {pair[1]}")
contents = (
    st.lists(lines, max_size=4).map("\n".join).map(lambda text: text.encode())
    | st.binary(max_size=100)
    | st.sampled_from([b"a = " + b"[" * 5_000, b"a" + b".a" * 5_000 + b" = 1", b"\xff\xfe"])
)


def run(arguments: list[str], **environment: str) -> None:
    """Run ``codeartsfs mount`` without credentials, which ends it where all else is well."""
    home = "/nonexistent"
    env = {name: None for name in os.environ if name.startswith(("CODEARTSFS", "HUAWEI", "CLOUD"))}
    outcome = CliRunner().invoke(
        cli.main, ["mount", *arguments], env=env | {"HOME": home} | environment
    )
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    assert outcome.exit_code in (exits.USAGE, exits.CREDENTIALS, exits.MOUNT_POINT)
    assert "Error: " in outcome.output
    assert "Traceback" not in outcome.output


@unhurried
@given(content=contents)
def test_a_configuration_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    assert all(
        str(path) in mistake for mistake in files.read(path, settable(), required=True).mistakes
    )


@unhurried
@given(content=contents)
def test_a_mount_with_any_configuration_file_is_refused_in_words(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    run([str(tmp_path / "mnt"), "--endpoint", "http://127.0.0.1:9", "--config", str(path)])


@pytest.mark.parametrize("where", ["flag", "environment"])
@unhurried
@given(chosen=st.dictionaries(st.sampled_from(OPTIONS), words, max_size=4))
def test_a_mount_with_any_options_is_refused_in_words(
    tmp_path: Path, where: str, chosen: dict[str, str]
) -> None:
    flags = {name: "-o" if name == "options" else f"--{name.replace('_', '-')}" for name in OPTIONS}
    arguments = [str(tmp_path / "mnt")]
    if where == "flag":
        arguments += [part for name, word in chosen.items() for part in (flags[name], word)]
        run(arguments)
    else:
        run(arguments, **{f"CODEARTSFS_{name.upper()}": word for name, word in chosen.items()})


@unhurried
@given(
    st.text()
    | st.lists(
        st.sampled_from(["ro", "suid", "x-a", "", "comment=,", "umask=7", "uid=\0", "gid=9"])
    ).map(",".join)
)
def test_mount_options_are_known_or_refused(text: str) -> None:
    try:
        left = mount_options(text)
    except click.BadParameter:
        return
    assert left.kernel <= set(text.split(","))
