"""A reader in the manner of fsx: random system calls on logs, each compared with a local copy.

    python reader.py MOUNTED LOCAL SEED COUNT FILE...

It is a program of its own, since a mount that hangs would hang whoever touches it.
"""

import ctypes
import errno
import mmap
import os
import random
import sys
from collections import Counter
from collections.abc import Callable

MOST_BYTES = 300_000
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


class Pair:
    """A log and its copy, both open, both at the same position."""

    def __init__(self, mounted: str, local: str, flags: int = 0) -> None:
        self.names = mounted, local
        self.log = os.open(mounted, os.O_RDONLY | flags)
        self.copy = os.open(local, os.O_RDONLY)
        self.size = os.fstat(self.copy).st_size

    def close(self) -> None:
        os.close(self.log)
        os.close(self.copy)

    def both(self, call: Callable[[int], object]) -> None:
        """Do the same to both, and require the same of both, errors included."""
        outcomes: list[object] = []
        for fd in (self.log, self.copy):
            try:
                outcomes.append(call(fd))
            except OSError as error:
                outcomes.append(errno.errorcode[error.errno or 0])
        assert outcomes[0] == outcomes[1], (self.names[0], short(outcomes[0]), short(outcomes[1]))


def short(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes: {value[:60]!r}"
    return repr(value)[:100]


class Reader:
    def __init__(self, mounted: str, local: str, names: list[str], seed: int) -> None:
        self.chance = random.Random(seed)
        self.paths = [(f"{mounted}/{name}", f"{local}/{name}") for name in names]
        self.pairs: list[Pair] = []
        self.done: Counter[str] = Counter()

    def place(self, pair: Pair) -> int:
        """Return an offset, with a liking for the edges of pages and of the log."""
        edge = self.chance.choice([0, pair.size, self.chance.randint(0, pair.size)])
        if self.chance.random() < 0.5:
            edge -= edge % PAGE
        return max(0, edge + self.chance.choice([-1, 0, 0, 1, self.chance.randint(-9999, 9999)]))

    def count(self) -> int:
        return self.chance.choice(
            [0, 1, PAGE - 1, PAGE, PAGE + 1, self.chance.randint(1, MOST_BYTES)]
        )

    # What can be done to a pair.

    def read(self, pair: Pair) -> None:
        count = self.count()
        pair.both(lambda fd: os.read(fd, count))

    def pread(self, pair: Pair) -> None:
        count, offset = self.count(), self.place(pair)
        pair.both(lambda fd: os.pread(fd, count, offset))

    def preadv(self, pair: Pair) -> None:
        sizes, offset = [self.count() for _ in range(4)], self.place(pair)

        def call(fd: int) -> bytes:
            buffers = [bytearray(size) for size in sizes]
            got = os.preadv(fd, buffers, offset)
            return b"".join(buffers)[:got]

        pair.both(call)

    def seek(self, pair: Pair) -> None:
        whence, offset = (
            self.chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]),
            self.place(pair),
        )
        if whence != os.SEEK_SET:
            offset -= self.chance.choice([0, pair.size])
        pair.both(lambda fd: os.lseek(fd, offset, whence))

    def seek_hole(self, pair: Pair) -> None:
        """A log has no holes, but for the one at its end."""
        fd = os.open(pair.names[0], os.O_RDONLY)
        try:
            if pair.size:
                assert os.lseek(fd, 0, os.SEEK_DATA) == 0
                assert os.lseek(fd, 0, os.SEEK_HOLE) == pair.size
        finally:
            os.close(fd)

    def map(self, pair: Pair) -> None:
        offset = self.place(pair) // PAGE * PAGE
        if offset >= pair.size:
            return
        length = min(self.count() or 1, pair.size - offset)
        kind = self.chance.choice([mmap.MAP_PRIVATE, mmap.MAP_SHARED])

        def call(fd: int) -> bytes:
            with mmap.mmap(fd, length, kind, mmap.PROT_READ, offset=offset) as view:
                return view[:]

        pair.both(call)

    def sendfile(self, pair: Pair) -> None:
        count, offset = self.count() % 60_000, self.place(pair)

        def call(fd: int) -> bytes:
            outlet, inlet = os.pipe()
            try:
                got = os.sendfile(inlet, fd, offset, count)
                return os.read(outlet, got) if got else b""
            finally:
                os.close(outlet)
                os.close(inlet)

        pair.both(call)

    def splice(self, pair: Pair) -> None:
        count, offset = self.count() % 60_000, self.place(pair)

        def call(fd: int) -> bytes:
            outlet, inlet = os.pipe()
            try:
                got = os.splice(fd, inlet, count, offset_src=offset)
                return os.read(outlet, got) if got else b""
            finally:
                os.close(outlet)
                os.close(inlet)

        # How much one call moves is for the kernel to say: only the bytes must agree.
        log, copy = call(pair.log), call(pair.copy)
        length = min(len(log), len(copy))
        assert log[:length] == copy[:length], pair.names[0]
        assert bool(log) == bool(copy), (pair.names[0], offset, count)

    def copy_range(self, pair: Pair) -> None:
        count, offset = self.count(), self.place(pair)
        target = os.memfd_create("target")
        try:
            got = 0
            while got < count:
                try:
                    moved = os.copy_file_range(pair.log, target, count - got, offset + got)
                except OSError as error:
                    if error.errno in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                        return
                    raise
                if not moved:
                    break
                got += moved
            assert os.pread(target, count, 0) == os.pread(pair.copy, count, offset)
        finally:
            os.close(target)

    def stat(self, pair: Pair) -> None:
        pair.both(lambda fd: os.fstat(fd).st_size)
        assert os.stat(pair.names[0]).st_size == pair.size

    def advise(self, pair: Pair) -> None:
        kinds = [os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED, os.POSIX_FADV_RANDOM]
        kinds += [os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_NORMAL, os.POSIX_FADV_DONTNEED]
        advice, offset = self.chance.choice(kinds), self.place(pair)
        os.posix_fadvise(pair.log, offset, self.chance.choice([0, self.count()]), advice)

    def readahead(self, pair: Pair) -> None:
        libc.readahead(pair.log, ctypes.c_int64(self.place(pair)), ctypes.c_size_t(self.count()))

    def in_a_child(self, pair: Pair) -> None:
        """A child shares the position."""
        count = self.count()

        def call(fd: int) -> bytes:
            outlet, inlet = os.pipe()
            child = os.fork()
            if not child:
                os.close(outlet)
                with open(inlet, "wb") as pipe:
                    pipe.write(os.read(fd, count))
                os._exit(0)
            os.close(inlet)
            with open(outlet, "rb") as pipe:
                got = pipe.read()
            os.waitpid(child, 0)
            return got

        pair.both(call)

    def write(self, pair: Pair) -> None:
        pair.both(lambda fd: os.pwrite(fd, b"x", 0))
        path = pair.names[0]
        deeds: list[Callable[[], None]] = [
            lambda: os.truncate(path, 0),
            lambda: os.unlink(path),
            lambda: os.mkdir(f"{path}.new"),
            lambda: os.utime(path),
            lambda: os.rename(path, f"{path}.new"),
        ]
        for deed in deeds:
            try:
                deed()
            except OSError as error:
                outcome = errno.errorcode[error.errno or 0]
            else:
                outcome = "done"
            assert outcome == "EROFS", outcome

    def reopen(self, pair: Pair) -> None:
        pair.close()
        self.pairs.remove(pair)

    def run(self, count: int) -> None:
        deeds = [
            self.read,
            self.pread,
            self.pread,
            self.preadv,
            self.seek,
            self.seek_hole,
            self.map,
        ]
        deeds += [self.sendfile, self.splice, self.copy_range, self.stat, self.advise, self.advise]
        deeds += [self.readahead, self.in_a_child, self.write, self.reopen]
        for number in range(count):
            if len(self.pairs) < 4:
                self.pairs.append(Pair(*self.chance.choice(self.paths)))
            deed = self.chance.choice(deeds)
            try:
                deed(self.chance.choice(self.pairs))
            except AssertionError as error:
                raise AssertionError(f"step {number}, {deed.__name__}: {error}") from error
            self.done[deed.__name__] += 1
        for pair in self.pairs:
            pair.close()


def main() -> None:
    mounted, local, seed, count, *names = sys.argv[1:]
    reader = Reader(mounted, local, names, int(seed))
    reader.run(int(count))
    print(sum(reader.done.values()))


if __name__ == "__main__":
    main()
