from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.api.pace import Pace, TemporaryFailure, parse_retry_after
from codeartsfs.errors import ApiUnavailable
from codeartsfs.priority import background


async def departures(pace: Pace, count: int) -> list[float]:
    start = trio.current_time()
    times = []
    for _ in range(count):
        await pace.admit()
        times.append(round(trio.current_time() - start, 6))
    return times


async def test_a_burst_goes_at_once_and_the_rest_at_the_rate(autojump_clock: MockClock) -> None:
    pace = Pace(requests_per_second=10, burst=3)
    assert await departures(pace, 5) == [0, 0, 0, 0.1, 0.2]


async def test_a_quiet_time_fills_the_bucket_but_never_over_it(autojump_clock: MockClock) -> None:
    pace = Pace(requests_per_second=10, burst=2)
    await departures(pace, 4)
    await trio.sleep(100)
    assert await departures(pace, 4) == [0, 0, 0.1, 0.2]


async def test_rate_zero_is_no_limit(autojump_clock: MockClock) -> None:
    pace = Pace(requests_per_second=0, burst=1)
    assert await departures(pace, 100) == [0] * 100
    assert pace.counts().requests == 100


async def test_waiters_leave_in_the_order_they_came(autojump_clock: MockClock) -> None:
    pace = Pace(requests_per_second=1, burst=1)
    left: list[int] = []

    async def ask(number: int) -> None:
        await pace.admit()
        left.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(ask, number)
            await wait_all_tasks_blocked()
    assert left == [0, 1, 2, 3, 4]


async def test_a_cancelled_waiter_takes_no_token(autojump_clock: MockClock) -> None:
    pace = Pace(requests_per_second=1, burst=1)
    await pace.admit()
    with trio.move_on_after(0.5):
        await pace.admit()
    assert await departures(pace, 1) == [0.5]
    assert pace.counts().requests == 2


async def test_downloads_and_calls_have_caps_of_their_own() -> None:
    pace = Pace(max_downloads=2, max_calls=1)
    first = await pace.download_permit()
    await pace.download_permit()
    with await pace.call_permit():
        assert (pace.downloads_open, pace.calls_open) == (2, 1)
    got: list[str] = []

    async def third() -> None:
        await pace.download_permit()
        got.append("third")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        assert got == []
        first.release()
        first.release()  # giving back twice gives back once
    assert got == ["third"]
    assert pace.downloads_open == 2


async def test_waiting_for_a_permit_can_be_cancelled(autojump_clock: MockClock) -> None:
    pace = Pace(max_downloads=1)
    with await pace.download_permit(), trio.move_on_after(1) as scope:
        await pace.download_permit()
    assert scope.cancelled_caught
    assert pace.downloads_open == 0


async def test_back_off_doubles_under_full_jitter(autojump_clock: MockClock) -> None:
    attempts = Pace(attempts=5, random=lambda: 0.5).start()
    waits = []
    for _ in range(4):
        before = trio.current_time()
        await attempts.after(TemporaryFailure("busy"))
        waits.append(trio.current_time() - before)
    assert waits == pytest.approx([0.25, 0.5, 1, 2])


async def test_the_last_attempt_gives_up_and_says_why(autojump_clock: MockClock) -> None:
    pace = Pace(attempts=2, random=lambda: 0.0)
    attempts = pace.start()
    await attempts.after(TemporaryFailure("busy"))
    with pytest.raises(ApiUnavailable, match=r"^busy; gave up after 2 attempts$"):
        await attempts.after(TemporaryFailure("busy"))
    assert pace.counts().retries == 1


async def test_progress_makes_the_count_start_anew(autojump_clock: MockClock) -> None:
    attempts = Pace(attempts=2, random=lambda: 0.0).start()
    for _ in range(10):
        await attempts.after(TemporaryFailure("broken"))
        attempts.progressed()


async def test_the_budget_of_time_ends_retries_too(autojump_clock: MockClock) -> None:
    attempts = Pace(attempts=100, retry_limit_s=10, random=lambda: 1.0).start()

    async def fail_for_ever() -> None:
        while True:
            await attempts.after(TemporaryFailure("busy"))

    with pytest.raises(ApiUnavailable, match="in 10 s"):
        await fail_for_ever()
    assert trio.current_time() <= 10


async def test_retry_after_is_honoured_to_the_second(autojump_clock: MockClock) -> None:
    pace = Pace(random=lambda: 0.0)
    await pace.start().after(TemporaryFailure("429", retry_after_s=7, throttled=True))
    assert trio.current_time() == pytest.approx(7)
    assert pace.counts().throttled == 1


async def test_a_retry_after_beyond_the_budget_gives_up_at_once(autojump_clock: MockClock) -> None:
    pace = Pace(retry_limit_s=60)
    with pytest.raises(ApiUnavailable, match="asked to wait 3600 s, with 60 s left"):
        await pace.start().after(TemporaryFailure("429", retry_after_s=3600, throttled=True))
    assert trio.current_time() == 0
    assert (pace.counts().throttled, pace.counts().retries) == (1, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), (" 120 ", 120), (None, None), ("", None), ("soon", None), ("-5", None)],
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    seconds = parse_retry_after(format_datetime(later, usegmt=True))
    assert seconds is not None
    assert 90 < seconds <= 100
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


async def test_what_nobody_waits_for_leaves_half_of_the_burst_to_others(
    autojump_clock: MockClock,
) -> None:
    pace = Pace(requests_per_second=10, burst=20)
    with background():
        for _ in range(11):
            await pace.admit()
        assert trio.current_time() < 0.2
        for _ in range(10):
            await pace.admit()
    assert trio.current_time() >= 0.9  # at the sustained rate from then on
    began = trio.current_time()
    for _ in range(8):
        await pace.admit()
    assert trio.current_time() == began  # others find the rest


async def test_what_nobody_waits_for_gives_way_but_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    pace = Pace(requests_per_second=10, burst=20)

    async def others() -> None:
        while True:
            await pace.admit()  # as soon as they may: they keep the bucket empty

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await trio.sleep(5)
        with background():
            began = trio.current_time()
            await pace.admit()
            assert 0.9 <= trio.current_time() - began <= 2.5
        nursery.cancel_scope.cancel()
