"""The sd_notify protocol, against a real datagram socket in the place of systemd."""

import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeartsfs.notify import Notifier

WATCHED = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}


class ServiceManager:
    """The receiving end: what systemd would have read so far."""

    def __init__(self, name: str) -> None:
        self.environ = {"NOTIFY_SOCKET": name}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)

    def heard(self) -> list[str]:
        """Return the messages received since the last call."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    name = f"@codeartsfs-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "n")
    manager = ServiceManager(name)
    yield manager
    manager.close()


def test_life_of_a_service_is_told_in_order(manager: ServiceManager) -> None:
    notifier = Notifier(manager.environ | WATCHED)
    notifier.ready()
    notifier.status("3 builds, 12 logs cached")
    notifier.watchdog()
    notifier.stopping()
    assert manager.heard() == [
        "READY=1",
        "STATUS=3 builds, 12 logs cached",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_status_cannot_smuggle_a_second_assignment(manager: ServiceManager) -> None:
    Notifier(manager.environ).status("refused\nMAINPID=1\r\nERRNO=2")
    assert manager.heard() == ["STATUS=refused MAINPID=1 ERRNO=2"]


def test_status_fits_one_message_and_stays_utf_8(manager: ServiceManager) -> None:
    Notifier(manager.environ).status("构建" * 3000)
    [message] = manager.heard()
    assert message == "STATUS=" + ("构建" * 3000)[: 2048 // 3]
    assert len(message.encode()) < 4096


def test_status_takes_undecodable_file_names(manager: ServiceManager) -> None:
    Notifier(manager.environ).status(os.fsdecode(b"/mnt/\xff serves"))
    assert manager.heard() == ["STATUS=/mnt/? serves"]


def test_names_that_are_not_utf_8_are_sockets_too(tmp_path: Path) -> None:
    manager = ServiceManager(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    Notifier(manager.environ).ready()
    assert manager.heard() == ["READY=1"]
    manager.close()


def test_without_a_service_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(WATCHED)
    notifier.ready()
    notifier.status("serving")
    notifier.watchdog()
    notifier.stopping()
    assert notifier.watchdog_interval_s is None
    assert caplog.records == []


@pytest.mark.parametrize("name", ["vsock:2:1234", "relative/path"])
def test_unknown_kind_of_socket_is_a_log_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": name}).ready()
    assert [(r.levelno, name in r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, True)
    ]


@pytest.mark.parametrize("name", ["/nonexistent/notify", "/" + "x" * 200, "/tmp/nul\0byte"])
def test_unreachable_socket_is_a_log_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": name}).ready()
    assert [(r.levelno, "READY=1" in r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, True)
    ]


def test_full_queue_loses_the_message_instead_of_waiting(
    manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(manager.environ)
    sent = 0
    while not caplog.records:  # the queue of a datagram socket holds some 10 or 500 messages
        notifier.status(f"message {sent}")
        sent += 1
        assert sent < 100_000
    assert len(manager.heard()) == sent - 1
    notifier.ready()
    assert manager.heard() == ["READY=1"]


def test_watchdog_is_due_at_half_the_time(manager: ServiceManager) -> None:
    assert Notifier(manager.environ | WATCHED).watchdog_interval_s == 15.0


def test_watchdog_without_a_pid_is_meant_for_everybody(manager: ServiceManager) -> None:
    assert Notifier(manager.environ | {"WATCHDOG_USEC": "500000"}).watchdog_interval_s == 0.25


def test_unwatched_service_sends_no_watchdog(manager: ServiceManager) -> None:
    notifier = Notifier(manager.environ)
    notifier.watchdog()
    assert notifier.watchdog_interval_s is None
    assert manager.heard() == []


def test_watchdog_of_another_process_is_not_ours(manager: ServiceManager) -> None:
    meant_for_parent = WATCHED | {"WATCHDOG_PID": str(os.getppid())}
    assert Notifier(manager.environ | meant_for_parent).watchdog_interval_s is None


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1.5", "²", "9" * 5000])
def test_bad_watchdog_time_is_a_log_line(
    text: str, manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(manager.environ | {"WATCHDOG_USEC": text})
    assert notifier.watchdog_interval_s is None
    assert len(caplog.records) == 1
