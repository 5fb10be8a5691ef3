"""The mounted process: puts the parts together, keeps them running, takes them down again.

Nesting is ownership: the client outlives the store, the store outlives the mount.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from urllib.parse import urlsplit

import trio

import codeartsfs
from codeartsfs.api.auth import Credentials
from codeartsfs.config import MountConfig
from codeartsfs.fs.attributes import Attributes
from codeartsfs.fs.callers import CRAWLERS, Callers, paths_given
from codeartsfs.fs.mount import Mount, open_mount
from codeartsfs.fs.nodes import CONTROL_DIR, STATUS_FILE
from codeartsfs.fs.operations import Operations, StatSize
from codeartsfs.fs.tree import Tree
from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.names import LogKey, RecordId
from codeartsfs.notify import Notifier
from codeartsfs.session import Session, cancelled_at_the_end, open_session

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4  # prctl(2)
_GRACE_S = 1.0  # for requests under way when the end is asked for
_STATUS_EVERY_S = 10.0


async def serve(
    config: MountConfig, credentials: Credentials, notifier: Notifier, on_ready: Callable[[], None]
) -> None:
    """Mount, answer until unmounted or told to stop, and unmount.

    Args:
        on_ready: called once, when the mount has answered.

    Raises:
        CacheDirectoryError: the cache directory cannot be used.
        EndpointError: the endpoint or the CA file cannot be used.
        MountPointError: mounting failed.
    """
    _allow_many_files()
    _allow_no_core_dump()
    crawlers = CRAWLERS if config.crawlers is None else config.crawlers
    watched = Callers(config.deadline_s, crawlers)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session(config.session, credentials))
        catalog, jobs, store = session.catalog, session.jobs, session.store
        ahead = await stack.enter_async_context(cancelled_at_the_end())
        # The rest of the downloads is for those who wait.
        most_ahead = min(config.prefetch, config.session.max_downloads * 3 // 4 or 1)
        status = _Status(config, credentials, session)
        tree = Tree(catalog, jobs, store)

        async def given(process: int) -> Sequence[RecordId | LogKey]:
            paths = await trio.to_thread.run_sync(paths_given, process, config.mountpoint)
            return await tree.places(paths)

        operations = Operations(
            tree,
            store,
            Attributes(catalog, jobs, store),
            Prefetcher(store, tree, given, ahead, most_ahead),
            watched,
            status=status.as_json,
            stat_size=StatSize(config.stat_size),
            refresh_s=config.session.refresh_s,
        )
        status.operations = operations
        source = f"codearts:{urlsplit(config.session.endpoint).netloc}"
        mount = await stack.enter_async_context(
            open_mount(config.mountpoint, operations, watched, source, config.options)
        )
        await _look_after(mount, status, notifier, on_ready)


async def _look_after(
    mount: Mount, status: "_Status", notifier: Notifier, on_ready: Callable[[], None]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, mount, notifier)
        nursery.start_soon(_report, mount, status, notifier, on_ready)
        if notifier.watchdog_interval_s is not None:
            nursery.start_soon(_prove_life, mount, notifier, notifier.watchdog_interval_s)
        await mount.ended.wait()
        nursery.cancel_scope.cancel()
    log.info("unmounting %s", mount.path)


async def _end_on_signal(mount: Mount, notifier: Notifier) -> None:
    ending = {signal.SIGTERM, signal.SIGINT}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup(1) leaves it
        ending.add(signal.SIGHUP)
    with trio.open_signal_receiver(*ending) as signals:
        await signals.__anext__()
        notifier.stopping()
        await mount.end(_GRACE_S)


async def _report(
    mount: Mount, status: "_Status", notifier: Notifier, on_ready: Callable[[], None]
) -> None:
    await mount.answers()
    log.info("mounted at %s", mount.path)
    notifier.status(status.as_line())
    notifier.ready()
    on_ready()
    while True:
        await trio.sleep(_STATUS_EVERY_S)
        notifier.status(status.as_line())


async def _prove_life(mount: Mount, notifier: Notifier, every_s: float) -> None:
    """Feed the watchdog, but only after a file was really read through the mount.

    A read that hangs ends the feeding, and so the process: systemd starts a new one.
    """
    witness = mount.path / CONTROL_DIR / STATUS_FILE
    while True:
        try:
            await trio.to_thread.run_sync(witness.read_bytes, abandon_on_cancel=True)
        except OSError as error:
            log.error("the mount does not answer its own read: %s", error)
        else:
            notifier.watchdog()
        await trio.sleep(every_s)


class _Status:
    """What the mount says of itself, in a file and in one line."""

    operations: Operations

    def __init__(self, config: MountConfig, credentials: Credentials, session: Session) -> None:
        self._config = config
        self._credentials = credentials
        self._client = session.client
        self._store = session.store
        self._since = time.time()

    def as_json(self) -> bytes:
        disk = self._store.disk
        content = {
            "version": codeartsfs.__version__,
            "pid": os.getpid(),
            "mountpoint": os.fspath(self._config.mountpoint),
            "endpoint": self._config.session.endpoint,
            "credentials": self._credentials.kind,
            "mounted_at_s": round(self._since, 3),
            "kernel": {
                "opens": self.operations.opens,
                "reads": self.operations.reads,
                "inodes": len(self.operations.inodes),
            },
            "logs": asdict(self._store.statistics()),
            "memory_cache": {
                "used_bytes": self._store.memory.used_bytes,
                "limit_bytes": self._store.memory.limit_bytes,
            },
            "disk_cache": disk and {"used_bytes": disk.used_bytes, "limit_bytes": disk.limit_bytes},
            "api": {**asdict(self._client.state), **asdict(self._client.statistics)},
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    def as_line(self) -> str:
        logs, api = self._store.statistics(), self._client.statistics
        state = self._client.state
        trouble = f"; the API is {state.condition}: {state.error}" if state.error else ""
        return (
            f"{self._config.mountpoint}: {logs.open_logs} logs open, {logs.downloading} coming,"
            f" {logs.downloads} downloaded, {api.requests} API requests, {api.retries} retries"
            f"{trouble}"
        )


def _allow_many_files() -> None:
    """Every open log is a file here: take all descriptors that the administrator permits."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _allow_no_core_dump() -> None:
    """Keep the credentials in this process: no core dump, no tracing by others of the same user."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
