"""``codeartsfs emulator``, run as a process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from codeartsfs.commands.emulator import emulator
from codeartsfs.emulator.synthetic import SYNTHETIC_PROJECT

from .conftest import ACCOUNTS, FAILED, INFO_TEXT, PROJECT, task_log

RUN = "from codeartsfs.commands.emulator import emulator as run; run()"


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            match = re.fullmatch(r"emulator: (http://127\.0\.0\.1:[0-9]+)\n", first)
            assert match, first
            yield process, match[1]
        finally:
            process.terminate()


def rest_of(process: subprocess.Popen[str]) -> str:
    # Not communicate(), which forgets what readline() has read ahead.
    assert process.stdout is not None
    return process.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_serves_and_ends_on_a_signal(
    recordings: Path, number: signal.Signals
) -> None:
    with (
        running("--recordings", str(recordings), "task_log:error500=1") as (process, url),
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        headers = {"X-Auth-Token": ACCOUNTS.token}
        assert client.get(task_log(FAILED), headers=headers).status_code == 500
        assert client.get(task_log(FAILED), headers=headers).content == INFO_TEXT
        process.send_signal(number)
        rest = rest_of(process)
        assert process.wait(timeout=10) == 0
    assert ACCOUNTS.token in rest
    assert ACCOUNTS.access_key in rest


def test_secrets_from_the_environment_are_taken_and_not_printed(recordings: Path) -> None:
    with running("--recordings", str(recordings), CODEARTSFS_EMULATOR_TOKEN="of-my-own") as (
        process,
        url,
    ):
        reply = httpx.get(
            url + task_log(FAILED), headers={"X-Auth-Token": "of-my-own"}, trust_env=False
        )
        assert reply.status_code == 200
        process.terminate()
        rest = rest_of(process)
    assert "of-my-own" not in rest
    assert "$CODEARTSFS_EMULATOR_TOKEN" in rest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "Error: 'nonsense': no switch 'nonsense'\n"),
        (["--port", "1x"], "is not a valid integer"),
        (["--synthetic", "5"], "'5' is not JOBS:BUILDS, from 1:1 to 100000:1000000\n"),
        (["--synthetic", "0:5"], "'0:5' is not JOBS:BUILDS"),
        (["--synthetic", "100001:1"], "'100001:1' is not JOBS:BUILDS"),
        (["--synthetic", "1:-1"], "'1:-1' is not JOBS:BUILDS"),
        (["--synthetic", f"{'9' * 5000}:1"], "is not JOBS:BUILDS"),
    ],
)
def test_mistakes_get_one_line(recordings: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(emulator, ["--recordings", str(recordings), *arguments])
    assert result.exit_code != 0
    assert said in result.output


def test_it_says_which_projects_there_are(recordings: Path) -> None:
    with running("--recordings", str(recordings), "--synthetic", "3:2") as (process, url):
        reply = httpx.get(
            f"{url}/v1/job/{SYNTHETIC_PROJECT}/list?page_index=0&page_size=10",
            headers={"X-Auth-Token": ACCOUNTS.token},
            trust_env=False,
        )
        assert reply.json()["total"] == 3
        process.terminate()
        assert f"  mount --project:  {PROJECT} {SYNTHETIC_PROJECT}\n" in rest_of(process)


def test_a_port_in_use_is_said_so(recordings: Path) -> None:
    with running("--recordings", str(recordings)) as (_, url):
        port = url.rpartition(":")[2]
        arguments = ["--recordings", str(recordings), "--port", port]
        result = CliRunner().invoke(emulator, arguments)
    assert result.exit_code == 1
    assert result.output == f"Error: cannot listen on port {port}: Address already in use\n"


def test_a_missing_extra_is_named(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(emulator, ["--recordings", str(recordings)])
    assert result.exit_code == 1
    assert result.output == "Error: the emulator needs an extra: pip install 'codeartsfs[demo]'\n"


def test_the_command_line_loads_without_the_extra() -> None:
    blocked = (
        "import sys; sys.modules['starlette'] = sys.modules['hypercorn'] = None; "
        "import codeartsfs.commands.emulator"
    )
    subprocess.run([sys.executable, "-c", blocked], check=True)


def test_fault_words_are_listed() -> None:
    result = CliRunner().invoke(emulator, ["--list-faults"])
    assert result.exit_code == 0
    assert "throttle[=N]" in result.output
    assert "429" in result.output
