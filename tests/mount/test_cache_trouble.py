"""Trouble with the cache directory: reads stay right whatever is done to it or found in it."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codeartsfs.builds.index import _checksum
from codeartsfs.logs.disk import FOOTER_BYTES

from .rig import (
    COMMAND,
    TOKEN,
    Emulator,
    Mounted,
    Rig,
    open_rig,
    record_id,
    wait_until,
    write_live_record,
    write_record,
)

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")

MIB = 1 << 20
COPIED_BY_SENDFILE = ("busybox", "cat")  # which trusts the kernel's idea of the size


def _log(number: int, name: str, size: int) -> bytes:
    line = b"%d/%s: \xe7\xbc\x96\xe8\xaf\x91 a line of this log and of no other\n"
    return (line % (number, name.encode()) * (size // 60 + 1))[:size]


RECORDS = 6
LOGS = {
    f"{record_id(number)}/{name}": _log(number, name, size)
    for number in range(RECORDS)
    for name, size in (("stage1.info.log", 400_000), ("stage1.debug.log", 20_000))
}
LOG, OTHER = f"{record_id(0)}/stage1.info.log", f"{record_id(1)}/stage1.info.log"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(RECORDS):
        logs = {path[37:]: log for path, log in LOGS.items() if path.startswith(record_id(number))}
        write_record(folder, number, logs)
    return folder


def read_all(rig: Rig, mounted: Mounted) -> None:
    for path, log in LOGS.items():
        outcome = rig.run("cat", mounted / path)
        assert (outcome.code, outcome.err) == (0, b"")
        assert outcome.out == log, path


def mount(
    rig: Rig, emulator: Emulator, *options: str, at: str = "mnt", cache: str = "cache"
) -> Mounted:
    mounted = rig.mount(emulator, "--prefetch", "0", *options, at=at, cache=cache)
    mounted.permit_logged("WARNING codeartsfs.(logs|builds)[.a-z]*: cache: ")
    return mounted


@pytest.fixture(scope="module")
def emulator(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with open_rig(tmp_path_factory.mktemp("emulator")) as rig:
        yield rig.emulator(recordings)


@pytest.fixture(autouse=True)
def _no_faults(emulator: Emulator) -> None:
    emulator.faults()


@pytest.fixture(scope="module")
def filled(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory that holds all logs; to be copied."""
    with open_rig(tmp_path_factory.mktemp("filled")) as rig:
        mounted = mount(rig, emulator)
        read_all(rig, mounted)
        rig.run("ls", *(mounted / record_id(number) for number in range(RECORDS)))
        mounted.stop()
        return rig.folder / "cache"


# What is found in it.


def _entry(v1: Path) -> Path:
    return v1 / LOG


def flip_a_bit_of_the_body(v1: Path) -> None:
    _flip(_entry(v1), 200_000)


def flip_a_bit_of_the_footer(v1: Path) -> None:
    _flip(_entry(v1), len(LOGS[LOG]) + 30)


def _flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        [byte] = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 4]))


def cut_an_entry(v1: Path) -> None:
    os.truncate(_entry(v1), 100_000)


def cut_a_body_and_keep_its_footer(v1: Path) -> None:
    stored = _entry(v1).read_bytes()
    _entry(v1).write_bytes(stored[:100_000] + stored[-FOOTER_BYTES:])


def put_another_log_there(v1: Path) -> None:
    shutil.copy(v1 / OTHER, _entry(v1))


def put_a_newer_format_there(v1: Path) -> None:
    stored = _entry(v1).read_bytes()
    _entry(v1).write_bytes(stored.replace(b"codeartsfs-log-1", b"codeartsfs-log-2"))


def put_a_pipe_there(v1: Path) -> None:
    _entry(v1).unlink()
    os.mkfifo(_entry(v1))


def put_a_directory_there(v1: Path) -> None:
    _entry(v1).unlink()
    (_entry(v1) / "full").mkdir(parents=True)


def put_a_link_there(v1: Path) -> None:
    _entry(v1).rename(v1.parent / "elsewhere")
    _entry(v1).symlink_to(v1.parent / "elsewhere")


def put_a_link_in_place_of_the_record(v1: Path) -> None:
    _entry(v1).parent.rename(v1.parent / "elsewhere")
    _entry(v1).parent.symlink_to(v1.parent / "elsewhere")


def put_a_pipe_in_place_of_the_record(v1: Path) -> None:
    shutil.rmtree(_entry(v1).parent)
    os.mkfifo(_entry(v1).parent)


