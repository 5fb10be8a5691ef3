"""A session: one use of the API and of the cache, by a mount or by a command without one."""

import ctypes
import logging
import os
import resource
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import cachetools
import trio

from codeartsfs.api.auth import Credentials
from codeartsfs.api.client import ApiClient, Delivered, LogBody, LogPlace, open_client
from codeartsfs.api.pace import Pace
from codeartsfs.builds.catalog import Catalog
from codeartsfs.builds.index import open_index
from codeartsfs.builds.jobs import Jobs
from codeartsfs.config import SessionConfig
from codeartsfs.errors import CodeArtsError
from codeartsfs.logs.disk import DiskTier
from codeartsfs.logs.store import LogStore, open_log_store
from codeartsfs.model import LogPrefix
from codeartsfs.names import LogKey

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4  # prctl(2)


@dataclass(frozen=True, slots=True)
class Session:
    """The parts, put together; the store outlives whoever reads, the client the store."""

    client: ApiClient
    catalog: Catalog
    jobs: Jobs
    store: LogStore


@asynccontextmanager
async def open_session(
    config: SessionConfig, credentials: Credentials, *, keeps_running: bool = False
) -> AsyncIterator[Session]:
    """Open the cache and all that asks the API; nothing is asked for yet.

    Args:
        keeps_running: logs that still grow are put on disk, too, as far as they are.

    Raises:
        CacheDirectoryError: the cache directory cannot be used.
        EndpointError: the endpoint or the CA file cannot be used.
    """
    disk = index = None
    if config.cache_dir is not None:
        disk = DiskTier(config.cache_dir, config.cache_size_bytes)
    pace = Pace(
        max_downloads=config.max_downloads, requests_per_second=config.max_requests_per_second
    )
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            open_client(
                endpoint=config.endpoint, credentials=credentials, pace=pace, ca_file=config.ca_file
            )
        )
        if config.cache_dir is not None:
            index = await stack.enter_async_context(open_index(config.cache_dir))
        asking = await stack.enter_async_context(cancelled_at_the_end())
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
                keeps_running=keeps_running,
            )
        )
        yield Session(client, catalog, jobs, store)


def prepare_process() -> None:
    """Make this process one that may have many logs open and keeps its credentials to itself."""
    # Every open log is a file here: take all descriptors that the administrator permits.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # No core dump, no tracing by others of the same user.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@asynccontextmanager
async def cancelled_at_the_end() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for tasks that nobody waits for."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


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


def _scratch() -> Path:
    """Return where downloads go without a disk cache; not /tmp, which often is memory."""
    var_tmp = Path("/var/tmp")
    usable = "TMPDIR" not in os.environ and os.access(var_tmp, os.W_OK)
    return var_tmp if usable else Path(tempfile.gettempdir())
