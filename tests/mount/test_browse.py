"""Browsing: jobs, builds and records found by name, and what looking at them costs."""

import errno
import json
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from codeartsfs.builds.index import RecordTimes, open_index
from codeartsfs.emulator.faults import TIME_FORMS
from codeartsfs.emulator.synthetic import (
    HOSTILE_NAMES,
    SYNTHETIC_PROJECT,
    SyntheticProject,
    job_id,
    status_of,
)
from codeartsfs.emulator.synthetic import record_id as synthetic_id

from .rig import (
    FINISHED_S,
    JOB,
    Emulator,
    Mounted,
    Outcome,
    Rig,
    open_rig,
    record_id,
    wait_until,
    write_live_record,
    write_record,
)

pytestmark = pytest.mark.fuse

LOG = "stage1.info.log"
SYNTHETIC = ("--project", SYNTHETIC_PROJECT)
OWN = ("--project", JOB["project_id"])
TEXT = b"[INFO] a line\n"
LATEST = ("latest", "latest-failed", "latest-success")
# A log whose size alone was asked for keeps its place among the downloads for a while.
AT_ONCE = ("--max-downloads", "40")


def synthetic(rig: Rig, size: str, *faults: str) -> Emulator:
    """Start an emulator of nothing but JOBS:BUILDS made-up ones."""
    recordings = rig.folder / "nothing"
    recordings.mkdir()
    return rig.emulator(recordings, "--synthetic", size, *faults)


def listed(rig: Rig, folder: Path) -> list[str]:
    outcome = rig.run("ls", folder)
    assert (outcome.code, outcome.err) == (0, b"")
    return outcome.out.decode().splitlines()


def links(rig: Rig, folder: Path) -> dict[str, str]:
    """Return where the links of a directory lead, as ``ls -l`` shows them."""
    outcome = rig.run("ls", "-l", folder)
    assert (outcome.code, outcome.err) == (0, b"")
    return dict(re.findall(r" (\S+) -> (\S+)$", outcome.out.decode(), re.MULTILINE))


def no_such(outcome: Outcome) -> bool:
    return outcome.code != 0 and os.strerror(errno.ENOENT).encode() in outcome.err


def indexed(rig: Rig, what: str) -> int:
    """Count rows of the index that are on disk, whoever has it open."""
    path = rig.folder / "cache/v1/builds.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        return int(file.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


# Jobs.


def test_listing_a_job_of_many_builds_is_one_call_and_its_links_lead_to_records(rig: Rig) -> None:
    emulator = synthetic(rig, "20:130")
    mounted = rig.mount(emulator, *SYNTHETIC)
    job = mounted / "by-job/web-app"
    newest = {str(number): f"../../{synthetic_id(0, number)}" for number in range(31, 131)}
    latest = {"latest": newest["130"], "latest-failed": newest["126"]}
    latest |= {"latest-success": newest["130"]}
    with emulator.costs(jobs=1, records=1):
        assert set(listed(rig, job)) == {*newest, *latest}
    with emulator.costs():
        assert set(listed(rig, job)) == {*newest, *latest}
        assert links(rig, job) == newest | latest
        leads = ("find", f"{job}/", "-mindepth", "1", "-xtype", "d", "-printf", "%f\n")
        assert set(rig.run(*leads).out.decode().split()) == {*newest, *latest}


def test_a_log_of_the_latest_build_costs_one_call_of_each_kind(rig: Rig) -> None:
    emulator = synthetic(rig, "20:130")
    mounted = rig.mount(emulator, *SYNTHETIC)
    log = mounted / "by-job/web-app/latest/stage1.debug.log"
    with emulator.costs(jobs=1, records=1, full_stages=1, task_log=1):
        assert b"build 130 of job 0" in rig.run("cat", log).out
    with emulator.costs():
        assert b"build 130 of job 0" in rig.run("cat", log).out


@pytest.mark.parametrize(
    "fault", ["order=oldest", "page-base=0", "total=-1", "jobs=enveloped", "numbers=str"]
)
def test_the_latest_build_is_found_however_the_api_lists(rig: Rig, fault: str) -> None:
    mounted = rig.mount(synthetic(rig, "20:230", fault), *SYNTHETIC)
    shown = links(rig, mounted / "by-job/web-app")
    assert shown["latest"] == f"../../{synthetic_id(0, 230)}"
    assert len(shown) == 103