def put_strangers_beside(v1: Path) -> None:
    (v1 / "README").write_text("hello")
    (v1 / "folder").mkdir()
    (v1 / record_id(77)).symlink_to("/")
    os.mkfifo(v1 / record_id(78))
    (v1 / "tmp" / "folder").mkdir()
    (v1 / "tmp" / "link").symlink_to(_entry(v1))
    os.mkfifo(v1 / "tmp" / "pipe")
    os.mkfifo(_entry(v1).parent / "stage9.info.log")


def put_other_versions_beside(v1: Path) -> None:
    for version in ("v0", "v2", "v10"):
        (v1.parent / version / record_id(0)).mkdir(parents=True)
        (v1.parent / version / LOG).write_bytes(b"another format")


def remove_the_folder_for_what_comes_in(v1: Path) -> None:
    shutil.rmtree(v1 / "tmp")


def remove_it(v1: Path) -> None:
    shutil.rmtree(v1.parent)


def remove_the_index(v1: Path) -> None:
    for file in v1.glob("builds.sqlite3*"):
        file.unlink()


def fill_the_index_with_garbage(v1: Path) -> None:
    (v1 / "builds.sqlite3").write_bytes(random.Random(1).randbytes(20_000))


def empty_the_index(v1: Path) -> None:
    (v1 / "builds.sqlite3").write_bytes(b"")


def cut_the_index(v1: Path) -> None:
    os.truncate(v1 / "builds.sqlite3", 5000)


def flip_bits_of_the_index(v1: Path) -> None:
    index = v1 / "builds.sqlite3"
    chance = random.Random(1)
    for _ in range(200):
        _flip(index, chance.randrange(4096, index.stat().st_size))


