"""codeartsfs doctor, for real: in mounts that answer and in those that do not."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from .rig import COMMAND, TOKEN, Emulator, Outcome, Rig, wait_until, write_record

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    write_record(folder, 0, {"stage1.info.log": b"[INFO] a line\n"})
    return folder


@pytest.fixture
def emulator(rig: Rig, recordings: Path) -> Emulator:
    return rig.emulator(recordings)


def doctor(rig: Rig, *arguments: str | Path, **environment: str) -> Outcome:
    variables = {"CODEARTSFS_TOKEN": TOKEN, "LANG": "C.UTF-8", **environment}
    settings = [f"{name}={value}" for name, value in variables.items()]
    return rig.run("env", *settings, *COMMAND, "doctor", *arguments)


def findings(outcome: Outcome) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(outcome.out)}


def options(rig: Rig, emulator: Emulator) -> tuple[str, ...]:
    return ("--endpoint", emulator.url, "--cache-dir", os.fspath(rig.folder / "cache"))


def test_all_well_is_exit_code_0_and_costs_one_call(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    with emulator.costs(record=1):
        outcome = doctor(rig, mounted.path, *options(rig, emulator))
    assert (outcome.code, outcome.err) == (0, b""), outcome
    lines = outcome.out.decode().splitlines()
    assert f"✓ mount         {mounted.path} answers (process {mounted.process.pid})" in lines[0]
    assert {line[0] for line in lines} <= set("✓!- ")


def test_json_is_a_list_of_findings(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    outcome = doctor(rig, mounted.path, "--json", *options(rig, emulator))
    assert outcome.code == 0
    found = findings(outcome)
    assert found["API call"]["state"] == "ok"
    assert "(request " in found["API call"]["found"]
    assert set(found["clock"]) == {"name", "state", "found", "fix"}


def test_a_terminal_without_these_signs_gets_others(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    bare = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    outcome = doctor(rig, mounted.path, *options(rig, emulator), **bare)
    assert outcome.code == 0
    assert outcome.out.isascii()
    assert outcome.out.startswith(b"ok   mount ")


def test_a_dead_mount_fails_and_the_rest_is_looked_at(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.kill()
    outcome = doctor(rig, mounted.path, "--json", *options(rig, emulator))
    found = findings(outcome)
    assert (outcome.code, found["mount"]["state"]) == (1, "failed")
    assert "is dead" in found["mount"]["found"]
    assert found["mount"]["fix"].startswith(f"codeartsfs umount {mounted.path}")
    assert found["API call"]["state"] == "ok"


def test_a_stopped_daemon_fails_and_hangs_nobody(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: ") T " in Path(f"/proc/{mounted.process.pid}/stat").read_text())
        places = (mounted.path, mounted / "in it")
        outcomes = [doctor(rig, path, "--json", *options(rig, emulator)) for path in places]
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    for outcome in outcomes:
        assert outcome.code == 1
        assert "its daemon is stopped or stuck" in findings(outcome)["mount"]["found"]


def test_what_is_no_mount_fails(rig: Rig, emulator: Emulator, tmp_path: Path) -> None:
    outcome = doctor(rig, tmp_path, "--json", *options(rig, emulator))
    assert (outcome.code, findings(outcome)["mount"]["state"]) == (1, "failed")


def test_a_mount_whose_api_refuses_it_says_so(rig: Rig, emulator: Emulator) -> None:
    wrong = f"{TOKEN}-which-is-wrong"
    mounted = rig.mount(emulator, credentials={"CODEARTSFS_TOKEN": wrong})
    mounted.permit_logged("WARNING .*(EACCES|refuses our credentials)")
    for number in range(1, 5):
        rig.run("cat", mounted / f"{number:08x}-0000-4000-8000-0123456789ab/stage1.info.log")
    outcome = doctor(rig, mounted.path, "--json", *options(rig, emulator), CODEARTSFS_TOKEN=wrong)
    found = findings(outcome)
    assert outcome.code == 1
    assert found["mount"]["state"] == "warning"
    assert "its API is refused" in found["mount"]["found"]
    assert found["API call"]["state"] == "failed"
    assert TOKEN.encode() not in outcome.out


def test_a_file_of_settings_that_makes_no_sense_is_a_finding(
    rig: Rig, emulator: Emulator, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("cache-sise = '1G'\n")
    outcome = doctor(rig, "--json", "--config", file, *options(rig, emulator))
    found = findings(outcome)
    assert outcome.code == 1
    assert "unknown key 'cache-sise'" in found["configuration"]["found"]
    assert found["API call"]["state"] == "ok"


def test_without_endpoint_or_credentials_what_needs_them_is_skipped(rig: Rig) -> None:
    outcome = doctor(rig, "--json", CODEARTSFS_TOKEN="")
    found = findings(outcome)
    assert outcome.code == 1
    assert found["endpoint"]["state"] == "failed"
    assert found["API call"]["found"] == "skipped because there is no endpoint"
    assert found["versions"]["state"] == "ok"


def test_a_mount_that_is_named_tells_its_api(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    outcome = doctor(rig, mounted.path, "--json", "--cache-dir", "none")
    found = findings(outcome)
    assert found["endpoint"]["found"] == emulator.url
    assert (outcome.code, found["API call"]["state"]) == (0, "ok")
    other = doctor(rig, mounted.path, "--json", "--endpoint", "http://127.0.0.1:9")
    assert findings(other)["endpoint"]["found"] == "http://127.0.0.1:9"


@needs_root
def test_a_mount_of_somebody_else_is_not_called_missing(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    outcome = rig.run(*nobody, *COMMAND, "doctor", mounted.path, "--json", "--cache-dir", "none")
    mount = findings(outcome)["mount"]
    assert (mount["state"], "is somebody else's mount" in mount["found"]) == ("warning", True)
    assert "codeartsfs mount" not in mount["fix"]
