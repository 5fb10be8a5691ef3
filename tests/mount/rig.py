"""Real mounts for tests: emulators, mounts and their readers, all of them processes.

The test's own process never touches a mounted path: a mount that hangs would hang it in the
kernel, where no timeout reaches. It asks other processes to, and gives up on those.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import httpx

from codeartsfs.emulator.iam import Accounts

COMMAND = (sys.executable, "-m", "codeartsfs")
TOKEN = Accounts().token
FINISHED_S = 1_741_064_776  # when each recorded stage finished, and so the mtime of its logs
TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0

_HARMLESS_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO) ")


def record_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-0123456789ab"


def write_record(
    recordings: Path,
    number: int,
    logs: Mapping[str, bytes | Path],
    *,
    failed: str = "",
    display_names: Mapping[str, str] = MappingProxyType({}),
    job: Mapping[str, str] | None = None,
    build_no: int | None = None,
) -> str:
    """Write a finished build of a job, `JOB` if none is given, and return its record id.

    Args:
        logs: what is in each file by its name, a path to link the file instead of writing it.
            A stage is listed when any of its logs is; None of its logs need exist.
        failed: the stage that made the build fail, none where it did not.
        display_names: what stages are called, where that is not as the API calls them.
    """
    record = record_id(number)
    folder = recordings / record
    folder.mkdir(parents=True)
    finished = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(FINISHED_S)) + ".000+00:00"
    times = {"created": finished, "started": finished, "finished": finished, "duration_ms": 1000}
    stages = ["initial", *dict.fromkeys(name.split(".")[0] for name in logs), "final"]
    status = "FAILURE" if failed else "SUCCESS"
    build_no = build_no or number + 1
    document = {
        "job": job or JOB,
        "record": {"record_id": record, "build_no": build_no, "status": status, **times},
        "stages": [
            {
                "stage": stage,
                "display_name": display_names.get(stage, stage),
                "sequence": n,
                "status": "FAILURE" if stage == failed else "SUCCESS",
                **times,
            }
            for n, stage in enumerate(stages)
        ],
    }
    (folder / "record.json").write_text(json.dumps(document))
    for name, content in logs.items():
        if isinstance(content, Path):
            os.link(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    return record


def write_live_record(recordings: Path, number: int, stages: int = 1) -> str:
    """Write a build whose stages are scripted from outside, and return its record id."""
    folder = recordings / record_id(number)
    folder.mkdir(parents=True)
    scripted = [{"stage": f"stage{n}", "command": None} for n in range(1, stages + 1)]
    (folder / "live.json").write_text(json.dumps({"job": JOB, "stages": scripted}))
    return folder.name


JOB = {
    "job_id": "10b00000000000000000000000000001",
    "name": "web-app",
    "build_project_id": "b0000000-0000-0000-0000-000000000001",
    "project_id": "c0de0000000000000000000000000001",
}


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    code: int
    out: bytes
    err: bytes


class Endpoint(Protocol):
    """What can be mounted."""

    @property
    def url(self) -> str: ...


class Emulator:
    """An emulator process. ``faults`` and ``grow`` are its controls."""

    def __init__(self, recordings: Path, arguments: Sequence[str], errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*COMMAND, "emulator", "--recordings", os.fspath(recordings), *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first.startswith("emulator: http://127.0.0.1:"):
            self.stop()
            raise AssertionError(errors.read_text())
        self.url = first.split()[1]
        self._client = httpx.Client(base_url=self.url, trust_env=False, timeout=TIMEOUT_S)

    def faults(self, *words: str) -> None:
        """Misbehave like this, and only like this, from now on."""
        self._post("faults", list(words))

    def grow(self, record: str, **what: Any) -> None:
        self._post("grow", {"record": record, **what})

    def calls(self, kind: str = "task_log") -> int:
        """Return how many calls of a kind have come so far; ``total`` counts all."""
        return self._counts()[kind]

    @contextmanager
    def costs(self, **calls: int) -> Iterator[None]:
        """Require that a block causes these calls, by their kinds, and no others."""
        before = self._counts()
        yield
        more = {kind: count - before[kind] for kind, count in self._counts().items()}
        del more["bytes"], more["total"]
        assert {kind: count for kind, count in more.items() if count} == calls

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = self._client.get("/_emulator/calls").json()
        return counts

    def stop(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        with self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            finally:
                self._process.kill()
        assert "Traceback" not in self._errors.read_text()

    def _post(self, control: str, document: object) -> None:
        reply = self._client.post(f"/_emulator/{control}", json=document)
        assert reply.status_code == 200, reply.text


class Mounted:
    """A mount and the process that serves it."""

    def __init__(self, rig: "Rig", path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self._rig = rig
        self.path = path
        self.process = process
        self.log = log
        self._expected: list[str] = []
        self._permitted: list[str] = []

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def expect_logged(self, pattern: str) -> None:
        """Permit lines in the daemon's log, and require one."""
        self._expected.append(pattern)

    def permit_logged(self, pattern: str) -> None:
        self._permitted.append(pattern)

    def status(self) -> dict[str, Any]:
        outcome = self._rig.run("cat", self / ".codeartsfs/status.json")
        assert outcome.code == 0, outcome
        content: dict[str, Any] = json.loads(outcome.out)
        return content

    def stop(self) -> None:
        """End it with SIGTERM, as systemd does."""
        self.process.terminate()
        assert self.process.wait(STOP_TIMEOUT_S) == 0, self.log.read_text()
        assert not is_mounted(self.path)

    def kill(self) -> None:
        """End it as a crash does: what is left is a dead mount."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def clear_away(self) -> None:
        """Leave neither process nor mount, whatever state they are in."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        if is_mounted(self.path):
            subprocess.run(["umount", "-l", self.path], check=False, timeout=TIMEOUT_S)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)

    def check_log(self) -> None:
        lines = self.log.read_text().splitlines()
        for pattern in self._expected:
            assert any(re.search(pattern, line) for line in lines), (pattern, lines)
        surprising = [
            line
            for line in lines
            if not _HARMLESS_LINE.match(line)
            and not any(re.search(pattern, line) for pattern in self._expected + self._permitted)
        ]
        assert not surprising, "\n".join(surprising)


