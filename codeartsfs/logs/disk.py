"""The disk tier: complete logs as private files that describe themselves.

Layout below the cache directory (0700, files 0600)::

    v1/<record_id>/stage3.info.log    the bytes of the log, then a footer of 512 bytes
    v1/pins/<record_id>               nothing; its being there keeps the record from eviction
    v1/tmp/                           names of files on their way in

The footer repeats whose log it is, carries size, SHA-256 and state, and ends in a checksum
of its own; so there is no index that could disagree with the files, and nothing to load at
start. The body comes first: a download is written where it will stay and becomes an entry
by one rename.

Crash safety: bodies have no name until they are complete and on the platter (fsync, link,
rename, fsync of the directory), so a crash leaves either a whole entry or nothing.
What cannot be believed on the way out is removed and counts as a miss. Names on their way in
are locked by their process; those that are not are litter of one that was killed.

Eviction is least recently *opened* first, by file modification time, which an open
renews. Accounting is a scan, repeated only when enough was written to need one; so
several mounts may share a cache directory and each sees what the others keep. Pins are files,
too, and read anew by each eviction; the lock on ``v1`` makes who pins wait for one under way.

Nothing here follows a symbolic link below the cache directory, or waits for a pipe.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import stat
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from codeartsfs.logs.body import Body
from codeartsfs.names import CACHE_FORMAT, LogKey, RecordId, parse_record_id

log = logging.getLogger(__name__)

FOOTER_BYTES = 512
_CHECKED_BYTES = FOOTER_BYTES - 9  # its checksum: a blank and eight digits
_MAGIC = "codeartsfs-log-1"
_LOW_WATER = 0.9  # evict down to this share of what pins leave, so that eviction is rare
_UNSEEN = 0.05  # share of the limit that may be saved until a scan sees what other mounts saved
_FREE_SPACE_FLOOR = 0.05  # of the file system, left to others
_MOST_FREE_BYTES = 1 << 30
_READ_BYTES = 1 << 20
_MOST_VERIFIED = 100_000
_FULL_S = 2.0  # how long what pins leave no room for needs no scan to be refused again
_PINNING_S = 1.0  # how long an eviction waits for who pins; it may have been stopped meanwhile
_CAUTIOUSLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # somebody may have put a pipe there


class CacheDirectoryError(OSError):
    """The cache directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LogMeta:
    """What the disk tier remembers of one complete log.

    ``final`` logs are kept as they are. For the others the API tells no state:
    ``checked_ns`` and ``unchanged`` (how often in a row a check found no growth) say
    when to look again, at once if its stage was ``running`` then. ``modified_ns`` is what
    ``stat`` shows as mtime.
    """

    size_bytes: int
    sha256: str
    final: bool
    modified_ns: int
    checked_ns: int
    unchanged: int = 0
    request_id: str = ""
    running: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One log in the tier: what can be said of it without reading it.

    Attributes:
        size_bytes: of the file, footer included; the measure of every limit.
        used_ns: when it was last opened.
        pinned: its record is kept from eviction.
    """

    key: LogKey
    size_bytes: int
    used_ns: int
    pinned: bool


@dataclass(eq=False, slots=True)
class _Save:
    """One log on its way to an entry; where it is ``done`` without a failure, it is one."""

    key: LogKey
    body: Body
    meta: LogMeta
    fd: int = -1
    evicted: frozenset[LogKey] = frozenset()
    failure: Exception | None = None
    done: bool = False

    @property
    def entry_bytes(self) -> int:
        return self.meta.size_bytes + FOOTER_BYTES


def unnamed_file(directory: Path) -> int:
    """Open a new private file without a name in a directory: a crash leaves nothing behind."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        # A file system without O_TMPFILE (NFS): the name lives for one line.
        fd, name = tempfile.mkstemp(dir=directory)
        os.unlink(name)
    os.fchmod(fd, 0o600)
    return fd


