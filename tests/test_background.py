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


def test_it_leaves_its_process_group_when_it_is_ready_and_not_before(tmp_path: Path) -> None:
    """autofs lets only the group of mount(8) reach a mount point while it is being mounted."""
    said = tmp_path / "said"
    subprocess.run([sys.executable, "-c", SCRIPT, said], check=True, start_new_session=True)
    wait_until(lambda: said.read_text().count("\n") == 2)
    assert said.read_text() == "True\nTrue\n"