def put_garbage_beside_the_index(v1: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        (v1 / f"builds.sqlite3{suffix}").write_bytes(random.Random(2).randbytes(5000))


def put_a_pipe_in_place_of_the_index(v1: Path) -> None:
    remove_the_index(v1)
    os.mkfifo(v1 / "builds.sqlite3")


def put_a_directory_in_place_of_the_index(v1: Path) -> None:
    remove_the_index(v1)
    (v1 / "builds.sqlite3" / "full").mkdir(parents=True)


def put_a_link_in_place_of_the_index(v1: Path) -> None:
    (v1 / "builds.sqlite3").rename(v1.parent / "elsewhere")
    (v1 / "builds.sqlite3").symlink_to(v1.parent / "elsewhere")


def put_a_newer_index_there(v1: Path) -> None:
    index = sqlite3.connect(v1 / "builds.sqlite3")
    index.execute("PRAGMA user_version = 99")
    index.close()


def lie_in_the_index(v1: Path) -> None:
    """As if the logs had been rewritten, and another mount had seen it."""
    index = sqlite3.connect(v1 / "builds.sqlite3")
    for row in index.execute("SELECT record, file, size_bytes, modified_ns, final FROM logs"):
        record, file, size, modified_ns, final = row
        checksum = _checksum(record, file, size + 8000, modified_ns, bool(final))
        index.execute(
            "UPDATE logs SET size_bytes = ?, checksum = ? WHERE record = ? AND file = ?",
            (size + 8000, checksum, record, file),
        )
    index.commit()
    index.close()


Trouble = Callable[[Path], None]
# (what is done, how many logs are downloaded again)
WITH_LOGS: list[tuple[Trouble, int]] = [
    (flip_a_bit_of_the_body, 1),
    (flip_a_bit_of_the_footer, 1),
    (cut_an_entry, 1),
    (cut_a_body_and_keep_its_footer, 1),
    (put_another_log_there, 1),
    (put_a_newer_format_there, 1),
    (put_a_pipe_there, 1),
    (put_a_directory_there, 1),
    (put_a_link_there, 1),
    (put_a_link_in_place_of_the_record, 2),
    (put_a_pipe_in_place_of_the_record, 2),
]
WITH_THE_REST: list[tuple[Trouble, int]] = [
    (put_strangers_beside, 0),
    (put_other_versions_beside, 0),
    (remove_the_folder_for_what_comes_in, 0),
    (remove_it, len(LOGS)),
    (remove_the_index, 0),
    (fill_the_index_with_garbage, 0),
    (empty_the_index, 0),
    (cut_the_index, 0),
    (flip_bits_of_the_index, 0),
    (put_garbage_beside_the_index, 0),
    (put_a_pipe_in_place_of_the_index, 0),
    (put_a_directory_in_place_of_the_index, 0),
    (put_a_link_in_place_of_the_index, 0),
    (put_a_newer_index_there, 0),
    (lie_in_the_index, 0),
]
EARLY, LATE = "before it is mounted", "while it is mounted"
CELLS = [(EARLY, *cell) for cell in WITH_LOGS + WITH_THE_REST]
CELLS += [  # most of it is looked at when it is needed, so that the moment does not matter
    (LATE, remove_the_folder_for_what_comes_in, 0),
    (LATE, remove_it, len(LOGS)),
    (LATE, remove_the_index, 0),
    (LATE, fill_the_index_with_garbage, 0),
    (LATE, empty_the_index, 0),
    (LATE, put_a_directory_in_place_of_the_index, 0),
    (LATE, lie_in_the_index, 0),
]


@pytest.mark.parametrize(
    ("when", "trouble", "downloads"),
    CELLS,
    ids=[f"{cell[1].__name__}, {cell[0]}" for cell in CELLS],
)
def test_reads_are_right_and_only_what_was_harmed_is_downloaded(
    rig: Rig, emulator: Emulator, filled: Path, when: str, trouble: Trouble, downloads: int
) -> None:
    cache = shutil.copytree(filled, rig.folder / "cache", symlinks=True)
    if when == EARLY:
        trouble(cache / "v1")
    elsewhere = contents_of(cache / "elsewhere")
    mounted = mount(rig, emulator)
    mounted.permit_logged("ESTALE: .*the server rewrote")
    if when == LATE:
        trouble(cache / "v1")
    before = emulator.calls()
    assert rig.run("ls", "-l", mounted.path, mounted / record_id(0)).code == 0
    outcome = rig.run(*COPIED_BY_SENDFILE, mounted / LOG)
    assert (outcome.code, outcome.out) == (0, LOGS[LOG])
    read_all(rig, mounted)
    assert emulator.calls() - before == downloads
    mounted.stop()
    assert when == LATE or contents_of(cache / "elsewhere") == elsewhere


def contents_of(path: Path) -> dict[Path, bytes]:
    """Return what a link could lead to; nothing where nothing is."""
    files = path.rglob("*") if path.is_dir() else [path]
    return {file: file.read_bytes() for file in files if file.is_file()}


def link_the_folder_for_what_comes_in(cache: Path, elsewhere: Path) -> None:
    (cache / "v1").mkdir(parents=True)
    (cache / "v1" / "tmp").symlink_to(elsewhere)


def link_the_folder_of_the_version(cache: Path, elsewhere: Path) -> None:
    cache.mkdir()
    (cache / "v1").symlink_to(elsewhere)


def link_it(cache: Path, elsewhere: Path) -> None:
    cache.symlink_to(elsewhere)


def give_it_to_somebody_else(cache: Path, elsewhere: Path) -> None:
    cache.mkdir()
    os.chown(cache, 12345, 12345)


def give_its_inside_to_somebody_else(cache: Path, elsewhere: Path) -> None:
    (cache / "v1").mkdir(parents=True)
    os.chown(cache / "v1", 12345, 12345)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
@pytest.mark.parametrize(
    "prepare",
    [
        link_the_folder_for_what_comes_in,
        link_the_folder_of_the_version,
        link_it,
        give_it_to_somebody_else,
        give_its_inside_to_somebody_else,
    ],
)
def test_a_directory_that_leads_elsewhere_or_is_not_ours_is_refused(
    rig: Rig, prepare: Callable[[Path, Path], None]
) -> None:
    elsewhere = rig.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a file").touch()
    (rig.folder / "mnt").mkdir()
    prepare(rig.folder / "cache", elsewhere)
    refused = subprocess.run(
        [
            *(*COMMAND, "mount", rig.folder / "mnt", "--endpoint", "http://127.0.0.1:9"),
            *("--cache-dir", rig.folder / "cache"),
        ],
        env=rig.environment(CODEARTSFS_TOKEN=TOKEN),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"Error: the cache directory ")
    assert os.listdir(elsewhere) == ["a file"]


@pytest.mark.parametrize("umask", ["000", "077"])
def test_the_cache_is_private_and_usable_whatever_the_umask(
    rig: Rig, emulator: Emulator, umask: str
) -> None:
    program = ("bash", "-c", 'umask "$1"; shift; exec "$@"', "bash", umask, *COMMAND)
    mounted = rig.mount(emulator, program=program)
    assert rig.run("cat", mounted / LOG).out == LOGS[LOG]
    assert rig.run("ls", mounted / record_id(0)).code == 0
    files = [rig.folder / "cache" / "v1" / name for name in (LOG, "builds.sqlite3")]
    wait_until(lambda: all(file.exists() for file in files))
    cache = rig.folder / "cache"
    for path in [cache, *cache.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    mounted.stop()


# The disk below it.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 3 MiB; all logs together do not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * MIB}", "none", disk], check=True)
    yield disk  # the mounts of the test were set up later, and so are gone by now
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    filler = disk / "filler"
    filling = subprocess.run(
        ["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, check=False
    )
    assert b"No space left" in filling.stderr
    return filler


@needs_root
def test_a_disk_smaller_than_the_cache_may_grow_keeps_what_fits(
    small_disk: Path, rig: Rig, recordings: Path
) -> None:
    larger, size = record_id(40), 4 * MIB
    folder = rig.folder / "larger"
    shutil.copytree(recordings, folder)
    write_record(folder, 40, {"stage1.info.log": _log(40, "", size)})
    for number in range(50, 55):
        write_record(folder, number, {"stage1.info.log": _log(number, "", 500_000)})
    emulator = rig.emulator(folder)
    mounted = mount(rig, emulator, cache="disk/cache")
    read_all(rig, mounted)
    for number in range(50, 55):
        outcome = rig.run("cat", mounted / f"{record_id(number)}/stage1.info.log")
        assert outcome.out == _log(number, "", 500_000)
    outcome = rig.run("cat", mounted / f"{larger}/stage1.info.log")  # no room on earth for this
    assert outcome.out == _log(40, "", size)
    read_all(rig, mounted)
    assert os.listdir(small_disk / "cache" / "v1" / "tmp") == []
    mounted.stop()


@needs_root
@pytest.mark.parametrize("when", [EARLY, LATE])
def test_on_a_full_disk_logs_are_read_all_the_same_and_kept_when_there_is_room_again(
    small_disk: Path, rig: Rig, emulator: Emulator, when: str
) -> None:
    (small_disk / "cache" / "v1" / "tmp").mkdir(parents=True)
    if when == EARLY:
        filler = fill(small_disk)
    mounted = mount(rig, emulator, cache="disk/cache")
    if when == LATE:
        filler = fill(small_disk)
    read_all(rig, mounted)
    assert rig.run("ls", mounted / record_id(0)).code == 0
    filler.unlink()
    mounted.stop()
    mounted = mount(rig, emulator, cache="disk/cache")
    assert rig.run("cat", mounted / LOG).out == LOGS[LOG]
    wait_until(lambda: (small_disk / "cache" / "v1" / LOG).exists())
    mounted.stop()
    before = emulator.calls()
    mounted = mount(rig, emulator, cache="disk/cache")
    assert rig.run("cat", mounted / LOG).out == LOGS[LOG]
    assert emulator.calls() == before
    mounted.stop()


@needs_root
def test_a_disk_that_becomes_full_in_the_middle_of_a_download_cuts_no_log_short(
    small_disk: Path, rig: Rig, emulator: Emulator
) -> None:
    mounted = mount(rig, emulator, cache="disk/cache")
    emulator.faults("task_log:slow=300000")
    before = emulator.calls("bytes")
    reader = rig.start("cat", mounted / LOG)
    wait_until(lambda: emulator.calls("bytes") > before)
    fill(small_disk)
    outcome = rig.finish(reader)
    assert (outcome.code, outcome.out) == (0, LOGS[LOG])
    mounted.stop()


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


@needs_root
@pytest.mark.parametrize("when", [EARLY, LATE])
def test_a_cache_that_can_only_be_read_is_read_and_the_rest_is_downloaded(
    small_disk: Path, rig: Rig, emulator: Emulator, when: str
) -> None:
    mounted = mount(rig, emulator, cache="disk/cache")
    assert rig.run("cat", mounted / LOG).out == LOGS[LOG]
    wait_until(lambda: (small_disk / "cache" / "v1" / LOG).exists())
    mounted.stop()
    if when == EARLY:
        make_read_only(small_disk)
    mounted = mount(rig, emulator, cache="disk/cache")
    if when == LATE:
        make_read_only(small_disk)
    before = emulator.calls()
    assert rig.run("cat", mounted / LOG).out == LOGS[LOG]
    assert emulator.calls() == before
    read_all(rig, mounted)
    assert rig.run("ls", mounted / record_id(0)).code == 0
    mounted.stop()


def test_a_cache_directory_that_vanishes_is_made_again_and_open_logs_stay_open(
    rig: Rig, emulator: Emulator
) -> None:
    mounted = mount(rig, emulator)
    # It reads a part, waits for the rest until it is told to go on.
    script = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
print(len(os.read(file, 10)), flush=True)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
sys.stdout.buffer.write(os.pread(file, 1 << 24, 0))
"""
    go = rig.folder / "go"
    reader = rig.start(sys.executable, "-c", script, mounted / LOG, go)
    wait_until(lambda: (rig.folder / "cache" / "v1" / LOG).exists())
    shutil.rmtree(rig.folder / "cache")
    go.touch()
    assert rig.finish(reader).out == b"10\n" + LOGS[LOG]
    assert rig.run("cat", mounted / OTHER).out == LOGS[OTHER]
    wait_until(lambda: (rig.folder / "cache" / "v1" / OTHER).exists())
    read_all(rig, mounted)
    mounted.stop()


# Two mounts on one.


def test_what_one_mount_downloaded_another_reads_without_the_api(
    rig: Rig, emulator: Emulator
) -> None:
    one, two = (mount(rig, emulator, at=at) for at in ("one", "two"))
    for number, path in enumerate(LOGS):
        reads, other = (one, two) if number % 2 else (two, one)
        before = emulator.calls()
        assert rig.run("cat", reads / path).out == LOGS[path]
        wait_until(lambda path=path: (rig.folder / "cache" / "v1" / path).exists())  # type: ignore[misc]
        assert rig.run("cat", other / path).out == LOGS[path]
        assert emulator.calls() == before + 1


def test_what_one_mount_evicts_while_another_has_it_open_is_read_to_its_end(
    rig: Rig, emulator: Emulator
) -> None:
    size = ("--cache-size", str(MIB))
    one, two = (mount(rig, emulator, *size, at=at) for at in ("one", "two"))
    script = 'for i in 1 2 3 4; do for path in "$@"; do cat "$path" || exit; done; done'
    orders = [list(LOGS), list(reversed(LOGS)), sorted(LOGS, key=lambda path: path[37:])]
    started = [
        (order, rig.start("bash", "-c", script, "bash", *(mounted / path for path in order)))
        for order in orders
        for mounted in (one, two)
    ]
    for order, reader in started:
        outcome = rig.finish(reader)
        assert (outcome.code, outcome.err) == (0, b"")
        assert outcome.out == b"".join(LOGS[path] for path in order) * 4
    sizes = [file.stat().st_size for file in (rig.folder / "cache" / "v1").glob("*-*/*")]
    assert 0 < sum(sizes) <= MIB * 1.1
    assert os.listdir(rig.folder / "cache" / "v1" / "tmp") == []


def test_two_mounts_that_want_one_log_at_the_same_moment_each_download_it(
    rig: Rig, emulator: Emulator
) -> None:
    one, two = (mount(rig, emulator, at=at) for at in ("one", "two"))
    emulator.faults("task_log:delay=1")
    before = emulator.calls()
    readers = [rig.start("cat", mounted / LOG) for mounted in (one, two)]
    assert [rig.finish(reader).out for reader in readers] == [LOGS[LOG]] * 2
    assert emulator.calls() == before + 2
    assert os.listdir(rig.folder / "cache" / "v1" / record_id(0)) == ["stage1.info.log"]


def test_two_mounts_that_follow_one_log_agree_at_its_end(rig: Rig) -> None:
    recordings = rig.folder / "live"
    write_live_record(recordings, 0)
    emulator = rig.emulator(recordings)
    one, two = (
        mount(rig, emulator, "--refresh", "0.1", "--settle", "0.1", at=at) for at in ("one", "two")
    )
    text = ""
    for number in range(30):
        line = f"line {number} {'开' * number}\n"
        emulator.grow(record_id(0), stage="stage1", append=line)
        text += line
        for mounted in (one, two) if number % 3 else (two,):
            shown = rig.run("cat", mounted / LOG).out
            assert text.encode().startswith(shown)
    emulator.grow(record_id(0), stage="stage1", finish=True)
    for mounted in (one, two):
        wait_until(lambda mounted=mounted: rig.run("cat", mounted / LOG).out == text.encode())  # type: ignore[misc]


def test_a_mount_reads_on_where_another_that_shares_its_cache_is_stopped_or_killed(
    rig: Rig, emulator: Emulator
) -> None:
    one, two = (mount(rig, emulator, at=at) for at in ("one", "two"))
    emulator.faults("task_log:slow=300000")
    before = emulator.calls("bytes")
    rig.start("cat", one / LOG)
    wait_until(lambda: emulator.calls("bytes") > before)
    one.process.send_signal(signal.SIGSTOP)
    emulator.faults()
    read_all(rig, two)
    one.kill()
    read_all(rig, two)