def is_full(error: OSError) -> bool:
    """Whether a write failed because there is no room (left to us)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class DiskTier:
    """Complete logs below one directory, at most ``limit_bytes`` of them."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Prepare the directory.

        Raises:
            CacheDirectoryError: it belongs to somebody else, is open to others, or is unusable.
        """
        self.limit_bytes = limit_bytes
        self._root = root / CACHE_FORMAT
        self._tmp = self._root / "tmp"
        self._pins = self._root / "pins"
        # Used by several threads at once: nothing but single operations of a plain dict.
        self._verified: dict[LogKey, tuple[int, int]] = {}
        self._accounts = threading.Lock()  # of the six below
        self._used_bytes: int | None = None  # at the last scan, plus what was saved since
        self._log_count: int | None = None  # likewise
        self._evicted_logs = 0  # since the start
        self._unscanned_bytes = 0  # saved since the last scan
        self._landing: list[_Save] = []  # what is being saved just now
        # Until when so many bytes need no scan to see that pins leave no room for them.
        self._full = (-math.inf, 0)
        self._unsaved: list[_Save] = []
        self._saving = trio.Lock()
        self._make_directories()
        _remove_litter(self._tmp)

    @property
    def used_bytes(self) -> int | None:
        """Bytes in the tier as far as known; None before the first scan."""
        return self._used_bytes

    @property
    def log_count(self) -> int | None:
        """Logs in the tier, likewise: counted along with the bytes, never for who asks."""
        return self._log_count

    @property
    def evicted_logs(self) -> int:
        return self._evicted_logs

    async def survey(self) -> None:
        """Find out what is in the tier, unless a save has done so."""
        await trio.to_thread.run_sync(self._survey, abandon_on_cancel=True)

    def new_file(self) -> int:
        """Open an unnamed file for a download that ``save`` can make an entry."""
        try:
            return unnamed_file(self._tmp)
        except FileNotFoundError:  # somebody emptied the cache directory meanwhile
            self._make_directories()
            return unnamed_file(self._tmp)

    async def load(self, key: LogKey) -> tuple[Body, LogMeta] | None:
        """Return a verified log, None where there is none. Never raises for a bad entry."""
        return await trio.to_thread.run_sync(self._load, key)

    async def meta(self, key: LogKey) -> LogMeta | None:
        """Return what is remembered of a log, without verifying its bytes."""
        return await trio.to_thread.run_sync(self._meta, key)

    async def save(self, key: LogKey, body: Body, meta: LogMeta) -> frozenset[LogKey]:
        """Make a complete body an entry of the tier and return the keys evicted for it.

        Raises:
            OSError: it could not be saved; the tier is as it was.
        """
        save = _Save(key, body, meta)
        if body.in_memory:
            await self._save_together(save)
        else:  # flushing it may take long: nobody else shall wait for that
            await trio.to_thread.run_sync(self._save_all, (save,))
        if save.failure is not None:
            raise save.failure
        return save.evicted

    async def _save_together(self, save: "_Save") -> None:
        """Save what is small with all that came while others were being saved (group commit).

        Hundreds of small logs a second would keep as many threads busy with flushing and with
        waiting for each other.
        """
        self._unsaved.append(save)
        try:
            # Who leaves closes the file, which another's thread may be about to use.
            with trio.CancelScope(shield=True):
                async with self._saving:
                    if not save.done:
                        saves = tuple(self._unsaved)
                        await trio.to_thread.run_sync(self._save_all, saves)
        finally:
            self._unsaved.remove(save)

    async def make_room(self, wanted_bytes: int, sparing: LogKey) -> frozenset[LogKey]:
        """Evict for a download that the disk has no room for; return the keys evicted."""
        return await trio.to_thread.run_sync(self._make_room, wanted_bytes, sparing)

    async def touch(self, key: LogKey, meta: LogMeta) -> None:
        """Rewrite the footer of an entry whose bytes stay: it was checked again."""
        await trio.to_thread.run_sync(self._rewrite_footer, key, meta)

    async def remove(self, key: LogKey) -> None:
        """Drop the entry of a log that is no longer true."""
        await trio.to_thread.run_sync(self._remove, key)

    async def records(self) -> tuple[RecordId, ...]:
        """Return the records that have entries."""
        return await trio.to_thread.run_sync(self._records)

    async def logs(self, record: RecordId) -> tuple[LogKey, ...]:
        """Return the entries of one record."""
        return await trio.to_thread.run_sync(self._logs, record)

    def _make_directories(self) -> None:
        _claim(self._root.parent)
        _claim(self._root, private=True)
        _claim(self._tmp, private=True)

    # Everything below runs in worker threads.

    def _path(self, key: LogKey) -> Path:
        return self._root / key.record / key.file_name

    def _open(self, key: LogKey, access: int = os.O_RDONLY) -> int:
        with _directory(self._root / key.record) as directory:
            return os.open(key.file_name, access | _CAUTIOUSLY, dir_fd=directory)

    def _load(self, key: LogKey) -> tuple[Body, LogMeta] | None:
        try:
            fd = self._open(key)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cache: cannot open %s: %s", key, error)
            return None
        try:
            meta = _read_footer(fd, key)
            entry = os.fstat(fd)
            identity = (entry.st_ino, entry.st_size)
            digest = None
            if meta and not (meta.final and self._verified.get(key) == identity):
                # A log that may still grow needs its hash to be compared with what comes.
                digest = _hash_file(fd, meta.size_bytes)
            if meta is None or (digest and digest.hexdigest() != meta.sha256):
                log.warning("cache: entry %s is damaged and was dropped", key)
                self._path(key).unlink(missing_ok=True)
                os.close(fd)
                return None
            if len(self._verified) >= _MOST_VERIFIED:
                self._verified.clear()
            self._verified[key] = identity
            with suppress(OSError):  # a cache that cannot be written can still be read
                os.utime(fd)  # recently used
        except OSError as error:
            log.warning("cache: cannot read %s: %s", key, error)
            os.close(fd)
            return None
        return Body(fd, meta.size_bytes, digest), meta

    def _meta(self, key: LogKey) -> LogMeta | None:
        try:
            fd = self._open(key)
        except OSError:
            return None
        try:
            return _read_footer(fd, key)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _save_all(self, saves: Sequence["_Save"]) -> None:
        """Save each that can be saved: first all bytes to the platter, then all names."""
        flushed: set[RecordId] = set()

        def flush_name(save: "_Save") -> None:
            if save.key.record not in flushed:
                _fsync_directory(self._root / save.key.record)
                flushed.add(save.key.record)

        for step in (self._reserve, self._write_entry, self._flush_entry, self._enter, flush_name):
            for save in saves:
                if save.failure is None:
                    try:
                        step(save)
                    except Exception as failure:  # the others are none the worse for it
                        save.failure = failure
        for save in saves:
            self._settle(save)

    def _write_entry(self, save: "_Save") -> None:
        save.fd = save.body.to_file()
        os.ftruncate(save.fd, save.meta.size_bytes)
        _write_footer(save.fd, save.key, save.meta)

    def _flush_entry(self, save: "_Save") -> None:
        os.fsync(save.fd)

    def _enter(self, save: "_Save") -> None:
        """Give a file its name; for good, once its directory is flushed."""
        if not save.meta.final and (there := self._meta(save.key)) and there.final:
            return  # another process was faster, and has all of it
        tmp = self._tmp / secrets.token_hex(8)
        try:
            _give_name(save.fd, tmp)
            try:
                self._move_in(tmp, save.key)
            except FileNotFoundError:  # another mount evicted the last log of the record
                self._move_in(tmp, save.key)
        except OSError:
            tmp.unlink(missing_ok=True)
            raise

    def _move_in(self, tmp: Path, key: LogKey) -> None:
        try:
            (self._root / key.record).mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            _fsync_directory(self._root)
        with _directory(self._root / key.record) as directory:
            os.replace(tmp, key.file_name, dst_dir_fd=directory)

    def _remove(self, key: LogKey) -> None:
        """Remove an entry for good: what is no longer true must not come back after a crash."""
        with suppress(OSError):
            if self._unlink(key):
                _fsync_directory(self._root / key.record)

    def _unlink(self, key: LogKey) -> bool:
        """Remove an entry. Return whether it is gone."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cache: cannot remove %s: %s", key, error)
            return False
        return True

    def _rewrite_footer(self, key: LogKey, meta: LogMeta) -> None:
        fd = self._open(key, os.O_RDWR)
        try:
            if os.fstat(fd).st_size == meta.size_bytes + FOOTER_BYTES:
                _write_footer(fd, key, meta)
        finally:
            os.close(fd)

    def _records(self) -> tuple[RecordId, ...]:
        names = (parse_record_id(name) for name in _listdir(self._root, directories=True))
        return tuple(sorted(name for name in names if name is not None))

    def _logs(self, record: RecordId) -> tuple[LogKey, ...]:
        names = _listdir(self._root / record, directories=False)
        keys = (LogKey.parse(record, name) for name in names)
        return tuple(key for key in keys if key is not None)

    def _reserve(self, save: "_Save") -> None:
        """Make room for an entry, which counts as used from here on."""
        if not self._tmp.exists():  # somebody emptied the cache directory meanwhile
            self._make_directories()
        with self._accounts:
            save.evicted = self._evict(save.entry_bytes, sparing=save.key)
            self._landing.append(save)

    def _settle(self, save: "_Save") -> None:
        """Count an entry that is there, and nothing of one that is not."""
        with self._accounts:
            if save in self._landing:
                self._landing.remove(save)
            if save.failure is None:
                self._unscanned_bytes += save.entry_bytes
                self._used_bytes = (self._used_bytes or 0) + save.entry_bytes
                self._log_count = (self._log_count or 0) + 1
        save.done = True

    def _survey(self) -> None:
        with self._accounts:
            if self._used_bytes is None:
                landing = {save.key for save in self._landing}  # counted when they are there
                sizes = [e.size_bytes for e in self.entries() if e.key not in landing]
                self._used_bytes, self._log_count = sum(sizes), len(sizes)

    def _make_room(self, wanted_bytes: int, sparing: LogKey) -> frozenset[LogKey]:
        with self._accounts:
            return self._evict(wanted_bytes, sparing)

    def _evict(self, wanted_bytes: int, sparing: LogKey) -> frozenset[LogKey]:
        """Evict until ``wanted_bytes`` more fit, least recently opened first."""
        if wanted_bytes > self.limit_bytes:
            raise OSError(errno.EFBIG, "larger than the whole cache (see --cache-size)")
        alone_bytes = wanted_bytes
        wanted_bytes += sum(save.entry_bytes for save in self._landing)
        short_bytes = self._short_bytes()
        if (
            self._used_bytes is not None
            and self._used_bytes + wanted_bytes <= self.limit_bytes
            and self._unscanned_bytes <= self.limit_bytes * _UNSEEN
            and short_bytes <= 0
        ):
            return frozenset()
        full_until, too_many_bytes = self._full
        if alone_bytes >= too_many_bytes and time.monotonic() < full_until:
            raise OSError(errno.EDQUOT, "pinned records fill the cache (see --cache-size)")
        # An entry that is about to be replaced needs no room beside the new one.
        replaced = {sparing, *(save.key for save in self._landing)}
        entries = [entry for entry in self.entries() if entry.key not in replaced]
        used_bytes = sum(entry.size_bytes for entry in entries)
        excess = used_bytes + wanted_bytes - self.limit_bytes
        pinned_bytes = sum(entry.size_bytes for entry in entries if entry.pinned)
        if pinned_bytes + alone_bytes > self.limit_bytes:
            # It will not fit, whatever else goes.
            self._full = (time.monotonic() + _FULL_S, alone_bytes)
            excess -= wanted_bytes
        elif excess > 0:
            excess += int((self.limit_bytes - pinned_bytes) * (1 - _LOW_WATER))
        # Others fill the disk: give up as much as is added, not all there is.
        excess = max(excess, min(short_bytes, wanted_bytes))
        evicted = self._evict_oldest(entries, excess)
        used_bytes -= sum(entry.size_bytes for entry in evicted)
        self._used_bytes, self._unscanned_bytes = used_bytes, 0
        self._log_count = len(entries) - len(evicted)
        self._evicted_logs += len(evicted)
        if used_bytes + wanted_bytes > self.limit_bytes:
            raise OSError(errno.EDQUOT, "nothing more can be evicted (see --cache-size)")
        if evicted:
            log.info("cache: evicted %d logs, %d bytes remain", len(evicted), used_bytes)
        return frozenset(entry.key for entry in evicted)

    def _evict_oldest(
        self, entries: Iterable[Entry], excess_bytes: float, *, dry_run: bool = False
    ) -> list[Entry]:
        """Remove what was used longest ago until so many bytes are free; return what is gone.

        Raises:
            OSError: what is pinned cannot be seen, so nothing has gone.
        """
        evicted: list[Entry] = []
        if excess_bytes <= 0:
            return evicted
        with self._nobody_pins():
            pinned = self._pinned_for_sure()
            for entry in sorted(entries, key=lambda entry: entry.used_ns):
                if excess_bytes <= 0:
                    break
                if entry.key.record not in pinned and (dry_run or self._unlink(entry.key)):
                    evicted.append(entry)
                    excess_bytes -= entry.size_bytes
        if not dry_run:
            for entry in evicted:
                self._verified.pop(entry.key, None)
            self._remove_empty({entry.key.record for entry in evicted})
        return evicted

    def _remove_empty(self, records: Iterable[RecordId]) -> None:
        for record in records:
            with suppress(OSError):  # other logs of it are still here
                (self._root / record).rmdir()

    def _short_bytes(self) -> int:
        """Bytes missing to leave the file system its free-space floor."""
        fs = os.statvfs(self._root)
        floor_bytes = min(fs.f_blocks * fs.f_frsize * _FREE_SPACE_FLOOR, _MOST_FREE_BYTES)
        return int(floor_bytes - fs.f_bavail * fs.f_frsize)

    def _pinned(self) -> frozenset[RecordId]:
        try:
            return self._pinned_for_sure()
        except OSError as error:
            log.warning("cache: cannot list %s: %s", self._pins, error)
            return frozenset()

    def _pinned_for_sure(self) -> frozenset[RecordId]:
        """Return the records that are pinned.

        Raises:
            OSError: that cannot be seen just now.
        """
        try:
            with _directory(self._pins) as directory, os.scandir(directory) as marks:
                names = [mark.name for mark in marks if mark.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):  # the latter: a link, too
            return frozenset()
        return frozenset(filter(None, map(parse_record_id, names)))

    @contextmanager
    def _nobody_pins(self) -> Iterator[None]:
        """Hold up who pins: what is not pinned now may go until this is left."""
        with _directory(self._root) as root:
            give_up_at = time.monotonic() + _PINNING_S
            while not _lock_shared(root) and time.monotonic() < give_up_at:
                time.sleep(0.01)
            yield

    # What looks after a cache directory. These block, and need no event loop.

    def entries(self) -> Iterator[Entry]:
        """Yield every log there is, record by record."""
        pinned = self._pinned()
        for record in self._records():
            for key in self._logs(record):
                try:
                    status = self._path(key).lstat()
                except OSError:
                    continue  # another mount evicted it just now
                yield Entry(key, status.st_size, status.st_mtime_ns, record in pinned)

    def footer(self, key: LogKey) -> LogMeta | None:
        """Return what a log says of itself; None where it is damaged or gone."""
        return self._meta(key)

    def damaged(self, key: LogKey) -> bool:
        """Whether the bytes of a log that is there are not those that were saved.

        Raises:
            OSError: it cannot be opened.
        """
        for _ in range(2):  # a mount may be putting another in its place, or its footer
            try:
                fd = self._open(key)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket is no log
                    return True
                raise
            try:
                meta = _read_footer(fd, key)
                if meta and _hash_file(fd, meta.size_bytes).hexdigest() == meta.sha256:
                    return False
            except OSError as error:
                log.warning("cache: cannot read %s: %s", key, error)
            finally:
                os.close(fd)
        return True

    def evict(
        self, to_bytes: float, used_before_ns: float = 0, *, dry_run: bool = False
    ) -> list[Entry]:
        """Remove what was used longest ago, down to a size and to a time; never what is pinned.

        Returns:
            What is gone, or would be in a ``dry_run``.
        """
        entries = list(self.entries())
        old = [entry for entry in entries if entry.used_ns < used_before_ns]
        gone = self._evict_oldest(old, math.inf, dry_run=dry_run)
        rest = set(entries).difference(gone)
        excess_bytes = sum(entry.size_bytes for entry in rest) - to_bytes
        return gone + self._evict_oldest(rest, excess_bytes, dry_run=dry_run)

    def discard(self, key: LogKey) -> bool:
        """Remove a log, pinned or not. Return whether it is gone."""
        gone = self._unlink(key)
        self._remove_empty({key.record})
        return gone

    def pinned_records(self) -> tuple[RecordId, ...]:
        """Return the records that are kept from eviction, those without a log included."""
        return tuple(sorted(self._pinned()))

    def pin(self, record: RecordId) -> None:
        """Keep the logs of a record, and those still to come, from every eviction from here on.

        Raises:
            OSError: it cannot be marked.
        """
        _claim(self._pins, private=True)
        with _directory(self._pins) as pins:
            mark = os.open(record, os.O_CREAT | os.O_WRONLY | _CAUTIOUSLY, 0o600, dir_fd=pins)
            try:
                if not stat.S_ISREG(os.fstat(mark).st_mode):
                    raise FileExistsError(errno.EEXIST, "something else is in its mark's place")
                os.fchmod(mark, 0o600)
            finally:
                os.close(mark)
            os.fsync(pins)
        _fsync_directory(self._root)
        with _directory(self._root) as root, suppress(OSError):  # where there are locks
            fcntl.flock(root, fcntl.LOCK_EX)  # an eviction that has not seen the mark is over then

    def unpin(self, record: RecordId) -> bool:
        """Give a record back to eviction. Return whether it was pinned.

        Raises:
            OSError: its mark cannot be removed.
        """
        if record not in self._pinned():
            return False
        (self._pins / record).unlink(missing_ok=True)
        _fsync_directory(self._pins)
        return True


