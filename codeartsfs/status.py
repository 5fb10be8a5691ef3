"""What a mount says of itself: values in; JSON, metrics and one line out.

A ``Snapshot`` is taken in the event loop, where nothing changes meanwhile. What is made of it
may take its time, in a thread, and asks nobody.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import codeartsfs
from codeartsfs.api.client import ApiCounts, ApiTrouble, CallCounts
from codeartsfs.api.health import ApiState
from codeartsfs.config import MountConfig
from codeartsfs.fs.waits import SlowOperation
from codeartsfs.logs.store import FlightStatus, StoreStatistics
from codeartsfs.names import METRICS_FILE, STATUS_FILE
from codeartsfs.timing import BOUNDS_S, Durations

if TYPE_CHECKING:
    from prometheus_client import Metric

CONDITIONS = ("ok", "down", "refused")


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier of the cache; None for what is not known yet."""

    used_bytes: int | None
    limit_bytes: int
    logs: int | None
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel asked, and how long it took us; mappings are by kind of operation."""

    opens: int
    reads: int
    read_bytes: int
    inodes: int
    durations: Mapping[str, Durations]
    failures: Mapping[str, int]
    slowest: Sequence[SlowOperation]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything there is to say, at one moment (``at_s``, in seconds since the epoch)."""

    config: MountConfig
    pid: int
    mounted_at_s: float
    at_s: float
    credentials: str
    credentials_expire_in_s: float | None
    kernel: Kernel
    logs: StoreStatistics
    flights: Sequence[FlightStatus]
    memory: Tier
    disk: Tier | None
    api: ApiState
    trouble: ApiTrouble
    counts: ApiCounts
    calls: Mapping[str, CallCounts]


class ControlFiles:
    """The files of a mount in which it speaks of itself."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._metrics_bytes = 0
        # Of its own: threads that wait for a disk that hangs must not keep this from being told.
        self._threads = trio.CapacityLimiter(1)

    def size_bytes(self, name: str) -> int:
        """Return the size to show; that of the metrics is what it was when they were last read."""
        return len(self.json()) if name == STATUS_FILE else self._metrics_bytes

    def json(self) -> bytes:
        return as_json(self._take())

    async def text(self, name: str) -> bytes:
        snapshot = self._take()
        if name == STATUS_FILE:
            return as_json(snapshot)
        assert name == METRICS_FILE
        text = await trio.to_thread.run_sync(
            as_metrics, snapshot, abandon_on_cancel=True, limiter=self._threads
        )
        self._metrics_bytes = len(text)
        return text

    def line(self) -> str:
        return as_line(self._take())


def as_json(now: Snapshot) -> bytes:
    """Return ``status.json``. Its keys are an interface: none changes its name or meaning."""
    session = now.config.session
    failure, refusal = now.trouble.last_failure, now.trouble.last_refusal
    content = {
        "version": codeartsfs.__version__,
        "pid": now.pid,
        "mountpoint": str(now.config.mountpoint),
        "endpoint": session.endpoint,
        "credentials": now.credentials,
        "mounted_at_s": round(now.mounted_at_s, 3),
        "at_s": round(now.at_s, 3),
        "settings": _settings(now.config),
        "authentication": {
            "kind": now.credentials,
            "expires_at_s": _later(now, now.credentials_expire_in_s),
            "refused": now.trouble.refused,
            "last_refusal": refusal.error if refusal else "",
            "last_refusal_at_s": round(refusal.at_s, 3) if refusal else None,
        },
        "kernel": {
            "opens": now.kernel.opens,
            "reads": now.kernel.reads,
            "inodes": now.kernel.inodes,
            "read_bytes": now.kernel.read_bytes,
            "operations": {
                operation: {**_times(took), "failed": now.kernel.failures.get(operation, 0)}
                for operation, took in now.kernel.durations.items()
            },
        },
        "logs": {**asdict(now.logs), "hit_rate": _rate(now.logs.hits, now.logs.misses)},
        "memory_cache": _tier(now.memory, now.logs.memory_hits, now.logs.memory_misses),
        "disk_cache": now.disk and _tier(now.disk, now.logs.disk_hits, now.logs.disk_misses),
        "api": {
            **asdict(now.api),
            **asdict(now.counts),
            "waited_s": {each: round(s, 3) for each, s in now.counts.waited_s.items()},
            "last_error": failure.error if failure else "",
            "last_error_at_s": round(failure.at_s, 3) if failure else None,
            "next_try_at_s": _later(now, now.trouble.asks_again_in_s),
            "received_bytes": sum(counts.received_bytes for counts in now.calls.values()),
            "calls": {
                call: {
                    **_times(counts.durations),
                    "received_bytes": counts.received_bytes,
                    "answers": counts.answers,
                }
                for call, counts in now.calls.items()
            },
        },
        "in_flight": [
            {
                "path": str(flight.key),
                "doing": flight.doing,
                "landed_bytes": flight.landed_bytes,
                "size_bytes": flight.size_bytes,
                "bytes_per_s": round(flight.bytes_per_s),
                "age_s": round(flight.age_s, 3),
                "waiters": flight.waiters,
                "background": flight.background,
            }
            for flight in now.flights
        ],
        "slowest": [
            {**asdict(slow), "at_s": round(slow.at_s, 3), "took_s": round(slow.took_s, 3)}
            for slow in now.kernel.slowest
        ],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def as_line(now: Snapshot) -> str:
    trouble = f"; the API is {now.api.condition}: {now.api.error}" if now.api.error else ""
    return (
        f"{now.config.mountpoint}: {now.logs.open_logs} logs open, {now.logs.downloading} coming,"
        f" {now.logs.downloads} downloaded, {now.counts.requests} API requests,"
        f" {now.counts.retries} retries{trouble}"
    )


def as_metrics(now: Snapshot) -> bytes:
    """Return the metrics in Prometheus' text format."""
    # Here, because it takes as long as all the rest of a mount's start.
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Taken(Collector):
        def collect(self) -> Iterator["Metric"]:
            process = ProcessCollector(namespace="codeartsfs", registry=None).collect()
            for family in chain(_metrics(now), process):
                # So that the metrics of several mounts can stand in one place.
                family.samples = [
                    sample._replace(labels={"mountpoint": where, **sample.labels})
                    for sample in family.samples
                ]
                yield family

    where = str(now.config.mountpoint).encode(errors="replace").decode()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Taken())
    return generate_latest(registry)


