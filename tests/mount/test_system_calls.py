"""Random system calls on logs of the sizes where things go wrong, compared with local files."""

import sys
from pathlib import Path

import pytest

from tests.scale import scaled

from . import reader
from .rig import Rig, write_record

pytestmark = pytest.mark.fuse

SIZES = [0, 1, 4095, 4096, 4097, 65_536, 131_072, 131_073, 1_000_000]
LOGS = {f"stage{n}.info.log": size for n, size in enumerate(SIZES, start=1)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "faults", [[], ["task_log:cut=4"], ["task_log:no-content-length"]], ids=str
)
def test_whatever_is_called_gives_what_a_local_file_gives(
    rig: Rig, tmp_path: Path, seed: int, faults: list[str]
) -> None:
    recordings = tmp_path / "recordings"
    text = b"".join(b"[INFO] line %d \xe5\xbc\x80\n" % n for n in range(60_000))
    record = write_record(recordings, 0, {name: text[:size] for name, size in LOGS.items()})
    mounted = rig.mount(rig.emulator(recordings, *faults), "--memory-cache", "1M")
    count = scaled(500)
    folders = (mounted / record, recordings / record)
    outcome = rig.run(
        sys.executable, reader.__file__, *folders, str(seed), str(count), *LOGS, timeout_s=600
    )
    assert (outcome.out, outcome.err) == (b"%d\n" % count, b"")
