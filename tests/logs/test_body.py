"""A body against the bytes it should hold."""

import hashlib
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from codeartsfs.errors import ApiUnavailable
from codeartsfs.logs.body import IN_MEMORY_BYTES, Body, MemoryBody
from codeartsfs.logs.disk import unnamed_file
from tests.logs.fakes import text, until

large = st.integers(IN_MEMORY_BYTES // 2, IN_MEMORY_BYTES).map(text)
chunks = st.lists(st.binary(max_size=5000) | large, min_size=1, max_size=5)
reads = st.tuples(st.integers(0, 200_000), st.integers(0, 200_000))
moves = st.sampled_from(["save", "move"])
appends_and_reads = st.lists(st.one_of(chunks, reads, moves), max_size=12)


def new_body() -> Body:
    return Body(lambda: unnamed_file(Path("/tmp")))


@settings(max_examples=60, deadline=None)
@given(appends_and_reads)
def test_any_sequence_of_appends_and_reads_equals_plain_bytes(
    steps: list[list[bytes] | tuple[int, int] | str],
) -> None:
    async def play() -> None:
        body, model = new_body(), b""
        body.announce(0)
        for step in steps:
            if isinstance(step, list):
                await body.append(step)
                model += b"".join(step)
                body.announce(len(model))
            elif isinstance(step, tuple):
                offset, size = step
                assert await body.read(offset, size) == model[offset : offset + size]
            elif step == "save":  # what moves then is what was saved and grows again
                assert os.pread(body.to_file(), len(model) + 1, 0) == model
                body.free_memory()
            else:
                await body.move_to(unnamed_file(Path("/tmp")))
            assert body.size_bytes == body.landed_bytes == len(model)
            assert body.sha256.digest() == hashlib.sha256(model).digest()
            assert await body.tail(4096) == model[-4096:]
        body.close()

    trio.run(play)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9_999), st.integers(1, 10_000)), min_size=1, max_size=20),
    st.lists(st.integers(1, 3000), min_size=1, max_size=20),
)
def test_readers_wake_exactly_when_their_range_has_landed(
    ranges: list[tuple[int, int]], steps: list[int]
) -> None:
    log = text(10_000)

    async def play() -> None:
        body = new_body()
        body.announce(len(log))
        done: dict[int, bytes] = {}

        async def reader(number: int, offset: int, size: int) -> None:
            done[number] = await body.read(offset, size)

        async with trio.open_nursery() as nursery:
            for number, (offset, size) in enumerate(ranges):
                nursery.start_soon(reader, number, offset, size)
            await wait_all_tasks_blocked()
            assert not done
            for step in [*steps, len(log)]:
                landed = body.landed_bytes
                await body.append([log[landed : landed + step]])
                landed = body.landed_bytes
                due = {n for n, (at, size) in enumerate(ranges) if min(at + size, 10_000) <= landed}
                await until(lambda due=due: done.keys() >= due)  # type: ignore[misc]
                assert done.keys() == due
        for number, (offset, size) in enumerate(ranges):
            assert done[number] == log[offset : offset + size]
        body.close()

    trio.run(play)


async def test_failure_wakes_readers_of_what_will_not_come_and_no_others() -> None:
    body = new_body()
    body.announce(10)
    await body.append([b"01234"])
    body.fail(ApiUnavailable("gone"))
    assert await body.read(0, 5) == b"01234"
    with pytest.raises(ApiUnavailable):
        await body.read(0, 6)
    body.recover()
    got = []

    async def reader() -> None:
        got.append(await body.read(0, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        await body.append([b"56789"])
    assert got == [b"0123456789"]
    body.close()


async def test_cancelled_reader_does_not_disturb_the_others() -> None:
    body = new_body()
    body.announce(4)
    got = []

    async def reader() -> None:
        got.append(await body.read(0, 4))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        with trio.CancelScope() as scope:
            scope.cancel()
            await body.read(0, 2)
        await body.append([b"ab"])
        await body.append([b"cd"])
    assert got == [b"abcd"]
    body.close()


async def test_more_chunks_than_one_system_call_takes_are_written() -> None:
    body = new_body()
    many = [b"%019d " % n for n in range(5000)]  # too much for memory
    await body.append(many)
    body.announce(body.landed_bytes)
    assert await body.read(0, 1 << 20) == b"".join(many)
    body.close()


async def test_moving_leaves_the_old_file_as_it_is(tmp_path: Path) -> None:
    """A saved log's file is the cache's: what grows goes on in a copy."""
    path = tmp_path / "saved"
    path.write_bytes(b"saved and its footer")
    body = Body(os.open(path, os.O_RDWR), 5, hashlib.sha256(b"saved"))
    await body.move_to(unnamed_file(tmp_path))
    await body.append([b" more"])
    body.announce(10)
    assert await body.read(0, 100) == b"saved more"
    assert body.sha256.digest() == hashlib.sha256(b"saved more").digest()
    assert path.read_bytes() == b"saved and its footer"
    body.close()


async def test_a_move_that_failed_leaves_no_trace_in_files_of_others(tmp_path: Path) -> None:
    body = Body(lambda: unnamed_file(tmp_path))
    await body.append([b"small"])
    full = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OSError, match="No space left"):
        await body.move_to(full)
    (tmp_path / "other").touch()
    other = os.open(tmp_path / "other", os.O_RDWR)
    assert other == full  # the number is free again
    await body.append([text(IN_MEMORY_BYTES)])
    assert not os.fstat(other).st_size
    os.close(other)
    assert await body.tail(IN_MEMORY_BYTES + 5) == b"small" + text(IN_MEMORY_BYTES)
    body.close()


async def test_file_cut_short_from_outside_is_an_error_and_no_shorter_log(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.write_bytes(b"0123456789")
    body = Body(os.open(path, os.O_RDWR), 10)
    os.truncate(path, 4)
    with pytest.raises(OSError, match="ends 6 bytes early"):
        await body.read(0, 10)
    with pytest.raises(OSError, match="ends 6 bytes early"):
        await body.move_to(unnamed_file(tmp_path))
    body.close()


async def test_size_never_goes_down() -> None:
    body = new_body()
    body.announce(10)
    with pytest.raises(AssertionError):
        body.announce(9)
    body.close()
    body.close()  # harmless


async def test_memory_body_reads_like_any_other() -> None:
    body = MemoryBody(b"0123456789")
    assert body.size_bytes == 10
    assert await body.read(8, 5) == b"89"
    assert await body.read(10, 5) == b""
    body.close()
