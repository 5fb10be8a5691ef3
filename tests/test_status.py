"""What a mount says of itself, made of given values."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from codeartsfs.api.client import ApiCounts, ApiTrouble, CallCounts
from codeartsfs.api.health import ApiState, Mishap
from codeartsfs.config import MountConfig, MountOptions, SessionConfig
from codeartsfs.fs.waits import SlowOperation
from codeartsfs.logs.store import FlightStatus, StoreStatistics
from codeartsfs.names import LogKey, LogLevel, RecordId, Stage
from codeartsfs.status import Kernel, Snapshot, Tier, as_json, as_line, as_metrics
from codeartsfs.timing import BOUNDS_S, Durations

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "contrib/grafana/codeartsfs.json").read_text())
NAME = re.compile(r"\bcodeartsfs_[a-z_]+[a-z]\b")
KEY = LogKey(RecordId("a" * 36), Stage("stage1"), LogLevel.INFO)


def took(*seconds: float) -> Durations:
    durations = Durations()
    for each in seconds:
        durations.add(each)
    return durations


NOW = Snapshot(
    config=MountConfig(
        mountpoint=Path("/mnt/builds"),
        session=SessionConfig(
            endpoint="https://build.example.com",
            ca_file=None,
            projects=(),
            builds_per_job=100,
            max_downloads=16,
            max_requests_per_second=10.0,
            cache_dir=Path("/var/cache/builds"),
            cache_size_bytes=2 << 30,
            memory_cache_bytes=64 << 20,
            refresh_s=1.0,
            settle_s=10.0,
        ),
        deadline_s=60.0,
        stat_size="auto",
        prefetch=12,
        crawlers=None,
        options=MountOptions(kernel=frozenset({"allow_other"})),
    ),
    pid=4711,
    mounted_at_s=1_700_000_000.0,
    at_s=1_700_000_100.0,
    credentials="IAM password",
    credentials_expire_in_s=3600.0,
    kernel=Kernel(
        opens=10,
        reads=20,
        read_bytes=4096,
        inodes=3,
        durations={"open": took(0.0004, 3.0), "read": took(0.0001)},
        failures={"open": 1},
        slowest=[SlowOperation("open", str(KEY), "grep", 1.7e9, 3.0, {"stages": 3.0}, 5, "no")],
    ),
    logs=StoreStatistics(
        downloads=5,
        boarded=4,
        memory_hits=3,
        disk_hits=2,
        downloading=1,
        open_logs=1,
        hits=9,
        misses=1,
        memory_misses=7,
        disk_misses=5,
        received_bytes=999,
    ),
    flights=[FlightStatus(KEY, "bytes", 100, 1000, 50.0, 2.0, 3, background=False)],
    memory=Tier(1, 64 << 20, 1),
    disk=Tier(2, 2 << 30, 2),
    api=ApiState("down", 1_700_000_050.0, "nobody answers"),
    trouble=ApiTrouble(Mishap(1.7e9, "nobody answers"), Mishap(1.6e9, "expired"), True, 4.0),
    counts=ApiCounts(8, 2, 1, 5, 1, 0, {"pace": 1.5, "slot": 0.0}),
    calls={"task_log": CallCounts(Counter({"2xx": 6, "none": 2}), took(0.05, 0.3), 1234)},
)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and values of all samples by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(as_metrics(NOW).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_keys_that_programs_know_have_not_changed() -> None:
    said = json.loads(as_json(NOW))
    assert said["version"]
    assert {key: said[key] for key in ("pid", "mountpoint", "endpoint", "credentials")} == {
        "pid": 4711,
        "mountpoint": "/mnt/builds",
        "endpoint": "https://build.example.com",
        "credentials": "IAM password",
    }
    assert said["mounted_at_s"] == 1_700_000_000.0
    assert said["kernel"] | {"opens": 10, "reads": 20, "inodes": 3} == said["kernel"]
    assert {"downloads", "boarded", "memory_hits", "disk_hits", "downloading", "open_logs"} | {
        "fetched_ahead",
        "fetched_in_vain",
    } < said["logs"].keys()
    for tier in ("memory_cache", "disk_cache"):
        assert {"used_bytes", "limit_bytes"} < said[tier].keys()
    assert {"condition", "since_s", "error", "requests", "retries", "throttled"} | {
        "logs_opened",
        "downloads_open",
        "calls_open",
    } < said["api"].keys()


def test_times_to_come_are_told_as_times() -> None:
    said = json.loads(as_json(NOW))
    assert said["api"]["next_try_at_s"] == 1_700_000_104.0
    assert said["authentication"]["expires_at_s"] == 1_700_003_700.0
    assert said["authentication"]["last_refusal"] == "expired"


def test_rates_are_told_where_there_is_something_to_tell() -> None:
    said = json.loads(as_json(NOW))
    assert said["logs"]["hit_rate"] == 0.9
    assert said["memory_cache"]["hit_rate"] == 0.3


def test_the_line_says_what_is_wrong() -> None:
    assert as_line(NOW).startswith("/mnt/builds: 1 logs open, 1 coming, 5 downloaded, ")
    assert as_line(NOW).endswith("; the API is down: nobody answers")


def test_every_metric_says_whose_it_is(samples: dict[str, Any]) -> None:
    assert all(
        labels["mountpoint"] == "/mnt/builds" for found in samples.values() for labels, _ in found
    )
    # What has another's name would clash with what node_exporter has of its own.
    assert all(name.startswith("codeartsfs_") for name in samples)


def test_metrics_have_the_values(samples: dict[str, Any]) -> None:
    def value(name: str, **labels: str) -> float:
        [found] = [v for own, v in samples[name] if own == {"mountpoint": "/mnt/builds", **labels}]
        return float(found)

    assert value("codeartsfs_api_condition", condition="down") == 1
    assert value("codeartsfs_api_condition", condition="ok") == 0
    assert value("codeartsfs_api_requests_total", call="task_log", answer="none") == 2
    assert value("codeartsfs_api_wait_seconds_total", reason="pace") == 1.5
    assert value("codeartsfs_open_hits_total") == 9
    assert value("codeartsfs_downloads_in_flight", by="readers") == 1
    assert value("codeartsfs_cache_used_bytes", tier="disk") == 2
    assert value("codeartsfs_credentials_expiry_timestamp_seconds") == 1_700_003_700


def test_histograms_count_each_class_with_all_shorter_ones(samples: dict[str, Any]) -> None:
    buckets = [
        value
        for labels, value in samples["codeartsfs_operation_seconds_bucket"]
        if labels["operation"] == "open"
    ]
    assert len(buckets) == len(BOUNDS_S) + 1
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (1, 2)


def test_names_of_metrics_keep_to_the_conventions() -> None:
    for family in text_string_to_metric_families(as_metrics(NOW).decode()):
        assert family.documentation.endswith(".")
        assert family.name.endswith("_seconds") or family.type != "histogram"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


@pytest.mark.parametrize(
    "path", ["contrib/grafana/codeartsfs.json", "docs/running.md"], ids=lambda path: Path(path).name
)
def test_what_the_dashboard_and_the_docs_name_is_there(path: str, samples: dict[str, Any]) -> None:
    named = set(NAME.findall((ROOT / path).read_text()))
    assert named
    assert named - samples.keys() == set()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("codeartsfs.daemon", {"prometheus_client", "rich", "pygments"}),
        ("codeartsfs.commands.status", {"prometheus_client", "rich", "trio", "httpx", "pyfuse3"}),
    ],
)
def test_what_takes_long_to_import_is_not(module: str, heavy: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert not heavy & set(done.stdout.decode().split())


def test_panels_of_the_dashboard_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_panels_ask_the_chosen_source_for_the_chosen_mounts() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            names = len(NAME.findall(target["expr"]))
            assert target["expr"].count('mountpoint=~"$mountpoint"') == names > 0
