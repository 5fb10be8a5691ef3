"""The last step of every handler: an answer in time, and errors as errnos.

errno exists here and nowhere else. pyfuse3 takes any exception but FUSEError for the end
of the mount, so no handler goes without ``@replies``.
"""

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyfuse3

from codeartsfs.errors import (
    AccessDenied,
    ApiUnavailable,
    BadAnswer,
    CrawlerRefused,
    LogRewritten,
    NotFound,
)
from codeartsfs.fs.callers import CallerKilled, DeadlineExceeded

log = logging.getLogger(__name__)

# First match wins. Never used, because tools mishandle them: EAGAIN (silent empty copies),
# EINTR for callers that live (endless retries), ESTALE at open (the kernel asks twice).
_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, errno.ENOENT),
    (AccessDenied, errno.EACCES),
    (CrawlerRefused, errno.EACCES),
    (ApiUnavailable, errno.EIO),
    (BadAnswer, errno.EIO),
    (LogRewritten, errno.ESTALE),
    (DeadlineExceeded, errno.ETIMEDOUT),
    (CallerKilled, errno.EINTR),
    (OSError, errno.EIO),
)

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


def replies(handler: _Handler) -> _Handler:
    """Turn whatever a handler raises into the errno its caller shall see."""

    @functools.wraps(handler)
    async def reply(*args: Any) -> Any:
        try:
            return await handler(*args)
        except pyfuse3.FUSEError:
            raise
        except Exception as failure:
            raise pyfuse3.FUSEError(_errno_of(handler.__name__, failure)) from failure

    return reply  # type: ignore[return-value]


def no_entry() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.ENOENT)


@contextmanager
def ignoring_unknown_inodes() -> Iterator[None]:
    """Notify the kernel of an inode that it may have forgotten meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def no_attribute() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.ENODATA)


def unsupported() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.EOPNOTSUPP)


def read_only() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.EROFS)


def _errno_of(operation: str, failure: Exception) -> int:
    for kind, number in _ERRNOS:
        if isinstance(failure, kind):
            quiet = isinstance(failure, NotFound | CrawlerRefused | CallerKilled)
            log.log(
                logging.INFO if quiet else logging.WARNING,
                "%s: %s: %s",
                operation,
                errno.errorcode[number],
                str(failure) or type(failure).__name__,
            )
            return number
    log.error("%s failed in an unforeseen way", operation, exc_info=failure)
    return errno.EIO
