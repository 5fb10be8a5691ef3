"""The mount helper, called by mount(8) itself, from the command line and from an fstab.

mount(8) looks for helpers in /sbin alone. So each test has a mount namespace of its own, where
one is laid over /sbin: the machine never sees it, and what is mounted there ends with it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .rig import TIMEOUT_S, TOKEN, Emulator, Outcome, Rig, is_mounted, record_id, write_record

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) and namespaces are root's"),
]

PROGRAM = Path(sys.executable).parent / "mount.fuse.codeartsfs"
TEXT = b"[INFO] a line\n" * 10
LOG = f"{record_id(0)}/stage1.info.log"
PROJECTS = ("1" * 32, "2" * 32)
WRONG_CALL, MOUNT_FAILED = 1, 32


@dataclass
class Machine:
    """A view of this machine in which the helper is installed."""

    rig: Rig
    pid: int
    point: Path
    token: Path

    @property
    def apart(self) -> str:
        """Options that keep a mount from what this machine has of its user's."""
        return f'cache_dir=none,log_file="{self.rig.folder}/mount.log"'

    def run(self, *command: str | Path, **environment: str) -> Outcome:
        bare = {"PATH": os.environ["PATH"]}  # no HOME: so it is at boot
        process = subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, command)],
            capture_output=True,
            env=bare | environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Outcome(process.returncode, process.stdout, process.stderr)

    def mount(self, source: str, options: str, kind: str = "fuse.codeartsfs") -> Outcome:
        common = f"token_file={self.token},{self.apart}"
        return self.run("mount", "-t", kind, source, self.point, "-o", f"{common},{options}")

    def memory_cache_bytes(self) -> int:
        limit: int = self.status()["memory_cache"]["limit_bytes"]
        return limit

    def status(self) -> dict[str, Any]:
        outcome = self.run("cat", self.point / ".codeartsfs/status.json")
        assert outcome.code == 0, outcome
        content: dict[str, Any] = json.loads(outcome.out)
        return content

    def mounted(self) -> bool:
        return self.run("findmnt", "--mountpoint", self.point).code == 0


@pytest.fixture
def machine(rig: Rig, tmp_path: Path) -> Iterator[Machine]:
    sbin, point, token = tmp_path / "sbin", tmp_path / "a mount", tmp_path / "token"
    sbin.mkdir()
    point.mkdir()
    token.write_text(TOKEN)
    for name in ("mount.fuse.codeartsfs", "mount.codeartsfs"):
        (sbin / name).symlink_to(PROGRAM)
    real = os.path.realpath("/sbin")
    laid_over = f"mount -t overlay helper -o lowerdir={sbin}:{real} {real} && echo && exec cat"
    view = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", laid_over],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert view.stdin is not None
    assert view.stdout is not None
    try:
        assert view.stdout.readline() == b"\n"
        machine = Machine(rig, view.pid, point, token)
        yield machine
        while machine.mounted():
            machine.run("umount", "--lazy", point)
    finally:
        view.stdin.close()
        view.stdout.close()
        view.wait(TIMEOUT_S)
    assert not is_mounted(point)


@pytest.fixture
def emulator(rig: Rig, tmp_path: Path) -> Emulator:
    write_record(tmp_path / "recordings", 0, {"stage1.info.log": TEXT})
    return rig.emulator(tmp_path / "recordings")


MOUNTED = Outcome(0, b"", b"")


@pytest.mark.parametrize("kind", ["fuse.codeartsfs", "codeartsfs"])
def test_mount_comes_back_when_the_mount_answers_and_umount_ends_it(
    machine: Machine, emulator: Emulator, kind: str
) -> None:
    assert machine.mount(emulator.url, "allow_other", kind) == MOUNTED
    # No waiting here: that it answers now is the promise.
    assert machine.run("cat", machine.point / LOG) == Outcome(0, TEXT, b"")
    shown = machine.run("findmnt", "-no", "SOURCE,FSTYPE", "--mountpoint", machine.point)
    assert shown.out.split() == [emulator.url.encode(), b"fuse.codeartsfs"]
    assert machine.run("umount", machine.point) == Outcome(0, b"", b"")
    assert not machine.mounted()


def test_every_setting_can_be_an_option(
    machine: Machine, emulator: Emulator, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"memory-cache = '5M'\nendpoint = '{emulator.url}'\n")
    options = f'project={PROJECTS[0]},memory_cache=7M,project={PROJECTS[1]},crawlers="cat,find"'
    assert (
        machine.mount("codearts", f"rw,_netdev,config={config},stat-size=zero,{options}").code == 0
    )
    assert machine.memory_cache_bytes() == 7 << 20
    listed = machine.run("ls", machine.point / "by-job")
    assert listed.out.decode().split() == list(PROJECTS)
    assert b"Permission denied" in machine.run("cat", machine.point / LOG).err


