"""Recordings on disk, builds that happen live, and the ways of reading their logs in pages."""

import json
import re
import resource
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from codeartsfs.api.wire import parse_record, parse_stages
from codeartsfs.emulator.library import BadRecording, Library
from codeartsfs.model import BuildRecord, StageRun

from .conftest import (
    DEBUG_TEXT,
    FAILED,
    GOOD,
    INFO_TEXT,
    JOB,
    LAST_TEXT,
    LIVE,
    calls,
    open_client,
    task_log,
    write_live,
    write_recording,
)

SCRIPTED = {"stage": "stage1", "display_name": "By hand", "command": None}
LINE = re.compile(
    rb"\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} GMT\+08:00\] (\$ \S.*|\[(INFO|DEBUG|ERROR)\] .*)\n"
)


async def stages_of(client: httpx.AsyncClient) -> list[StageRun]:
    return list(parse_stages((await client.get(f"/v1/record/{LIVE}/full-stages")).json()))


async def record_of(client: httpx.AsyncClient) -> BuildRecord:
    return parse_record((await client.get(f"/v1/record/{LIVE}/info")).json())


async def wait_until_final(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        while not (await record_of(client)).final:  # noqa: ASYNC110
            await trio.sleep(0.01)  # a real process runs meanwhile


async def grow(client: httpx.AsyncClient, **what: Any) -> httpx.Response:
    return await client.post("/_emulator/grow", json={"record": LIVE, "stage": "stage1", **what})


# --- recordings -------------------------------------------------------------------------------


async def test_a_packed_log_reads_like_a_plain_one(recordings: Path) -> None:
    async with open_client(recordings) as client:
        for _ in range(2):
            assert (await client.get(task_log(level="DEBUG"))).content == DEBUG_TEXT


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (task_log("0" * 36), 404),
        (task_log(stage="stage9"), 404),
        (task_log(stage="final"), 404),
        (task_log(stage="../../etc/passwd"), 404),
        (task_log(record="short"), 400),
        (f"/v4/{FAILED}/task-log", 400),
        (f"/v4/{FAILED}/task-log?task_name=stage1&log_level=TRACE", 400),
        (f"/v1/job/{JOB}/list?page_index=0", 400),
        (f"/v1/job/{JOB}/running-status", 200),
        (f"/v1/job/{'0' * 32}/running-status", 400),
        ("/v1/record/x/records?limit=101", 400),
        (f"/v3/jobs/{JOB}/43/real-time-log?offset=0", 404),
        (f"/v4/{FAILED}/task-log/?task_name=stage1", 404),
    ],
)
async def test_what_is_not_there_and_what_makes_no_sense(
    recordings: Path, target: str, status: int
) -> None:
    async with open_client(recordings) as client:
        reply = await client.get(target)
        assert reply.status_code == status
        if status >= 400:
            assert reply.json()["error_code"]
            assert reply.json()["error_msg"]


async def test_an_unknown_path_or_method_is_not_published(recordings: Path) -> None:
    async with open_client(recordings) as client:
        for reply in (
            await client.get("/v2/nothing"),
            await client.post(task_log()),
            await client.request("DELETE", f"/v1/record/{FAILED}/info"),
        ):
            assert (reply.status_code, reply.json()["error_code"]) == (404, "APIGW.0101")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("record.json", "{"),
        ("record.json", "[]"),
        ("record.json", '{"job": {}, "record": {}, "stages": []}'),
        ("live.json", '{"job": {"job_id": "x"}, "stages": []}'),
    ],
)
def test_a_recording_that_makes_no_sense_names_its_file(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / FAILED).mkdir()
    (tmp_path / FAILED / name).write_text(text)
    with pytest.raises(BadRecording, match=f"{FAILED}/{name}"):
        Library(tmp_path, lambda: 0.0)


def test_a_directory_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match="No such file"):
        Library(tmp_path / "nowhere", lambda: 0.0)


