"""No exception leaves a handler but FUSEError: pyfuse3 would end the mount."""

import errno
import inspect
import logging

import pyfuse3
import pytest
import trio
from trio.testing import MockClock

from codeartsfs import errors
from codeartsfs.fs.callers import CallerKilled, DeadlineExceeded
from codeartsfs.fs.nodes import LogFile
from codeartsfs.fs.operations import Operations
from codeartsfs.fs.reply import no_entry, read_only, replies
from tests.logs.fakes import KEY, RECORD

HANDLERS = sorted(
    name
    for name, member in vars(Operations).items()
    if inspect.iscoroutinefunction(member) and hasattr(pyfuse3.Operations, name)
)

TABLE: list[tuple[Exception, int]] = [
    (errors.NotFound("x"), errno.ENOENT),
    (errors.BuildNotFound(RECORD, "x"), errno.ENOENT),
    (errors.LogNotFound(KEY, "x"), errno.ENOENT),
    (errors.AccessDenied("x"), errno.EACCES),
    (errors.Forbidden("x"), errno.EACCES),
    (errors.CredentialsRefused("x"), errno.EACCES),
    (errors.ApiUnavailable("x"), errno.EIO),
    (errors.CallUnavailable("x"), errno.EIO),
    (errors.BadAnswer("x"), errno.EIO),
    (errors.CrawlerRefused("x"), errno.EACCES),
    (errors.LogRewritten(KEY), errno.ESTALE),
    (errors.CodeArtsError("x"), errno.EIO),
    (DeadlineExceeded(), errno.ETIMEDOUT),
    (CallerKilled(), errno.EINTR),
    (OSError(errno.ENOSPC, "full"), errno.EIO),
    (PermissionError(errno.EACCES, "cache"), errno.EIO),
    (FileNotFoundError(errno.ENOENT, "cache"), errno.EIO),
    (ValueError("a bug"), errno.EIO),
    (KeyError(7), errno.EIO),
    (AssertionError(), errno.EIO),
    (RecursionError(), errno.EIO),
    (ExceptionGroup("several", [ValueError("a bug")]), errno.EIO),
]


class Broken:
    """Fails at the first touch, whatever a handler wants of it."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("broken")


def test_all_handlers_that_a_mount_needs_are_there() -> None:
    assert {"lookup", "forget", "getattr", "opendir", "readdir", "open", "read"} <= set(HANDLERS)
    assert {"release", "releasedir", "statfs"} <= set(HANDLERS)


@pytest.mark.parametrize("name", HANDLERS)
async def test_exception_inside_a_handler_becomes_an_errno(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    handler = getattr(Operations, name)
    inner = inspect.unwrap(handler)
    arguments = [Broken() for _ in inspect.signature(inner).parameters]
    if name == "forget":
        arguments[1] = [(1, 1)]  # type: ignore[call-overload]
    with pytest.raises(pyfuse3.FUSEError) as failure:
        await handler(*arguments)
    assert failure.value.errno == errno.EIO
    assert "unforeseen" in caplog.text


def test_every_public_coroutine_of_operations_is_a_handler() -> None:
    """A misspelt handler would never be called."""
    own = [
        name
        for name, member in vars(Operations).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    ]
    assert sorted(own) == HANDLERS


@pytest.mark.parametrize(
    ("failure", "number"), TABLE, ids=lambda value: type(value).__name__ if value else ""
)
async def test_errors_have_their_errno(
    failure: Exception, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    @replies
    async def handler() -> None:
        raise failure

    caplog.set_level(logging.INFO)
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await handler()
    assert answer.value.errno == number
    (line,) = caplog.records
    assert line.getMessage().startswith("handler")
    assert not line.getMessage().rstrip().endswith(":")  # even an exception without words has one


class OfOneLog:
    """Operations that know what a request is about."""

    def about(self, operation: str, number: int) -> LogFile:
        assert (operation, number) == ("open", 7)
        return LogFile(KEY)

    @replies
    async def open(self, inode: int) -> None:
        raise errors.ApiUnavailable("no answer (request r-1)")


async def test_the_line_of_an_error_names_operation_errno_and_path(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(pyfuse3.FUSEError):
        await OfOneLog().open(7)
    (line,) = caplog.records
    assert line.getMessage() == f"open: EIO: /{KEY}: no answer (request r-1)"


def test_every_error_class_is_in_the_table() -> None:
    classes = {
        member
        for member in vars(errors).values()
        if inspect.isclass(member) and issubclass(member, errors.CodeArtsError)
    }
    assert classes <= {type(failure) for failure, _ in TABLE}


async def test_only_the_unforeseen_has_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for failure, _ in TABLE:
        caplog.clear()

        @replies
        async def handler(failure: Exception = failure) -> None:
            raise failure

        with pytest.raises(pyfuse3.FUSEError):
            await handler()
        unforeseen = not isinstance(
            failure, errors.CodeArtsError | OSError | DeadlineExceeded | CallerKilled
        )
        traced = any(record.exc_info for record in caplog.records)
        assert traced == (unforeseen or type(failure) is errors.CodeArtsError)


@pytest.mark.parametrize("made", [no_entry(), read_only()])
async def test_answer_chosen_by_the_handler_passes(made: pyfuse3.FUSEError) -> None:
    @replies
    async def handler() -> None:
        raise made

    with pytest.raises(pyfuse3.FUSEError) as answer:
        await handler()
    assert answer.value is made


async def test_result_passes() -> None:
    @replies
    async def handler(value: int) -> int:
        return value

    assert await handler(7) == 7


async def test_cancellation_passes(autojump_clock: MockClock) -> None:
    @replies
    async def handler() -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await handler()
    assert scope.cancelled_caught
