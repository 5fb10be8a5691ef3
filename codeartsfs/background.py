"""Going to the background: the starter returns only once the mount answers, or says why not."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def occupy_standard_files() -> None:
    """Open what of 0, 1 and 2 was closed before we began, or another file would get the number.

    What is written to standard error would be in that file, and going to the background close it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)


@contextmanager
def detached() -> Iterator[Callable[[], None]]:
    """Run the block in a background process; the starting process never enters it.

    The starter waits. When the block calls what it is given, the starter exits with 0. When
    the block ends before that, the starter exits with the block's exit code; what it had
    to say went to the standard error that both share until then.
    """
    report_to_starter = _fork_and_wait()

    def ready() -> None:
        nonlocal report_to_starter
        # Not before: while it mounts where systemd has an automount point, the kernel lets no
        # other process group than that of mount(8) pass, and the mount would wait for itself.
        os.setsid()
        os.write(report_to_starter, b"\0")
        os.close(report_to_starter)
        report_to_starter = -1  # its number will soon be another file's
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)

    try:
        yield ready
    except SystemExit as end:
        _report(report_to_starter, end.code if isinstance(end.code, int) else 1)
        raise
    except BaseException:
        _report(report_to_starter, 1)
        raise


def _fork_and_wait() -> int:
    """Fork; return, in the child only, where to report."""
    receive, report = os.pipe()
    if os.fork():
        os.close(report)
        code = os.read(receive, 1)
        os._exit(code[0] if code else 1)
    os.close(receive)
    os.chdir("/")
    return report


def _report(report_to_starter: int, code: int) -> None:
    with suppress(OSError):  # after being ready: the starter is long gone
        os.write(report_to_starter, bytes([code or 1]))
