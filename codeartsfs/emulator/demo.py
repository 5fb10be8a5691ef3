"""``codeartsfs demo``: a short tour of a real mount, on recorded builds and one that runs.

The emulator runs in this process. The mount has a process of its own: a reader and the daemon
that serves it in one process can wait for each other for ever.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.library import DEFAULT_RECORDINGS
from codeartsfs.fs import mountpoint

PROJECT = "4130e66a1e455673b9f140c90a1012fe"
JOB = "by-job/telemetry-tool"
LARGE = "e1adc8de-fce9-57c9-874d-4cbf95b75520"
LIVE = "ea6cb969-2bfa-5878-9643-54ca064ed4ee"
LIVE_JOB = "by-job/standard-library-live"
FOLLOWED = "stage4"  # the stage of the live build that has a few lines to say every second

# As the command line documents them.
EXIT_FAILURE = 1

_PATIENCE_S = 60.0  # for the mount to answer, for the live build to get to the stage followed
_GOODBYE_S = 10.0  # for the mount to end
_COMMAND_LIMIT_S = 60.0
_FOLLOW_S = 6.0
_READING_S = 1.5  # between steps, where a person looks on


class _StepFailed(Exception):
    """A step of the tour did not do what it is there to show; the text says which and how."""


@dataclass(frozen=True)
class _Step:
    """One command of the tour.

    Attributes:
        why: what to look at, for somebody who sees it for the first time.
        command: as typed in the mount's directory.
        stage: the stage of the live build that must have begun, None where that does not matter.
        interrupt_after_s: seconds until Ctrl-C is sent; None lets the command end by itself.
        free: whether it must not cost an API call.
    """

    why: str
    command: str
    stage: str | None = None
    interrupt_after_s: float | None = None
    free: bool = False


TOUR = (
    _Step(
        "The jobs of a project, by name. One of them is built now, because somebody looks.",
        "ls by-job",
    ),
    _Step(
        "Follow a log while it is written. Only while somebody looks is the API asked for more.",
        f"tail -n 2 -f {LIVE_JOB}/latest/{FOLLOWED}.info.log",
        stage=FOLLOWED,
        interrupt_after_s=_FOLLOW_S,
    ),
    _Step(
        "The builds of another job: by number, and by what became of them.",
        f"ls -l {JOB}",
    ),
    _Step(
        "What did the compiler say? Logs are ordinary files, downloaded as they are opened.",
        f"grep -n 'error:' {JOB}/latest-failed/failed.info.log",
    ),
    _Step(
        "All there is of that build: two logs per stage, some by the names people gave stages.",
        f"ls {JOB}/2/ {JOB}/2/by-name",
        free=True,
    ),
    _Step(
        "What the API says of it, for people, grep and jq. All of that was told by now.",
        f"head -n 8 {JOB}/2/record.json",
        free=True,
    ),
    _Step(
        "A big log, 27 MB, of a build found by its id: read for the first time, so downloaded.",
        f"md5sum {LARGE}/stage3.debug.log",
    ),
    _Step(
        "Read again: a log that is complete is never downloaded twice, not even after a restart.",
        f"md5sum {LARGE}/stage3.debug.log",
        free=True,
    ),
    _Step(
        "What the mount says of itself. The directory is hidden, but there.",
        "grep -E '\"(opens|reads|downloads|requests|retries)\"' .codeartsfs/status.json",
        free=True,
    ),
)


def show(*, stay: bool) -> int:
    """Give the tour, or keep a mount to play with; return the exit code."""
    return trio.run(_run, _stay if stay else _tour)


class _Demo:
    """A mount of the emulator's builds, and what it takes to show it."""

    def __init__(self, url: str, builds: Path, mount: trio.Process) -> None:
        self.url = url
        self.builds = builds
        self.mount = mount

    async def get(self, path: str) -> Any:
        """Ask the emulator directly; what is under ``/_emulator`` does not count as a call."""
        request = urllib.request.Request(
            self.url + path, headers={"X-Auth-Token": Accounts().token}
        )
        # Never by way of a proxy: the emulator is on this machine. In a thread: it is in this loop.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask() -> Any:
            with opener.open(request, timeout=_COMMAND_LIMIT_S) as reply:
                return json.load(reply)

        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)

    async def show(self, step: _Step) -> None:
        """Print a step's explanation, its command, what that prints, and what it cost.

        Raises:
            _StepFailed: the command failed, or cost an API call where it must not.
        """
        _say()
        _say(f"# {step.why}", fg="cyan")
        _say(f"$ {step.command}", bold=True)
        before, began_s = await self.get("/_emulator/calls"), trio.current_time()
        status = await self._run(step)
        took_s, after = trio.current_time() - began_s, await self.get("/_emulator/calls")
        calls = after["total"] - before["total"]
        cost = f"{took_s:.2f} s, {calls or 'no'} API call{'' if calls == 1 else 's'}"
        if downloaded_bytes := after["bytes"] - before["bytes"]:
            cost += f", {_readable(downloaded_bytes)} downloaded"
        _say(f"  ({cost})", dim=True)
        if status != 0:
            raise _StepFailed(f"exit status {status} of: {step.command}")
        if step.free and calls:
            raise _StepFailed(f"{calls} API calls, there should have been none: {step.command}")

    async def _run(self, step: _Step) -> int:
        async with _process(["sh", "-c", step.command], cwd=self.builds) as process:
            with trio.move_on_after(step.interrupt_after_s or _COMMAND_LIMIT_S):
                return await process.wait()
            if step.interrupt_after_s is None:
                raise _StepFailed(f"no end in {_COMMAND_LIMIT_S:.0f} s: {step.command}")
            os.killpg(process.pid, signal.SIGINT)
            _say("^C")
            await process.wait()
            return 0

    async def wait_for_stage(self, name: str) -> None:
        """Wait until a stage of the live build has begun, telling of those before it.

        Raises:
            _StepFailed: it has not in a minute.
        """
        told = ""
        with trio.move_on_after(_PATIENCE_S):
            while True:
                answer = await self.get(f"/v1/record/{LIVE}/full-stages")
                stages = answer["result"]["build_stages"]
                running = [key for key, stage in stages.items() if stage["status"] == "RUNNING"]
                for stage in running:
                    if stage != told:
                        _say(f"  (now {stage}: {stages[stage]['display_name']})", dim=True)
                        told = stage
                if stages[name]["start_time"] is not None:
                    return
                await trio.sleep(0.2)  # real commands run meanwhile
        raise _StepFailed(f"{name} of the live build has not begun in {_PATIENCE_S:.0f} s")


