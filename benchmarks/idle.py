"""Many idle connections whose peers close at once, and what an idle one takes in memory."""

from __future__ import annotations

import gc
import resource
import socket
import time
import tracemalloc
from collections.abc import Callable, Sequence

import safesock
from benchmarks.report import Row
from benchmarks.server import serving, started

_CLOSE_WAIT = 8
_GRACE = 1.0


def rows(quick: bool) -> list[Row]:
    return [*_all_at_once(1_000 if quick else 10_000), _memory(200 if quick else 2_000)]


def _all_at_once(wanted: int) -> list[Row]:
    """From the moment when all have had their grace to when the last has left CLOSE_WAIT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(wanted, hard - 100)
    policy = safesock.Policy(grace=_GRACE)
    with started("hold") as (address, server):
        socks = [safesock.create_connection(address, policy=policy) for _ in range(count)]
        idle = _cpu_while_idle(seconds=2.0)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("close\n")
        server.stdin.flush()
        assert server.stdout.readline() == "closed\n"
        closed = time.monotonic()
        assert _in_close_wait(socks) > 0
        while left := _in_close_wait(socks):
            assert time.monotonic() - closed < 60, f"{left} still in CLOSE_WAIT"
            time.sleep(0.05)  # Looking takes the interpreter from the watcher.
        late = max(time.monotonic() - closed - _GRACE, 0.0)
        assert all(sock.loss is not None for sock in socks)
        for sock in socks:
            assert sock.recv(1) == b""
            sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return [
        Row(f"last of {count:,} out of CLOSE_WAIT after grace", late, 1.0, "s"),
        Row(f"CPU of {count:,} idle connections", idle * 100, 0.1, "%"),
    ]


def _in_close_wait(socks: Sequence[socket.socket]) -> int:
    states = (sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for sock in socks)
    return sum(state == _CLOSE_WAIT for state in states)


def _cpu_while_idle(seconds: float) -> float:
    cpu = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - cpu) / seconds


def _memory(count: int) -> Row:
    with serving("hold") as address:
        theirs = _bytes_each(lambda: socket.create_connection(address), count)
        ours = _bytes_each(lambda: safesock.create_connection(address), count)
    what = "memory per idle SafeSocket over socket.socket"
    return Row(what, ours - theirs, 600, "bytes", ours=ours, theirs=theirs, raw_unit="bytes")


def _bytes_each(make: Callable[[], socket.socket], count: int) -> float:
    make().close()  # What is made once, such as the watcher, is not counted.
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    socks = [make() for _ in range(count)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({sock.fileno() for sock in socks}) == count
    for sock in socks:
        sock.close()
    return (after - before) / count


if __name__ == "__main__":
    print(*rows(quick=False), sep="\n")
