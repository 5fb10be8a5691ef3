"""Looking into a running mount from outside, by signals, without disturbing it.

SIGUSR1 and SIGUSR2 are blocked in all threads and taken by one that does nothing else. So no
system call of the mount is ever interrupted by them, and a dump comes even where the event
loop is stuck. What is dumped goes to the log like everything else, whatever its level.
"""

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import FrameType

import trio

from codeartsfs.diagnostics import toggle_debug

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # who asks is answered

_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2})
_PATIENCE_S = 3.0  # the event loop is stuck when it has not answered for so long
_MOST_TASKS = 1000
_OUR_PATH = os.path.dirname(__file__) + os.sep


def hold_signals() -> None:
    """Block the signals in this thread and all that it starts; they wait for ``answer_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def answer_signals(waits: Callable[[], Iterable[str]], status: Callable[[], bytes]) -> None:
    """Answer the signals from now on; call it inside the event loop.

    Args:
        waits: who waits for an answer, called in the event loop.
        status: the state of the mount in JSON, called there, too.
    """
    loop, root = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task()
    assert root is not None

    def from_within() -> Iterator[str]:
        yield from _tasks(root)
        yield from waits()
        yield f"state: {json.dumps(json.loads(status()))}"

    def answer() -> None:
        while True:
            try:
                if signal.sigwait(_SIGNALS) == signal.SIGUSR2:
                    tell("SIGUSR2: %s", toggle_debug())
                else:
                    _dump(loop, from_within, root)
            except Exception:
                log.exception("a signal was not answered")

    threading.Thread(target=answer, name="signals", daemon=True).start()


def tell(message: str, *about: object) -> None:
    """Log what somebody asked for: whatever the level, and however often."""
    log.info(message, *about, extra={"asked_for": True})


def _dump(
    loop: trio.lowlevel.TrioToken,
    from_within: Callable[[], Iterable[str]],
    root: trio.lowlevel.Task,
) -> None:
    """Log all threads, all tasks and the state."""
    tell("SIGUSR1: a dump of process %d begins", os.getpid())
    _tell_all(_threads())
    answered = threading.Event()

    def answer() -> None:
        answered.set()
        _tell_all(from_within())
        tell("SIGUSR1: the dump ends")

    loop.run_sync_soon(answer)
    if not answered.wait(_PATIENCE_S):
        log.warning(
            "the event loop has not answered for %.0f s: see where MainThread is; what follows are"
            " its tasks as they stand",
            _PATIENCE_S,
        )
        _tell_all(_tasks(root))


def _tell_all(lines: Iterable[str]) -> None:
    for line in lines:
        tell("%s", line)


def _tasks(root: trio.lowlevel.Task) -> Iterator[str]:
    yield from islice(_tree(root, 0), _MOST_TASKS)


def _tree(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    """Yield a line for a task and for each below it; tasks that wait in one place share a line."""
    yield "  " * depth + _line("task", task.name, _awaits(task))
    alike: dict[str, int] = {}
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            if any(nursery.child_tasks for nursery in child.child_nurseries):
                yield from _tree(child, depth + 1)
            else:
                line = _line("task", child.name, _awaits(child))
                alike[line] = alike.get(line, 0) + 1
    for line, count in alike.items():
        yield "  " * (depth + 1) + (f"{count} x " if count > 1 else "") + line


def _awaits(task: trio.lowlevel.Task) -> Sequence[tuple[FrameType, int]]:
    try:
        return list(task.iter_await_frames())
    except Exception:  # it runs just now, looked at from another thread
        return []


def _threads() -> Iterator[str]:
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.ident in frames and thread.ident != threading.get_ident():
            walked = traceback.walk_stack(frames[thread.ident])
            yield _line("thread", thread.name, list(walked)[::-1])


def _line(kind: str, name: str, frames: Iterable[tuple[FrameType, int]]) -> str:
    """Describe a stack in one line: what of it is ours, and where it ends."""
    stack = [(frame.f_code, number) for frame, number in frames]
    while stack and stack[-1][0].co_filename.endswith("trio/_core/_traps.py"):
        stack.pop()  # where all that wait are
    shown = [
        f"{_short(code.co_filename)}:{number} {code.co_name}"
        for code, number in stack[:-1]
        if code.co_filename.startswith(_OUR_PATH)
    ]
    shown += [f"{_short(code.co_filename)}:{number} {code.co_name}" for code, number in stack[-1:]]
    return f"{kind} {name.removeprefix('codeartsfs.')}: {' > '.join(shown) or 'runs'}"


def _short(path: str) -> str:
    if path.startswith(_OUR_PATH):
        return path.removeprefix(_OUR_PATH)
    return os.sep.join(path.split(os.sep)[-2:])
