"""Paths in mounts, found without looking inside one."""

from pathlib import Path

import pytest

from codeartsfs.selection import inside_mount


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A mount point that is none: what is looked at inside shows as a wrong answer."""
    mount = tmp_path / "mnt"
    mount.mkdir()
    (mount / "record").symlink_to("/etc")
    (tmp_path / "link").symlink_to("mnt")
    (tmp_path / "deep").symlink_to(mount / "by-job/job")
    (tmp_path / "circle").symlink_to("circle")
    return mount


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("mnt", ""),
        ("mnt/", ""),
        ("mnt/record/stage1.info.log", "record/stage1.info.log"),
        ("./mnt/./by-job//job/", "by-job/job"),
        ("link/record", "record"),
        ("deep/latest", "by-job/job/latest"),
        ("elsewhere/../mnt/a/../b", "b"),
        ("mnt/a/../..", None),
        ("circle", None),
        ("elsewhere", None),
        ("/", None),
    ],
)
def test_links_are_followed_up_to_the_mount_point_and_not_inside(
    tmp_path: Path, mount: Path, path: str, inside: str | None
) -> None:
    found = inside_mount(tmp_path / path, [mount])
    assert found == (None if inside is None else (mount, inside))
