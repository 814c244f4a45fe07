"""The sequence diagrams of docs/: as their script draws them, with the states of the kernel."""

from __future__ import annotations

import socket
from typing import Any

import kernel
import pytest
from kernel import wait_until
from peer import TIMEOUT, Peer, PeerEnd

from docs import sequence
from docs.sequence import DIAGRAMS, FOLDER
from safesock import Policy, create_connection

POLICIES = {"close-wait": None, "watched": Policy(grace=0.1)}  # None: a plain socket.


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_picture_is_what_its_script_draws(name: str) -> None:
    drawn = sequence.drawn(DIAGRAMS[name])
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "python -m docs.sequence"


class Play:
    """The steps of a diagram, on real sockets."""

    def __init__(self, peer: Peer, policy: Policy | None) -> None:
        if policy is None:
            self._sock = socket.create_connection(peer.address, TIMEOUT)
        else:
            self._sock = create_connection(peer.address, TIMEOUT, policy=policy)
        self._end: PeerEnd = peer.accept()
        self._ends: tuple[Any, Any] = self._sock.getsockname(), peer.address
        self._acts = {
            "connect": lambda: None,
            "request": self._request,
            "server closes": self._end.fin,
            "nothing": lambda: None,
            "send": lambda: self._sock.sendall(b"request"),
            "watcher": lambda: None,
            "recv end": self._reads_end,
        }

    def does(self, what: str) -> None:
        self._acts[what]()

    def states(self) -> tuple[str | None, str | None]:
        """Of both ends; what has a descriptor has a state."""
        local, remote = self._ends
        if self._sock.fileno() < 0:
            return kernel.state(local, remote), kernel.state(remote, local)
        return kernel.state_of(self._sock), kernel.state(remote, local)

    def close(self) -> None:
        self._sock.close()

    def _request(self) -> None:
        self._sock.sendall(b"request")
        self._end.read(7)
        self._end.say(b"answer")
        assert self._sock.recv(100) == b"answer"

    def _reads_end(self) -> None:
        assert self._sock.recv(100) == b""


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_states_are_the_kernels(name: str, peer: Peer) -> None:
    play = Play(peer, POLICIES[name])
    try:
        for step in DIAGRAMS[name]:
            play.does(step.do)
            wanted = (step.client, step.server)
            wait_until(lambda wanted=wanted: play.states() == wanted, f"{step.do}: {wanted}")  # type: ignore[misc]
    finally:
        play.close()
