"""Who may read what: owners and modes as they were asked for, judged by the kernel."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .rig import COMMAND, TOKEN, Emulator, Mounted, Outcome, Rig, record_id, write_record

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which is root's to do"),
]

TEXT = b"[INFO] a line\n" * 10
LOG = f"{record_id(0)}/stage1.info.log"
OTHER, GROUP = 12345, 23456


@pytest.fixture
def public() -> Iterator[Path]:
    """A mount point that other users can reach; those of pytest they cannot."""
    folder = Path(tempfile.mkdtemp(prefix="codeartsfs-"))
    folder.chmod(0o755)
    yield folder / "mnt"
    shutil.rmtree(folder)  # refuses to enter what is mounted still


@pytest.fixture
def emulator(rig: Rig, tmp_path: Path) -> Emulator:
    write_record(tmp_path / "recordings", 0, {"stage1.info.log": TEXT})
    return rig.emulator(tmp_path / "recordings")


@pytest.fixture
def mount(rig: Rig, emulator: Emulator, public: Path) -> Iterator[Callable[[str], Mounted]]:
    mounts: list[Mounted] = []

    def mount_with(options: str) -> Mounted:
        mounts.append(rig.mount(emulator, "-o", options, at=os.fspath(public)))
        return mounts[-1]

    yield mount_with
    for mounted in mounts:  # before the folder of the mount point goes
        mounted.clear_away()


def read_as(rig: Rig, uid: int, gid: int, path: Path) -> Outcome:
    who = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    return rig.run("setpriv", *who, "cat", path)


READ = Outcome(0, TEXT, b"")


def test_a_mount_is_for_who_mounted_it_unless_others_are_allowed(
    rig: Rig, mount: Callable[[str], Mounted]
) -> None:
    mounted = mount("noatime")
    assert b"Permission denied" in read_as(rig, OTHER, OTHER, mounted / LOG).err
    assert rig.run("cat", mounted / LOG) == READ
    mounted.stop()
    assert read_as(rig, OTHER, OTHER, mount("allow_other") / LOG) == READ


def test_allow_root_lets_root_in_and_nobody_else(rig: Rig, mount: Callable[[str], Mounted]) -> None:
    mounted = mount("allow_root")
    assert b"Permission denied" in read_as(rig, OTHER, OTHER, mounted / LOG).err
    assert rig.run("cat", mounted / LOG) == READ


def test_owner_and_modes_are_shown_as_they_were_asked_for(
    rig: Rig, mount: Callable[[str], Mounted]
) -> None:
    mounted = mount(f"allow_other,uid=nobody,gid={GROUP},dmask=027,fmask=337")
    seen = rig.run("stat", "-c", "%U %g %a", mounted.path, mounted / LOG)
    assert seen.out == b"nobody 23456 550\nnobody 23456 440\n"


@pytest.mark.parametrize(
    ("options", "group_reads", "strangers_read"),
    [
        ("umask=027", True, False),
        ("umask=777,fmask=022,dmask=022", True, True),
        ("fmask=077", False, False),
        ("dmask=007", True, False),
    ],
)
def test_modes_decide_who_may_read(
    rig: Rig,
    mount: Callable[[str], Mounted],
    options: str,
    group_reads: bool,
    strangers_read: bool,
) -> None:
    log = mount(f"allow_other,uid={OTHER},gid={GROUP},{options}") / LOG
    assert read_as(rig, OTHER, 1, log) == READ
    assert (read_as(rig, 1, GROUP, log) == READ) == group_reads
    assert (read_as(rig, 1, 1, log) == READ) == strangers_read


def test_a_user_cannot_lock_himself_out(rig: Rig, emulator: Emulator, public: Path) -> None:
    public.mkdir()
    os.chown(public, OTHER, OTHER)
    # The interpreter of the tests may be somewhere only root can go.
    everywhere = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    who = ("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", *everywhere)
    settings = ("--endpoint", emulator.url, "--cache-dir", "none", "-o", f"uid={GROUP},umask=77")
    token = ("env", f"CODEARTSFS_TOKEN={TOKEN}")
    refused = rig.run(*who, *token, *COMMAND, "mount", public, *settings)
    assert refused.code == 4
    assert b"could not enter directories of mode 500 himself" in refused.err
