"""Looking into a running mount: dumps and log levels, which must not disturb it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .rig import (
    COMMAND,
    TOKEN,
    Emulator,
    Mounted,
    Outcome,
    Rig,
    is_mounted,
    record_id,
    wait_until,
    write_record,
)

TEXT = b"[INFO] a line\n" * 100
LOGS = 40


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(LOGS):
        write_record(folder, number, {"stage1.info.log": TEXT})
    return folder


@pytest.fixture
def emulator(rig: Rig, recordings: Path) -> Emulator:
    return rig.emulator(recordings)


def log_level(rig: Rig, mountpoint: Path, level: str) -> Outcome:
    return rig.run(*COMMAND, "log-level", mountpoint, level)


def said(mounted: Mounted) -> list[str]:
    return mounted.log.read_text().splitlines()


@pytest.mark.fuse
def test_a_dump_shows_who_waits_where_and_the_state(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    log_level(rig, mounted.path, "error")  # who asks for a dump gets one
    emulator.faults("task_log:delay=60")
    rig.start("cat", mounted / f"{record_id(7)}/stage1.info.log")
    wait_until(lambda: mounted.status()["api"]["requests"] > 0)
    mounted.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "the dump ends" in mounted.log.read_text())
    dump = said(mounted)
    assert any("thread MainThread: " in line for line in dump)
    assert any(f"task flight of {record_id(7)}/stage1.info.log: " in line for line in dump)
    assert any(" api/transport.py" in line for line in dump)
    assert any("cat (process " in line for line in dump)
    assert any('state: {"version"' in line for line in dump)


@pytest.mark.fuse
def test_signals_under_load_fail_no_read(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    files = [mounted / f"{record_id(number)}/stage1.info.log" for number in range(LOGS)]
    reader = rig.start("cat", *files)
    for _ in range(100):
        mounted.process.send_signal(signal.SIGUSR1)
        mounted.process.send_signal(signal.SIGUSR2)
    assert rig.finish(reader) == Outcome(0, TEXT * LOGS, b"")
    # The first of a handful at least was answered before the reader came to its end.
    assert any("the dump ends" in line for line in said(mounted))


@pytest.mark.fuse
def test_a_log_that_nobody_reads_stops_nothing(rig: Rig, emulator: Emulator) -> None:
    point = rig.folder / "mnt"
    point.mkdir()
    command = (*COMMAND, "mount", point, "--endpoint", emulator.url, "--cache-dir", "none")
    environment = rig.environment(CODEARTSFS_TOKEN=TOKEN)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as unread:
        assert unread.stderr is not None
        try:
            wait_until(lambda: is_mounted(point))
            for _ in range(60):  # dumps of 2 kB or more each, for a pipe of 64 KiB
                unread.send_signal(signal.SIGUSR1)
                assert rig.run("cat", point / f"{record_id(0)}/stage1.info.log").out == TEXT
            os.read(unread.stderr.fileno(), 1 << 20)
            unread.send_signal(signal.SIGUSR1)
            assert rig.run("cat", point / f"{record_id(1)}/stage1.info.log").out == TEXT
        finally:
            unread.terminate()
        assert b"lines were lost, because nobody read them" in unread.stderr.read()
        assert unread.wait(15) == 0


@pytest.mark.fuse
def test_a_signal_switches_debug_on_and_off(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2: log level debug, was info" in mounted.log.read_text())
    assert rig.run("cat", mounted / f"{record_id(0)}/stage1.info.log").out == TEXT
    assert any("task-log" in line and " DEBUG " in line for line in said(mounted))
    mounted.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "SIGUSR2: log level info, was debug" in mounted.log.read_text())


@pytest.mark.fuse
def test_the_log_level_of_a_running_mount_can_be_changed(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    outcome = log_level(rig, mounted.path, "debug")
    assert (outcome.code, outcome.out) == (
        0,
        f"{mounted.path}: log level debug, was info\n".encode(),
    )
    assert any("asked by codeartsfs log-level: log level debug" in line for line in said(mounted))


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
def test_the_log_level_is_for_who_mounted_to_change(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator, "-o", "allow_other")
    order = ("getfattr", "-n", "user.codearts.log_level.debug", ".")
    # Who stands in it needs no way to it, which is barred by the folders of the tests.
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    outcome = rig.run(*nobody, *order, cwd=mounted.path)
    assert b"Operation not permitted" in outcome.err
    assert not any("log level" in line for line in said(mounted))


@pytest.mark.fuse
def test_the_log_level_of_what_is_no_mount_or_dead_is_refused(
    rig: Rig, emulator: Emulator, tmp_path: Path
) -> None:
    outcome = log_level(rig, tmp_path, "debug")
    error = f"Error: {tmp_path} is not a mount of codeartsfs\n"
    assert (outcome.code, outcome.err.decode()) == (4, error)
    mounted = rig.mount(emulator)
    mounted.kill()
    assert b"its daemon is gone" in log_level(rig, mounted.path, "debug").err


STUCK = """
import logging, os, signal, sys, time, trio
from codeartsfs.inspection import answer_signals, hold_signals
logging.basicConfig(format="%(message)s")
async def main():
    answer_signals(list, lambda: b"{}")
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(float("inf"))
async def sleeper():
    await trio.sleep_forever()
async def both():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.sleep(0)
        await main()
hold_signals()
trio.run(both)
"""


def test_a_dump_comes_even_where_the_event_loop_is_stuck() -> None:
    program = STUCK.replace('float("inf")', "1000")
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
    ) as stuck:
        assert stuck.stderr is not None
        try:
            lines = []
            for line in stuck.stderr:
                lines.append(line)
                if "sleeper" in line:
                    break
        finally:
            stuck.kill()
    assert any(
        line.startswith("thread MainThread: ") and line.endswith(" main\n") for line in lines
    )
    assert any("the event loop has not answered" in line for line in lines)