def _metrics(now: Snapshot) -> Iterator["Metric"]:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    def counted(name: str, said: str, value: float) -> "Metric":
        return CounterMetricFamily(f"codeartsfs_{name}", said, value=value)

    def counted_by(label: str, name: str, said: str, values: Mapping[str, float]) -> "Metric":
        family = CounterMetricFamily(f"codeartsfs_{name}", said, labels=[label])
        for each, value in values.items():
            family.add_metric([each], value)
        return family

    def gauge(name: str, said: str, value: float | None) -> "Metric":
        family = GaugeMetricFamily(f"codeartsfs_{name}", said, labels=[])
        if value is not None:  # what is not known is not there
            family.add_metric([], value)
        return family

    def gauge_by(label: str, name: str, said: str, values: Mapping[str, float | None]) -> "Metric":
        family = GaugeMetricFamily(f"codeartsfs_{name}", said, labels=[label])
        for each, value in values.items():
            if value is not None:
                family.add_metric([each], value)
        return family

    def histogram_by(label: str, name: str, said: str, of: Mapping[str, Durations]) -> "Metric":
        family = HistogramMetricFamily(f"codeartsfs_{name}", said, labels=[label])
        for each, took in of.items():
            family.add_metric([each], _buckets(took), took.total_s)
        return family

    info = GaugeMetricFamily(
        "codeartsfs_mount_info",
        "Always 1; its labels say what is mounted.",
        labels=["endpoint", "credentials", "version"],
    )
    info.add_metric([now.config.session.endpoint, now.credentials, codeartsfs.__version__], 1)
    yield info
    yield gauge("mount_timestamp_seconds", "When it was mounted.", now.mounted_at_s)

    yield gauge_by(
        "condition",
        "api_condition",
        "1 for how the API is: ok, down (nobody answers) or refused (our credentials).",
        {each: float(each == now.api.condition) for each in CONDITIONS},
    )
    requests = CounterMetricFamily(
        "codeartsfs_api_requests",
        "Requests to the API, by call and the class of HTTP status; none: no answer.",
        labels=["call", "answer"],
    )
    for call, counts in now.calls.items():
        for answer, count in counts.answers.items():
            requests.add_metric([call, answer], count)
    yield requests
    yield counted("api_retries", "Requests that were sent again.", now.counts.retries)
    yield counted("api_throttled", "Answers that said: too many.", now.counts.throttled)
    yield counted_by(
        "reason",
        "api_wait_seconds",
        "How long requests were held back: for a free download (slot), the limit of requests"
        " (pace), the pause that the API asked for (throttled), another try (retry).",
        now.counts.waited_s,
    )
    yield counted_by(
        "call",
        "api_received_bytes",
        "Bytes of bodies received, as they came.",
        {call: counts.received_bytes for call, counts in now.calls.items()},
    )
    yield histogram_by(
        "call",
        "api_response_seconds",
        "From sending a request to the head of its answer.",
        {call: counts.durations for call, counts in now.calls.items()},
    )
    failure, refusal = now.trouble.last_failure, now.trouble.last_refusal
    yield gauge(
        "api_last_error_timestamp_seconds",
        "When a request last failed for good.",
        failure.at_s if failure else None,
    )
    yield gauge(
        "credentials_expiry_timestamp_seconds",
        "When the token that is in use expires; it is renewed before.",
        _later(now, now.credentials_expire_in_s),
    )
    yield gauge(
        "credentials_refused_timestamp_seconds",
        "When the credentials were last refused.",
        refusal.at_s if refusal else None,
    )

    yield counted("opens", "Logs opened.", now.kernel.opens)
    yield counted("open_hits", "Opens served without the API.", now.logs.hits)
    yield counted("open_misses", "Opens that waited for the API.", now.logs.misses)
    yield counted("read_bytes", "Bytes of logs given to the kernel.", now.kernel.read_bytes)
    yield histogram_by(
        "operation",
        "operation_seconds",
        "How long programs waited for us; what the kernel has in its cache does not get here.",
        now.kernel.durations,
    )
    yield counted_by(
        "operation", "operation_failures", "Operations that ended in an error.", now.kernel.failures
    )
    yield gauge("inodes", "Inodes that the kernel knows.", now.kernel.inodes)
    yield gauge("open_logs", "Logs that are open.", now.logs.open_logs)

    yield counted("downloads", "Logs asked for, or looked at again.", now.logs.downloads)
    yield counted("downloads_shared", "Readers who joined a download.", now.logs.boarded)
    yield counted("log_received_bytes", "Bytes of logs that were new.", now.logs.received_bytes)
    ahead = sum(flight.background for flight in now.flights)
    yield gauge_by(
        "by",
        "downloads_in_flight",
        "Logs being looked at or downloaded, for readers or fetched ahead of them.",
        {"readers": len(now.flights) - ahead, "ahead": ahead},
    )
    yield gauge(
        "download_oldest_seconds",
        "Age of the oldest of them.",
        max((flight.age_s for flight in now.flights), default=0.0),
    )
    yield counted("fetched_ahead", "Logs fetched ahead.", now.logs.fetched_ahead)
    yield gauge("fetched_in_vain", "Those that nobody opened.", now.logs.fetched_in_vain)

    tiers = {"memory": now.memory} | ({"disk": now.disk} if now.disk else {})
    yield gauge_by(
        "tier",
        "cache_used_bytes",
        "Bytes in the cache, as far as counted.",
        {name: tier.used_bytes for name, tier in tiers.items()},
    )
    yield gauge_by(
        "tier",
        "cache_limit_bytes",
        "Limit of the cache.",
        {name: tier.limit_bytes for name, tier in tiers.items()},
    )
    yield gauge_by(
        "tier",
        "cache_logs",
        "Logs in the cache, as far as counted.",
        {name: tier.logs for name, tier in tiers.items()},
    )
    found = {"memory": now.logs.memory_hits, "disk": now.logs.disk_hits}
    missed = {"memory": now.logs.memory_misses, "disk": now.logs.disk_misses}
    yield counted_by(
        "tier", "cache_hits", "Logs found there.", {name: found[name] for name in tiers}
    )
    yield counted_by(
        "tier", "cache_misses", "Logs not found there.", {name: missed[name] for name in tiers}
    )
    yield counted(
        "cache_evicted", "Logs evicted from the disk.", now.disk.evicted if now.disk else 0
    )