def test_a_latest_link_that_leads_nowhere_is_not_there(rig: Rig) -> None:
    mounted = rig.mount(synthetic(rig, "20:30"), *SYNTHETIC)
    running = mounted / "by-job/%2Ehidden"
    assert links(rig, running)["latest-running"] == f"../../{synthetic_id(3, 30)}"
    idle = mounted / "by-job/web-app"
    assert "latest-running" not in listed(rig, idle)
    assert no_such(rig.run("cat", idle / "latest-running" / LOG))


def test_builds_per_job_limits_the_listing_and_older_builds_go_by_number(rig: Rig) -> None:
    emulator = synthetic(rig, "20:130")
    options = (*SYNTHETIC, "--builds-per-job", "5")
    mounted = rig.mount(emulator, *options)
    shown = listed(rig, mounted / "by-job/web-app")
    assert shown == ["126", "127", "128", "129", "130", *LATEST]
    old = ("readlink", "by-job/web-app/7")
    target = f"../../{synthetic_id(0, 7)}\n".encode()
    with emulator.costs(record_info=1):
        assert rig.run(*old, cwd=mounted.path).out == target
        assert rig.run(*old, cwd=mounted.path).out == target
    assert no_such(rig.run("ls", "-d", mounted / "by-job/web-app/131"))
    mounted.stop()
    mounted = rig.mount(emulator, *options)
    with emulator.costs():
        assert rig.run(*old, cwd=mounted.path).out == target


def test_a_shell_that_stands_in_latest_stays_in_the_build_it_entered(
    rig: Rig, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    old = write_record(recordings, 0, {LOG: b"old\n"})
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator, *OWN)
    latest, go, said = mounted / "by-job/web-app/latest", tmp_path / "go", tmp_path / "said"
    script = 'cd "$1"; echo entered; until [ -e "$2" ]; do sleep 0.05; done; env pwd -P; cat "$3"'
    with said.open("wb") as file:
        shell = rig.start("bash", "-c", script, "bash", latest, go, LOG, stdout=file)
    wait_until(lambda: said.read_bytes() == b"entered\n")

    rig.take_down(emulator)
    new = write_record(recordings, 1, {LOG: b"new\n"})
    rig.emulator(recordings, "--port", emulator.url.rpartition(":")[2])
    wait_until(lambda: rig.run("readlink", latest).out == f"../../{new}\n".encode())
    go.touch()
    assert rig.finish(shell).err == b""
    assert said.read_text() == f"entered\n{mounted / old}\nold\n"
    assert rig.run("cat", latest / LOG).out == b"new\n"


def test_two_projects_have_a_directory_each(rig: Rig, tmp_path: Path) -> None:
    own = write_record(tmp_path / "recordings", 0, {LOG: TEXT})
    emulator = rig.emulator(tmp_path / "recordings", "--synthetic", "20:3")
    mounted = rig.mount(emulator, *OWN, *SYNTHETIC)
    with emulator.costs():
        assert listed(rig, mounted / "by-job") == sorted((OWN[1], SYNTHETIC[1]))
        assert no_such(rig.run("ls", "-d", mounted / "by-job" / ("0" * 32)))
    for project, record in ((OWN[1], own), (SYNTHETIC[1], synthetic_id(0, 3))):
        link = mounted / f"by-job/{project}/web-app/latest"
        assert rig.run("readlink", link).out == f"../../../{record}\n".encode()
        assert rig.run("readlink", "-e", link).out == f"{mounted / record}\n".encode()
        assert rig.run("cat", link / LOG).code == 0


def test_without_a_project_there_are_no_jobs(rig: Rig) -> None:
    emulator = synthetic(rig, "20:3")
    mounted = rig.mount(emulator)
    with emulator.costs():
        assert no_such(rig.run("ls", "-d", mounted / "by-job"))
        assert listed(rig, mounted.path) == []


# Names from outside.

LIST_JOBS = """
import json, os, sys
os.chdir(sys.argv[1])
jobs = {os.fsencode(name).decode(): os.readlink(f"{name}/latest") for name in os.listdir(".")}
print(json.dumps(jobs))
"""


