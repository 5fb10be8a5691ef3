"""What the daemon tells the service manager that started it: the sd_notify(3) protocol.

A message is one datagram of ``NAME=value`` lines to the socket named in ``NOTIFY_SOCKET``. Nobody
answers, so nothing here waits, and nothing here raises: a mount must not fail because nobody
listened. Without ``NOTIFY_SOCKET`` (a terminal, another init system) every call does nothing.
"""

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

# systemd reads at most PIPE_BUF (4096) bytes of one message and throws longer ones away whole.
_STATUS_BYTES = 2048


class Notifier:
    """The line to the service manager.

    Attributes:
        watchdog_interval_s: seconds between calls of ``watchdog()`` that keep this process alive:
            half the time after which the service manager kills it. ``None``: it does not watch us.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._address else None

    def ready(self) -> None:
        """Say that the mount answers: units ordered after this one may start."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``; it replaces the one before."""
        line = " ".join(text.split())  # a line break would begin another assignment
        clipped = line.encode("utf-8", "replace")[:_STATUS_BYTES].decode("utf-8", "ignore")
        self._send(f"STATUS={clipped}")

    def stopping(self) -> None:
        """Say that the shutdown has begun, so that it is not taken for a crash."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Put off being killed; call it only when the mount has just been seen to work."""
        if self.watchdog_interval_s is not None:
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            # A socket for each message: nothing to close, and a service manager that was
            # replaced (daemon-reexec) is found again.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("service manager not told %r: %s", message, error)


def _address(name: str) -> bytes:
    """Return the address to send to; empty for none."""
    if name.startswith("/"):
        return os.fsencode(name)
    if name.startswith("@"):  # abstract: a name outside every file system
        return b"\0" + os.fsencode(name[1:])
    if name:
        log.warning("NOTIFY_SOCKET is of a kind not known here: %r", name)
    return b""


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    # WATCHDOG_PID tells whom the watch is for: a child that inherited the variables is not meant.
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    if not text:
        return None
    try:
        watched_us = int(text)
    except ValueError:
        watched_us = 0
    if watched_us <= 0:
        log.warning("WATCHDOG_USEC is not a number of microseconds: %r", text)
        return None
    return watched_us / 2 / 1_000_000
