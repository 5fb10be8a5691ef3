"""How much a test does that could go on for ever: little by default, more on request.

``CODEARTSFS_TEST_SCALE=20`` makes the state machines and the fuzzers try 20 times as much.
"""

import os


def scaled(count: int) -> int:
    return max(1, int(count * float(os.environ.get("CODEARTSFS_TEST_SCALE", "1"))))