def test_jobs_of_hostile_names_are_all_there_and_nowhere_else(rig: Rig) -> None:
    mounted = rig.mount(synthetic(rig, "20:3"), *SYNTHETIC)
    outcome = rig.run(sys.executable, "-c", LIST_JOBS, mounted / "by-job")
    assert outcome.err == b""
    seen = json.loads(outcome.out)
    [long] = [name for name in seen if name.startswith("构建日志构建日志")]
    assert len(long.encode()) <= 255
    assert long.endswith("~" + job_id(1 + HOSTILE_NAMES.index("构建日志" * 33 + "long")))
    twins = [1 + place for place, name in enumerate(HOSTILE_NAMES) if name == "twin"]
    names = [
        "web-app",
        "group%2Fweb-app",
        "%2E.",
        "%2Ehidden",
        "-rf",
        "two%0Alines",
        "nul%00byte",
        "%1B[31mred%1B[0m",
        "group%252Fweb-app",
        long,
        *(f"twin~{job_id(twin)}" for twin in twins),
        "lone %ED%A0%80 surrogate",
        f"~{job_id(1 + HOSTILE_NAMES.index(''))}",
        f"web-app%7E{job_id(0)}",
        "latest",
        "right%E2%80%AEto left",
        "job-0017",
        "job-0018",
        "job-0019",
    ]
    assert seen == {name: f"../../{synthetic_id(job, 3)}" for job, name in enumerate(names)}
    assert listed(rig, mounted.path) == ["by-job"]
    for name in names:
        assert rig.run("ls", "-d", f"{mounted.path}/by-job/{name}/latest/").code == 0


def test_a_wrong_name_of_a_job_is_an_error_and_asked_for_once(rig: Rig) -> None:
    emulator = synthetic(rig, "20:3")
    mounted = rig.mount(emulator, *SYNTHETIC)
    with emulator.costs():
        for name in ("by-job/.git", "by-jobs"):
            assert no_such(rig.run("stat", mounted / name))
    typo = mounted / "by-job/typo"
    with emulator.costs(jobs=1):
        assert no_such(rig.run("ls", "-d", typo))
        assert no_such(rig.run("ls", "-d", typo))
        assert no_such(rig.shell('cd "$1"', typo))
        assert no_such(rig.run("cat", typo / "latest" / LOG))
    with emulator.costs():
        for name in ("by-job/web-app/.git", "by-job/web-app/HEAD", "by-job/web-app/0"):
            assert no_such(rig.run("stat", mounted / name))


STAGE_NAMES = {
    "stage1": ("a/b", "01-a%2Fb"),
    "stage2": ("..", "02-.."),
    "stage3": ("two\nlines", "03-two%0Alines"),
    "stage4": ("\x1b[31mred", "04-%1B[31mred"),
    "stage5": ("", "05-stage5"),
    "stage6": ("构建" * 100, "06-" + "构建" * 40 + "~"),
    "stage7": ("a%2Fb", "07-a%252Fb"),
    "stage8": ("twin", "08-twin"),
    "stage9": ("twin", "09-twin"),
    "stage10": ("lone \ud800 surrogate", "10-lone %ED%A0%80 surrogate"),
}
READ_NAMES = """
import json, os, pathlib, sys
os.chdir(sys.argv[1] + "/by-name")
names = {os.fsencode(name).decode(): name for name in os.listdir()}
print(json.dumps({n: (os.readlink(p), pathlib.Path(p).read_text()) for n, p in names.items()}))
"""


def test_logs_go_by_the_names_of_their_stages_however_hostile(rig: Rig, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    files = [f"{stage}.{level}.log" for stage in STAGE_NAMES for level in ("info", "debug")]
    names = {stage: display for stage, (display, _) in STAGE_NAMES.items()}
    record = write_record(recordings, 0, {n: n.encode() for n in files}, display_names=names)
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator)
    with emulator.costs(full_stages=1, task_log=20):
        outcome = rig.run(sys.executable, "-c", READ_NAMES, mounted / record)
    assert outcome.err == b""
    assert json.loads(outcome.out) == {
        f"{name}.{level}.log": [f"../{stage}.{level}.log", f"{stage}.{level}.log"]
        for stage, (_, name) in STAGE_NAMES.items()
        for level in ("info", "debug")
    }


# What is known already.


