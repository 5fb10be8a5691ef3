"""Sizes, mount options and other values of settings."""

import math
import re

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeartsfs.config import (
    MountOptions,
    mount_options,
    names,
    project_id,
    rate,
    size_bytes,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("512 MB", 512 << 20),
        ("2G", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("1t", 1 << 40),
        (" 7 ", 7),
    ],
)
def test_sizes_have_units_of_1024(text: str, size: int) -> None:
    assert size_bytes(text) == size


@given(st.integers(0, 10_000), st.sampled_from(["", "K", "M", "G", "T"]))
def test_units_are_powers(number: int, unit: str) -> None:
    assert size_bytes(f"{number}{unit}") == number * 1024 ** " KMGT".index(unit or " ")


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1X", "1..5G", "1,5G", "0x10", "many", "1 2", "1e9", "9" * 400, "8388608T"],
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size such as 512M or 2G"):
        size_bytes(text)


@pytest.mark.parametrize(("text", "per_second"), [("0", 0), ("2.5", 2.5), ("inf", math.inf)])
def test_a_rate_is_any_number_from_0_upwards(text: str, per_second: float) -> None:
    assert rate(text) == per_second


@pytest.mark.parametrize("text", ["nan", "-1", "", "fast"])
def test_what_is_no_rate_is_refused_by_name(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a rate"):
        rate(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", set()),
        ("ro", set()),
        ("ro,nosuid,nodev,noexec,default_permissions", set()),
        ("noauto,_netdev,nofail,user,user=me,x-systemd.automount,X-a,comment=hi,defaults", set()),
        ("allow_other,noatime", {"allow_other", "noatime"}),
        (",,allow_root,", {"allow_root"}),
    ],
)
def test_mount_options_of_fstab_leave_what_is_for_the_kernel(text: str, left: set[str]) -> None:
    assert mount_options(text) == MountOptions(frozenset(left))


@pytest.mark.parametrize("text", ["suid", "dev", "exec", "subtype=x", "allow_other ,ro", "remount"])
def test_unknown_mount_option_is_refused_by_name(text: str) -> None:
    with pytest.raises(click.BadParameter, match="unknown mount option"):
        mount_options(text)


def test_a_misspelt_mount_option_is_told_what_may_have_been_meant() -> None:
    with pytest.raises(click.BadParameter, match=r"'alow_other'; did you mean allow_other\?"):
        mount_options("alow_other")


def test_writing_is_refused_with_advice() -> None:
    with pytest.raises(click.BadParameter, match="read-only: leave rw out"):
        mount_options("noatime,rw")


def test_owners_are_numbers_or_names_and_masks_are_octal() -> None:
    assert mount_options("uid=root,gid=7,umask=027") == MountOptions(
        uid=0, gid=7, file_mask=0o27, directory_mask=0o27
    )
    assert mount_options("dmask=2,umask=77,fmask=0,umask=7,fsname=a:b") == MountOptions(
        file_mask=0, directory_mask=2, source="a:b"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uid=no-such-user", "uid=no-such-user: there is no such user here"),
        ("gid=", "gid=: there is no such group here"),
        ("uid=-1", "uid=-1: there is no such user"),
        ("gid=4294967295", "gid=4294967295 is larger than 4294967294"),
        ("uid=" + "9" * 5000, "is larger than"),
        ("umask=888", "umask=888 is not octal"),
        ("fmask=0o22", "fmask=0o22 is not octal"),
        ("dmask=1777", "dmask=1777 is not octal"),
        ("umask", "unknown mount option 'umask'; did you mean umask=?"),
        ("fsname=", "not a name"),
    ],
)
def test_owners_and_masks_that_make_no_sense_are_refused(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(says)):
        mount_options(text)


def test_ids_of_projects_are_32_characters() -> None:
    assert project_id("0123456789abcdef0123456789abcdef") == "0123456789abcdef0123456789abcdef"
    for text in ("", "web-app", "0" * 31, "0" * 33, "A" * 32, "../" + "0" * 29):
        with pytest.raises(click.BadParameter, match="32 of 0-9 and a-z"):
            project_id(text)


def test_lists_of_names_may_be_none() -> None:
    assert names("updatedb, locate") == {"updatedb", "locate"}
    assert names("none") == names("") == names(" , ") == frozenset()
