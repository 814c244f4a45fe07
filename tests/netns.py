"""Two hosts of one's own, in network namespaces: a network in which a peer can vanish.

It takes root and `ip`. Only the calling thread enters a namespace; a socket stays in the one that
it was made in, wherever it is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CLIENT, ROUTER, SERVICE = "192.0.2.1", "192.0.2.2", "198.51.100.1"
_CLIENT_MAC, _ROUTER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


class Namespace:
    """A network namespace, made and removed by `with`."""

    def __init__(self, label: str) -> None:
        self.name = f"safesock-{os.getpid()}-{secrets.token_hex(4)}-{label}"

    def __enter__(self) -> Namespace:
        _run("ip", "netns", "add", self.name)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._etc, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._etc.parent.rmdir()  # Unless others are in it.
        _run("ip", "netns", "delete", self.name)

    @property
    def _etc(self) -> Path:
        return Path("/etc/netns", self.name)

    def etc(self, files: dict[str, str]) -> None:
        """Files of its own in /etc, for what `python` runs."""
        self._etc.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self._etc / name).write_text(text, encoding="ascii")

    def python(self, text: str, *arguments: str) -> list[str]:
        """The command for a Python program in it."""
        return ["ip", "netns", "exec", self.name, sys.executable, "-c", text, *arguments]

    def ip(self, *commands: str) -> None:
        """Runs commands of ip(8) in it."""
        _run("ip", "-n", self.name, "-batch", "-", text="\n".join(commands))

    def sysctl(self, name: str, value: int) -> None:
        with self.entered():
            Path("/proc/sys/net", *name.split(".")).write_text(str(value), encoding="ascii")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in it: for the sockets that it makes, and for /proc/thread-self/net."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)


class Network:
    """A client's host, and behind a cable the router with the service: addresses CLIENT, ROUTER
    and SERVICE."""

    def __init__(self, client: Namespace, service: Namespace) -> None:
        self.client, self.service = client, service
        client.ip(
            f"link add eth0 address {_CLIENT_MAC} type veth"
            f" peer name eth0 address {_ROUTER_MAC} netns {service.name}",
            f"address add {CLIENT}/24 dev eth0",
            "link set lo up",  # Its own ICMP errors come that way.
            "link set eth0 up",
            f"neighbour add {ROUTER} lladdr {_ROUTER_MAC} dev eth0 nud permanent",
        )
        service.ip(
            f"address add {ROUTER}/24 dev eth0",
            f"address add {SERVICE}/32 dev lo",
            "link set lo up",
            "link set eth0 up",
            f"neighbour add {CLIENT} lladdr {_CLIENT_MAC} dev eth0 nud permanent",
        )
        client.ip(f"route add {SERVICE} via {ROUTER}")

    def vanish(self) -> None:
        """Nothing answers any more, not even by ICMP."""
        self.service.ip(f"address delete {SERVICE}/32 dev lo")

    def come_back(self) -> None:
        self.service.ip(f"address add {SERVICE}/32 dev lo")

    def lose_the_network(self) -> None:
        """The router says by ICMP that it knows no such network, for a few packets a second."""
        self._speak_icmp()
        self.vanish()

    def become_unreachable(self) -> None:
        """The router says by ICMP that there is no such host: on the cable where it should be,
        nobody answers ARP."""
        self._speak_icmp()
        self.vanish()
        self.service.ip(
            "link add eth1 type veth peer name eth2",
            "link set eth1 up",
            "link set eth2 up",
            f"route add {SERVICE} dev eth1",
        )
        _give_up_arp_soon(self.service, "eth1")

    def become_reachable(self) -> None:
        self.service.ip("link delete eth1")
        self.come_back()

    def _speak_icmp(self) -> None:
        self.service.sysctl("ipv4.ip_forward", 1)
        self.service.sysctl("ipv4.ip_early_demux", 0)  # A packet for a socket is not forwarded.
        self.service.sysctl("ipv4.icmp_ratemask", 0)  # No rate limit for any type.

    def lose_the_router(self) -> None:
        """The next hop answers no ARP."""
        _give_up_arp_soon(self.client, "eth0")
        self.service.ip("link set eth0 arp off")
        self.client.ip(f"neighbour delete {ROUTER} dev eth0")

    def pull_the_cable(self) -> None:
        self.service.ip("link set eth0 down")

    def plug_the_cable_in(self) -> None:
        self.service.ip(
            "link set eth0 up",
            f"neighbour replace {CLIENT} lladdr {_CLIENT_MAC} dev eth0 nud permanent",
        )

    def take_the_link_down(self) -> None:
        """The client's own: its routes are gone."""
        self.client.ip("link set eth0 down")

    def bring_the_link_up(self) -> None:
        self.client.ip(
            "link set eth0 up",
            f"neighbour replace {ROUTER} lladdr {_ROUTER_MAC} dev eth0 nud permanent",
            f"route replace {SERVICE} via {ROUTER}",
        )

    def deafen_the_client(self) -> None:
        """What the service sends does not leave its host."""
        self.service.ip(f"route add blackhole {CLIENT}/32")

    def undeafen_the_client(self) -> None:
        self.service.ip(f"route delete blackhole {CLIENT}/32")


def _give_up_arp_soon(host: Namespace, device: str) -> None:
    host.sysctl(f"ipv4.neigh.{device}.retrans_time_ms", 50)
    host.sysctl(f"ipv4.neigh.{device}.mcast_solicit", 1)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    with Namespace("client") as client, Namespace("service") as service:
        yield Network(client, service)


@functools.cache
def why_not() -> str | None:
    """Why there can be no namespaces here, or None."""
    if shutil.which("ip") is None:
        return "network namespaces take ip(8), of iproute2"
    try:
        _remove_those_of_the_dead()
        with network() as made, made.client.entered():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"network namespaces take root, or CAP_SYS_ADMIN and CAP_NET_ADMIN: {said}"


def existing(names: list[str]) -> list[str]:
    """Those of the namespaces that there are."""
    return [name for name in names if Path("/run/netns", name).exists()]


def _remove_those_of_the_dead() -> None:
    """What a process left that was killed."""
    for path in Path("/run/netns").glob("safesock-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            shutil.rmtree(f"/etc/netns/{path.name}", ignore_errors=True)
            _run("ip", "netns", "delete", path.name)


def _run(*command: str, text: str = "") -> None:
    # In a group of its own: Ctrl-C is for whoever made the namespaces, and removes them.
    subprocess.run(
        command,
        input=text,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
        process_group=0,
    )


def _setns(fd: int) -> None:
    if sys.version_info >= (3, 12):
        os.setns(fd, os.CLONE_NEWNET)
    else:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
