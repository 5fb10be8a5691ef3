"""The mounted process: puts the parts together, keeps them running, takes them down again.

Nesting is ownership: the client outlives the store, the store outlives the mount.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import trio

from codeartsfs.api.auth import Credentials
from codeartsfs.config import MountConfig, MountOptions
from codeartsfs.diagnostics import set_level
from codeartsfs.fs.attributes import Attributes
from codeartsfs.fs.callers import CRAWLERS, Callers, paths_given
from codeartsfs.fs.mount import Mount, open_mount
from codeartsfs.fs.mountpoint import source_of
from codeartsfs.fs.operations import Operations, Shown, StatSize
from codeartsfs.fs.tree import Tree
from codeartsfs.inspection import answer_signals, hold_signals, tell
from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.names import CONTROL_DIR, STATUS_FILE, LogKey, RecordId
from codeartsfs.notify import Notifier
from codeartsfs.session import Session, cancelled_at_the_end, open_session, prepare_process
from codeartsfs.status import ControlFiles, Kernel, Snapshot, Tier

log = logging.getLogger(__name__)

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
    prepare_process()
    hold_signals()
    crawlers = CRAWLERS if config.crawlers is None else config.crawlers
    watched = Callers(config.deadline_s, crawlers)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session(config.session, credentials))
        catalog, jobs, store = session.catalog, session.jobs, session.store
        ahead = await stack.enter_async_context(cancelled_at_the_end())
        # The rest of the downloads is for those who wait.
        most_ahead = min(config.prefetch, config.session.max_downloads * 3 // 4 or 1)
        mounted_at_s = time.time()
        tree = Tree(catalog, jobs, store)

        async def given(process: int) -> Sequence[RecordId | LogKey]:
            paths = await trio.to_thread.run_sync(paths_given, process, config.mountpoint)
            return await tree.places(paths)

        def snapshot() -> Snapshot:
            return _snapshot(config, credentials, session, operations, mounted_at_s)

        status = ControlFiles(snapshot)
        operations = Operations(
            tree,
            store,
            Attributes(catalog, jobs, store),
            Prefetcher(store, tree, given, ahead, most_ahead),
            watched,
            control=status,
            shown=_shown(config.options),
            stat_size=StatSize(config.stat_size),
            refresh_s=config.session.refresh_s,
            set_log_level=_set_log_level,
        )
        answer_signals(watched.waits, status.json)
        source = config.options.source or source_of(config.session.endpoint)
        mount = await stack.enter_async_context(
            open_mount(config.mountpoint, operations, watched, source, config.options.kernel)
        )
        await _look_after(mount, session, status, notifier, on_ready)


def _set_log_level(level: str) -> str:
    outcome = set_level(level)
    tell("asked by codeartsfs log-level: %s", outcome)
    return outcome


async def _look_after(
    mount: Mount,
    session: Session,
    status: ControlFiles,
    notifier: Notifier,
    on_ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        if session.store.disk is not None:
            nursery.start_soon(session.store.disk.survey)  # nothing waits for what is counted
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
        number = await signals.__anext__()
        log.info("ended by %s", signal.Signals(number).name)
        notifier.stopping()
        await mount.end(_GRACE_S)


async def _report(
    mount: Mount, status: ControlFiles, notifier: Notifier, on_ready: Callable[[], None]
) -> None:
    await mount.answers()
    log.info("mounted at %s", mount.path)
    notifier.status(status.line())
    notifier.ready()
    on_ready()
    while True:
        await trio.sleep(_STATUS_EVERY_S)
        notifier.status(status.line())


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


def _snapshot(
    config: MountConfig,
    credentials: Credentials,
    session: Session,
    operations: Operations,
    mounted_at_s: float,
) -> Snapshot:
    client, store = session.client, session.store
    waits = operations.waits
    disk, memory = store.disk, store.memory
    on_disk = None
    if disk is not None:
        on_disk = Tier(disk.used_bytes, disk.limit_bytes, disk.log_count, disk.evicted_logs)
    return Snapshot(
        config=config,
        pid=os.getpid(),
        mounted_at_s=mounted_at_s,
        at_s=time.time(),
        credentials=credentials.kind,
        credentials_expire_in_s=credentials.expires_in_s,
        kernel=Kernel(
            opens=operations.opens,
            reads=operations.reads,
            read_bytes=operations.read_bytes,
            inodes=len(operations.inodes),
            durations={operation: took.copy() for operation, took in waits.durations.items()},
            failures=dict(waits.failures),
            slowest=waits.slowest(),
        ),
        logs=store.statistics(),
        flights=store.flights(),
        memory=Tier(memory.used_bytes, memory.limit_bytes, len(memory)),
        disk=on_disk,
        api=client.state,
        trouble=client.trouble,
        counts=client.statistics,
        calls=client.calls(),
    )


def _shown(options: MountOptions) -> Shown:
    return Shown(
        uid=os.geteuid() if options.uid is None else options.uid,
        gid=os.getegid() if options.gid is None else options.gid,
        file_mode=0o444 & ~options.file_mask,
        directory_mode=0o555 & ~options.directory_mask,
    )
