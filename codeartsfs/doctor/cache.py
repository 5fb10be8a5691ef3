"""The cache directory: whose it is, how much room it has, and what is in it."""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from codeartsfs import human
from codeartsfs.builds.index import INDEX_VERSION
from codeartsfs.doctor.findings import Finding, failed, ok, skipped, warning
from codeartsfs.fs.mountpoint import filesystem_of
from codeartsfs.names import CACHE_FORMAT, INDEX_FILE, parse_record_id
from codeartsfs.spelling import spell_part, spell_path

_NETWORK = re.compile(r"nfs.*|cifs|smb.*|ncpfs|afs|ceph|glusterfs|lustre|9p|fuse\..*|virtiofs")
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_OTHERS = "another directory: --cache-dir"


def cache(root: Path | None, size_bytes: int) -> Sequence[Finding]:
    """Look at a cache directory that may not be there yet."""
    if root is None:
        return [ok("cache", "on no disk (--cache-dir none)")]
    return list(_examined(root, size_bytes))


def _examined(root: Path, size_bytes: int) -> Iterator[Finding]:
    there = next(path for path in (root, *root.parents) if path.exists())
    access = _access(root, there)
    yield access
    if there != root and access.fix:
        return
    yield _kind_of_file_system(there)
    yield _room(root, there, size_bytes)
    if (root / CACHE_FORMAT).is_dir():
        yield _entries(root)
        yield _index(root / CACHE_FORMAT / INDEX_FILE)


def _access(root: Path, there: Path) -> Finding:
    name, status = "cache", there.stat()
    if there != root:
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            fix = f"make {there} a directory that you may write to, or choose {_OTHERS}"
            return failed(name, f"{root} cannot be made in {there}", fix)
        return ok(name, f"{root} is not there yet, and will be made")
    if not stat.S_ISDIR(root.lstat().st_mode):
        return failed(name, f"{root} is no directory", f"choose {_OTHERS}")
    if status.st_uid != os.geteuid():
        found = f"{root} belongs to uid {status.st_uid}, not to uid {os.geteuid()}"
        return failed(name, found, f"mount as its owner, or choose {_OTHERS}")
    if not os.access(root, os.W_OK | os.X_OK):
        fix = f"chmod u+rwx {root}, or mount its disk read-write; what is in it is read anyway"
        return warning(name, f"{root} cannot be written to", fix)
    private = root / CACHE_FORMAT
    if private.is_dir() and stat.S_IMODE(private.stat().st_mode) & 0o077:
        return warning(name, f"{private} is open to others", f"chmod 700 {private}")
    return ok(name, f"{root} is ours and can be written to")


def _kind_of_file_system(there: Path) -> Finding:
    name, kind = "cache disk", filesystem_of(there)
    if kind in _IN_MEMORY:
        fix = f"it takes memory and is gone after a reboot: choose {_OTHERS}"
        return warning(name, f"{there} is in memory ({kind})", fix)
    if _NETWORK.fullmatch(kind):
        fix = "give each host a --cache-dir of its own, on a disk of its own: SQLite needs that"
        return warning(name, f"{there} is on a network file system ({kind})", fix)
    return ok(name, kind)


def _room(root: Path, there: Path, size_bytes: int) -> Finding:
    name, fs = "cache space", os.statvfs(there)
    used_bytes = sum(entry.stat().st_size for entry in _logs(root))
    free_bytes = fs.f_bavail * fs.f_frsize
    used, limit, free = map(human.size, (used_bytes, size_bytes, free_bytes))
    found = f"{used} of --cache-size {limit} used, {free} free"
    if used_bytes + free_bytes < size_bytes:
        fix = "make room, or lower --cache-size; logs that find no room are downloaded again"
        return warning(name, found, fix)
    return ok(name, found)


def _logs(root: Path) -> Iterator[os.DirEntry[str]]:
    for record in _scan(root / CACHE_FORMAT):
        if parse_record_id(record.name) and record.is_dir(follow_symlinks=False):
            for entry in _scan(Path(record.path)):
                if entry.is_file(follow_symlinks=False):
                    yield entry


def _scan(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _entries(root: Path) -> Finding:
    """Look for what is not ours: formats of other versions, files of strangers."""
    name = "cache entries"
    known = {"tmp", "pins", INDEX_FILE, f"{INDEX_FILE}-wal", f"{INDEX_FILE}-shm"}
    strange = [f"{e.name}" for e in _scan(root) if e.name != CACHE_FORMAT]
    records = 0
    for entry in _scan(root / CACHE_FORMAT):
        ours = entry.name in known or parse_record_id(entry.name) is not None
        ours = ours and not entry.is_symlink()
        ours = ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        records += ours and entry.name not in known
        if not ours:
            strange.append(f"{CACHE_FORMAT}/{entry.name}")
    if strange:
        first = ", ".join(map(spell_path, sorted(strange)[:3]))
        found = f"{len(strange)} that are not ours ({first}{', ...' if len(strange) > 3 else ''})"
        return warning(name, found, f"see what they are; they are left alone: ls -la {root}")
    return ok(name, f"logs of {human.count(records, 'record')}, format {CACHE_FORMAT}")


def _index(path: Path) -> Finding:
    name = "cache index"
    if not path.exists():
        return skipped(name, "there is none yet")
    fix = f"rm {path}*, while nothing is mounted: what is in it is asked for again"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as file:
            version = file.execute("PRAGMA user_version").fetchone()[0]
            verdict = file.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return warning(name, f"{path.name} cannot be read: {error}", fix)
    if verdict != "ok":
        return warning(name, f"{path.name} is damaged: {spell_part(verdict)}", fix)
    if version != INDEX_VERSION:
        found = f"{path.name} is of version {version}, not {INDEX_VERSION}"
        return warning(name, found, "the next mount begins a new one")
    return ok(name, f"{path.name} is whole, {human.size(path.stat().st_size)}")