def _settings(config: MountConfig) -> dict[str, Any]:
    session = config.session
    cache_dir: Path | None = session.cache_dir
    return {
        "projects": list(session.projects),
        "builds_per_job": session.builds_per_job,
        "cache_dir": str(cache_dir) if cache_dir else "none",
        "deadline_s": config.deadline_s,
        "stat_size": config.stat_size,
        "max_downloads": session.max_downloads,
        "max_requests_per_second": session.max_requests_per_second,
        "refresh_s": session.refresh_s,
        "settle_s": session.settle_s,
        "prefetch": config.prefetch,
        "options": sorted(config.options.kernel),
    }


def _tier(tier: Tier, hits: int, misses: int) -> dict[str, Any]:
    return {**asdict(tier), "hits": hits, "misses": misses, "hit_rate": _rate(hits, misses)}


def _times(took: Durations) -> dict[str, Any]:
    """Say how long something took, with bounds that half of all, and nearly all, kept."""
    return {
        "count": took.count,
        "total_s": round(took.total_s, 3),
        "half_within_s": took.at_most_s(0.5),
        "most_within_s": took.at_most_s(0.99),
    }


def _buckets(took: Durations) -> list[tuple[str, float]]:
    """Return the classes as Prometheus counts them: each with all the shorter ones."""
    reached, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), took.counts, strict=True):
        reached += count
        buckets.append((bound, float(reached)))
    return buckets


def _rate(hits: int, misses: int) -> float | None:
    return round(hits / (hits + misses), 4) if hits + misses else None


def _later(now: Snapshot, seconds: float | None) -> float | None:
    return None if seconds is None else round(now.at_s + seconds, 3)
