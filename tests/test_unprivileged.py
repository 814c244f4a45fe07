"""What takes a capability for root only on newer kernels, by a process that has none of those."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

ABORTED_BEHIND_UNREAD_INPUT = """
import socket, sys
import safesock

policy = safesock.Policy(safesock.Abort(), on_loss="release", grace=0)
with socket.create_server((sys.argv[1], 0), family=int(sys.argv[2])) as server:
    sock = safesock.create_connection(server.getsockname()[:2], 20, policy=policy)
    end, _ = server.accept()
    end.settimeout(20)
    end.sendall(b"hello")
    end.shutdown(socket.SHUT_WR)
    try:
        print(end.recv(1))
    except ConnectionResetError:
        print("reset", sock.recv(100), sock.recv(100))
    sock.close()
    print(sock.close_report.reset)
"""
CONNECT_INTO_A_BLACK_HOLE = """
import socket, sys
from safesock.testing import ScriptedPeer

with ScriptedPeer(host=sys.argv[1]) as peer:
    for _ in range(2):
        with peer.black_hole(), peer.black_hole():
            try:
                socket.create_connection(peer.address, 0.2).close()
            except TimeoutError:
                print("no answer")
        with socket.create_connection(peer.address, 20):
            peer.accept().fin()
"""
PROGRAMS = {
    "abort behind unread input": (ABORTED_BEHIND_UNREAD_INPUT, "reset b'hello' b''\nTrue\n"),
    "black hole": (CONNECT_INTO_A_BLACK_HOLE, "no answer\n" * 2),
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("program", "expected"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_it_takes_no_capability(program: str, expected: str, host: str) -> None:
    family = int(socket.AF_INET6 if ":" in host else socket.AF_INET)
    command = [sys.executable, "-c", program, host, str(family)]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("a root without capabilities takes setpriv(1), of util-linux")
        command = [setpriv, "--bounding-set", "-all", "--inh-caps", "-all", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