def _remove_litter(directory: Path) -> None:
    """Remove names that a killed process left between link and rename."""
    for tmp in directory.iterdir():
        with suppress(OSError):  # it harms nobody
            if not _is_locked(tmp):
                tmp.unlink()


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | _CAUTIOUSLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(fd)
    return False


def _listdir(path: Path, *, directories: bool) -> list[str]:
    """Return the names of what is a directory, or of what is none."""
    try:
        with os.scandir(path) as entries:
            return [e.name for e in entries if e.is_dir(follow_symlinks=False) == directories]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("cache: cannot list %s: %s", path, error)
        return []


def _claim(root: Path, *, private: bool = False) -> None:
    """Create a directory 0700, or make sure that it is ours.

    Its mode is for its owner to say, unless it shall be ``private`` whatever the umask and
    whoever made it.
    """
    try:
        if not root.is_dir():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
        status = root.lstat()
    except OSError as error:
        raise CacheDirectoryError(
            f"cannot create the cache directory {root}: {error.strerror};"
            " choose another with --cache-dir"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise CacheDirectoryError(f"the cache directory {root} is not a directory")
    if status.st_uid != os.geteuid():
        raise CacheDirectoryError(
            f"the cache directory {root} belongs to uid {status.st_uid}, not to uid"
            f" {os.geteuid()}: choose another with --cache-dir"
        )
    if private and stat.S_IMODE(status.st_mode) != 0o700:
        try:
            root.chmod(0o700)
        except OSError as error:
            raise CacheDirectoryError(
                f"cannot make the cache directory {root} private: {error.strerror}"
            ) from error


def _write_footer(fd: int, key: LogKey, meta: LogMeta) -> None:
    text = json.dumps(
        {
            "magic": _MAGIC,
            "key": str(key),
            "size_bytes": meta.size_bytes,
            "sha256": meta.sha256,
            "final": meta.final,
            "modified_ns": meta.modified_ns,
            "checked_ns": meta.checked_ns,
            "unchanged": meta.unchanged,
            "request_id": meta.request_id.encode("ascii", "ignore")[:64].decode(),
            **({"running": True} if meta.running else {}),
        },
        separators=(",", ":"),
    ).encode()
    assert len(text) < _CHECKED_BYTES
    footer = b"\n" + text.ljust(_CHECKED_BYTES - 1)
    footer += _checksum(footer)
    if os.pwrite(fd, footer, meta.size_bytes) != FOOTER_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_footer(fd: int, key: LogKey) -> LogMeta | None:
    """Return the footer's contents, None unless it is whole and belongs to this log."""
    start = os.fstat(fd).st_size - FOOTER_BYTES
    if start < 0:
        return None
    footer = os.pread(fd, FOOTER_BYTES, start)
    if footer[_CHECKED_BYTES:] != _checksum(footer[:_CHECKED_BYTES]):
        return None
    try:
        values = json.loads(footer[:_CHECKED_BYTES])
        if (
            values["magic"] != _MAGIC
            or values["key"] != str(key)
            or values["size_bytes"] != start
            or not isinstance(values["sha256"], str)
        ):
            return None
        return LogMeta(
            size_bytes=start,
            sha256=values["sha256"],
            final=values["final"] is True,
            modified_ns=int(values["modified_ns"]),
            checked_ns=int(values["checked_ns"]),
            unchanged=int(values["unchanged"]),
            request_id=str(values["request_id"]),
            running=values.get("running") is True,
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _checksum(footer: bytes) -> bytes:
    return b" %08x" % zlib.crc32(footer)


def _give_name(fd: int, path: Path) -> None:
    """Give a name to an unnamed file that is on the platter."""
    try:
        _lock(fd)
        # The dir_fd is ignored beside an absolute path, but makes Python call linkat(2), the
        # one call that follows the link in /proc to a file without a name.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileNotFoundError:  # a file system without O_TMPFILE: copy
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as copy:
            _lock(copy.fileno())
            size_bytes, offset = os.fstat(fd).st_size, 0
            while offset < size_bytes:
                offset += os.sendfile(copy.fileno(), fd, offset, size_bytes - offset)
            os.fsync(copy.fileno())


def _lock(fd: int) -> None:
    """Say that a file is in use, until its process closes it or is killed."""
    with suppress(OSError):  # a file system that has no locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_shared(directory: int) -> bool:
    """Lock a directory with others that do so; False where somebody has it alone."""
    try:
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK  # else a file system that has no locks
    return True


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _CAUTIOUSLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _fsync_directory(path: Path) -> None:
    with _directory(path) as fd:
        os.fsync(fd)


def _hash_file(fd: int, size_bytes: int) -> "hashlib._Hash":
    """Hash the first ``size_bytes`` of a file."""
    digest = hashlib.sha256()
    offset = 0
    while offset < size_bytes:
        block = os.pread(fd, min(_READ_BYTES, size_bytes - offset), offset)
        if not block:
            break
        digest.update(block)
        offset += len(block)
    return digest