def fstab(machine: Machine, line: str) -> Path:
    path = machine.rig.folder / "fstab"
    point = str(machine.point).replace(" ", r"\040")
    path.write_text(line.format(point=point, token=machine.token) + "\n")
    return path


def test_an_fstab_mounts_once_however_often_all_of_it_is_mounted(
    machine: Machine, emulator: Emulator
) -> None:
    table = fstab(
        machine,
        f"{emulator.url} {{point}} fuse.codeartsfs defaults,noatime,_netdev,nofail,user,"
        f"x-systemd.automount,comment=hello,token_file={{token}},{machine.apart} 0 0",
    )
    assert machine.run("mount", "--fstab", table, "--all") == MOUNTED
    first = machine.status()["pid"]
    assert machine.run("mount", "--fstab", table, "--all") == MOUNTED
    assert machine.status()["pid"] == first
    assert machine.run("umount", machine.point).code == 0
    assert machine.run("mount", "--fstab", table, machine.point) == MOUNTED
    assert machine.run("cat", machine.point / LOG).out == TEXT


def test_settings_come_from_the_environment_of_an_fstab_too(
    machine: Machine, emulator: Emulator
) -> None:
    variable = f"env.CODEARTSFS_ENDPOINT={emulator.url},env.CODEARTSFS_MEMORY_CACHE=9M"
    assert machine.mount("codearts", variable) == MOUNTED
    assert machine.memory_cache_bytes() == 9 << 20


def test_what_is_mounted_is_not_remounted_and_stays(machine: Machine, emulator: Emulator) -> None:
    assert machine.mount(emulator.url, "noatime") == MOUNTED
    refused = machine.run("mount", "-o", "remount,rw", machine.point)
    assert (refused.code, refused.out) == (WRONG_CALL, b"")
    assert b"umount it, mount it again" in refused.err
    again = machine.mount(emulator.url, "noatime")
    assert again.code == MOUNT_FAILED
    assert b"is mounted already" in again.err
    assert machine.run("cat", machine.point / LOG).out == TEXT


@pytest.mark.parametrize(
    ("source", "options", "code", "says"),
    [
        ("cn-nowhere-4", "ro", WRONG_CALL, "unknown region 'cn-nowhere-4'"),
        ("codearts", "ro", WRONG_CALL, "which API?"),
        ("http://example.com", "ro", WRONG_CALL, "must be https"),
        ("cn-north-4", "cache_sise=1G", WRONG_CALL, "'cache_sise'; did you mean cache_size?"),
        ("cn-north-4", "alow_other", WRONG_CALL, "'alow_other'; did you mean allow_other?"),
        ("cn-north-4", "cache_size=lots", WRONG_CALL, "'lots' is not a size"),
        ("cn-north-4", "refresh", WRONG_CALL, "'' is not a number of seconds"),
        ("cn-north-4", "config=/no/such/file", WRONG_CALL, "no configuration file /no/such/file"),
        ("cn-north-4", "token_file=/no/such/file", MOUNT_FAILED, "/no/such/file cannot be read"),
        ("cn-north-4", "cache_dir=/dev/null/x", WRONG_CALL, "/dev/null/x"),
        ("cn-north-4", "env.CODEARTSFS_TOKEN=s3cr3t", WRONG_CALL, "token_file="),
        ("cn-north-4", "password=s3cr3t", WRONG_CALL, "mode 0600"),
        ("cn-north-4", "env.HTTPS_PROXY=http://me:s3cr3t@p", WRONG_CALL, "mode 0600"),
        ("cn-north-4", "env.HTTPS_PROXY=me:s3cr3t@p", WRONG_CALL, "mode 0600"),
        ("https://me:s3cr3t@example.com", "ro", WRONG_CALL, "mode 0600"),
        ("cn-north-4", "env.1=2", WRONG_CALL, "env.1 needs"),
    ],
)
def test_what_cannot_be_mounted_is_refused_in_one_line(
    machine: Machine, source: str, options: str, code: int, says: str
) -> None:
    refused = machine.mount(source, options)
    assert (refused.code, refused.out) == (code, b"")
    [line] = refused.err.decode().splitlines()
    assert says in line
    assert "s3cr3t" not in line
    assert not machine.mounted()


def test_a_missing_mount_point_fails_the_mount(machine: Machine) -> None:
    shutil.rmtree(machine.point)
    refused = machine.run(PROGRAM, "cn-north-4", machine.point, "-o", f"token_file={machine.token}")
    assert refused.code == MOUNT_FAILED
    assert b"No such file or directory" in refused.err


def test_a_trial_mounts_nothing_and_sloppy_ignores_what_is_unknown(machine: Machine) -> None:
    tried = machine.run(
        "mount", "-fvs", "-t", "codeartsfs", "cn-north-4", machine.point, "-o", "zz"
    )
    assert (tried.code, tried.err) == (0, b"")
    assert b"would be mounted" in tried.out
    assert not machine.mounted()
    assert machine.run(PROGRAM, "cn-north-4", machine.point, "-f", "-o", "zz").code == WRONG_CALL
