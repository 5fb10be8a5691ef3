"""Questions to a mount that may be stuck, asked by processes of their own.

Who waits for a daemon that hangs can be ended late or not at all, and a thread of ours that
waited would keep this process from ending.
"""

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast

_T = TypeVar("_T")


class NoAnswer(Exception):
    """Whoever was asked does not answer; the message says for how long."""


class Question(Generic[_T]):
    """Something asked of a mount from now on; the answer is a plain value.

    Args:
        ask: asks it, in a process of its own.
        timeout_s: seconds from now, after which nobody waits any more.
    """

    def __init__(self, ask: Callable[[], _T], timeout_s: float) -> None:
        receive, send = os.pipe()
        self._timeout_s = timeout_s
        self._give_up_at = time.monotonic() + timeout_s
        self._child = os.fork()
        if self._child == 0:
            try:
                _let_go_of_all_but(send)
                with open(send, "wb") as pipe:
                    try:
                        pickle.dump((ask(), None), pipe)
                    except OSError as error:
                        pickle.dump((None, error), pipe)
            finally:
                os._exit(0)  # without the parent's clean-up
        os.close(send)
        self._pipe = open(receive, "rb")  # noqa: SIM115  # closed with the answer

    def answer(self) -> _T:
        """Return the answer; of what was given up, none ever comes.

        Raises:
            NoAnswer: not in time.
            OSError: as ``ask`` raised it.
        """
        gone = NoAnswer(f"no answer within {self._timeout_s:g} s: its daemon is stopped or stuck")
        if self._pipe.closed:
            raise gone
        with self._pipe:
            left_s = max(0.0, self._give_up_at - time.monotonic())
            if not select.select([self._pipe], [], [], left_s)[0]:
                os.kill(self._child, signal.SIGKILL)  # and nobody waits until it is dead
                raise gone
            try:
                answer, failure = pickle.load(self._pipe)
            except EOFError:  # somebody has killed it
                raise gone from None
        _wait_for(self._child, 0)
        if failure is not None:
            raise failure
        return cast(_T, answer)

    def over(self) -> bool:
        """Whether the process of one that was given up has ended."""
        return _wait_for(self._child, os.WNOHANG)


def asked(ask: Callable[[], _T], timeout_s: float) -> _T:
    """Ask one question and wait for the answer; raises as ``Question.answer`` does."""
    return Question(ask, timeout_s).answer()


def _let_go_of_all_but(pipe: int) -> None:
    """Close what this process has of its parent: it may live for as long as a mount hangs.

    Whoever reads the parent's output, or waits for what it has locked, would wait for that, too.
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor != pipe:
            with suppress(OSError):  # of the listing itself
                os.close(descriptor)


def _wait_for(child: int, options: int) -> bool:
    """Whether a child has ended."""
    try:
        return os.waitpid(child, options) != (0, 0)
    except ChildProcessError:  # whoever started us ignores SIGCHLD: none is left to wait for
        return True
