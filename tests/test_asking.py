"""Questions that may never be answered."""

import os
import select
import signal
import time
from collections.abc import Iterator

import pytest

from codeartsfs.asking import NoAnswer, Question, asked
from tests.mount.rig import wait_until

TIMEOUT_S = 10.0


@pytest.fixture
def _without_children() -> Iterator[None]:
    """As a process is that was started by who ignores SIGCHLD: none of its children waits."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_a_question_without_answer_holds_open_nothing_of_who_asks() -> None:
    """Whoever reads what that one prints would never see its end."""
    read, write = os.pipe()
    question = Question(lambda: time.sleep(600), TIMEOUT_S)
    os.close(write)
    ended = select.select([read], [], [], TIMEOUT_S)[0]
    os.kill(question._child, signal.SIGKILL)
    with pytest.raises(NoAnswer):
        question.answer()
    wait_until(question.over)
    os.close(read)
    assert ended


@pytest.mark.usefixtures("_without_children")
def test_an_answer_is_one_though_nobody_is_told_of_children() -> None:
    assert asked(lambda: 17, TIMEOUT_S) == 17
