"""Serves the emulator on loopback, with hypercorn's HTTP/1.1 on trio."""

import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette

from codeartsfs.emulator.app import build_app
from codeartsfs.emulator.faults import FaultPlan
from codeartsfs.emulator.iam import Accounts
from codeartsfs.emulator.library import Clock, Library

HOST = "127.0.0.1"

log = logging.getLogger(__name__)


async def listen(port: int = 0) -> trio.SocketListener:
    """Listen on a port of loopback, 0 for any free one.

    Only there: the controls under ``/_emulator`` ask nobody who they are.

    Raises:
        OSError: the port cannot be had.
    """
    [listener] = await trio.open_tcp_listeners(port, host=HOST)
    return listener


async def serve(app: Starlette, listener: trio.SocketListener) -> None:
    """Serve an application of `build_app`, and run its live builds, until cancelled."""
    config = Config()
    config.errorlog = log
    config.include_server_header = False
    config.h11_max_incomplete_size = 256 * 1024  # tokens may have 100 000 characters
    config.keep_alive_timeout = 60
    config.keep_alive_max_requests = 2**63
    wrapped = wrap_app(cast(ASGIFramework, app), config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    streams: set[trio.SocketStream] = set()

    async def serve_connection(stream: trio.SocketStream) -> None:
        streams.add(stream)
        try:
            await TCPServer(wrapped, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]
        except Exception:
            # One connection's bad end must not be the end of all others.
            log.debug("connection ended badly", exc_info=True)
        finally:
            streams.discard(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.state.library.run_live_builds)
        try:
            await trio.serve_listeners(serve_connection, [listener], handler_nursery=nursery)
        finally:
            # Hypercorn shields its writes: a client that stopped reading would hold one, and
            # with it the whole server, for ever. Closing the socket frees it.
            for stream in streams:
                stream.socket.close()


@asynccontextmanager
async def open_emulator(
    recordings: Path,
    *,
    faults: Iterable[str] = (),
    accounts: Accounts | None = None,
    clock: Clock = time.time,
    port: int = 0,
    synthetic: tuple[int, int] | None = None,
) -> AsyncIterator[str]:
    """Serve recordings for as long as the block lasts; yields the base URL.

    With ``synthetic`` there is a made-up project beside them, of that many jobs of that many
    builds each.

    Raises:
        BadRecording: the recordings cannot be understood.
        UnknownFault: a fault word cannot be understood.
        OSError: the port cannot be had.
    """
    with Library(recordings, clock, synthetic) as library:
        async with serving(library, FaultPlan(faults), accounts or Accounts(), clock, port) as url:
            yield url


@asynccontextmanager
async def serving(
    library: Library, faults: FaultPlan, accounts: Accounts, clock: Clock, port: int
) -> AsyncIterator[str]:
    """Serve a library for as long as the block lasts; yields the base URL.

    Raises:
        OSError: the port cannot be had.
    """
    app = build_app(library, faults, accounts, clock)
    listener = await listen(port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, app, listener)
        yield f"http://{HOST}:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
