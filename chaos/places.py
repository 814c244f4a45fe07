"""Where a client of the run connects to, and how it ends."""

from __future__ import annotations

import random
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesock import Abort, Drain, Graceful, KeepAlive, Linger, Policy

Address = tuple[str, int]


@dataclass(frozen=True)
class Places:
    """The proxy on loopback, the server itself, and the proxy behind the cable, if there is one."""

    proxy: Address
    server: Address
    cable: Address | None
    folder: Path

    @classmethod
    def of(cls, arguments: list[str]) -> Places:
        host, proxy, server, cable, cable_port, folder = arguments
        behind = (cable, int(cable_port)) if cable else None
        return cls((host, int(proxy)), (host, int(server)), behind, Path(folder))

    def draw(self, rng: random.Random, often: float = 0.06) -> tuple[str, Address]:
        """Its name, and the address; over the cable so *often*."""
        number = rng.random()
        if self.cable is not None and number < often:
            return "cable", self.cable
        return ("server", self.server) if number > 0.9 else ("proxy", self.proxy)

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "authority.pem"))
        context.check_hostname = False  # The name says which connection it is.
        return context


_MODES: tuple[Any, ...] = (
    Graceful(),
    Graceful(),
    Graceful(),
    Drain(0.3),
    Drain(0.01),
    Linger(1),
    Abort(),
    Abort(),
)


def draw_policy(rng: random.Random, on_loss: Any = None) -> Policy:
    return Policy(
        close=rng.choice(_MODES),
        on_loss=on_loss or rng.choice(("close", "close", "close", "release", "keep")),
        grace=rng.choice((0.01, 0.05, 0.2)),
        keepalive=rng.choice((None, KeepAlive(1, 1, 3))),
        user_timeout=1.0,
        nodelay=rng.choice((None, True)),
        watch=rng.random() < 0.9,
    )
