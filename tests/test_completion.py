"""Completion: what is offered for what was typed, by the command line and by real shells."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
import trio
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class
from click.testing import CliRunner

from codeartsfs import cli
from codeartsfs.builds.index import open_index
from codeartsfs.commands import completion
from codeartsfs.fs import mountpoint
from codeartsfs.model import BuildRecord, Job
from codeartsfs.names import ProjectId, RecordId

NAMES = ["web-app", "web api", "$(touch owned);", "-rf", "it's\\n", "线\N{ZERO WIDTH SPACE}上"]
DIRECTORIES = ["dir"]


def record(number: int) -> RecordId:
    return RecordId(f"{number:08x}-0000-4000-8000-0123456789ab")


@pytest.fixture
async def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has heard of jobs, and of builds 1 to 3 of the first."""
    folder = tmp_path / "cache"
    (folder / "v1").mkdir(parents=True)
    async with open_index(folder) as index:
        jobs = tuple(Job(f"{n:032}", name, f"project-{n}") for n, name in enumerate(NAMES))
        index.keep_jobs(ProjectId("0" * 32), jobs)
        index.keep_builds(
            BuildRecord(record(n), n, "project-0", "FAILURE", branch="main\x1b") for n in (1, 2, 3)
        )
    monkeypatch.setenv("CODEARTSFS_CACHE_DIR", os.fspath(folder))
    return folder


@click.command()
@click.argument("names", nargs=-1, shell_complete=completion.records_and_jobs)
@click.option("--cache-dir")
def read(names: tuple[str, ...], cache_dir: str | None) -> None:
    pass


def offered(
    incomplete: str, *words: str, command: click.Command = cli.main
) -> dict[str, str | None]:
    """Return what is offered, with descriptions; a kind where the shell is to look itself."""
    shell = ShellComplete(command, {}, "codeartsfs", completion.VARIABLE)
    items = shell.get_completions(list(words), incomplete)
    return {item.value if item.type == "plain" else item.type: item.help for item in items}


def test_commands_options_and_values_are_offered() -> None:
    assert set(offered("")) == set(cli.main.list_commands(click.Context(cli.main)))
    assert set(offered("--cache", "mount")) == {"--cache-dir", "--cache-size"}
    assert set(offered("", "mount", "--stat-size")) == {"auto", "probe", "zero"}
    assert set(offered("cn-n", "mount", "--region")) == {"cn-north-1", "cn-north-4"}


def test_a_mount_point_is_a_directory() -> None:
    assert list(offered("/m", "mount")) == DIRECTORIES


def test_what_can_be_unmounted_is_what_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [Path("/mnt/builds"), Path("/srv/ci logs"), Path("/mnt/evil\x1b")]
    monkeypatch.setattr(mountpoint, "mounts", lambda: paths)
    assert list(offered("", "umount")) == ["/mnt/builds", "/srv/ci logs"]
    assert list(offered("/mnt", "umount")) == ["/mnt/builds"]
    for command in ("status", "doctor", "log-level"):
        assert list(offered("/mnt", command)) == ["/mnt/builds"]
    assert list(offered("mnt/", "umount")) == DIRECTORIES


async def test_jobs_and_records_of_the_cache_are_offered(cache: Path) -> None:
    everything = offered("", command=read)
    assert set(everything) == {
        *("web-app", "web api", "$(touch owned);", "it's\\n", "线%E2%80%8B上"),
        *(record(n) for n in (1, 2, 3)),
    }
    assert everything[record(2)] == "web-app #2 failure on main%1B"
    assert set(offered("web-", command=read)) == {"web-app"}
    assert set(offered("00000003", command=read)) == {record(3)}


async def test_builds_are_offered_behind_their_job(cache: Path) -> None:
    builds = list(offered("web-app/", command=read))
    assert builds[-3:] == ["web-app/3", "web-app/2", "web-app/1"]
    assert list(offered("web-app/latest-f", command=read)) == ["web-app/latest-failed"]
    assert offered("web-nothing/", command=read) == {}
    assert list(offered("/mnt/", command=read)) == ["file"]


async def test_a_cache_on_the_command_line_is_the_one_that_is_looked_at(cache: Path) -> None:
    assert offered("web", "--cache-dir", "/nonexistent", command=read) == {}
    assert offered("web", "--cache-dir", "none", command=read) == {}


async def test_looking_leaves_the_cache_as_it_was(cache: Path) -> None:
    before = sorted(path.name for path in (cache / "v1").iterdir())
    assert offered("web", command=read)
    assert sorted(path.name for path in (cache / "v1").iterdir()) == before


async def test_what_a_running_mount_has_just_heard_is_offered(cache: Path) -> None:
    async with open_index(cache) as index:
        index.keep_builds([BuildRecord(record(9), 9, "project-0", "SUCCESS")])
        with trio.fail_after(30):
            while not offered("00000009", command=read):  # noqa: ASYNC110  another thread writes
                await trio.sleep(0.02)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0damaged", b"x" * 100_000])
async def test_a_damaged_index_offers_nothing(cache: Path, content: bytes) -> None:
    (cache / "v1/builds.sqlite3").write_bytes(content)
    assert offered("", command=read) == {}


def test_nothing_heavy_is_loaded_to_complete() -> None:
    script = (
        "import sys\nfrom codeartsfs.cli import main\n"
        "try: main(prog_name='codeartsfs')\nfinally: print(*sys.modules)"
    )
    environment = {"COMP_WORDS": "codeartsfs mount --", "COMP_CWORD": "2"}
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment | {completion.VARIABLE: "bash_complete"},
        capture_output=True,
        text=True,
        check=False,
    )
    words = loaded.stdout.split()
    assert "plain,--region" in words
    assert {"trio", "httpx", "pyfuse3", "rich"}.isdisjoint(words)


