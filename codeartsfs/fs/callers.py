"""Who waits for us, and when to let them go.

pyfuse3 passes no interrupts on: a process that waits in open or getattr stays there, even
after SIGKILL, until it is answered. So every wait is registered here with its caller, and
one task looks after them all: it ends a wait when its caller is being killed (Ctrl-C
works) and when it outlives the deadline (no terminal hangs).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from codeartsfs.errors import NO_FACTS, Facts

_LOOK_EVERY_S = 0.2
_NAME_BYTES = 15  # of a program's name, in proc(5) comm
_MOST_ARGUMENT_BYTES = 128 << 10  # as many as xargs gives
_FATAL = frozenset({1, 2, 3, 9, 15})  # HUP, INT, QUIT, KILL, TERM

LISTING_PROGRAMS = frozenset(
    {
        *("ls", "find", "du", "tree", "bash", "zsh", "fish", "mc", "exa", "eza", "lsd", "ncdu"),
        "getfattr",  # stats what it then asks for attributes
    }
)


# They read all they find, over and over, for nobody in particular. The kernel keeps 15 bytes.
CRAWLERS = frozenset(
    {
        *("updatedb", "updatedb.mlocate", "updatedb.plocate"),
        *("tracker-miner-fs-3", "tracker-extract-3", "localsearch-3", "localsearch-extractor-3"),
        *("baloo_file", "baloo_file_extractor", "recollindex"),
        *("tumblerd", "gdk-pixbuf-thumbnailer", "evince-thumbnailer", "totem-video-thumbnailer"),
    }
)


class CallerKilled(Exception):
    """The process that waits for the answer has a fatal signal pending."""


class DeadlineExceeded(Exception):
    """The answer did not come within the deadline.

    Attributes:
        waited_for: what the time was spent on, in words; empty where that is not known.
        facts: as ``CodeArtsError`` has it, of what was tried in vain meanwhile.
    """

    waited_for = ""
    facts: Facts = NO_FACTS

    def __str__(self) -> str:
        return f"{super().__str__()}{'; ' * bool(self.waited_for)}{self.waited_for}"


@dataclass(eq=False, slots=True)
class _Wait:
    pid: int
    scope: trio.CancelScope
    killed: bool = False


class Callers:
    """All callers that wait right now."""

    def __init__(self, deadline_s: float, crawlers: frozenset[str] = CRAWLERS) -> None:
        """Know nobody yet.

        Args:
            deadline_s: no caller waits longer.
            crawlers: names of programs that get nothing that is not here.
        """
        self._deadline_s = deadline_s
        self._crawlers = frozenset(name[:_NAME_BYTES] for name in crawlers)
        self._waits: set[_Wait] = set()
        self._somebody = trio.Event()

    def __len__(self) -> int:
        return len(self._waits)

    def waits(self) -> list[str]:
        """Say who waits, and for how long, for people."""
        begun = trio.current_time() + self._deadline_s
        return [
            f"{program(wait.pid) or 'a program'} (process {wait.pid}) waits for"
            f" {begun - wait.scope.deadline:.1f} s"
            for wait in self._waits
        ]

    def crawls(self, pid: int) -> bool:
        """Whether the caller is a program that reads all it finds."""
        return bool(self._crawlers) and program(pid) in self._crawlers

    @contextmanager
    def waiting(self, pid: int) -> Iterator[None]:
        """Bound what is awaited inside, on behalf of a process or thread (0: unknown).

        Raises:
            CallerKilled: a fatal signal is pending for the caller.
            DeadlineExceeded: it took too long.
        """
        wait = _Wait(pid, trio.CancelScope(deadline=trio.current_time() + self._deadline_s))
        self._waits.add(wait)
        self._somebody.set()
        try:
            with wait.scope:
                yield
        finally:
            self._waits.discard(wait)
        if wait.scope.cancelled_caught:
            if wait.killed:
                raise CallerKilled("a fatal signal is pending for who asked")
            raise DeadlineExceeded(f"no answer within the deadline of {self._deadline_s:g} s")

    async def watch(self) -> None:
        """Look after the waits, for ever. Costs nothing while nobody waits."""
        while True:
            await self._somebody.wait()
            await trio.sleep(_LOOK_EVERY_S)
            for wait in tuple(self._waits):
                if wait.pid and being_killed(wait.pid):
                    wait.killed = True
                    wait.scope.cancel()
            if not self._waits:
                self._somebody = trio.Event()


def being_killed(pid: int) -> bool:
    """Whether a signal that ends a process is pending; a vanished process does not count.

    Linux, proc(5): SigPnd is the thread's, ShdPnd the process's, SigBlk what it holds back.
    """
    masks = {}
    for line in _told_of(pid, "status").splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk"):
            masks[name] = int(value, 16)
    pending = (masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & ~masks.get("SigBlk", 0)
    return any(pending >> (signal - 1) & 1 for signal in _FATAL)


def process_of(pid: int) -> int:
    """Return the process a thread belongs to, the thread itself where that is unknown."""
    _, found, rest = _told_of(pid, "status").partition("\nTgid:")
    return int(rest.split(maxsplit=1)[0]) if found else pid


def program(pid: int) -> str:
    """Return the name of the program a process runs, its first 15 bytes; empty if unknown."""
    return _told_of(pid, "comm").rstrip("\n")


def lists_only(pid: int) -> bool:
    """Whether the caller is a program that stats every file of a directory just to show it."""
    return program(pid) in LISTING_PROGRAMS


def paths_given(pid: int, root: Path) -> tuple[str, ...]:
    """Return what of a directory is on the command line of a process, in order.

    Call it in a worker thread: the kernel may hold the answer up until a page fault of that
    process is served, perhaps by us.

    Returns:
        Paths relative to ``root``, made up from words alone: nothing is looked up.
    """
    words = _told_of(pid, "cmdline", _MOST_ARGUMENT_BYTES).split("\0")[1:-1]
    try:
        folder = os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # another user's
        folder = "/"
    paths = (os.path.normpath(os.path.join(folder, word)) for word in words)
    return tuple(path[len(f"{root}/") :] for path in paths if path.startswith(f"{root}/"))


def _told_of(pid: int, what: str, most_bytes: int = 4096) -> str:
    """Return what proc(5) tells of a process; nothing where there is no such process.

    Not by way of pathlib, because this is asked at every open.
    """
    try:
        fd = os.open(f"/proc/{pid}/{what}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.fsdecode(os.read(fd, most_bytes))
    except OSError:
        return ""
    finally:
        os.close(fd)
