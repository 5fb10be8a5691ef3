"""What the benches share: an emulator and a mount of it, the peer, and ways to say figures."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "codeartsfs-demo-token"
CODEARTSFS = [sys.executable, "-m", "codeartsfs"]
MIB = 1 << 20


def record_id(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


def make_record(folder: Path, number: int, stages: int) -> Path:
    """Write a finished build without logs and return the folder for them."""
    now = "2026-03-04T05:06:07.000+00:00"
    times = {"created": now, "started": now, "finished": now, "duration_ms": 1}
    target = folder / record_id(number)
    target.mkdir(parents=True)
    content = {
        "job": {
            "job_id": "a" * 32,
            "name": "figures",
            "build_project_id": "11111111-1111-1111-1111-111111111111",
            "project_id": "b" * 32,
        },
        "record": {
            "record_id": target.name,
            "build_no": number,
            "status": "SUCCESS",
            "branch": "main",
            "revision": "",
            "trigger": "MANUAL",
            **times,
        },
        "stages": [
            {
                "stage": f"stage{n}",
                "display_name": f"Step {n}",
                "sequence": n,
                "status": "SUCCESS",
                **times,
            }
            for n in range(1, stages + 1)
        ],
    }
    (target / "record.json").write_text(json.dumps(content))
    return target


class Bench:
    """An emulator, and a mount of it where there is one just now."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Start an emulator of ``folder / "recordings"``, with options of its command."""
        self.folder = folder
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.emulator = subprocess.Popen(
            [*CODEARTSFS, "emulator", "--recordings", str(folder / "recordings"), *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.emulator.stdout is not None
        self.url = self.emulator.stdout.readline().split()[1]

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)
        self.emulator.terminate()
        self.emulator.wait()

    def mount(self, *options: str, cache: str = "cache") -> float:
        """Mount and return the seconds until the command says that the mount answers."""
        begin = time.perf_counter()
        subprocess.run(
            [
                *CODEARTSFS,
                "mount",
                str(self.mountpoint),
                f"--endpoint={self.url}",
                f"--cache-dir={self.folder / cache}",
                "--max-requests-per-second=0",
                f"--log-file={self.folder / 'mount.log'}",
                "--daemon",
                *options,
            ],
            env={**os.environ, "CODEARTSFS_TOKEN": TOKEN},
            check=True,
        )
        return time.perf_counter() - begin

    def umount(self) -> None:
        pid = self.pid()
        subprocess.run([*CODEARTSFS, "umount", str(self.mountpoint)], check=True)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.02)  # the daemon is no child of ours

    def status(self) -> dict[str, dict[str, int]]:
        content: dict[str, dict[str, int]] = json.loads(
            (self.mountpoint / ".codeartsfs/status.json").read_text()
        )
        return content

    def pid(self) -> int:
        return int(str(self.status()["pid"]))

    def calls(self) -> dict[str, int]:
        """Return the API calls since this was last asked, by kind."""
        request = urllib.request.Request(self.url + "/_emulator/calls")
        with urllib.request.urlopen(request) as answer:
            counts: dict[str, int] = json.load(answer)
        request.method = "DELETE"
        urllib.request.urlopen(request).close()
        return {kind: n for kind, n in counts.items() if n and kind not in ("bytes", "total")}

    def rss_mib(self) -> tuple[float, float]:
        """Return the daemon's resident memory, now and at most."""
        return resident_mib(self.pid())


def resident_mib(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process, now and at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    now, most = (int(values[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def rclone() -> str | None:
    beside = Path(sys.executable).parent / "rclone"
    return shutil.which("rclone") or (str(beside) if beside.exists() else None)


@contextmanager
def rclone_mount(command: str, source: Path, mountpoint: Path, *options: str) -> Iterator[float]:
    """Mount a local folder with rclone; gives the seconds until it said to be ready."""
    mountpoint.mkdir(exist_ok=True)
    begin = time.perf_counter()
    subprocess.run(
        [command, "mount", source, mountpoint, "--daemon", "--config=", "--read-only", *options],
        check=True,
        capture_output=True,
    )
    took_s = time.perf_counter() - begin
    try:
        yield took_s
    finally:
        subprocess.run(["umount", mountpoint], check=True)


@dataclass(frozen=True)
class Foreground:
    """A mount whose process is a child of ours; ``ready_s`` until its first stat was answered."""

    mountpoint: Path
    pid: int
    ready_s: float

    def cpu_s(self) -> float:
        """Return the processor time used so far, user and system, of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        return resident_mib(self.pid)[1]


@contextmanager
def foreground_mount(
    command: list[str], mountpoint: Path, env: dict[str, str]
) -> Iterator[Foreground]:
    """Run a command that mounts and stays; unmount and end it in the end, whatever happens."""
    mountpoint.mkdir(exist_ok=True)
    below = mountpoint.stat().st_dev
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while mountpoint.stat().st_dev == below:
            if process.poll() is not None or time.perf_counter() > begin + 30:
                raise RuntimeError(f"no mount from {command[:3]}, exit code {process.returncode}")
            time.sleep(0.002)
        yield Foreground(mountpoint, process.pid, time.perf_counter() - begin)
    finally:
        unmount = ["fusermount3", "-u", str(mountpoint)]
        if subprocess.run(unmount, capture_output=True, check=False).returncode:
            subprocess.run([*unmount, "-z"], capture_output=True, check=False)
        end(process)
        subprocess.run([*unmount, "-z"], capture_output=True, check=False)


def end(process: subprocess.Popen[Any]) -> None:
    """Wait for a process that is ending, or make it."""
    for push in (process.terminate, process.kill):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            push()
        else:
            return
    process.wait()


def took(*command: Any) -> float:
    """Run a command, its output thrown away, and return the seconds it took."""
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def spread(name: str, values: list[float], unit: str = "s") -> str:
    middle = statistics.median(values)
    return f"{name}: {middle:.2f} {unit} ({min(values):.2f} to {max(values):.2f}, n={len(values)})"


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"ratio of medians: {statistics.median(ours) / statistics.median(theirs):.2f}"
