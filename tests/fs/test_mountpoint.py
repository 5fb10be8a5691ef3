"""Mount points, as far as they can be judged without mounting."""

import os
from pathlib import Path

import pytest

from codeartsfs.fs.mountpoint import (
    MountPointError,
    _unescape,
    check_options,
    mounted_type,
    prepare,
    unmount,
)


def test_mounts_are_found_by_exact_path() -> None:
    assert mounted_type(Path("/proc")) == "proc"
    assert mounted_type(Path("/")) is not None
    assert mounted_type(Path("/proc/self")) is None


def test_path_that_is_no_mount_has_no_type(tmp_path: Path) -> None:
    assert mounted_type(tmp_path) is None


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("/mnt/plain", "/mnt/plain"),
        (r"/mnt/with\040blank", "/mnt/with blank"),
        (r"/mnt/tab\011newline\012backslash\134", "/mnt/tab\tnewline\nbackslash\\"),
        (r"/mnt/\134040", r"/mnt/\040"),
        ("/mnt/日志", "/mnt/日志"),
    ],
)
def test_escapes_of_mountinfo_are_undone(field: str, path: str) -> None:
    assert _unescape(field) == path


def test_real_path_of_a_good_directory_is_returned(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert prepare(tmp_path / "link") == (tmp_path / "real").resolve()


def test_missing_mount_point_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="mkdir -p"):
        prepare(tmp_path / "missing")


def test_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MountPointError, match="not a directory"):
        prepare(tmp_path / "file")


def test_link_in_a_circle_is_an_error_with_words(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MountPointError, match=r"circle|symbolic"):
        prepare(tmp_path / "loop")


def test_what_is_not_ours_is_not_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="is not a mount of codeartsfs"):
        unmount(tmp_path)
    with pytest.raises(MountPointError, match="is not a mount of codeartsfs"):
        unmount(Path("/proc"))
    assert os.path.ismount("/proc")


def test_missing_path_is_not_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MountPointError, match="is not a mount of codeartsfs"):
        unmount(tmp_path / "missing")


def test_options_for_nobody_else_need_no_permission() -> None:
    check_options(frozenset())
    check_options(frozenset({"noatime"}))