async def _tour(demo: _Demo) -> None:
    _say("codeartsfs shows the build logs of Huawei Cloud CodeArts as ordinary files.", bold=True)
    _say(
        "Real builds, recorded, are served by an emulator of the API on this machine and mounted at"
    )
    _say(f"  {demo.builds}")
    _say("Below, each command is really run there; what it cost stands under its output.")
    await _let_read()
    for step in TOUR:
        if step.stage is not None:
            await demo.wait_for_stage(step.stage)
            await _let_read()
        await demo.show(step)
        await _let_read()
    _say()
    _say("That was the tour. It unmounts now and leaves nothing behind.")
    _say("To try things yourself: codeartsfs demo --stay (or scripts/demo --stay)")


async def _stay(demo: _Demo) -> None:
    _say(f"Mounted at {demo.builds}", bold=True)
    _say()
    _say("In another terminal, try:")
    for line in (
        f"cd {demo.builds}",
        "ls -l by-job/*",
        f"less {JOB}/latest-failed/failed.info.log",
        f"diff {JOB}/1/stage2.info.log {JOB}/2/stage2.info.log",
        f"tail -F {LIVE_JOB}/latest/{FOLLOWED}.info.log    # a quarter of a minute from now on",
        f"cat {JOB}/latest/record.json",
        "cat .codeartsfs/status.json",
    ):
        _say(f"  {line}", bold=True)
    _say()
    _say(f"Make the API misbehave: curl -d '[\"throttle=3\"]' {demo.url}/_emulator/faults")
    _say("Ctrl-C ends the demo and leaves nothing behind.")
    if status := await demo.mount.wait():
        raise _StepFailed(f"the mount ended with exit code {status}")


