"""The mounted process: puts the parts together, keeps them running, takes them down again.

Nesting is ownership: the client outlives the store, the store outlives the mount.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import cachetools
import trio

import codeartsfs
from codeartsfs.api.auth import Credentials
from codeartsfs.api.client import ApiClient, Delivered, LogBody, LogPlace, open_client
from codeartsfs.api.pace import Pace
from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import open_index
from codeartsfs.builds.jobs import Jobs
from codeartsfs.config import MountConfig
from codeartsfs.errors import CodeArtsError
from codeartsfs.fs.attributes import Attributes
from codeartsfs.fs.callers import CRAWLERS, Callers, paths_given
from codeartsfs.fs.mount import Mount, open_mount
from codeartsfs.fs.nodes import CONTROL_DIR, STATUS_FILE
from codeartsfs.fs.operations import Operations, StatSize
from codeartsfs.fs.tree import Tree
from codeartsfs.logs.disk import DiskTier
from codeartsfs.logs.prefetch import Prefetcher
from codeartsfs.logs.store import LogStore, open_log_store
from codeartsfs.model import LogPrefix
from codeartsfs.names import LogKey, RecordId
from codeartsfs.notify import Notifier

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
    disk = None
    if config.cache_dir is not None:
        disk = DiskTier(config.cache_dir, config.cache_size_bytes)
    pace = Pace(
        max_downloads=config.max_downloads, requests_per_second=config.max_requests_per_second
    )
    crawlers = CRAWLERS if config.crawlers is None else config.crawlers
    watched = Callers(config.deadline_s, crawlers)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            open_client(
                endpoint=config.endpoint, credentials=credentials, pace=pace, ca_file=config.ca_file
            )
        )
        index = None
        if config.cache_dir is not None:
            index = await stack.enter_async_context(open_index(config.cache_dir))
        asking = await stack.enter_async_context(_cancelled_at_the_end())
        catalog = Catalog(client, asking, index)
        jobs = Jobs(
            client,
            catalog,
            config.projects,
            asking,
            builds_per_job=config.builds_per_job,
            index=index,
        )
        store = await stack.enter_async_context(
            open_log_store(
                _PlacedLogs(client, catalog, jobs),
                catalog,
                memory_bytes=config.memory_cache_bytes,
                disk=disk,
                scratch=_scratch(),
                refresh_s=config.refresh_s,
                settle_s=config.settle_s,
            )
        )
        ahead = await stack.enter_async_context(_cancelled_at_the_end())
        # The rest of the downloads is for those who wait.
        most_ahead = min(config.prefetch, config.max_downloads * 3 // 4 or 1)
        status = _Status(config, credentials, client, store)
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
            refresh_s=config.refresh_s,
        )
        status.operations = operations
        source = f"codearts:{urlsplit(config.endpoint).netloc}"
        mount = await stack.enter_async_context(
            open_mount(config.mountpoint, operations, watched, source, config.mount_options)
        )
        await _look_after(mount, status, notifier, on_ready)


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


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


class _PlacedLogs:
    """The API's logs; where the server ignores ranges, it says where they can be had by offset."""

    def __init__(self, client: ApiClient, catalog: Catalog, jobs: Jobs) -> None:
        self._client = client
        self._catalog = catalog
        self._jobs = jobs
        self._places: cachetools.LRUCache[LogKey, LogPlace | None] = cachetools.LRUCache(1000)

    @asynccontextmanager
    async def task_log(
        self,
        key: LogKey,
        after: LogPrefix | None = None,
        delivered: Delivered | None = None,
    ) -> AsyncIterator[LogBody]:
        place = None
        if after is not None and not self._client.honours_ranges:
            place = await self._place(key)
        async with self._client.task_log(key, after, delivered, place=place) as body:
            yield body

    async def _place(self, key: LogKey) -> LogPlace | None:
        if key not in self._places:
            try:
                self._places[key] = await self._find(key)
            except CodeArtsError as failure:
                log.info("no pages of %s just now: %s", key, failure)
                return None
        return self._places[key]

    async def _find(self, key: LogKey) -> LogPlace | None:
        build, run = await self._catalog.build(key.record), self._catalog.known_run(key)
        if build is None or build.build_no is None or run is None:
            return None
        for project in self._jobs.projects:
            if self._jobs.job_of(build) is None:
                await self._jobs.jobs(project)
        job = self._jobs.job_of(build)
        if job is None:
            return None
        # Which number of a stage its step id is, the API does not say.
        numbers = (run.sequence, run.stage.order[1])
        steps = tuple(dict.fromkeys(number for number in numbers if number is not None))
        return LogPlace(job.job_id, build.build_no, steps)


class _Status:
    """What the mount says of itself, in a file and in one line."""

    operations: Operations

    def __init__(
        self, config: MountConfig, credentials: Credentials, client: ApiClient, store: LogStore
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._client = client
        self._store = store
        self._since = time.time()

    def as_json(self) -> bytes:
        disk = self._store.disk
        content = {
            "version": codeartsfs.__version__,
            "pid": os.getpid(),
            "mountpoint": os.fspath(self._config.mountpoint),
            "endpoint": self._config.endpoint,
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


def _scratch() -> Path:
    """Return where downloads go without a disk cache; not /tmp, which often is memory."""
    var_tmp = Path("/var/tmp")
    usable = "TMPDIR" not in os.environ and os.access(var_tmp, os.W_OK)
    return var_tmp if usable else Path(tempfile.gettempdir())
