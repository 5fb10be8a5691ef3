"""Questions to a mount that may be stuck."""

import os

from codeartsfs.asking import asked


def test_who_asks_holds_none_of_the_files_that_others_read_to_their_end() -> None:
    """A child that a stuck mount keeps for ever would keep `codeartsfs status | cat`, too."""
    held = asked(lambda: [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)], 30)
    assert held == [os.devnull] * 3