async def _run(show: Callable[[_Demo], Awaitable[None]]) -> int:
    """Open the demo, show it, take it down, and return the exit code.

    What ends it early, a signal or a failure, ends in this function as a cancellation or as an
    exception: either way each ``with`` on the way takes away what it brought.
    """
    ended_by: signal.Signals | None = None

    scope = trio.CancelScope()

    async def end_on_signal(task_status: trio.TaskStatus[None]) -> None:
        nonlocal ended_by
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            task_status.started()
            async for number in signals:
                # Later ones change nothing: what is taken down must be taken down whole.
                ended_by = ended_by or signal.Signals(number)
                scope.cancel()

    trouble: list[str] = []
    async with trio.open_nursery() as watching:
        await watching.start(end_on_signal)
        with scope:
            try:
                async with _open_demo() as demo:
                    try:
                        await show(demo)
                    except _StepFailed as failure:
                        trouble.append(f"the demo failed: {failure}")
                    except BrokenPipeError:
                        # Nobody reads on; nor may the interpreter try to write what is left.
                        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                        trouble.append("")
            except* (_StepFailed, mountpoint.MountPointError) as failures:
                trouble += [f"the demo failed: {failure}" for failure in failures.exceptions]
        watching.cancel_scope.cancel()
    for line in filter(None, trouble):
        click.echo(f"Error: {line}", err=True)
    if trouble:
        return EXIT_FAILURE
    if ended_by is not None and show is not _stay:
        return 128 + ended_by
    return 0


@asynccontextmanager
async def _open_demo() -> AsyncIterator[_Demo]:
    # Only now: the server is what needs the extra.
    from codeartsfs.emulator.server import open_emulator

    with _folder() as folder:
        builds = folder / "builds"
        builds.mkdir()
        async with (
            open_emulator(DEFAULT_RECORDINGS) as url,
            _mounted(url, builds, folder / "cache") as mount,
        ):
            yield _Demo(url, builds, mount)


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="codeartsfs-demo-")).resolve()
    try:
        yield folder
    finally:
        # Mount points go first and only when empty: nothing may be deleted through a mount.
        builds = folder / "builds"
        try:
            builds.rmdir()
        except OSError as error:
            reason = f"cannot remove {builds}: {error.strerror}"
            raise mountpoint.MountPointError(reason) from None
        shutil.rmtree(folder)


@asynccontextmanager
async def _mounted(url: str, builds: Path, cache: Path) -> AsyncIterator[trio.Process]:
    """Mount, for as long as the block lasts, with settings of its own alone.

    Raises:
        MountPointError: mounting or unmounting failed.
    """
    settings = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CODEARTSFS_", "HUAWEICLOUD_", "NOTIFY_", "WATCHDOG_"))
    }
    settings |= {"CODEARTSFS_TOKEN": Accounts().token, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "codeartsfs", "mount", os.fspath(builds)]
    command += ["--config", os.devnull, "--endpoint", url, "--cache-dir", os.fspath(cache)]
    command += ["--project", PROJECT]
    # Not in this terminal's process group: Ctrl-C is for the demo, which then ends the mount.
    async with _process(command, env=settings) as process:
        try:
            with trio.move_on_after(_PATIENCE_S) as patience:
                while mountpoint.mounted_type(builds) != mountpoint.FS_TYPE:
                    if process.poll() is not None:
                        reason = f"the mount ended with exit code {process.returncode}"
                        raise mountpoint.MountPointError(reason)
                    await trio.sleep(0.02)  # another process starts meanwhile
            if patience.cancelled_caught:
                raise mountpoint.MountPointError("the mount has not come up in a minute")
            yield process
        finally:
            with trio.CancelScope(shield=True):
                process.terminate()
                with trio.move_on_after(_GOODBYE_S):
                    await process.wait()
                if mountpoint.mounted_type(builds) is not None:
                    mountpoint.unmount(builds)


@asynccontextmanager
async def _process(command: list[str], **settings: Any) -> AsyncIterator[trio.Process]:
    """Run a command in a session of its own, which is over when the block is."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, start_new_session=True, **settings
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # The whole session, because a shell does not take along what it waits for.
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


def _readable(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


async def _let_read() -> None:
    if sys.stdout.isatty():
        await trio.sleep(_READING_S)


def _say(text: str = "", **style: Any) -> None:
    # At once, because commands write to the same place; click drops colours off a terminal.
    click.echo(click.style(text, **style), color=False if "NO_COLOR" in os.environ else None)
    sys.stdout.flush()
