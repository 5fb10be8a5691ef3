"""Names that nobody should use: from programs, and from the API."""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.scale import scaled

from .rig import JOB, Mounted, open_rig, record_id, write_record

pytestmark = pytest.mark.fuse

RECORD = record_id(0)
TEXT = b"[INFO] a line\n" * 100
PROJECT = JOB["project_id"]

unhurried = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each example is a mount, or a process
)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    folder = tmp_path_factory.mktemp("names")
    write_record(folder / "recordings", 0, {"stage1.info.log": TEXT})
    with open_rig(folder) as rig:
        yield rig.mount(rig.emulator(folder / "recordings"), "--project", PROJECT)


DIRECTORIES = ["", RECORD, f"{RECORD}/by-name", "by-job", "by-job/web-app", "by-job/web-app/latest"]
DIRECTORIES += [".codeartsfs", f"{RECORD}/stage1.info.log", "by-job/nobody", record_id(7)]
NAMES = [
    *("stage1.info.log", "record.json", "by-name", "failed.info.log", RECORD, "web-app", "latest"),
    *("1", "01", "00", "-1", "2147483648", "9" * 200, "stage1.info.log\n", "stage１.info.log"),
    *(
        "%",
        "%2",
        "%00",
        "%2F",
        "%2e%2e",
        "%FF",
        "~",
        "a~" + "0" * 32,
        "\u202e",
        "\ud800",
        "é" * 127,
    ),
    *("01-stage1.info.log", "01-.info.log", "99-x.debug.log", "..." * 80, "x" * 255, "x" * 256),
    *(
        "*",
        "?",
        "[",
        "\\",
        "-rf",
        "--help",
        "$(id)",
        ";",
        "'",
        '"',
        " ",
        "\t",
        "\r\n",
        "\x7f",
        "\x1b",
    ),
    *(RECORD.upper(), RECORD[:-1], RECORD + " ", "a" * 36, "-" * 36, "status.json", ".codeartsfs"),
]
raw_names = st.sampled_from(NAMES).map(
    lambda name: name.encode("utf-8", "surrogatepass")
) | st.binary(min_size=1, max_size=300)


@st.composite
def changed_names(draw: st.DrawFn) -> bytes:
    """A name that means something, with something else in it."""
    name = bytearray(draw(raw_names))
    place = draw(st.integers(0, len(name)))
    name[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(name)


names = (raw_names | changed_names()).map(
    lambda name: name.replace(b"/", b"|").replace(b"\0", b"0")
)
usable_names = names.filter(lambda name: name not in (b"", b".", b".."))

# Tries everything that a program does with a path, and prints what each came to.
TRY = """
import json, os, sys
root = os.fsencode(sys.argv[1])
device = os.stat(root).st_dev
outcomes = []

def open_and_read(path):
    with open(path, "rb") as file:
        return file.read(100)

for line in sys.stdin:
    path = os.path.join(root, bytes.fromhex(line))
    deeds = [os.stat, os.lstat, os.listdir, os.readlink, os.listxattr, os.statvfs, open_and_read]
    for deed in deeds:
        try:
            found = deed(path)
        except OSError as error:
            outcome = error.errno
        else:
            outcome = 0
            if deed is os.stat and found.st_dev != device:
                outcome = "escaped"
        outcomes.append((line.strip(), deed.__name__, outcome))
print(json.dumps(outcomes))
"""


@settings(unhurried, max_examples=scaled(40))
@given(st.lists(st.tuples(st.sampled_from(DIRECTORIES), usable_names), min_size=1, max_size=60))
def test_any_name_is_there_or_it_is_not(mounted: Mounted, some: list[tuple[str, bytes]]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as paths:
        for directory, name in some:
            print(os.path.join(directory.encode(), name).hex(), file=paths)
        paths.flush()
        outcome = mounted._rig.shell(
            '"$1" -c "$2" "$3" < "$4"', sys.executable, TRY, mounted.path, paths.name
        )
    assert outcome.err == b"", outcome.err.decode()
    documented = {0, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}
    surprising = [each for each in json.loads(outcome.out) if each[2] not in documented]
    assert not surprising


# Names that the API gives to jobs and stages.

API_NAMES = ["", ".", "..", "a/b", "../../x", "\0", "\ud800", "\udcff", "latest", "1", "~", " "]
API_NAMES += ["x~" + "0a" * 16, "%2F", "%FF", "\u202e", "\x1b[2J", "\r\n", "构" * 400, "-rf"]
API_NAMES += ["twin", "twin", "é", "e\u0301"]
api_names = st.sampled_from(API_NAMES) | st.text(st.characters(exclude_categories=[]), max_size=300)

WALK = """
import json, os, sys
os.chdir(sys.argv[1])
root = os.path.realpath(".")
jobs, stages = {}, {}
for job in os.listdir("by-job"):
    here = os.path.realpath(f"by-job/{job}/latest")
    assert os.path.dirname(here) == root, here
    jobs[os.fsencode(job).decode()] = os.path.basename(here)
    for name in os.listdir(f"{here}/by-name"):
        with open(f"{here}/by-name/{name}") as file:
            stages[os.fsencode(f"{os.path.basename(here)}/{name}").decode()] = file.read()
    with open(f"{here}/record.json") as file:
        json.load(file)
    for name in [".", *os.listdir(here)]:
        for attribute in os.listxattr(f"{here}/{name}"):
            os.getxattr(f"{here}/{name}", attribute)
print(json.dumps([jobs, stages]))
"""


@settings(unhurried, max_examples=scaled(3))
@given(st.lists(st.tuples(api_names, api_names), min_size=20, max_size=20))
def test_jobs_and_stages_of_any_name_are_each_in_one_place_of_the_tree(
    some: list[tuple[str, str]],
) -> None:
    with tempfile.TemporaryDirectory() as path, open_rig(Path(path)) as rig:
        recordings = rig.folder / "recordings"
        for number, (job, stage) in enumerate(some):
            record = write_record(
                recordings,
                number,
                {f"stage1.{level}.log": b"log of %d" % number for level in ("info", "debug")},
                display_names={"stage1": stage},
            )
            of_another_job(recordings / record, number, job)
        mounted = rig.mount(rig.emulator(recordings), "--project", PROJECT)
        outcome = rig.run(sys.executable, "-c", WALK, mounted.path)
        assert outcome.err == b"", outcome.err.decode()
        jobs, stages = json.loads(outcome.out)
        assert sorted(jobs.values()) == [record_id(number) for number in range(len(some))]
        records = {name.partition("/")[0]: text for name, text in stages.items()}
        assert records == {record_id(number): f"log of {number}" for number in range(len(some))}
        assert len(stages) == 2 * len(some)


def of_another_job(record: Path, number: int, name: str) -> None:
    document = json.loads((record / "record.json").read_text())
    document["job"] |= {
        "name": name,
        "job_id": f"{number:032}",
        "build_project_id": record_id(1000 + number),
    }
    (record / "record.json").write_text(json.dumps(document))
