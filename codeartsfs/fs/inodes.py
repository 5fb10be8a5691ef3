"""The inode table: numbers the kernel holds <-> nodes of the tree, with look-up counts.

All methods are plain functions and so atomic. A number is given out once and never
reused, so the kernel's memory of a forgotten inode can never be taken for another's.
"""

from dataclasses import dataclass

import pyfuse3

from codeartsfs.fs.nodes import ROOT, Node


@dataclass(slots=True)
class _Inode:
    node: Node
    lookups: int = 0
    sized: bool = False
    told_bytes: int = 0


class InodeTable:
    """Which nodes the kernel knows, and how often it looked each up.

    INVARIANT: both directions agree; every entry but the root has a look-up count above 0
    once the reply that mentions it has been made.
    """

    def __init__(self) -> None:
        self._inodes: dict[pyfuse3.InodeT, _Inode] = {pyfuse3.ROOT_INODE: _Inode(ROOT, 1)}
        self._numbers: dict[Node, pyfuse3.InodeT] = {ROOT: pyfuse3.ROOT_INODE}
        self._last = int(pyfuse3.ROOT_INODE)

    def __len__(self) -> int:
        return len(self._inodes)

    def node(self, inode: pyfuse3.InodeT) -> Node:
        return self._inodes[inode].node

    def number(self, node: Node) -> pyfuse3.InodeT:
        """Return the number of a node, a new one if the kernel does not know it."""
        inode = self._numbers.get(node)
        if inode is None:
            self._last += 1
            inode = pyfuse3.InodeT(self._last)
            self._numbers[node] = inode
            self._inodes[inode] = _Inode(node)
        return inode

    def looked_up(self, inode: pyfuse3.InodeT) -> None:
        """Count one entry reply that the kernel has taken."""
        self._inodes[inode].lookups += 1

    def forget(self, inode: int, lookups: int) -> None:
        """Uncount; at zero the kernel no longer knows the number."""
        number = pyfuse3.InodeT(inode)
        entry = self._inodes[number]
        entry.lookups -= lookups
        assert entry.lookups >= 0, f"inode {inode} was forgotten more often than looked up"
        self.drop_unknown(number)

    def drop_unknown(self, inode: pyfuse3.InodeT) -> None:
        """Take back a number that the kernel was never told or has forgotten."""
        entry = self._inodes[inode]
        if entry.lookups == 0 and inode != pyfuse3.ROOT_INODE:
            del self._inodes[inode]
            del self._numbers[entry.node]

    def claim_sizing(self, inode: pyfuse3.InodeT) -> bool:
        """Return True to the first who asks, who then tells the kernel the inode's size."""
        entry = self._inodes[inode]
        first, entry.sized = not entry.sized, True
        return first

    def tell_bytes(self, inode: pyfuse3.InodeT, size_bytes: int) -> None:
        """Remember the size that the kernel is told of a file."""
        self._inodes[inode].told_bytes = size_bytes

    def told_bytes(self, inode: pyfuse3.InodeT) -> int:
        """Return the size that the kernel was told last, 0 before that."""
        return self._inodes[inode].told_bytes

    def check_invariants(self) -> None:
        assert len(self._inodes) == len(self._numbers)
        for inode, entry in self._inodes.items():
            assert self._numbers[entry.node] == inode
            assert entry.lookups > 0, entry
