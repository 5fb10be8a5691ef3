"""What is done for nobody who waits must not hold up what is.

A mark on the current task and on all tasks it starts, because what the mark means is decided
far below: the pace of requests lets those without it go first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_IN_BACKGROUND: ContextVar[bool] = ContextVar("in_background", default=False)


@contextmanager
def background() -> Iterator[None]:
    """Mark what is done inside as nothing that anybody waits for."""
    token = _IN_BACKGROUND.set(True)
    try:
        yield
    finally:
        _IN_BACKGROUND.reset(token)


def in_background() -> bool:
    return _IN_BACKGROUND.get()
