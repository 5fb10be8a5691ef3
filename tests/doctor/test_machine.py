"""What the doctor says of the machine."""

import time
from pathlib import Path

import pytest

from codeartsfs.doctor import machine
from codeartsfs.doctor.findings import Finding, State, examine, ok


def test_a_usable_fuse_device_is_well(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    device.touch()
    assert machine.fuse_device(device).state is State.OK


def test_a_missing_fuse_device_fails_and_the_fix_is_told(tmp_path: Path) -> None:
    finding = machine.fuse_device(tmp_path / "fuse")
    assert finding.state is State.FAILED
    assert "--device /dev/fuse" in finding.fix


def test_a_fuse_device_that_is_not_permitted_fails(tmp_path: Path) -> None:
    finding = machine.fuse_device(tmp_path)  # which can be opened for writing by nobody
    assert (finding.state, "cannot be opened" in finding.found) == (State.FAILED, True)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (None, State.SKIPPED),
        ('PRUNEFS = "nfs proc"\n', State.WARNING),
        ("PRUNE_BIND_MOUNTS = yes\n", State.WARNING),
        ('# PRUNEFS = "fuse.codeartsfs"\n', State.WARNING),
        ('PRUNEFS = "nfs fuse.codeartsfs proc"\n', State.OK),
        ("PRUNEFS=fuse.codeartsfs\n", State.OK),
    ],
)
def test_updatedb_shall_leave_mounts_out(text: str | None, state: State, tmp_path: Path) -> None:
    file = tmp_path / "updatedb.conf"
    if text is not None:
        file.write_text(text)
    assert machine.updatedb(file).state is state


@pytest.mark.parametrize(
    ("release", "state"),
    [("4.19.0-27-amd64", State.WARNING), ("5.4.0", State.OK), ("6.18.44", State.OK)],
)
def test_an_old_kernel_is_a_warning(release: str, state: State) -> None:
    assert machine.kernel(release).state is state


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 999999 kB\nMemAvailable:  200000 kB\n")
    assert machine.memory(64 << 20, file).state is State.OK
    assert machine.memory(128 << 20, file).state is State.WARNING


def test_versions_name_all_that_matters() -> None:
    found = machine.versions().found
    for name in ("codeartsfs", "Python", "pyfuse3", "trio", "httpx"):
        assert f"{name} " in found


def test_a_check_that_hangs_fails_and_keeps_nobody() -> None:
    [finding] = examine("slow", lambda: time.sleep(1000) or ok("slow", ""), timeout_s=0.01)  # type: ignore[func-returns-value]
    assert finding.state is State.FAILED
    assert "no result within 0.01 s" in finding.found


def test_a_check_that_breaks_fails_and_says_so() -> None:
    def breaks() -> Finding:
        raise KeyError("a bug")

    [finding] = examine("broken", breaks)
    assert finding.state is State.FAILED
    assert "KeyError: 'a bug'" in finding.found
