"""The command line: what it refuses and how, what it takes and from where."""

import json
import os
import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from codeartsfs.emulator.iam import Accounts

from .rig import (
    COMMAND,
    JOB,
    TOKEN,
    Emulator,
    Outcome,
    Rig,
    is_mounted,
    record_id,
    wait_until,
    write_record,
)

pytestmark = pytest.mark.fuse

ACCOUNTS = Accounts()
TEXT = b"[INFO] a line\n" * 1000
CREDENTIALS = {"CODEARTSFS_TOKEN": TOKEN}
# Nobody listens there; every refusal comes before the first request.
NOWHERE = ("--endpoint", "http://127.0.0.1:9", "--cache-dir", "none")

EXIT_USAGE, EXIT_CREDENTIALS, EXIT_MOUNT_POINT = 2, 3, 4


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    write_record(folder, 0, {"stage1.info.log": TEXT})
    return folder


@pytest.fixture
def emulator(rig: Rig, recordings: Path) -> Emulator:
    return rig.emulator(recordings)


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def codeartsfs(rig: Rig, *arguments: str | Path, **environment: str) -> Outcome:
    """Run a command that is to come back by itself."""
    process = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=rig.environment(**environment),
        capture_output=True,
        timeout=30,
        check=False,
    )
    return Outcome(process.returncode, process.stdout, process.stderr)


def refusal(outcome: Outcome, code: int) -> str:
    """Return the one line of a refusal."""
    assert outcome.code == code, outcome
    assert outcome.out == b""
    lines = outcome.err.decode().splitlines()
    # Click puts a reminder of the usage before its own.
    said = [line for line in lines if line and not line.startswith(("Usage: ", "Try '"))]
    [error] = said
    assert error.startswith("Error: ")
    return error


# The mount point.


