"""A TCP proxy that makes an origin on this machine a distant one; a process of its own.

python bench/latency_proxy.py PORT ROUND_TRIP_MS listens on a free port, says which, and forwards
to PORT. Bytes of both directions arrive half a round trip later, as fast as they were sent.
"""

import sys
from functools import partial

import trio

PIECE_BYTES = 256 << 10
PIECES_UNDER_WAY = 1024  # 256 MiB in half a round trip: no limit that anybody meets


async def carry(source: trio.SocketStream, sink: trio.SocketStream, delay_s: float) -> None:
    """Pass on what comes, each piece a while after it came, and then the end."""
    coming, going = trio.open_memory_channel[tuple[float, bytes]](PIECES_UNDER_WAY)

    async def take() -> None:
        async with coming:
            while data := await source.receive_some(PIECE_BYTES):
                await coming.send((trio.current_time() + delay_s, data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        async for due, data in going:
            if due > trio.current_time():
                await trio.sleep_until(due)
            await sink.send_all(data)
    await sink.send_eof()


async def connect(port: int, delay_s: float, client: trio.SocketStream) -> None:
    try:
        async with (
            await trio.open_tcp_stream("127.0.0.1", port) as origin,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(carry, client, origin, delay_s)
            nursery.start_soon(carry, origin, client, delay_s)
    except* (trio.BrokenResourceError, OSError):
        pass  # one side hung up, so the other is hung up on, too


async def main(port: int, delay_s: float) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(partial(connect, port, delay_s), listeners)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]) / 2000)
