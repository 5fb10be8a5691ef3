"""The memory tier: small, final logs, least recently used out first."""

from dataclasses import dataclass

import cachetools

from codeartsfs.logs.body import MemoryBody
from codeartsfs.logs.disk import LogMeta
from codeartsfs.names import LogKey

_OVERHEAD_BYTES = 512  # what an entry costs beside its bytes, about
_LARGEST_SHARE = 8  # a log bigger than this part of the tier would push out too many others


@dataclass(frozen=True, slots=True)
class _Entry:
    body: MemoryBody
    meta: LogMeta


class MemoryTier:
    """At most ``limit_bytes`` of final logs, each at most an eighth of that; 0 for none."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.largest_bytes = limit_bytes // _LARGEST_SHARE - _OVERHEAD_BYTES
        self._entries: cachetools.LRUCache[LogKey, _Entry] = cachetools.LRUCache(
            limit_bytes, getsizeof=lambda entry: entry.meta.size_bytes + _OVERHEAD_BYTES
        )

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, key: LogKey) -> tuple[MemoryBody, LogMeta] | None:
        entry = self._entries.get(key)
        return (entry.body, entry.meta) if entry else None

    def put(self, key: LogKey, content: bytes, meta: LogMeta) -> None:
        if meta.size_bytes <= self.largest_bytes:
            self._entries[key] = _Entry(MemoryBody(content), meta)
