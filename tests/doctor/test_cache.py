"""What the doctor says of a cache directory."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from codeartsfs.builds.index import INDEX_VERSION
from codeartsfs.doctor.cache import cache
from codeartsfs.doctor.findings import State
from codeartsfs.fs.mountpoint import filesystem_of
from codeartsfs.names import INDEX_FILE

RECORD = "2cc26382-b2cb-4234-8eb0-b37d362f4d4c"
SMALL = 1 << 20

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give files away")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with one log of 1,000 bytes and an index."""
    folder = tmp_path / "cache"
    (folder / "v1" / RECORD).mkdir(parents=True)
    (folder / "v1").chmod(0o700)
    (folder / "v1" / "tmp").mkdir()
    (folder / "v1" / "pins").mkdir()
    (folder / "v1" / RECORD / "stage1.info.log").write_bytes(b"x" * 1000)
    with closing(sqlite3.connect(folder / "v1" / INDEX_FILE)) as file:
        file.executescript(f"CREATE TABLE t (x); PRAGMA user_version = {INDEX_VERSION}")
        file.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
        file.commit()
    return folder


def states(folder: Path | None, size_bytes: int = SMALL) -> dict[str, State]:
    return {finding.name: finding.state for finding in cache(folder, size_bytes)}


def not_well(folder: Path, size_bytes: int = SMALL) -> dict[str, State]:
    found = states(folder, size_bytes)
    found.pop("cache disk")  # wherever tests run
    return {name: state for name, state in found.items() if state is not State.OK}


def test_a_cache_as_it_should_be_is_well(root: Path) -> None:
    assert not_well(root) == {}
    [space] = [finding for finding in cache(root, SMALL) if finding.name == "cache space"]
    assert space.found.startswith("1.0 KiB of --cache-size 1.0 MiB used")


def test_no_cache_is_well() -> None:
    assert states(None) == {"cache": State.OK}


def test_a_cache_that_is_not_there_yet_is_well_where_it_can_be_made(tmp_path: Path) -> None:
    assert not_well(tmp_path / "a" / "b") == {}
    (tmp_path / "file").touch()
    assert states(tmp_path / "file" / "cache") == {"cache": State.FAILED}


@as_root
def test_a_cache_of_somebody_else_fails(root: Path) -> None:
    os.chown(root, 65534, 65534)
    assert not_well(root) == {"cache": State.FAILED}


def test_a_link_in_its_place_fails(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert not_well(tmp_path / "link")["cache"] is State.FAILED


def test_a_cache_open_to_others_is_a_warning(root: Path) -> None:
    (root / "v1").chmod(0o755)
    assert not_well(root) == {"cache": State.WARNING}


def test_less_room_than_the_limit_is_a_warning(root: Path) -> None:
    assert not_well(root, 1 << 60) == {"cache space": State.WARNING}


def test_a_damaged_index_is_a_warning(root: Path) -> None:
    with (root / "v1" / INDEX_FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    assert not_well(root) == {"cache index": State.WARNING}


def test_what_is_no_index_is_a_warning(root: Path) -> None:
    (root / "v1" / INDEX_FILE).write_bytes(b"no database" * 1000)
    assert not_well(root) == {"cache index": State.WARNING}


def test_an_index_of_another_version_is_a_warning(root: Path) -> None:
    with closing(sqlite3.connect(root / "v1" / INDEX_FILE)) as file:
        file.execute(f"PRAGMA user_version = {INDEX_VERSION + 1}")
    assert not_well(root) == {"cache index": State.WARNING}


def test_what_is_not_ours_in_it_is_named_and_harms_no_terminal(root: Path) -> None:
    (root / "v2").mkdir()
    (root / "v1" / "a\x1b[2Jb").touch()
    (root / "v1" / RECORD.replace("2", "3")).symlink_to("/etc")
    [finding] = [finding for finding in cache(root, SMALL) if finding.name == "cache entries"]
    assert finding.state is State.WARNING
    assert finding.found.startswith("3 that are not ours (v1/3cc")
    assert finding.found.isprintable()


def test_memory_is_a_warning() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or filesystem_of(shared) != "tmpfs":
        pytest.skip("no tmpfs here")
    assert states(shared / "codeartsfs-is-not-here")["cache disk"] is State.WARNING