async def test_a_big_log_streams_whole_in_flat_memory(tmp_path: Path) -> None:
    size = 1 << 30
    write_recording(tmp_path, GOOD, 1)
    with (tmp_path / GOOD / "stage2.debug.log").open("wb") as file:
        file.truncate(size)
    async with open_client(tmp_path) as client:
        await client.get(task_log(GOOD))  # whatever a first reply costs
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        got = 0
        async with client.stream("GET", task_log(GOOD, "stage2", "DEBUG")) as reply:
            assert reply.headers["content-length"] == str(size)
            async for piece in reply.aiter_raw():
                got += len(piece)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert got == size
        # Both ends are in this process: a few pieces each, a hundredth of the log.
        assert grown_kib < 20 * 1024


# --- pages ------------------------------------------------------------------------------------


async def follow(client: httpx.AsyncClient, target: str) -> tuple[bytes, int]:
    """Read pages until there is no more; return the text and how many pages it took."""
    text, start, pages = b"", 0, 0
    while True:
        page = (await client.get(f"{target}&start_offset={start}&end_offset=0")).json()["result"]
        text += page["log"].encode()
        pages += 1
        assert page["start_offset"] == start
        if not page["has_more"]:
            return text, pages
        assert page["end_offset"] > start
        start = page["end_offset"]


WHOLE_BUILD = b"[INFO] initial\n" + INFO_TEXT + LAST_TEXT


@pytest.mark.parametrize(
    ("target", "wanted", "pages"),
    [
        (f"/v1/log/task/step?job_id={JOB}&build_no=41&step_id=1&size=1000", INFO_TEXT, 2),
        (f"/v1/log/task/step?job_id={JOB}&build_no=41&step_id=2&size=1000", LAST_TEXT, 1),
        (f"/v1/log/task/page?job_id={JOB}&build_no=41&step_id=1", INFO_TEXT, 2),
        (f"/v1/log/stage/page?job_id={JOB}&build_no=41", WHOLE_BUILD, 2),
        (f"/v1/log/{JOB}/41/real-time-log?size=500", WHOLE_BUILD, 3),
    ],
)
async def test_pages_put_together_are_the_log(
    recordings: Path, target: str, wanted: bytes, pages: int
) -> None:
    async with open_client(recordings) as client:
        assert await follow(client, target) == (wanted, pages)


async def test_an_end_offset_bounds_a_page_and_desc_turns_it_round(recordings: Path) -> None:
    first, second = INFO_TEXT.splitlines(keepends=True)[:2]
    base = f"/v1/log/task/page?job_id={JOB}&build_no=41&step_id=1&start_offset=0"
    end = len(first) + len(second)
    async with open_client(recordings) as client:
        page = (await client.get(f"{base}&end_offset={end}")).json()["result"]
        assert page["log"].encode() == first + second
        page = (await client.get(f"{base}&end_offset={end}&sort=DESC")).json()["result"]
        assert page["log"].encode() == second + first


async def test_v3_real_time_log_never_splits_a_character(recordings: Path) -> None:
    async with open_client(recordings) as client:
        text, offset = "", 0
        while True:
            target = f"/v3/jobs/{JOB}/41/real-time-log?offset={offset}&length=61"
            page = (await client.get(target)).json()["result"]
            text += page["content"]
            assert page["current_offset"] == offset
            if not page["has_more_data"]:
                break
            offset = page["offset"]
            if offset > 300:
                break
        assert WHOLE_BUILD.startswith(text.encode())
        assert "开始构建" in text
        assert "\ufffd" not in text


async def test_the_analysis_names_the_failed_stage_and_its_last_line(recordings: Path) -> None:
    async with open_client(recordings) as client:
        result = (await client.get(f"/v1/log/{JOB}/41/analysis")).json()["result"]
        assert result["jobName"] == "web-app"
        [node] = result["error_nodes"]
        assert (node["node_id"], node["step"]) == (2, "Maven")
        assert node["error_info"]["error_message"].encode() + b"\n" == LAST_TEXT
        assert not (await client.get(f"/v1/log/{JOB}/42/analysis")).json()["result"]["error_nodes"]


# --- live builds ------------------------------------------------------------------------------


