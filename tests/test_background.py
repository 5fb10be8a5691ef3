"""Going to the background."""

import subprocess
import sys
from pathlib import Path

from tests.mount.rig import wait_until

SCRIPT = """
import os, sys
from codeartsfs import background
starter = os.getpgrp()
with background.detached() as ready:
    said = open(sys.argv[1], "w")
    print(os.getpgrp() == starter, file=said)
    ready()
    print(os.getsid(0) == os.getpid(), file=said, flush=True)
"""

CLOSED = """
import os, sys
from codeartsfs import background
said = os.path.abspath(sys.argv[1])
os.closerange(0, 3)
background.occupy_standard_files()
kept = [os.open(said, os.O_WRONLY | os.O_CREAT), os.open(said, os.O_WRONLY)]
with background.detached() as ready:
    ready()
    os.write(kept[0], b"1"), os.write(kept[1], b"12")
"""


def test_files_are_kept_where_the_standard_ones_were_closed(tmp_path: Path) -> None:
    said = tmp_path / "said"
    subprocess.run([sys.executable, "-c", CLOSED, said], check=True)
    wait_until(lambda: said.read_text() == "12")


def test_it_leaves_its_process_group_when_it_is_ready_and_not_before(tmp_path: Path) -> None:
    """autofs lets only the group of mount(8) reach a mount point while it is being mounted."""
    said = tmp_path / "said"
    subprocess.run([sys.executable, "-c", SCRIPT, said], check=True, start_new_session=True)
    wait_until(lambda: said.read_text().count("\n") == 2)
    assert said.read_text() == "True\nTrue\n"
