"""One mount: from pyfuse3.init to unmounted."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pyfuse3
import trio

from codeartsfs.fs.callers import Callers
from codeartsfs.fs.mountpoint import MountPointError
from codeartsfs.fs.operations import Operations

_MAX_TASKS = 1000  # (rule 8) with the default of 99, 99 waiting calls freeze the mount
_READ_AHEAD_BYTES = 512 << 10
_ALWAYS = ("ro", "nosuid", "nodev", "noexec", "default_permissions")


class Mount:
    """A running mount; ends when it is unmounted from outside or by ``end``."""

    def __init__(self, path: Path, scope: trio.CancelScope) -> None:
        self.path = path
        self._scope = scope
        self.ended = trio.Event()

    async def answers(self) -> None:
        """Return once the kernel has got an answer through the mount, by a real stat."""
        root = await trio.to_thread.run_sync(os.stat, self.path, abandon_on_cancel=True)
        if root.st_ino == pyfuse3.ROOT_INODE:  # not so where it was unmounted just now
            _read_further_ahead(root.st_dev)

    async def end(self, grace_s: float) -> None:
        """Take no more requests, give those under way ``grace_s`` seconds, then cancel them."""
        pyfuse3.terminate()
        with trio.move_on_after(grace_s):
            await self.ended.wait()
        self._scope.cancel()


def _read_further_ahead(device: int) -> None:
    """Let the kernel ask for more at once where we may tell it: fewer reads of a large log."""
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with suppress(OSError):  # root's to say
        Path(path).write_text(f"{_READ_AHEAD_BYTES >> 10}")


@asynccontextmanager
async def open_mount(
    path: Path, operations: Operations, watched: Callers, source: str, options: frozenset[str]
) -> AsyncIterator[Mount]:
    """Mount, and unmount (lazily, so that it always works) when the block is left.

    Args:
        source: what df(1) and mount(8) show; a colon in it marks the mount as remote.
        options: beside those every mount has.

    Raises:
        MountPointError: the kernel refused.
    """
    chosen = {f"fsname={source}", "subtype=codeartsfs", *_ALWAYS, *options}
    try:
        pyfuse3.init(operations, os.fspath(path), chosen)
    except RuntimeError as error:
        raise MountPointError(f"cannot mount at {path}: {error}") from error
    try:
        async with trio.open_nursery() as nursery:
            mount = Mount(path, trio.CancelScope())

            async def answer() -> None:
                with mount._scope:
                    await pyfuse3.main(max_tasks=_MAX_TASKS)
                mount.ended.set()

            nursery.start_soon(answer)
            nursery.start_soon(watched.watch)
            yield mount
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)