@pytest.mark.parametrize("name", NAMES)
def test_bash_is_given_names_as_they_must_be_typed(tmp_path: Path, name: str) -> None:
    bash = get_completion_class("bash")
    assert bash is not None
    line = bash(cli.main, {}, "codeartsfs", completion.VARIABLE).format_completion(
        CompletionItem(name)
    )
    # As click's script takes it apart, and then as one presses Enter.
    script = 'IFS="," read type value <<< "$1"; eval "printf %s $value"'
    typed = subprocess.run(
        ["bash", "-c", script, "bash", line], cwd=tmp_path, capture_output=True, check=True
    )
    assert typed.stdout.decode() == name
    assert list(tmp_path.iterdir()) == []


async def test_an_answer_of_another_shape_offers_nothing(cache: Path) -> None:
    with closing(sqlite3.connect(cache / "v1/builds.sqlite3")) as file, file:
        file.execute("UPDATE projects SET jobs = '00000000[[1]]'")
        file.execute("UPDATE records SET build = '00000000{'")
    assert offered("", command=read) == {}


# Installing.


@pytest.mark.parametrize(
    ("shell", "where"),
    [
        ("bash", ".local/share/bash-completion/completions/codeartsfs"),
        ("zsh", ".local/share/zsh/site-functions/_codeartsfs"),
        ("fish", ".config/fish/completions/codeartsfs.fish"),
    ],
)
def test_it_is_installed_where_the_shell_looks_as_often_as_one_likes(
    tmp_path: Path, shell: str, where: str
) -> None:
    home = {"HOME": os.fspath(tmp_path), "XDG_DATA_HOME": None, "XDG_CONFIG_HOME": None}
    printed = CliRunner().invoke(cli.main, ["completion", shell], env=home)
    for _ in range(2):
        outcome = CliRunner().invoke(cli.main, ["completion", shell, "--install"], env=home)
        assert outcome.exit_code == 0
        assert outcome.stdout.startswith(f"{tmp_path / where}: written")
        assert (tmp_path / where).read_text() == printed.stdout


def test_where_it_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = {"HOME": os.fspath(tmp_path), "XDG_CONFIG_HOME": os.fspath(tmp_path / "file")}
    outcome = CliRunner().invoke(cli.main, ["completion", "fish", "--install"], env=home)
    assert outcome.exit_code == 1
    assert re.fullmatch("Error: cannot write .*\n", outcome.stderr)


# Real shells, in a real terminal.


class Terminal:
    """A shell in tmux, which has completion installed and no other settings."""

    def __init__(self, folder: Path, shell: str, environment: dict[str, str]) -> None:
        self._tmux = ("tmux", "-S", os.fspath(folder / "tmux"))
        start = {
            "bash": "bash --rcfile " + os.fspath(folder / "bashrc"),
            "zsh": "zsh",
            "fish": "fish",
        }
        subprocess.run(
            [*self._tmux, "-f", "/dev/null", "new-session", "-d", "-x200", "-y50", start[shell]],
            env=environment,
            cwd=folder,
            check=True,
        )

    def type(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", "--", *keys], check=True)

    def shows(self, pattern: str) -> None:
        give_up_at = time.monotonic() + 30
        while not re.search(pattern, screen := self._screen()):
            assert time.monotonic() < give_up_at, screen
            time.sleep(0.05)

    def _screen(self) -> str:
        shown = subprocess.run(
            [*self._tmux, "capture-pane", "-pJ"], capture_output=True, text=True, check=True
        )
        return shown.stdout

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture(params=["bash", "zsh", "fish"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    shell = request.param
    if shutil.which(shell) is None or shutil.which("tmux") is None:
        pytest.skip(f"no {shell} or no tmux here")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        "HOME": os.fspath(tmp_path),
        "PATH": programs,
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "CODEARTSFS_CACHE_DIR": os.fspath(tmp_path / "cache"),
    }
    told = subprocess.run(
        ["codeartsfs", "completion", shell, "--install"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "bashrc").write_text("PS1='$ '\n. /usr/share/bash-completion/bash_completion\n")
    advised = "\n".join(told.stdout.splitlines()[1:])
    (tmp_path / ".zshrc").write_text(f"PS1='$ '\n{advised} -u\n")
    terminal = Terminal(tmp_path, shell, environment)
    yield terminal
    terminal.close()


def test_tab_completes_in_a_real_shell(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "somewhere").mkdir()
    terminal.shows(r"[$>#] ")
    terminal.type("codeartsfs umo", "Tab")
    terminal.shows("codeartsfs umount ")
    terminal.type("--la", "Tab")
    terminal.shows("codeartsfs umount --lazy ")
    terminal.type("C-u", "codeartsfs mount somew", "Tab")
    terminal.shows("codeartsfs mount somewhere/")


def test_fish_takes_what_has_commas_whole(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {"HOME": os.fspath(tmp_path), "PATH": programs, "LANG": "C.UTF-8"}
    subprocess.run(["codeartsfs", "completion", "fish", "--install"], env=home, check=True)
    offered = subprocess.run(
        ["fish", "-c", "complete -C 'codeartsfs conf'"],
        env=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match("config\tShow the settings in effect, check", offered.stdout)
