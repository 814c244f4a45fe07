"""The processes of a run and the networks between them, made by `with` and gone at its end."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import netns
import trustme

from chaos import KINDS

_ROOT = Path(__file__).parent.parent
# Of a hundred packets, those that are lost in bad times.
_LOST = 15
_TABLE = f"""
table inet chaos {{
    chain input {{
        type filter hook input priority 0;
        meta iifname "eth0" meta l4proto tcp numgen random mod 100 < {_LOST} drop
    }}
}}
"""


def why_no_network() -> str | None:
    """Why no link and no packet can be lost here, or None."""
    if reason := netns.why_not():
        return reason
    return None if shutil.which("nft") else "losing packets takes nft(8), of nftables"


class Process:
    """A part of the run: what it tells is read from `lines`; it ends when stdin does."""

    def __init__(self, name: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        self.name = name
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            pass_fds=pass_fds,
            process_group=0,  # Ctrl-C is for the run, which tells the others.
        )
        assert self._popen.stdout is not None
        self.lines: IO[bytes] = self._popen.stdout

    def end(self) -> None:
        """Asks it to."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def kill(self) -> int:
        """SIGKILL; its status. A no-op where it has ended."""
        self._popen.send_signal(signal.SIGKILL)
        self._popen.wait()
        return self._popen.returncode

    def wait(self, seconds: float) -> int:
        return self._popen.wait(seconds)


class Arena:
    """*network*: None on loopback only."""

    def __init__(self, seed: str, stack: contextlib.ExitStack, network: netns.Network | None):
        self._seed, self._stack, self._network = seed, stack, network
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        _write_certificates(self._folder)
        self._proxy_listener = self._listener(
            None if network is None else network.client, "127.0.0.1"
        )
        self._cable_listener: socket.socket | None = None
        if network is not None:
            self._cable_listener = self._listener(network.service, netns.SERVICE)
        self._server_port = self._free_port()
        self.server: Process | None = None
        self.disturbances = Disturbances(network) if network is not None else None

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._network is None else self._network.client.entered()

    def _listener(self, where: netns.Namespace | None, host: str) -> socket.socket:
        with contextlib.nullcontext() if where is None else where.entered():
            return self._stack.enter_context(socket.create_server((host, 0), backlog=1024))

    def _free_port(self) -> int:
        with self._inside(), socket.create_server(("127.0.0.1", 0)) as sock:
            return int(sock.getsockname()[1])

    def _start(self, name: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Process:
        with self._inside():
            process = Process(name, *arguments, pass_fds=pass_fds)
        self._stack.callback(process.kill)
        return process

    def start_server(self) -> Process:
        self.server = self._start(
            "server", "chaos.server", str(self._server_port), str(self._folder)
        )
        return self.server

    def start_proxy(self) -> Process:
        listeners = [self._proxy_listener]
        if self._cable_listener is not None:
            listeners.append(self._cable_listener)
        numbers = tuple(listener.fileno() for listener in listeners)
        arguments = ("chaos.proxy", f"{self._seed} proxy", str(self._server_port))
        return self._start("proxy", *arguments, *map(str, numbers), pass_fds=numbers)

    def start_clients(self, kinds: tuple[str, ...] = KINDS) -> list[Process]:
        cable = ("", 0) if self._cable_listener is None else self._cable_listener.getsockname()
        proxy = self._proxy_listener.getsockname()
        where = (*proxy, self._server_port, *cable, self._folder)
        clients = []
        for number, kind in enumerate(kinds):
            name = f"{kind} {number}"
            arguments = [kind, f"{self._seed} {number}", *map(str, where)]
            clients.append(self._start(name, "chaos.worker", *arguments))
        return clients


@contextlib.contextmanager
def arena(seed: str) -> Iterator[Arena]:
    with contextlib.ExitStack() as stack:
        network = None
        if why_no_network() is None:
            network = stack.enter_context(netns.network())
        yield Arena(seed, stack, network)


class Disturbances:
    """What may be the matter with the cable: each begins, and is over some time later."""

    def __init__(self, network: netns.Network) -> None:
        self._network = network
        self._left: list[str] = []
        self.all: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "packets lost": (self._lose_packets, self._lose_none),
            "cable pulled": (network.pull_the_cable, network.plug_the_cable_in),
            "link down": (network.take_the_link_down, network.bring_the_link_up),
            "host vanished": (network.vanish, network.come_back),
            "client deaf": (network.deafen_the_client, network.undeafen_the_client),
        }

    def draw(self, rng: random.Random) -> tuple[str, Callable[[], object], Callable[[], object]]:
        """In any order, but each before any comes again."""
        if not self._left:
            self._left = rng.sample(list(self.all), len(self.all))
        name = self._left.pop()
        return name, *self.all[name]

    def _lose_packets(self) -> None:
        for host in (self._network.client, self._network.service):
            _nft(host, _TABLE)

    def _lose_none(self) -> None:
        for host in (self._network.client, self._network.service):
            _nft(host, "delete table inet chaos")


def _nft(host: netns.Namespace, text: str) -> None:
    with host.entered():
        # In a group of its own: Ctrl-C is not for it.
        subprocess.run(
            ["nft", "-f", "-"],
            input=text,
            text=True,
            check=True,
            capture_output=True,
            process_group=0,
        )


def _write_certificates(folder: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate = authority.issue_cert("chaos.test")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