def test_a_missing_mount_point_is_refused(rig: Rig, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    error = refusal(codeartsfs(rig, "mount", missing, *NOWHERE, **CREDENTIALS), EXIT_MOUNT_POINT)
    assert f"{missing}: No such file or directory; create it with: mkdir -p" in error


def test_a_file_as_mount_point_is_refused(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    error = refusal(codeartsfs(rig, "mount", file, *NOWHERE, **CREDENTIALS), EXIT_MOUNT_POINT)
    assert f"{file} is not a directory" in error


def test_a_mount_point_in_use_is_refused_and_stays_in_use(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    outcome = codeartsfs(rig, "mount", mounted.path, *NOWHERE, **CREDENTIALS)
    assert "is mounted already; end that with: codeartsfs umount" in refusal(
        outcome, EXIT_MOUNT_POINT
    )
    assert mounted.status()["pid"] == mounted.process.pid


def test_umount_of_nothing_is_refused(rig: Rig, point: Path) -> None:
    assert "is not a mount of codeartsfs" in refusal(
        codeartsfs(rig, "umount", point), EXIT_MOUNT_POINT
    )
    assert "is not a mount of codeartsfs" in refusal(codeartsfs(rig, "umount", "/proc"), 4)
    assert refusal(codeartsfs(rig, "umount", point / "missing"), EXIT_MOUNT_POINT)


def test_umount_ends_the_mount_with_exit_code_0(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    assert codeartsfs(rig, "umount", mounted.path) == Outcome(0, b"", b"")
    assert mounted.process.wait(timeout=15) == 0
    assert not is_mounted(mounted.path)


def test_umount_of_a_busy_mount_is_refused_unless_lazy(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    holder = rig.start("sleep", "60", cwd=mounted.path)
    wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
    assert "busy" in refusal(codeartsfs(rig, "umount", mounted.path), EXIT_MOUNT_POINT)
    assert codeartsfs(rig, "umount", "--lazy", mounted.path) == Outcome(0, b"", b"")
    assert not is_mounted(mounted.path)
    holder.kill()
    assert mounted.process.wait(timeout=15) == 0


def test_what_umount_says_of_a_busy_mount_is_one_sentence(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    with (mounted / f"{record_id(0)}/stage1.info.log").open():
        error = refusal(codeartsfs(rig, "umount", mounted.path), EXIT_MOUNT_POINT)
    assert error.count(os.fspath(mounted.path)) == 1
    assert ".;" not in error


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
def test_a_mount_of_somebody_else_is_not_called_busy(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    error = refusal(rig.run(*nobody, *COMMAND, "umount", mounted.path), EXIT_MOUNT_POINT)
    assert "is somebody else's" in error
    error = refusal(rig.run(*nobody, *COMMAND, "log-level", mounted.path, "info"), EXIT_MOUNT_POINT)
    assert "somebody else's" in error
    assert is_mounted(mounted.path)


def test_refreshing_what_is_stuck_comes_back(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        outcome = codeartsfs(rig, "refresh", mounted / record_id(0))
        assert (outcome.code, outcome.out) == (1, b"")
        assert b"its daemon is stopped or stuck" in outcome.err
    finally:
        mounted.process.send_signal(signal.SIGCONT)


def test_ctrl_c_ends_who_waits_for_a_stuck_mount(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        waiting = rig.start(*COMMAND, "log-level", mounted.path, "info")
        children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children")
        wait_until(lambda: children.read_text() != "")  # which ask
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=5) == 130
    finally:
        mounted.process.send_signal(signal.SIGCONT)


def test_a_dead_mount_can_be_unmounted(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.kill()
    assert is_mounted(mounted.path)
    assert codeartsfs(rig, "umount", mounted.path) == Outcome(0, b"", b"")
    assert not is_mounted(mounted.path)


def test_a_mount_that_is_stuck_hangs_nobody_and_can_be_unmounted_lazily(
    rig: Rig, emulator: Emulator
) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        error = refusal(codeartsfs(rig, "umount", mounted.path), EXIT_MOUNT_POINT)
        assert "its daemon is stopped or stuck" in error
        for command in (("umount", mounted / "x"), ("mount", mounted / "x", *NOWHERE)):
            error = refusal(codeartsfs(rig, *command, **CREDENTIALS), EXIT_MOUNT_POINT)
            assert "its daemon is stopped or stuck" in error
        assert codeartsfs(rig, "umount", "--lazy", mounted.path) == Outcome(0, b"", b"")
        assert not is_mounted(mounted.path)
    finally:
        mounted.process.send_signal(signal.SIGCONT)


def test_a_dead_mount_is_cleared_away_by_a_new_one(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.kill()
    again = rig.mount(emulator)
    assert again.path == mounted.path
    assert again.status()["pid"] == again.process.pid
    again.stop()
    assert not is_mounted(again.path)


def test_ctrl_c_ends_a_mount_in_the_foreground(rig: Rig, emulator: Emulator) -> None:
    mounted = rig.mount(emulator)
    mounted.process.send_signal(signal.SIGINT)
    assert mounted.process.wait(timeout=15) == 0
    assert not is_mounted(mounted.path)


# Credentials.


def test_no_credentials_are_refused(rig: Rig, point: Path) -> None:
    error = refusal(codeartsfs(rig, "mount", point, *NOWHERE), EXIT_CREDENTIALS)
    assert "no credentials: set CODEARTSFS_TOKEN" in error


@pytest.mark.parametrize(
    "half",
    [
        {"HUAWEICLOUD_SDK_AK": "AN-ACCESS-KEY"},
        {"HUAWEICLOUD_SDK_SK": "a-secret-key-0123456789"},
        {"CODEARTSFS_USER": "somebody", "CODEARTSFS_PASSWORD": "a-password-0123456789"},
        {"CODEARTSFS_TOKEN_FILE": "/does/not/exist"},
    ],
    ids=lambda half: "+".join(half),
)
def test_half_given_credentials_are_refused_and_not_shown(
    rig: Rig, point: Path, half: dict[str, str]
) -> None:
    error = refusal(codeartsfs(rig, "mount", point, *NOWHERE, **half), EXIT_CREDENTIALS)
    assert "0123456789" not in error


@pytest.mark.parametrize(
    "credentials",
    [
        {"HUAWEICLOUD_SDK_AK": ACCOUNTS.access_key, "HUAWEICLOUD_SDK_SK": ACCOUNTS.secret_key},
        {
            "CODEARTSFS_USER": ACCOUNTS.user,
            "CODEARTSFS_PASSWORD": ACCOUNTS.password,
            "CODEARTSFS_ACCOUNT": ACCOUNTS.domain,
            "CODEARTSFS_IAM_PROJECT": ACCOUNTS.region,
        },
        {"CODEARTSFS_TOKEN": TOKEN},
        {"CODEARTSFS_TOKEN": TOKEN + "-which-is-wrong"},
    ],
    ids=["AK and SK", "password", "token", "wrong token"],
)
def test_secrets_are_shown_nowhere(
    rig: Rig, emulator: Emulator, credentials: dict[str, str]
) -> None:
    wrong = credentials.get("CODEARTSFS_TOKEN", TOKEN) != TOKEN
    if "CODEARTSFS_USER" in credentials:
        credentials = {**credentials, "CODEARTSFS_IAM_ENDPOINT": emulator.url}
    mounted = rig.mount(emulator, "--log-level", "debug", credentials=credentials)
    mounted.permit_logged("WARNING .*(EACCES|refuses our credentials)")
    assert rig.run("cat", mounted / f"{record_id(0)}/stage1.info.log").out == (
        b"" if wrong else TEXT
    )
    # Failures are where secrets slip into messages: a token that expired, a call that fails.
    emulator.faults("expire-token", "full_stages:error500=1")
    assert rig.run("cat", mounted / f"{record_id(1)}/stage1.info.log").code == 1
    shown = [
        json.dumps(mounted.status()),
        Path(f"/proc/{mounted.process.pid}/cmdline").read_text(),
        rig.run("cat", "/proc/mounts").out.decode(),
    ]
    mounted.stop()
    log = mounted.log.read_text()
    assert "task-log" in log
    files = [file for file in (rig.folder / "cache").rglob("*") if file.is_file()]
    shown += [log, *(file.read_bytes().decode("latin-1") for file in files)]
    secrets = [ACCOUNTS.secret_key, ACCOUNTS.password, TOKEN]
    assert [secret for secret in secrets for text in shown if secret in text] == []


def test_a_crash_leaves_no_core_dump_with_secrets_in_it(rig: Rig, emulator: Emulator) -> None:
    def dies_with_a_core(process: "subprocess.Popen[bytes]") -> bool:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, unlimited)
        process.send_signal(signal.SIGSEGV)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = -os.WTERMSIG(status)
        return os.WCOREDUMP(status)

    ordinary = subprocess.Popen(["sleep", "1000"], cwd=rig.folder)
    if not dies_with_a_core(ordinary):
        pytest.skip("nothing leaves a core dump here")
    assert not dies_with_a_core(rig.mount(emulator).process)


# Options.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-such-option"], "No such option"),
        (["--cache-size", "lots"], "'lots' is not a size"),
        (["--project", "web-app"], "'web-app' is not the id of a CodeArts project"),
        (["--project", "C" * 32], "is not the id of a CodeArts project"),
        (["--builds-per-job", "0"], "0 is not in the range from 1 upwards"),
        (["--deadline", "-1"], "-1"),
        (["--deadline", "soon"], "soon"),
        (["--stat-size", "guess"], "guess"),
        (["-o", "suid"], "unknown mount option 'suid'"),
        (["--endpoint", "http://build.example.com"], "must be https"),
        (["--endpoint", "ftp://127.0.0.1"], "not an https:// URL"),
        (["--endpoint", "https://me:a-secret@example.com"], "user name or password"),
        (["--endpoint", "", "--region", "atlantis"], "unknown region 'atlantis'"),
        (["--endpoint", "https://example.com", "--region", "cn-north-4"], "not both"),
        (["--config", "/does/not/exist.toml"], "there is no configuration file"),
        (["--log-file", "/does/not/exist/log"], "cannot log to"),
        (["--ca-file", "/does/not/exist.pem"], "/does/not/exist.pem"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(
    rig: Rig, point: Path, arguments: list[str], says: str
) -> None:
    outcome = codeartsfs(rig, "mount", point, *NOWHERE, *arguments, **CREDENTIALS)
    error = refusal(outcome, EXIT_USAGE)
    assert says in error
    assert "a-secret" not in error


def test_a_mount_without_an_address_is_refused(rig: Rig, point: Path) -> None:
    error = refusal(codeartsfs(rig, "mount", point, **CREDENTIALS), EXIT_USAGE)
    assert "which API? give --region NAME or --endpoint URL" in error


def test_a_bad_value_in_the_environment_is_refused(rig: Rig, point: Path) -> None:
    outcome = codeartsfs(rig, "mount", point, *NOWHERE, CODEARTSFS_CACHE_SIZE="lots", **CREDENTIALS)
    assert "'lots' is not a size" in refusal(outcome, EXIT_USAGE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"project = ['{'c' * 32}', 'web-app']\n", "'web-app' is not the id"),
        ("cache-sise = '1G'\n", "unknown key 'cache-sise'"),
        ("token = 'a-secret-0123456789'\n", "unknown key 'token'"),
        ("[cache]\nsize = '1G'\n", "unknown key 'cache'"),
        ("cache-size = ['1G']\n", "must be a single value"),
        ("cache-size = 'lots'\n", "'lots' is not a size"),
        ("cache-size\n", "cannot read configuration file"),
    ],
)
def test_a_configuration_file_that_makes_no_sense_is_refused(
    rig: Rig, point: Path, tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(content)
    outcome = codeartsfs(rig, "mount", point, *NOWHERE, "--config", file, **CREDENTIALS)
    error = refusal(outcome, EXIT_USAGE)
    assert says in error
    assert "0123456789" not in error


def test_a_cache_directory_that_is_none_is_refused(rig: Rig, point: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    outcome = codeartsfs(
        rig, "mount", point, *NOWHERE, "--cache-dir", file / "cache", **CREDENTIALS
    )
    assert os.fspath(file) in refusal(outcome, EXIT_USAGE)
    assert not is_mounted(point)


def test_flag_wins_over_environment_over_file_over_default(
    rig: Rig, emulator: Emulator, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("cache-size = '3G'\nmemory-cache = '30M'\n")
    config = ("--config", os.fspath(file))
    from_environment = {**CREDENTIALS, "CODEARTSFS_CACHE_SIZE": "4G"}

    def limits(*options: str, environment: dict[str, str]) -> tuple[int, int]:
        mounted = rig.mount(emulator, *options, credentials=environment)
        status = mounted.status()
        mounted.stop()
        return status["disk_cache"]["limit_bytes"] >> 30, status["memory_cache"][
            "limit_bytes"
        ] >> 20

    assert limits(environment=CREDENTIALS) == (2, 64)
    assert limits(*config, environment=CREDENTIALS) == (3, 30)
    assert limits(*config, environment=from_environment) == (4, 30)
    assert limits(*config, "--cache-size", "5G", environment=from_environment) == (5, 30)


def test_projects_come_from_flags_environment_and_file(
    rig: Rig, emulator: Emulator, tmp_path: Path
) -> None:
    one, two = "1" * 32, "2" * 32
    file = tmp_path / "config.toml"
    file.write_text(f"project = ['{one}', '{two}']\n")
    config = ("--config", os.fspath(file))

    def projects(*options: str, **environment: str) -> list[bytes]:
        mounted = rig.mount(emulator, *options, credentials=CREDENTIALS | environment)
        listed = rig.run("ls", mounted / "by-job").out.split()
        mounted.stop()
        return listed

    both = [one.encode(), two.encode()]
    assert projects("--project", one, "--project", two, "--project", one) == both
    assert projects(CODEARTSFS_PROJECT=f"{two} {one}") == both
    assert projects(*config) == both
    third = JOB["project_id"]
    assert projects(*config, CODEARTSFS_PROJECT=third) == [b"web-app"]


def test_help_tells_of_all_there_is_to_browsing(rig: Rig) -> None:
    outcome = codeartsfs(rig, "mount", "--help")
    assert (outcome.code, outcome.err) == (0, b"")
    assert b"--project ID " in outcome.out
    assert b"--builds-per-job N " in outcome.out


@pytest.mark.parametrize("group", [(), ("cache",), ("config",)], ids=" ".join)
def test_no_summary_of_a_command_is_cut_off(rig: Rig, group: tuple[str, ...]) -> None:
    outcome = codeartsfs(rig, *group, "--help", COLUMNS="80")
    summaries = outcome.out.decode().partition("Commands:\n")[2].splitlines()
    assert summaries
    assert [line for line in summaries if line.endswith("...")] == []


def test_a_region_that_is_nearly_one_is_guessed(rig: Rig, point: Path) -> None:
    outcome = codeartsfs(rig, "mount", point, "--region", "cn-nroth-4", **CREDENTIALS)
    assert "did you mean cn-north-4?" in refusal(outcome, EXIT_USAGE)


# The background.


def daemon(rig: Rig, point: Path, *options: str | Path) -> Outcome:
    return codeartsfs(rig, "mount", point, "--daemon", *options, **CREDENTIALS)


def test_daemon_comes_back_when_the_mount_answers(
    rig: Rig, emulator: Emulator, point: Path, tmp_path: Path
) -> None:
    log = tmp_path / "daemon.log"
    options = ("--endpoint", emulator.url, "--cache-dir", "none", "--log-file", log)
    try:
        assert daemon(rig, point, *options) == Outcome(0, b"", b"")
        # No waiting here: that it answers now is the promise.
        seen = rig.run("cat", point / ".codeartsfs/status.json")
        pid = json.loads(seen.out)["pid"]
        assert rig.run("cat", point / f"{record_id(0)}/stage1.info.log").out == TEXT
        again = daemon(rig, point, *options)
        assert "is mounted already" in refusal(again, EXIT_MOUNT_POINT)
        assert codeartsfs(rig, "umount", point) == Outcome(0, b"", b"")
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
        assert log.read_text() == ""
    finally:
        _end_daemons(point)


def test_daemon_says_why_it_could_not_mount(rig: Rig, point: Path, tmp_path: Path) -> None:
    # One refusal before it goes to the background, and one after.
    missing = refusal(daemon(rig, tmp_path / "missing", *NOWHERE), EXIT_MOUNT_POINT)
    assert "No such file or directory" in missing
    file = tmp_path / "file"
    file.touch()
    refused = daemon(rig, point, *NOWHERE, "--cache-dir", file / "cache")
    assert os.fspath(file) in refusal(refused, EXIT_USAGE)
    assert not is_mounted(point)


@pytest.mark.skipif(Path("/dev/log").exists(), reason="the system log is somebody else's")
def test_a_daemon_without_a_system_log_says_where_its_log_is(
    rig: Rig, emulator: Emulator, point: Path, tmp_path: Path
) -> None:
    options = ("--endpoint", emulator.url, "--cache-dir", "none", "--log-level", "info")
    try:
        outcome = daemon(rig, point, *options)
        words = b"There is no system log here, the log is "
        assert (outcome.code, outcome.err[: len(words)]) == (0, words)
        log = Path(os.fsdecode(outcome.err.removeprefix(words).strip()))
        assert log.is_relative_to(tmp_path / "home")
        assert f"mounted at {point}" in log.read_text()
    finally:
        _end_daemons(point)


def _end_daemons(point: Path) -> None:
    """End what a failed test may have left in the background."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(point) in words and b"--daemon" in words:
                os.kill(int(entry.name), signal.SIGTERM)
    if is_mounted(point):
        subprocess.run(["umount", "-l", point], check=False, timeout=30)


def _is_zombie(pid: int) -> bool:
    """Tell whether a process has ended though nobody has waited for it yet."""
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()
