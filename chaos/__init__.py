"""Connections of every kind, under every fault that can be brought about, for as long as you like.

    python -m chaos --seconds 600 --seed 7 --json chaos.json

Clients of safesock's in processes of their own, one for each way to use it, connect through a proxy
that cuts (FIN), truncates, resets, delays and falls silent at random byte positions, or directly to
a server that is killed by SIGKILL and started again, or over a cable that is pulled, and loses
packets (nftables). Meanwhile signals arrive in their system calls, and their handler raises now and
then; descriptors run out (EMFILE), memory for buffers does (ENOBUFS), and the clock jumps.

After each round of connections every client has, as it had before: no connection in CLOSE_WAIT,
the same descriptors, threads and tasks; at the end, the same memory. Of connections by way of the
proxy every byte is accounted for; those straight to the server, which is killed, are only watched
for what they leave. No two connections carry the same bytes, and what a client and the proxy have
counted must be what the contract promises (`chaos.ledger` has the rules). The first thing that is
not as promised ends the run, with status 1 and how to repeat it. The seed decides on sizes, faults
and positions; not on how the kernel interleaves the processes, so a fault that hangs on that may
take several runs.

Links and packets are lost in network namespaces of the run's own, which takes root, ip(8) and
nft(8); without, it runs on loopback, and says what was left out. What is simulated: the clock's
jumps are those of `time.time` in the clients, as the system's own clock is everybody's. ENOBUFS is
the kernel's own, for lack of option memory (`net.core.optmem_max`), and the one that a TCP socket
can be brought to without taking memory from the whole system: where a send buffer has no room, it
blocks instead. The handler raises amid safesock's own code, but not before a `__del__` has begun:
CPython then drops the object as it is, with its descriptor open.

Memory is flat where it has grown, from the end of the warm-up, by no more than what
`chaos.worker` allows: 5,000 blocks and 8 MB, and 0.2 blocks and 20 bytes for each connection.

It takes the extras that the tests take: `pip install -e '.[test]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The network namespaces are those of the tests.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

KINDS = ("blocking", "asyncio", "uvloop", "enforced")