@dataclass
class Rig:
    """All processes of one test; ``close`` ends them and judges the logs of the mounts."""

    folder: Path
    mounts: list[Mounted] = field(default_factory=list)
    emulators: list[Emulator] = field(default_factory=list)
    readers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def emulator(self, recordings: Path, *arguments: str) -> Emulator:
        """Start an emulator; arguments are faults, and options of its command."""
        errors = self.folder / f"emulator{len(list(self.folder.glob('emulator*.err')))}.err"
        emulator = Emulator(recordings, arguments, errors)
        self.emulators.append(emulator)
        return emulator

    def take_down(self, emulator: Emulator) -> None:
        """End an emulator while mounts of it go on."""
        self.emulators.remove(emulator)
        emulator.stop()

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment without anybody's settings or credentials but those given."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**inherited, "HOME": os.fspath(home), "PYTHONWARNINGS": "default", **more}

    def mount(
        self,
        endpoint: Endpoint,
        *options: str,
        at: str = "mnt",
        cache: str | None = "cache",
        credentials: Mapping[str, str] | None = None,
        program: Sequence[str] = COMMAND,
    ) -> Mounted:
        """Mount and return once the mount answers; the cache outlives it."""
        path = self.folder / at
        if not is_mounted(path):  # a dead mount is the new one's to clear away
            path.mkdir(exist_ok=True)
        log = self.folder / f"mount{len(self.mounts)}.log"
        command = [*program, "mount", os.fspath(path)]
        command += ["--endpoint", endpoint.url, "--log-level", "info"]
        command += ["--cache-dir", os.fspath(self.folder / cache) if cache else "none"]
        command += ["--max-requests-per-second", "0", *options]
        if credentials is None:
            credentials = {"CODEARTSFS_TOKEN": TOKEN}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=self.environment(**credentials)
            )
        mounted = Mounted(self, path, process, log)
        self.mounts.append(mounted)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return " mounted at " in log.read_text()

        wait_until(answers)
        return mounted

    def start(
        self, *command: str | Path, cwd: Path | None = None, stdout: Any = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that may get stuck in the mount."""
        # Not Popen's own cwd: this process would wait for the child's chdir. And no signal is
        # ignored only because whoever started the tests ignores it.
        enter = ["--chdir", os.fspath(cwd)] if cwd else []
        reader = subprocess.Popen(
            ["env", "--default-signal", *enter, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**self.environment(), "LANG": "C.UTF-8", "TERM": "xterm"},
        )
        self.readers.append(reader)
        return reader

    def run(
        self, *command: str | Path, cwd: Path | None = None, timeout_s: float = TIMEOUT_S
    ) -> Outcome:
        """Run a program and return how it ended."""
        return self.finish(self.start(*command, cwd=cwd), timeout_s)

    def finish(self, reader: subprocess.Popen[bytes], timeout_s: float = TIMEOUT_S) -> Outcome:
        """Wait for a program that was started.

        Raises:
            AssertionError: it is stuck. It is left so; ``close`` sees to it.
        """
        try:
            out, err = reader.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            logs = "\n".join(mount.log.read_text() for mount in self.mounts)
            raise AssertionError(f"{reader.args!r} does not end\n{logs}") from None
        self.readers.remove(reader)
        return Outcome(reader.returncode, out or b"", err or b"")

    def shell(
        self,
        script: str,
        *arguments: str | Path,
        cwd: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Outcome:
        bash = ("bash", "-o", "pipefail", "-c", script, "bash")
        return self.run(*bash, *arguments, cwd=cwd, timeout_s=timeout_s)

    def close(self) -> None:
        for reader in self.readers:
            with suppress(ProcessLookupError):
                os.killpg(reader.pid, signal.SIGKILL)
        for mounted in reversed(self.mounts):
            mounted.clear_away()
        for reader in self.readers:
            reader.communicate(timeout=STOP_TIMEOUT_S)  # the mount is gone, so it ends now
        for emulator in self.emulators:
            emulator.stop()
        for mounted in self.mounts:
            mounted.check_log()


@contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    try:
        yield rig
    finally:
        rig.close()


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted there, without touching it."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return os.fspath(path) in [line.split(" ")[4] for line in lines]


def wait_until(happened: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Poll for what only another process can make true."""
    give_up_at = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.02)