def test_walking_finished_records_seen_before_costs_nothing_also_after_restart_and_crash(
    rig: Rig,
) -> None:
    emulator = synthetic(rig, "1:300")
    records = [synthetic_id(0, number) for number in range(1, 301)]
    mounted = rig.mount(emulator)
    with emulator.costs(full_stages=300):
        found = rig.run("find", *records, cwd=mounted.path, timeout_s=60)
    assert found.err == b""
    expected = sorted(found.out.splitlines())

    def look() -> None:
        with emulator.costs():
            assert sorted(rig.run("find", *records, cwd=mounted.path).out.splitlines()) == expected
            assert listed(rig, mounted.path) == records
            for command in (["ls", records[7]], ["ls", "-lR"], ["ls", "-lR", "--color=always"]):
                outcome = rig.run(*command, cwd=mounted.path)
                assert (outcome.code, outcome.err) == (0, b"")

    look()
    mounted.stop()
    mounted = rig.mount(emulator)
    look()
    mounted.kill()
    mounted = rig.mount(emulator)
    look()


def test_what_was_told_is_on_disk_a_moment_later_whatever_happens_then(rig: Rig) -> None:
    emulator = synthetic(rig, "1:20")
    mounted = rig.mount(emulator)
    records = [synthetic_id(0, number) for number in range(1, 21)]
    shown = rig.run("ls", *records, cwd=mounted.path).out
    wait_until(lambda: indexed(rig, "records WHERE final") == 20)
    mounted.kill()
    mounted = rig.mount(emulator)
    with emulator.costs():
        assert rig.run("ls", *records, cwd=mounted.path).out == shown


def test_jobs_and_builds_that_were_seen_are_still_there_without_the_api(rig: Rig) -> None:
    emulator = synthetic(rig, "20:10")
    mounted = rig.mount(emulator, *SYNTHETIC)
    seen, unseen = synthetic_id(0, 10), synthetic_id(0, 9)
    jobs = listed(rig, mounted / "by-job")
    builds = listed(rig, mounted / "by-job/web-app")
    record = listed(rig, mounted / seen)
    document = rig.run("cat", mounted / seen / "record.json").out
    rig.take_down(emulator)
    mounted.stop()
    mounted = rig.mount(emulator, *SYNTHETIC, "--deadline", "8")
    mounted.permit_logged("WARNING .*(ETIMEDOUT|EIO|the API does not answer)")
    # All at once: where nothing answers, one after the other takes long.
    unknown = [
        rig.start("cat", mounted / path)
        for path in (f"{unseen}/record.json", f"{seen}/{LOG}", "by-job/job-0017/latest/" + LOG)
    ]
    unknown.append(rig.start("ls", mounted / unseen))
    assert listed(rig, mounted / "by-job") == jobs
    assert listed(rig, mounted / "by-job/web-app") == builds
    link = f"../../{seen}"
    assert links(rig, mounted / "by-job/web-app").items() > {"10": link, "latest": link}.items()
    assert listed(rig, mounted / seen) == record
    assert rig.run("cat", mounted / seen / "record.json").out == document
    for reader in unknown:
        outcome = rig.finish(reader)
        assert (outcome.code, outcome.out) != (0, b"")
        assert re.search(rb"timed out|Input/output error", outcome.err), outcome


def test_an_index_that_is_garbage_is_begun_anew(rig: Rig) -> None:
    emulator = synthetic(rig, "1:3")
    index = rig.folder / "cache/v1/builds.sqlite3"
    index.parent.mkdir(parents=True)
    index.write_bytes(b"this is no index\n" * 1000)
    record = synthetic_id(0, 3)
    mounted = rig.mount(emulator, *SYNTHETIC)
    mounted.expect_logged("WARNING codeartsfs.builds.index: cache: the index is damaged")
    with emulator.costs(jobs=1, records=1, full_stages=1):
        assert listed(rig, mounted / "by-job/web-app") == ["1", "2", "3", *LATEST[::2]]
        shown = listed(rig, mounted / record)
    assert LOG in shown
    mounted.stop()
    assert mounted.log.read_text().count("WARNING") == 1
    mounted = rig.mount(emulator, *SYNTHETIC)
    with emulator.costs():
        assert listed(rig, mounted / record) == shown


# A record of many logs that nobody has opened.


