"""Which operations are remembered as slow."""

import time
from pathlib import Path

import pytest

from codeartsfs.fs.nodes import ROOT
from codeartsfs.fs.waits import SlowOperation, Waits
from tests.logs.fakes import World


def slow(took_s: float, at_s: float | None = None) -> SlowOperation:
    return SlowOperation("open", "x", "cat", at_s or time.time(), took_s, {}, None, "")


@pytest.fixture
async def waits(tmp_path: Path) -> Waits:
    async with World(tmp_path).store() as store:
        return Waits(store)


async def test_the_slowest_are_kept_the_slowest_first(waits: Waits) -> None:
    for took_s in (*range(1, 31), *range(31, 61)):
        waits.keep(slow(float(took_s)))
    assert [kept.took_s for kept in waits.slowest()] == [float(n) for n in range(60, 40, -1)]


async def test_what_was_slow_long_ago_is_forgotten(waits: Waits) -> None:
    waits.keep(slow(60.0, time.time() - 3600))
    waits.keep(slow(1.0))
    assert [kept.took_s for kept in waits.slowest()] == [1.0]


async def test_what_was_fast_is_counted_only(waits: Waits) -> None:
    with waits.timed("list", ROOT, 0):
        pass
    with pytest.raises(OSError, match="no"), waits.timed("list", ROOT, 0):
        raise OSError("no")
    assert (waits.durations["list"].count, waits.failures["list"]) == (2, 1)
    assert waits.slowest() == []