async def test_a_live_build_runs_real_commands_and_becomes_final(tmp_path: Path) -> None:
    hello = "import sys; print('hello'); print('你好', file=sys.stderr); print('unended', end='')"
    write_live(
        tmp_path,
        [
            {"stage": "stage1", "display_name": "Say", "command": ["{python}", "-c", hello]},
            {"stage": "stage2", "display_name": "Fail", "command": ["sh", "-c", "exit 3"]},
            {"stage": "stage3", "display_name": "Never", "command": ["sh", "-c", "echo no"]},
        ],
    )
    async with open_client(tmp_path) as client:
        await wait_until_final(client)
        stages, record = await stages_of(client), await record_of(client)
        info = (await client.get(task_log(LIVE))).content
        debug = (await client.get(task_log(LIVE, level="DEBUG"))).content
        failed = (await client.get(task_log(LIVE, "stage2", "DEBUG"))).content
        assert (await client.get(task_log(LIVE, "stage3"))).status_code == 404

    assert [run.status for run in stages] == ["SUCCESS", "FAILURE", "ABORTED"]
    assert record.status == "FAILURE"
    assert record.finished_ns == stages[-1].finished_ns
    assert all(run.finished_ns is not None for run in stages)
    lines = info.splitlines(keepends=True)
    assert all(LINE.fullmatch(line) for line in (*lines, *debug.splitlines(keepends=True)))
    said = [line.split(b"] ", 1)[1].decode() for line in lines]
    assert said[0].startswith("$ python -c ")
    assert shlex.split(said[0]) == ["$", "python", "-c", hello]
    assert said[1:3] == ["[INFO] hello\n", "[INFO] unended\n"]
    assert re.fullmatch(r"\[INFO\] Say: SUCCESS in \d\.\d s\n", said[3])
    assert [ln for ln in debug.splitlines(keepends=True) if b"[DEBUG]" not in ln] == lines
    assert "[DEBUG] 你好\n".encode() in debug
    assert re.search(
        rb"\[ERROR\] command ended with exit status 3\n.*\[INFO\] Fail: FAILURE in \d\.\d s\n$",
        failed,
    )


async def test_a_live_log_shows_no_path_of_this_machine(tmp_path: Path) -> None:
    tell = "import os, sys; print(os.getcwd()); print(sys.executable, sys.prefix, file=sys.stderr)"
    write_live(tmp_path, [{"stage": "stage1", "command": ["{python}", "-c", tell]}])
    async with open_client(tmp_path) as client:
        await wait_until_final(client)
        debug = (await client.get(task_log(LIVE, level="DEBUG"))).text
    assert "[DEBUG] env: HOME=/workspace\n" in debug
    assert "[INFO] /workspace\n" in debug
    assert "[DEBUG] python " in debug
    local = [tempfile.gettempdir() + "/", sys.executable]
    local += [prefix for prefix in (sys.prefix, sys.base_prefix) if not prefix.startswith("/usr")]
    assert not [path for path in local if path in debug]


async def test_a_live_log_shows_nothing_of_the_emulators_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEARTSFS_EMULATOR_SK", "not-for-logs")
    write_live(tmp_path, [{"stage": "stage1", "command": ["env"]}])
    async with open_client(tmp_path) as client:
        await wait_until_final(client)
        debug = (await client.get(task_log(LIVE, level="DEBUG"))).content
    assert b"PATH=" in debug
    assert b"not-for-logs" not in debug


async def test_a_command_that_cannot_be_run_fails_its_stage(tmp_path: Path) -> None:
    write_live(tmp_path, [{"stage": "stage1", "command": ["/no/such/program"]}])
    async with open_client(tmp_path) as client:
        await wait_until_final(client)
        assert (await record_of(client)).status == "FAILURE"
        text = (await client.get(task_log(LIVE))).text
    assert "[ERROR] cannot run /no/such/program: No such file or directory\n" in text
    assert re.search(r"\[INFO\] stage1: FAILURE in \d\.\d s\n$", text)