@dataclass
class Shelf:
    """A mount of equal records of 40 logs each, and a local copy of these logs."""

    rig: Rig
    emulator: Emulator
    mounted: Mounted
    local: Path
    used: int = 0

    def fresh(self) -> Path:
        """Return the directory of a record that nobody has looked at."""
        self.used += 1
        return self.mounted / record_id(self.used)


def write_forty(folder: Path, records: int) -> Path:
    """Write records of 40 logs each to a folder's ``recordings``, and return the local copy."""
    local = folder / "local"
    local.mkdir()
    for stage in range(1, 21):
        for level in ("info", "debug"):
            log = local / f"stage{stage}.{level}.log"
            log.write_bytes(b"[%s] stage %d\n" % (level.upper().encode(), stage) * (stage**2))
            log.chmod(0o444)
            os.utime(log, (FINISHED_S, FINISHED_S))
    for number in range(1, records + 1):
        write_record(folder / "recordings", number, {log.name: log for log in local.iterdir()})
    return local


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    local = write_forty(folder, len(SHOWING) + len(READING) + 1)
    with open_rig(folder) as rig:
        emulator = rig.emulator(folder / "recordings")
        yield Shelf(rig, emulator, rig.mount(emulator, *AT_ONCE), local)


SHOWING = [
    "ls",
    "ls --color=always",
    "ls -l",
    "ls -laFR",
    "find",
    "find . -type f",
    "du -a",
    "echo *.log",
    "compgen -f ./",
    "bash -ic 'compgen -f ./stage'",
]


@pytest.mark.parametrize("command", SHOWING)
def test_showing_a_record_of_unopened_logs_asks_for_no_log(shelf: Shelf, command: str) -> None:
    with shelf.emulator.costs(full_stages=1):
        outcome = shelf.rig.shell(command, cwd=shelf.fresh())
    assert outcome.code == 0
    assert b"stage1.info.log" in outcome.out
    assert b"stage20.debug.log" in outcome.out


# In colours, which bash finds out by looking at each file.
COMPLETE = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "-i"])
os.write(terminal, b"bind 'set colored-stats on'\\nbind 'set page-completions off'\\n")
os.write(terminal, b"bind 'set completion-query-items 0'\\ncat stage\\t\\t")
shown = b""
while b"stage9.info.log" not in shown:
    shown += os.read(terminal, 65536)
