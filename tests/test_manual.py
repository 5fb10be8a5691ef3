"""The manual pages: complete, and in order by the judgement of two formatters."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from codeartsfs import cli, config
from codeartsfs.commands.helper import helper
from codeartsfs.commands.options import settable

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/man"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return pages by their names, such as codeartsfs-mount(1)."""
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, SCRIPT, folder], check=True, capture_output=True)
    return {f"{file.stem}({file.suffix[1:]})": file for file in folder.glob("man?/*")}


def plain(page: Path) -> str:
    """Return the source of a page without what is for the formatter."""
    return re.sub(r"\\f.", "", page.read_text().replace("\\-", "-")).replace("\\(ti", "~")


def options_of(command: click.Command) -> list[str]:
    context = click.Context(command)
    params = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    return [word for param in params if not param.hidden for word in param.opts]


def test_every_option_of_every_command_is_described(pages: dict[str, Path]) -> None:
    described = 0
    for name, command in [*cli.commands(), ("mount.fuse.codeartsfs", helper)]:
        page = "-".join(name.split()[:2]) + ("(8)" if command is helper else "(1)")
        source = plain(pages[page])
        assert name in source
        for option in options_of(command):
            assert re.search(rf"^\.TP\n(.*, )?{option}(,| |$)", source, re.MULTILINE), (
                name,
                option,
            )
            described += 1
    assert described > 40


def test_every_setting_is_described_with_flag_variable_and_key(pages: dict[str, Path]) -> None:
    source = plain(pages["codeartsfs.toml(5)"])
    for option in settable():
        key = str(option.name).replace("_", "-")
        assert re.search(rf"^\.TP\n{key} = ", source, re.MULTILINE), key
        assert f"Flag {option.opts[0]}, variable {option.envvar}." in source


@pytest.mark.parametrize("page", ["codeartsfs-mount(1)", "mount.fuse.codeartsfs(8)"])
def test_every_mount_option_is_described(pages: dict[str, Path], page: str) -> None:
    source = plain(pages[page])
    for option in (*config.PASSED_ON, *config.WITH_VALUES):
        assert re.search(rf"^\w*.*\b{option}", source, re.MULTILINE), option


def test_the_main_page_leads_to_all_others_and_has_all_sections(pages: dict[str, Path]) -> None:
    source = plain(pages["codeartsfs(1)"])
    for page in pages.keys() - {"codeartsfs(1)", "mount.codeartsfs(8)"}:
        assert page in source
    assert re.findall(r"^\.SH (.*)$", source, re.MULTILINE) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXIT STATUS"),
        *("ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"),
    ]
    for code in ("0", "1", "2", "3", "4", "5"):
        assert f".TP\n{code}\n" in source


@pytest.mark.parametrize(
    "judge",
    [
        ("mandoc", "-Tlint", "-Wwarning"),
        ("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"),
    ],
    ids=lambda command: command[0],
)
def test_formatters_have_no_complaint(pages: dict[str, Path], judge: tuple[str, ...]) -> None:
    if shutil.which(judge[0]) is None:
        pytest.skip(f"no {judge[0]} here")
    for page in pages.values():
        done = subprocess.run([*judge, page], capture_output=True, text=True, check=False)
        said = done.stderr if judge[0] == "man" else done.stdout + done.stderr
        assert (done.returncode, said) == (0, ""), page


def test_a_formatter_would_complain(tmp_path: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("no mandoc here")
    (tmp_path / "bad.1").write_text('.TH BAD 1 "2026-01-01"\n.SH NAME\nbad \\- bad\n.XX\n')
    done = subprocess.run(["mandoc", "-Tlint", "-Wwarning", tmp_path / "bad.1"], check=False)
    assert done.returncode != 0
