"""Waits with their callers; the callers are real processes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from codeartsfs.fs.callers import (
    CallerKilled,
    Callers,
    DeadlineExceeded,
    being_killed,
    lists_only,
    paths_given,
    process_of,
)

Start = Callable[[str], subprocess.Popen[bytes]]

# Whoever runs the tests may ignore hang-ups, which their children then do too.
SLEEP = (
    "import signal, time; [signal.signal(n, signal.SIG_DFL) for n in (1, 2, 3, 15)];"
    " print(flush=True); time.sleep(1000)"
)
BLOCKS_TERM = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [15, 10]); " + SLEEP


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a Python program that prints a line when it is ready."""
    with ExitStack() as ended:

        def start(program: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
            ended.callback(process.wait)
            ended.callback(process.kill)
            assert process.stdout is not None
            ended.callback(process.stdout.close)
            assert process.stdout.readline() == b"\n"
            return process

        yield start


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, so that further signals stay pending as they do in a FUSE wait."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_process_that_lives_is_not_being_killed(start: Start) -> None:
    assert not being_killed(start(SLEEP).pid)
    assert not being_killed(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_pending_fatal_signal_shows(start: Start, number: signal.Signals) -> None:
    process = start(SLEEP)
    stop(process)
    process.send_signal(number)
    assert being_killed(process.pid)


def test_blocked_signal_does_not_count(start: Start) -> None:
    process = start(BLOCKS_TERM)
    process.send_signal(signal.SIGTERM)
    stop(process)
    assert not being_killed(process.pid)


def test_harmless_pending_signal_does_not_count(start: Start) -> None:
    process = start(SLEEP)
    stop(process)
    process.send_signal(signal.SIGWINCH)
    process.send_signal(signal.SIGUSR1)
    assert not being_killed(process.pid)


def test_vanished_process_is_nobody(start: Start) -> None:
    process = start(SLEEP)
    process.kill()
    process.wait()
    assert not being_killed(process.pid)
    assert process_of(process.pid) == process.pid
    assert not lists_only(process.pid)


def test_thread_belongs_to_its_process() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(process_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert seen == [os.getpid()]


@pytest.mark.parametrize(("name", "lists"), [("ls", True), ("find", True), ("lsof", False)])
def test_listing_programs_are_known_by_name(start: Start, name: str, lists: bool) -> None:
    rename = f"open('/proc/self/comm', 'w').write({name!r}); "
    assert lists_only(start(rename + SLEEP).pid) == lists


async def test_deadline_ends_a_wait(autojump_clock: MockClock) -> None:
    callers = Callers(deadline_s=10)
    with pytest.raises(DeadlineExceeded), callers.waiting(0):
        await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(autojump_clock.current_time())
    assert len(callers) == 0


async def test_deadline_is_exactly_as_long_as_told(autojump_clock: MockClock) -> None:
    callers = Callers(deadline_s=10)
    begin = trio.current_time()
    with callers.waiting(0):
        await trio.sleep(9.999)
    with pytest.raises(DeadlineExceeded), callers.waiting(0):
        await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(begin + 19.999)


async def test_error_inside_a_wait_passes(autojump_clock: MockClock) -> None:
    callers = Callers(deadline_s=10)
    with pytest.raises(ValueError, match="inside"), callers.waiting(0):
        raise ValueError("inside")
    assert len(callers) == 0


async def test_cancellation_from_outside_is_not_the_callers_end(autojump_clock: MockClock) -> None:
    callers = Callers(deadline_s=10)
    with trio.move_on_after(1) as outside, callers.waiting(0):
        await trio.sleep_forever()
    assert outside.cancelled_caught
    assert len(callers) == 0


async def test_wait_of_a_killed_caller_ends_and_others_go_on(
    start: Start, autojump_clock: MockClock
) -> None:
    callers = Callers(deadline_s=100)
    dying, living = start(SLEEP), start(SLEEP)
    ends: list[tuple[str, float]] = []

    async def wait(name: str, pid: int) -> None:
        try:
            with callers.waiting(pid):
                await trio.sleep(50)
            ends.append((name, trio.current_time() - begin))
        except CallerKilled:
            ends.append((name + " killed", trio.current_time() - begin))

    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(callers.watch)
        async with trio.open_nursery() as waits:
            waits.start_soon(wait, "dying", dying.pid)
            waits.start_soon(wait, "living", living.pid)
            waits.start_soon(wait, "unknown", 0)
            await trio.sleep(10)
            stop(dying)
            dying.terminate()
        nursery.cancel_scope.cancel()
    assert ends[0][0] == "dying killed"
    assert 10 <= ends[0][1] <= 10.4
    assert {name for name, _ in ends[1:]} == {"living", "unknown"}


async def test_watch_costs_nothing_while_nobody_waits(autojump_clock: MockClock) -> None:
    callers = Callers(deadline_s=100)
    autojump_clock.autojump_threshold = float("inf")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(callers.watch)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        with callers.waiting(os.getpid()):
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline <= 0.2
        autojump_clock.jump(0.2)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()


def test_paths_on_a_command_line_are_told_in_order(tmp_path: Path) -> None:
    (tmp_path / "mnt" / "a").mkdir(parents=True)
    words = ["-n", f"{tmp_path}/mnt/b/stage1.info.log", "../c", ".", "/etc/passwd", "../../d", ""]
    command = ["sh", "-c", "echo; read line; exit", *words]
    with subprocess.Popen(
        command, cwd=tmp_path / "mnt" / "a", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"  # it is the shell now
        assert paths_given(process.pid, tmp_path / "mnt") == (
            "a/-c",
            "a/echo; read line; exit",
            "a/-n",
            "b/stage1.info.log",
            "c",
            "a",
            "a",
        )
        process.communicate(b"\n")


def test_a_process_that_is_gone_was_given_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert paths_given(process.pid, Path("/")) == ()