async def test_shutdown_kills_what_a_live_build_started(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 1000 & echo child $!; wait"]
    write_live(tmp_path, [{"stage": "stage1", "command": command}])
    async with open_client(tmp_path) as client:
        match = None
        with trio.fail_after(10):
            while match is None:
                await trio.sleep(0.01)  # a real process starts meanwhile
                match = re.search("child ([0-9]+)\n", (await client.get(task_log(LIVE))).text)
        child = int(match[1])
        assert (await record_of(client)).status == "RUNNING"
        assert is_alive(child)
    with trio.fail_after(5):
        while is_alive(child):  # noqa: ASYNC110
            await trio.sleep(0.01)  # the kernel delivers the signal meanwhile


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie, that only waits for init to take notice, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def test_a_live_build_waits_for_the_first_look(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    write_live(tmp_path, [{"stage": "stage1", "command": ["touch", str(marker)]}])
    async with open_client(tmp_path) as client:
        await calls(client)
        assert not marker.exists()
        await wait_until_final(client)
        assert marker.exists()


async def test_a_scripted_stage_grows_exactly_as_told(tmp_path: Path) -> None:
    write_recording(tmp_path, GOOD, 42)
    write_live(tmp_path, [SCRIPTED, {"stage": "stage2", "command": ["echo", "done"]}])
    async with open_client(tmp_path) as client:
        record = await record_of(client)
        assert (record.status, record.build_no) == ("RUNNING", 43)
        assert (await client.get(task_log(LIVE))).content == b""
        assert (await client.get(task_log(LIVE, "stage2"))).status_code == 404

        await grow(client, level="INFO", append="一\nhalf")
        assert (await client.get(task_log(LIVE))).text == "一\nhalf"
        assert (await client.get(task_log(LIVE, level="DEBUG"))).content == b""
        step = f"/v1/log/task/step?job_id={JOB}&build_no=43&step_id=1&size=1000"
        page = await client.get(step + "&start_offset=0&end_offset=0")
        assert page.json()["result"]["log"] == "一\n"  # half a line is not shown yet
        assert page.json()["result"]["has_more"] is True

        assert (await grow(client, append=" line\n", finish=True)).json() == {"final": False}
        assert (await client.get(task_log(LIVE))).text == "一\nhalf line\n"
        assert (await stages_of(client))[0].status == "SUCCESS"
        await wait_until_final(client)
        assert (await record_of(client)).status == "SUCCESS"
        assert (await client.get(task_log(LIVE, "stage2"))).text.count("[INFO] done\n") == 1


async def test_a_scripted_stage_can_fail_and_be_rewritten(tmp_path: Path) -> None:
    write_live(tmp_path, [SCRIPTED])
    async with open_client(tmp_path) as client:
        await grow(client, level="INFO", append="first\n")
        await grow(client, level="INFO", append="other\n", rewrite=True)
        assert (await client.get(task_log(LIVE))).text == "other\n"
        reply = await grow(client, append="", finish=True, status="FAILURE")
        assert reply.json() == {"final": True}
        assert (await record_of(client)).status == "FAILURE"
        refused = await grow(client, append="more")
        assert refused.status_code == 400
        assert "can still grow" in refused.json()["error"]
        refused = await client.post("/_emulator/grow", json={"record": GOOD, "stage": "stage1"})
        assert refused.status_code == 400


async def test_a_growing_log_is_sent_as_it_was_when_asked_for(tmp_path: Path) -> None:
    write_live(tmp_path, [SCRIPTED])
    async with open_client(tmp_path) as client:
        await grow(client, level="INFO", append="x" * 1000)
        await client.post("/_emulator/faults", json=["slow=5000"])
        async with client.stream("GET", task_log(LIVE)) as reply:
            await grow(client, level="INFO", append="y" * 1000)
            assert await reply.aread() == b"x" * 1000


def test_temporary_files_go_with_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_live(tmp_path / "recordings", [SCRIPTED])
    with Library(tmp_path / "recordings", lambda: 1.7e9) as library:
        assert library.build(LIVE) is not None
        assert list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
    assert json.loads((tmp_path / "recordings" / LIVE / "live.json").read_text())