os.kill(pid, 9)
sys.stdout.buffer.write(shown)
"""


def test_completion_in_a_terminal_asks_for_no_log(shelf: Shelf) -> None:
    with shelf.emulator.costs(full_stages=1):
        outcome = shelf.rig.run(sys.executable, "-c", COMPLETE, cwd=shelf.fresh())
    assert outcome.code == 0, outcome
    assert b"stage20.debug.log" in outcome.out


READING = {
    "tar": "tar c *.log | sha256sum",
    "tar of all": 'tar c . | tar tv --wildcards "./stage*" | sort -k 6',
    "git diff": 'for log in *.log; do git diff --no-index --stat "$log" "$SAME/$log"; done',
    "rsync": 'rsync --archive --dry-run --itemize-changes *.log "$SAME/"',
    "file": "file *.log",
    "stat": "stat -c '%n %s %Y' *.log",
}


@pytest.mark.parametrize("program", READING)
def test_who_trusts_sizes_sees_true_ones_of_unopened_logs(shelf: Shelf, program: str) -> None:
    script = f"export SAME={shelf.local}\n{READING[program]}"
    expected = shelf.rig.shell(script, cwd=shelf.local)
    assert expected.code == 0
    calls = shelf.emulator.calls()
    assert shelf.rig.shell(script, cwd=shelf.fresh()) == expected
    assert shelf.emulator.calls() == calls + 40


def test_sizes_of_an_earlier_visit_are_shown_after_a_restart(rig: Rig) -> None:
    local = write_forty(rig.folder, 1)
    emulator = rig.emulator(rig.folder / "recordings")
    mounted = rig.mount(emulator, *AT_ONCE)
    folder = mounted / record_id(1)
    show = "ls -l --time-style=+%s *.log | cut -d ' ' -f 3-"  # without how many links there are
    expected = rig.shell(show, cwd=local).out
    assert rig.shell("stat *.log", cwd=folder).code == 0
    assert emulator.calls() == 40
    mounted.stop()
    shutil.rmtree(rig.folder / "cache/v1" / record_id(1))  # small logs are kept, once they came
    mounted = rig.mount(emulator)
    with emulator.costs():
        assert rig.shell(show, cwd=folder).out == expected
        cached = rig.shell("getfattr -n user.codearts.cached --only-values *.log", cwd=folder)
    assert cached.out == b"no" * 40


# Links inside a record.


def test_the_log_of_the_stage_that_failed_first_has_a_name(rig: Rig, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    logs: dict[str, bytes | Path] = {f"stage{n}.info.log": b"stage %d\n" % n for n in (1, 2, 3)}
    fine = write_record(recordings, 0, logs)
    broken = write_record(recordings, 1, logs, failed="stage2")
    mounted = rig.mount(rig.emulator(recordings), *OWN)
    assert rig.run("readlink", mounted / broken / "failed.info.log").out == b"stage2.info.log\n"
    assert "failed.info.log" in listed(rig, mounted / broken)
    failed = mounted / "by-job/web-app/latest-failed/failed.info.log"
    assert rig.run("cat", failed).out == b"stage 2\n"
    assert "failed.info.log" not in listed(rig, mounted / fine)
    assert no_such(rig.run("cat", mounted / fine / "failed.info.log"))


def test_grep_r_reads_each_log_once(rig: Rig, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    logs: dict[str, bytes | Path] = {"stage1.info.log": TEXT, "stage2.info.log": b"BOOM\n"}
    record = write_record(recordings, 0, logs, failed="stage2")
    emulator = rig.emulator(recordings)
    mounted = rig.mount(emulator, *OWN)
    assert set(listed(rig, mounted / record)) >= {"failed.info.log", "by-name"}
    listed(rig, mounted / "by-job/web-app")
    outcome = rig.run("grep", "-rs", "BOOM", ".", cwd=mounted.path)
    assert outcome.out == f"./{record}/stage2.info.log:BOOM\n".encode()


# record.json.


def test_record_json_tells_what_the_api_says_of_a_build_and_asks_once(rig: Rig) -> None:
    emulator = synthetic(rig, "20:30")
    mounted = rig.mount(emulator, *SYNTHETIC)
    record = synthetic_id(0, 26)
    with emulator.costs(full_stages=1, record=1):
        text = rig.run("cat", mounted / record / "record.json").out
    told = json.loads(text)
    assert list(told) == [
        *("record_id", "job", "build_number", "status", "final", "failed_stage"),
        *("branch", "commit", "trigger"),
        *("created_utc", "started_utc", "finished_utc", "duration_ms", "stages"),
    ]
    assert status_of(0, 4) == "FAILURE"
    assert (told["record_id"], told["build_number"]) == (record, 26)
    assert (told["status"], told["final"], told["failed_stage"]) == ("FAILURE", True, "stage1")
    assert [stage["stage"] for stage in told["stages"]] == [
        *("initial", "stage1", "stage2", "stage3", "final"),
    ]
    assert [stage["display_name"] for stage in told["stages"]][3] == "执行shell命令"
    for what in (told, told["stages"][1]):
        assert isinstance(what["duration_ms"], int)
        times = [what[f"{name}_utc"] for name in ("created", "started", "finished")]
        assert times == sorted(times)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", time) for time in times)
    mounted.stop()
    mounted = rig.mount(emulator, *SYNTHETIC)
    with emulator.costs():
        sizes = rig.shell("stat -c %s record.json && wc -c < record.json", cwd=mounted / record)
        assert sizes.out == b"%d\n" % len(text) * 2
        assert rig.run("cat", mounted / record / "record.json").out == text


def test_record_json_of_a_listed_build_costs_no_call_of_its_own(rig: Rig) -> None:
    emulator = synthetic(rig, "20:30")
    mounted = rig.mount(emulator, *SYNTHETIC)
    with emulator.costs(jobs=1, records=1, full_stages=1):
        text = rig.run("cat", mounted / "by-job/web-app/latest/record.json").out
    assert json.loads(text)["job"] == "web-app"


def test_record_json_of_a_running_build_changes_until_it_is_over(rig: Rig, tmp_path: Path) -> None:
    record = write_live_record(tmp_path / "live", 0)
    emulator = rig.emulator(tmp_path / "live")
    emulator.grow(record, stage="stage1", append="line\n")
    mounted = rig.mount(emulator)

    def told() -> tuple[str, bool, list[str]]:
        document = json.loads(rig.run("cat", mounted / record / "record.json").out)
        stages = [stage["status"] for stage in document["stages"]]
        return document["status"], document["final"], stages

    assert told() == ("RUNNING", False, ["RUNNING"])
    emulator.grow(record, stage="stage1", finish=True, status="FAILURE")
    wait_until(lambda: told() == ("FAILURE", True, ["FAILURE"]))
    assert rig.run("readlink", mounted / record / "failed.info.log").out == b"stage1.info.log\n"


# Times.


@pytest.mark.parametrize("form", TIME_FORMS)
def test_times_are_those_of_the_builds_in_every_form_the_api_has(rig: Rig, form: str) -> None:
    recordings = rig.folder / "recordings"
    old = write_record(recordings, 0, {LOG: TEXT})
    emulator = rig.emulator(recordings, "--synthetic", "20:12", f"time-format={form}")
    mounted = rig.mount(emulator, *SYNTHETIC)
    # A build begins every 10 minutes, and takes less than 3.
    newest, before = synthetic_id(0, 12), synthetic_id(0, 11)
    job = f"{mounted / 'by-job/web-app'}/"
    numbers = [name for name in rig.run("ls", "-t", job).out.split() if name.isdigit()]
    assert numbers == [b"%d" % number for number in range(12, 0, -1)]
    recent = rig.run("find", job, "-name", "[0-9]*", "-mmin", "-15", "-printf", "%f\n").out
    assert sorted(recent.split()) == [b"11", b"12"]
    for record in (old, before, newest):
        assert LOG in listed(rig, mounted / record)
    records = rig.run("ls", "-t", "--ignore=by-job", mounted.path).out.decode().split()
    assert records == [newest, before, old]
    unopened = ("find", mounted / old, "-name", LOG, "-printf", "%Ts %s\n")
    assert rig.run(*unopened).out == b"%d 0\n" % FINISHED_S
    outcome = rig.run("stat", "-c", "%Y", mounted / old, mounted / old / LOG)
    assert outcome.out == b"%d\n" % FINISHED_S * 2
    stages = json.loads(rig.run("cat", mounted / newest / "record.json").out)["stages"]
    shown = rig.run("date", "-u", "-r", mounted / newest / LOG, "+%FT%T").out.decode().strip()
    assert stages[1]["finished_utc"].startswith(shown)
    names = mounted / newest / "by-name"
    assert rig.run("find", f"{names}/", "-mmin", "+4", "-type", "l").out == b""


def test_a_running_record_is_new(rig: Rig) -> None:
    mounted = rig.mount(synthetic(rig, "20:3"), *SYNTHETIC)
    running = synthetic_id(3, 3)
    assert LOG in listed(rig, mounted / running)
    changing = ("find", running, "-type", "d,f", "-mmin", "-1")
    seen = rig.run(*changing, cwd=mounted.path).out.decode().split()
    # It began minutes ago, and so did all of it but the stage that runs.
    assert {running, f"{running}/stage2.info.log"} <= set(seen)
    assert f"{running}/{LOG}" not in seen


# Extended attributes.


def attributes(rig: Rig, path: Path) -> dict[str, str]:
    outcome = rig.run("getfattr", "--absolute-names", "-d", "-m", "-", path)
    assert (outcome.code, outcome.err) == (0, b"")
    return dict(re.findall(r'^user\.codearts\.(\w+)="(.*)"$', outcome.out.decode(), re.MULTILINE))


def test_attributes_tell_what_is_known_of_records_and_logs_for_nothing(rig: Rig) -> None:
    emulator = synthetic(rig, "20:30")
    mounted = rig.mount(emulator, *SYNTHETIC)
    record = synthetic_id(0, 26)
    log = mounted / record / LOG
    with emulator.costs():
        assert attributes(rig, mounted / record) == {}
    assert b"FAILURE" in rig.run("cat", mounted / "by-job/web-app/latest-failed" / LOG).out
    with emulator.costs():
        of_log = attributes(rig, log)
        assert re.fullmatch(r"[0-9a-f]{64}", of_log.pop("sha256"))
        assert re.fullmatch(r"\d{4}-.*Z", of_log.pop("fetched_at"))
        assert of_log.pop("request_id")
        assert of_log.pop("cached") in ("memory", "disk")
        assert of_log == {
            "stage": "stage1",
            "status": "FAILURE",
            "display_name": "Code CheckOut",
            "final": "true",
        }
        of_record = attributes(rig, mounted / record)
    assert re.fullmatch(r"[0-9a-f]{40}", of_record.pop("commit"))
    assert of_record == {
        "status": "FAILURE",
        "final": "true",
        "job": "web-app",
        "build_number": "26",
        "branch": "main",
        "trigger": "MANUAL",
        "failed_stage": "stage1",
    }


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("user.codearts.nonsense", errno.ENODATA),
        ("user.other", errno.ENODATA),
        ("security.selinux", errno.EOPNOTSUPP),
        ("system.posix_acl_access", errno.EOPNOTSUPP),
        ("trusted.codearts", errno.EOPNOTSUPP),
    ],
)
def test_an_attribute_that_is_not_there_says_so(shelf: Shelf, name: str, number: int) -> None:
    log = shelf.mounted / record_id(1) / LOG
    script = f"import os; os.getxattr({os.fspath(log)!r}, {name!r})"
    assert shelf.rig.run("cat", log).code == 0
    with shelf.emulator.costs():
        outcome = shelf.rig.run(sys.executable, "-c", script)
        said = shelf.rig.run("getfattr", "-n", name, log)
    assert f"[Errno {number}]".encode() in outcome.err
    words = "No such attribute" if number == errno.ENODATA else os.strerror(number)
    assert said.err.decode().endswith(f"{name}: {words}\n")


def test_tools_that_look_for_attributes_work_as_on_local_files(shelf: Shelf) -> None:
    folder, target = shelf.mounted / record_id(1), shelf.rig.folder / "copied"
    outcome = shelf.rig.shell('mkdir "$1" && cp -a *.log "$1"', target, cwd=folder)
    assert outcome == Outcome(0, b"", b"")
    assert shelf.rig.run("diff", "-r", target, shelf.local) == Outcome(0, b"", b"")
    assert shelf.rig.run("ls", "-l", LOG, cwd=folder).out.startswith(b"-r--r--r-- 1 ")


# Many records.


async def fill(cache: Path, builds: int) -> None:
    """Make the builds of a synthetic job known, as visits to all of them would."""
    project = SyntheticProject(1, builds, time.time())
    async with open_index(cache) as index:
        for number in range(1, builds + 1):
            build = project.build(synthetic_id(0, number))
            assert build is not None
            times = RecordTimes(build.record().finished_ns, final=True)
            index.keep_stages(build.record().record, tuple(build.stages()), times)


def test_listing_thousands_of_records_is_right_while_others_look_up_more(rig: Rig) -> None:
    known = {synthetic_id(0, number) for number in range(1, 5001)}
    (rig.folder / "cache/v1").mkdir(parents=True)
    trio.run(fill, rig.folder / "cache", len(known))
    emulator = synthetic(rig, "2:6000")
    mounted = rig.mount(emulator)
    more = [synthetic_id(1, number) for number in range(1, 6001)]
    script = 'for record in "$@"; do ls "$record" > /dev/null || exit; echo "$record"; done'
    seen = rig.folder / "seen"
    with seen.open("wb") as file:
        other = rig.start("bash", "-c", script, "bash", *more, cwd=mounted.path, stdout=file)
    wait_until(lambda: seen.stat().st_size > 0)
    for _ in range(5):
        before = set(seen.read_text().split()[:-1])
        names = rig.run("ls", "-U", mounted.path).out.decode().split()
        assert len(names) == len(set(names))
        assert known | before <= set(names) <= known | set(more)
    assert other.poll() is None  # it was at it all the time
    other.kill()
    rig.finish(other)
    walks = [rig.run("find", mounted.path, timeout_s=120).out.split(b"\n") for _ in range(2)]
    assert len(walks[0]) == len(set(walks[0])) > 10 * len(known)
    assert set(walks[0]) == set(walks[1])

    def inodes() -> int:
        count: int = mounted.status()["kernel"]["inodes"]
        return count

    assert inodes() > len(known)
    if rig.shell("echo 2 > /proc/sys/vm/drop_caches").code != 0:
        pytest.skip("the kernel cannot be told to forget here")
    wait_until(lambda: inodes() < 50)
    assert set(rig.run("find", mounted.path, timeout_s=120).out.split(b"\n")) == set(walks[0])
