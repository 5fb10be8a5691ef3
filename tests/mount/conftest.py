"""What every real mount needs: a kernel that can, and processes that are ended for sure."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig import Rig, open_rig

SUMMARIES = pytest.StashKey[list[str]]()
"""What tests want to be said at the end of the run."""


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for summary in config.stash.get(SUMMARIES, []):
        terminalreporter.write_line(summary)


@pytest.fixture(autouse=True, scope="session")
def _fuse() -> None:
    if not os.environ.get("CI") and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/fuse here")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig
