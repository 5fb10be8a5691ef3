"""Recordings made on the spot, and ways to talk to an emulator that serves them."""

import json
import lzma
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.server import open_emulator

ACCOUNTS = Accounts()
PROJECT = "c0de0000000000000000000000000001"
JOB = "10b00000000000000000000000000001"
OTHER_JOB = "10b00000000000000000000000000002"
BUILD_PROJECT = "b0000000-0000-0000-0000-000000000001"
OTHER_BUILD_PROJECT = "b0000000-0000-0000-0000-000000000002"
FAILED = "2cc26382-b2cb-4234-8eb0-b37d362f4d4c"
GOOD = "3cc26382-b2cb-4234-8eb0-b37d362f4d4c"
OTHER = "4cc26382-b2cb-4234-8eb0-b37d362f4d4c"
LIVE = "5cc26382-b2cb-4234-8eb0-b37d362f4d4c"
BEGAN = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)

INFO_TEXT = (
    "[2025/03/04 13:06:07.089 GMT+08:00] [INFO] 开始构建\n"
    + "".join(f"[2025/03/04 13:06:08.{n:03} GMT+08:00] [INFO] line {n}\n" for n in range(1000))
).encode()
DEBUG_TEXT = b"[2025/03/04 13:06:07.089 GMT+08:00] [DEBUG] pid 7\n" + INFO_TEXT
LAST_TEXT = b"[2025/03/04 13:06:09.000 GMT+08:00] [INFO] BUILD FAILURE\n"


def write_recording(
    directory: Path,
    record: str,
    build_no: int,
    status: str = "SUCCESS",
    other: bool = False,
    began: datetime = BEGAN,
) -> None:
    """Write a build of stages initial, stage1, stage2, final; stage2 carries the status.

    Builds begin an hour apart: number N begins N hours after ``began``.
    """

    def at(seconds: float) -> str:
        moment = began + timedelta(hours=build_no, seconds=seconds)
        return moment.isoformat(timespec="milliseconds")

    names = ["initial", "stage1", "stage2", "final"]
    display = {"stage1": "检出 / Code CheckOut", "stage2": "Maven"}
    folder = directory / record
    folder.mkdir(parents=True)
    document = {
        "job": {
            "job_id": OTHER_JOB if other else JOB,
            "name": "docs" if other else "web-app",
            "build_project_id": OTHER_BUILD_PROJECT if other else BUILD_PROJECT,
            "project_id": PROJECT,
        },
        "record": {
            "record_id": record,
            "build_no": build_no,
            "status": status,
            "created": at(0),
            "started": at(1),
            "finished": at(20),
            "duration_ms": 19000,
            "branch": "main",
            "revision": "0123abcd",
            "trigger": "MANUAL",
        },
        "stages": [
            {
                "stage": name,
                "display_name": display.get(name, name),
                "sequence": number,
                "status": status if name == "stage2" else "SUCCESS",
                "created": at(0),
                "started": at(1 + number),
                "finished": at(2 + number),
                "duration_ms": 1000,
            }
            for number, name in enumerate(names)
        ],
    }
    (folder / "record.json").write_text(json.dumps(document), "utf-8")
    (folder / "initial.info.log").write_bytes(b"[INFO] initial\n")
    (folder / "stage1.info.log").write_bytes(INFO_TEXT)
    (folder / "stage1.debug.log.xz").write_bytes(lzma.compress(DEBUG_TEXT))
    (folder / "stage2.info.log").write_bytes(LAST_TEXT)


def write_live(directory: Path, stages: list[dict[str, Any]]) -> None:
    folder = directory / LIVE
    folder.mkdir(parents=True)
    job = {
        "job_id": JOB,
        "name": "web-app",
        "build_project_id": BUILD_PROJECT,
        "project_id": PROJECT,
    }
    document = {"job": job, "branch": "main", "stages": stages}
    (folder / "live.json").write_text(json.dumps(document), "utf-8")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    directory = tmp_path / "recordings"
    write_recording(directory, FAILED, 41, "FAILURE")
    write_recording(directory, GOOD, 42)
    write_recording(directory, OTHER, 7, other=True)
    return directory


@asynccontextmanager
async def open_client(
    recordings: Path, *faults: str, synthetic: tuple[int, int] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve recordings and yield a client that holds the demo token."""
    async with (
        open_emulator(recordings, faults=faults, synthetic=synthetic) as url,
        httpx.AsyncClient(
            base_url=url, headers={"X-Auth-Token": ACCOUNTS.token}, trust_env=False
        ) as client,
    ):
        yield client


def task_log(record: str = FAILED, stage: str = "stage1", level: str = "INFO") -> str:
    return f"/v4/{record}/task-log?task_name={stage}&log_level={level}"


async def calls(client: httpx.AsyncClient) -> dict[str, int]:
    counts: dict[str, int] = (await client.get("/_emulator/calls")).json()
    return counts
