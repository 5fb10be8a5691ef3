"""One question: how old its answer may be, who waits for it, and how long a failure counts."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.builds.answer import Answer
from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    CallUnavailable,
    CodeArtsError,
    Forbidden,
    NotFound,
)


class Oracle:
    """Counts up with every question, or fails; waits for ``go`` where there is one."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.go: trio.Event | None = None

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await trio.lowlevel.checkpoint()
        if self.go is not None:
            await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return number


async def test_an_answer_is_asked_for_again_once_it_is_too_old(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    assert not answer.fresh(5)
    assert await answer.get(oracle, nursery, 5) == 1
    await trio.sleep(4.9)
    assert answer.fresh(5)
    assert await answer.get(oracle, nursery, 5) == 1
    await trio.sleep(0.1)
    assert not answer.fresh(5)
    assert await answer.get(oracle, nursery, 5) == 2


async def test_a_final_answer_never_gets_old(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    await answer.get(oracle, nursery, 5)
    answer.final = True
    await trio.sleep(10**6)
    assert await answer.get(oracle, nursery, 0) == 1


@pytest.mark.parametrize(
    ("failure", "lasts_s"),
    [
        (NotFound("gone"), 5),
        (AccessDenied("who"), 5),
        (Forbidden("no"), 5),
        (ApiUnavailable("down"), 1),
        (BadAnswer("html"), 1),
    ],
)
async def test_a_failure_is_told_to_all_who_ask_for_a_while(
    autojump_clock: MockClock, failure: CodeArtsError, lasts_s: float, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    oracle.failure = failure
    for pause_s in (0, lasts_s - 0.1):
        await trio.sleep(pause_s)
        with pytest.raises(type(failure)):
            await answer.get(oracle, nursery, 30)
        assert answer.absent == isinstance(failure, NotFound)
    assert oracle.asked == 1
    await trio.sleep(0.1)
    assert not answer.absent
    oracle.failure = None
    assert await answer.get(oracle, nursery, 30) == 2
    assert answer.failure is None


async def test_a_failure_leaves_the_value_and_is_not_hidden_by_its_age(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    await answer.get(oracle, nursery, 30)
    oracle.failure = ApiUnavailable("down")
    with pytest.raises(ApiUnavailable):
        await answer.get(oracle, nursery, 0)
    assert answer.value == 1
    await trio.sleep(1)  # the value is young enough, but the last word was a failure
    oracle.failure = None
    assert await answer.get(oracle, nursery, 30) == 3


async def test_what_the_api_does_not_tell_is_no_failure(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    oracle.failure = CallUnavailable("APIGW.0101")
    for _ in range(3):
        assert await answer.get(oracle, nursery, 5, untold_s={CallUnavailable: 60}) is None
        await trio.sleep(19)
    assert (oracle.asked, answer.failure) == (1, None)
    await trio.sleep(3)
    oracle.failure = None
    assert await answer.get(oracle, nursery, 5, untold_s={CallUnavailable: 60}) == 2


async def test_who_is_impatient_leaves_the_question_to_the_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    oracle.go = trio.Event()
    with pytest.raises(ApiUnavailable, match="no answer yet after 2 s"):
        await answer.get(oracle, nursery, 5, patience_s=2)
    assert answer.failure is None  # nothing has failed yet
    oracle.go.set()
    assert await answer.get(oracle, nursery, 5, patience_s=3) == 1


async def test_the_age_of_an_answer_that_took_long_counts_from_the_question(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    oracle.go = trio.Event()
    async with trio.open_nursery() as askers:
        askers.start_soon(answer.get, oracle, nursery, 5)
        await trio.sleep(4)
        oracle.go.set()
    assert answer.fresh(5)
    await trio.sleep(1)
    assert not answer.fresh(5)


async def test_an_asking_that_is_cancelled_does_not_leave_the_next_waiting(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    answer, oracle = Answer[int](), Oracle()
    oracle.go = trio.Event()
    async with trio.open_nursery() as short_lived:
        nursery.start_soon(answer.get, oracle, short_lived, 5)
        await wait_all_tasks_blocked()
        short_lived.cancel_scope.cancel()
    oracle.go = None
    assert await answer.get(oracle, nursery, 5) == 2
