"""What time is spent on, and how it is counted."""

import time

import pytest
import trio

from codeartsfs.timing import BOUNDS_S, Durations, Trail, recorded, spent_on


def test_durations_are_counted_in_classes() -> None:
    took = Durations()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 0.0001, BOUNDS_S[-1] + 1):
        took.add(seconds)
    assert (took.counts[0], took.counts[1], took.counts[-1], took.count) == (2, 1, 1, 4)
    assert took.at_most_s(0.5) == BOUNDS_S[0]
    assert took.at_most_s(0.75) == BOUNDS_S[1]
    assert took.at_most_s(0.99) is None  # it took longer than any bound


def test_nothing_done_has_no_bound() -> None:
    assert Durations().at_most_s(0.5) is None


def test_a_copy_does_not_change_any_more() -> None:
    took = Durations()
    copy = took.copy()
    took.add(1.0)
    assert (copy.count, copy.total_s) == (0, 0.0)


def test_what_is_done_inside_counts_and_what_was_done_before_goes_on_after_it() -> None:
    trail = Trail("first_byte")
    seen = []
    with recorded(trail):
        with spent_on("slot"):
            seen.append(trail.doing)
            with spent_on("pace"):
                seen.append(trail.doing)
            seen.append(trail.doing)
        seen.append(trail.doing)
    assert seen == ["slot", "pace", "slot", "first_byte"]
    assert trail.doing == ""


def test_every_second_is_spent_on_one_thing() -> None:
    begin = time.monotonic()
    trail = Trail("disk")
    with recorded(trail), spent_on("pace"):
        trail.turn_to("bytes")
    end = trail._turns[-1][0]
    spent = trail.between(begin, end)
    assert sum(spent.values()) == pytest.approx(end - trail._turns[0][0])


def test_who_came_late_is_told_what_they_waited_for() -> None:
    trail = Trail("stages")
    trail.turn_to("bytes")
    boarded = time.monotonic()
    assert trail.between(boarded, boarded + 5).keys() == {"bytes"}
    assert trail.between(boarded, boarded + 5)["bytes"] == 5


def test_outside_of_a_trail_nothing_is_recorded() -> None:
    with spent_on("pace"):
        pass


async def test_a_task_that_outlives_the_part_it_was_begun_in_writes_no_more() -> None:
    trail = Trail("first_byte")
    go_on = trio.Event()
    seen = []

    async def ask() -> None:
        with spent_on("pace"):
            seen.append(trail.doing)
            await go_on.wait()
        with spent_on("retry"):
            seen.append(trail.doing)

    async with trio.open_nursery() as nursery:
        with recorded(trail):
            with spent_on("stages"):
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
            seen.append(trail.doing)
            go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            seen.append(trail.doing)
    assert seen == ["pace", "first_byte", "first_byte", "first_byte"]


def test_a_trail_of_any_length_takes_little_memory() -> None:
    trail = Trail("first_byte")
    for _ in range(10_000):
        trail.turn_to("retry")
    assert len(trail._turns) < 100
