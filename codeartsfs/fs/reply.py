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
            try:
                about = args[0].about(handler.__name__, args[1])
            except Exception:  # what the kernel asked for is not known here, maybe any more
                about = "?"
            raise pyfuse3.FUSEError(_errno_of(handler.__name__, about, failure)) from failure

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


def not_permitted() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.EPERM)


def unsupported() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.EOPNOTSUPP)


def read_only() -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(errno.EROFS)


def _errno_of(operation: str, about: object, failure: Exception) -> int:
    """Return what the caller is told, and leave a line in the log that explains it."""
    for kind, number in _ERRNOS:
        if isinstance(failure, kind):
            quiet = isinstance(failure, NotFound | CrawlerRefused | CallerKilled)
            name = errno.errorcode[number]
            log.log(
                logging.INFO if quiet else logging.WARNING,
                "%s: %s: %s: %s",
                operation,
                name,
                about,
                failure if str(failure) else type(failure).__name__,
                extra={"operation": operation, "errno": name, "path": str(about)},
            )
            return number
    log.error(
        "%s: EIO: %s: failed in an unforeseen way",
        operation,
        about,
        exc_info=failure,
        extra={"operation": operation, "errno": "EIO", "path": str(about)},
    )
    return errno.EIO
