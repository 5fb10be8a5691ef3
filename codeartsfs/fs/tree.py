"""The tree: which nodes there are, which names a directory has, what a name leads to.

Look-ups answer from memory, so that no directory ever freezes on the network; listings
are fetched when a directory is opened. Names that cannot exist fail the grammar and
cost nothing; names that could exist are believed until the API says otherwise.
"""

from dataclasses import dataclass

import trio

from codeartsfs.builds.catalog import Catalog
from codeartsfs.logs.store import LogStore
from codeartsfs.names import LogKey, LogLevel, RecordId, parse_record_id

CONTROL_DIR = ".codeartsfs"
STATUS_FILE = "status.json"
_PATIENCE_S = 5.0  # what is cached is listed after this long, whatever the API does


@dataclass(frozen=True, slots=True)
class RootDir:
    def __str__(self) -> str:
        return "/"


@dataclass(frozen=True, slots=True)
class ControlDir:
    """Not listed, but there: what the mount says of itself."""

    def __str__(self) -> str:
        return f"/{CONTROL_DIR}"


@dataclass(frozen=True, slots=True)
class StatusFile:
    def __str__(self) -> str:
        return f"/{CONTROL_DIR}/{STATUS_FILE}"


@dataclass(frozen=True, slots=True)
class RecordDir:
    record: RecordId

    def __str__(self) -> str:
        return f"/{self.record}"


@dataclass(frozen=True, slots=True)
class LogFile:
    """A log; ``generation`` makes a log that the server rewrote another file."""

    key: LogKey
    generation: int = 0

    def __str__(self) -> str:
        return f"/{self.key}"


Node = RootDir | ControlDir | StatusFile | RecordDir | LogFile
Entries = tuple[tuple[str, Node], ...]

ROOT = RootDir()


class Tree:
    def __init__(self, catalog: Catalog, store: LogStore) -> None:
        self._catalog = catalog
        self._store = store
        self._kept: set[RecordId] = set()  # seen in the cache: there, whatever the API says

    def child(self, parent: Node, name: str) -> Node | None:
        """Return what a name in a directory leads to, None where there is nothing."""
        match parent:
            case RootDir():
                if name == CONTROL_DIR:
                    return ControlDir()
                record = parse_record_id(name)
                if record is None or (self._catalog.absent(record) and record not in self._kept):
                    return None
                return RecordDir(record)
            case ControlDir():
                return StatusFile() if name == STATUS_FILE else None
            case RecordDir(record):
                key = LogKey.parse(record, name)
                return None if key is None or not self._may_exist(key) else self._log(key)
        return None

    def impossible(self, parent: Node, name: str) -> bool:
        """Whether a name can never come to exist in a directory, whatever the API says."""
        match parent:
            case RootDir():
                return name != CONTROL_DIR and parse_record_id(name) is None
            case RecordDir(record):
                return LogKey.parse(record, name) is None
        return True

    def parent(self, node: Node) -> Node:
        match node:
            case StatusFile():
                return ControlDir()
            case LogFile(key):
                return RecordDir(key.record)
        return ROOT

    async def entries(self, directory: Node) -> Entries:
        """Return names and nodes of a directory, asking the API where they are not known.

        Raises:
            BuildNotFound: the directory of a record that does not exist.
            CodeArtsError: nothing is known and the API could not be asked.
        """
        match directory:
            case RootDir():
                known = {*self._catalog.records(), *await self._store.cached_records()}
                return tuple((record, RecordDir(record)) for record in sorted(known))
            case ControlDir():
                return ((STATUS_FILE, StatusFile()),)
            case RecordDir(record):
                return tuple((key.file_name, self._log(key)) for key in await self._logs(record))
        return ()

    async def _logs(self, record: RecordId) -> list[LogKey]:
        cached = await self._store.cached_logs(record)
        if cached:
            self._kept.add(record)
        for key in cached:
            await self._store.recall(key)  # so that their sizes are known to stat
        keys = set(cached)
        runs = self._catalog.known_stages(record)
        try:
            with trio.move_on_after(_PATIENCE_S if cached else float("inf")):
                runs = await self._catalog.stages(record)
        except Exception:
            if not cached:
                raise  # else: still there, whatever the API says
        for run in runs or ():
            if run.stage.numbered and not run.skipped:
                keys.update(LogKey(record, run.stage, level) for level in LogLevel)
        return sorted(keys, key=lambda key: (key.stage.order, key.level.value != "INFO"))

    def _may_exist(self, key: LogKey) -> bool:
        if self._store.absent(key):
            return False
        # The API documents no logs of `initial` and `final`, but may have them.
        possible = not key.stage.numbered or not self._catalog.rules_out(key)
        return possible or self._store.peek(key) is not None

    def _log(self, key: LogKey) -> LogFile:
        return LogFile(key, self._store.generation(key))
