"""The machine: FUSE, limits, memory, versions."""

import os
import platform
import re
import resource
import shutil
import stat
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import codeartsfs
from codeartsfs import human
from codeartsfs.doctor.findings import Finding, failed, ok, skipped, warning
from codeartsfs.fs.mountpoint import FS_TYPE

_OLDEST_KERNEL = (5, 4)
_FEW_FILES = 1024
_DAEMON_BYTES = 128 << 20  # what the daemon takes beside its memory cache
_PACKAGES = ("pyfuse3", "trio", "httpx", "h11", "click")


def fuse_device(path: Path = Path("/dev/fuse")) -> Finding:
    name = "FUSE device"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        fix = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return failed(name, f"there is no {path}", fix)
    except OSError as error:
        fix = f"chmod 666 {path}; in a container the device must be permitted (--device {path})"
        return failed(name, f"{path} cannot be opened: {error.strerror}", fix)
    return ok(name, f"{path} can be opened")


def fusermount() -> Finding:
    name, found = "fusermount3", shutil.which("fusermount3")
    if found is None:
        if os.geteuid() == 0:
            return ok(name, "not installed; root does without it")
        return failed(name, "not found in PATH", "install the package fuse3")
    if os.geteuid() != 0 and not os.stat(found).st_mode & stat.S_ISUID:
        return failed(name, f"{found} is not setuid root", f"as root: chmod u+s {found}")
    return ok(name, found)


def kernel(release: str | None = None) -> Finding:
    release = release or os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) < _OLDEST_KERNEL:
        return warning("kernel", f"Linux {release}", "nothing older than Linux 5.4 was tried")
    return ok("kernel", f"Linux {release}")


def fuse_conf(path: Path = Path("/etc/fuse.conf")) -> Finding:
    name = "fuse.conf"
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError:
        lines = []
    if "user_allow_other" in lines:
        return ok(name, "user_allow_other is set: -o allow_other is permitted")
    if os.geteuid() == 0:
        return ok(name, "root may give -o allow_other")
    return ok(name, f"-o allow_other is not permitted; it needs user_allow_other in {path}")


def updatedb(path: Path = Path("/etc/updatedb.conf")) -> Finding:
    name = "updatedb"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return skipped(name, "there is none here")
    except OSError as error:
        return skipped(name, f"{path} cannot be read: {error.strerror}")
    match = re.search(r"^\s*PRUNEFS\s*=\s*[\"']?([^\"'\n]*)", text, re.MULTILINE)
    if match and FS_TYPE in match[1].split():
        return ok(name, f"{path} leaves {FS_TYPE} out")
    return warning(
        name, "walks through mounts of codeartsfs", f"add {FS_TYPE} to PRUNEFS in {path}"
    )


def user() -> Finding:
    if os.geteuid() != 0:
        return ok("user", f"uid {os.geteuid()}")
    return warning(
        "user",
        "root: a mount of root's is closed to everybody else, and its logs belong to root",
        "mount as the user who reads, or give -o allow_other",
    )


def limits() -> Finding:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return ok("limits", "open files: without limit")
    if most < _FEW_FILES:
        found = f"at most {most} open files; each open log is one"
        return warning("limits", found, "raise the hard limit: ulimit -Hn, LimitNOFILE=")
    return ok("limits", f"at most {most} open files")


def memory(cache_bytes: int, path: Path = Path("/proc/meminfo")) -> Finding:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    if match is None:
        return skipped("memory", f"{path} does not tell what is available")
    free_bytes, wanted_bytes = int(match[1]) << 10, cache_bytes + _DAEMON_BYTES
    found = f"{human.size(free_bytes)} available"
    if free_bytes < wanted_bytes:
        fix = f"a mount takes up to {human.size(wanted_bytes)}: lower --memory-cache, or free some"
        return warning("memory", found, fix)
    return ok("memory", found)


def versions() -> Finding:
    parts = [f"codeartsfs {codeartsfs.__version__}", f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            return failed("versions", f"{package} is not installed", "install codeartsfs anew")
    return ok("versions", ", ".join([*parts, *_libfuse()]))


def _libfuse() -> list[str]:
    try:
        outcome = subprocess.run(
            ["fusermount3", "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    match = re.search(r"version: (\S+)", outcome.stdout)
    return [f"libfuse {match[1]}"] if match else []
