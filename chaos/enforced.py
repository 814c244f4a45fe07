"""The client that knows nothing of safesock: http.client, in a pool, under `enforce`."""

from __future__ import annotations

import contextlib
import http.client
import random

import kernel

import safesock
from chaos import stream
from chaos.places import Places
from chaos.tally import Account, BrokenPromiseError, Tally
from chaos.weather import StruckError
from safesock import Graceful, Policy

_SECONDS = 0.5
_POOL = 12


class _Client(http.client.HTTPConnection):
    """That counts what it sends."""

    def __init__(self, host: str, port: int, account: Account, peer: str) -> None:
        super().__init__(host, port, timeout=_SECONDS)
        self.account, self.peer = account, peer
        self.requests = self.local_port = 0

    def connect(self) -> None:
        super().connect()
        self.local_port = self.sock.getsockname()[1]

    def send(self, data: object) -> None:
        assert isinstance(data, bytes)
        if self.sock is None:
            self.connect()
        self.account.most += len(data)
        super().send(data)
        self.account.least += len(data)


class Enforced:
    def __init__(self, places: Places, rng: random.Random, tally: Tally) -> None:
        self._places, self._rng, self._tally = places, rng, tally
        self._pool: list[_Client] = []
        self._policy = Policy(close=Graceful(), on_loss="release", grace=0.05)
        self._enforcement = safesock.enforce(self._policy)

    def exchange(self) -> None:
        rng = self._rng
        if len(self._pool) < _POOL and rng.random() < 0.6:
            peer, address = self._places.draw(rng)
            client = _Client(*address, self._tally.account(), peer)
        elif self._pool:
            client = self._pool.pop(rng.randrange(len(self._pool)))
        else:
            return
        try:
            self._request(client)
        except (OSError, http.client.HTTPException, StruckError) as error:
            client.account.struck |= isinstance(error, StruckError)
            self._meets(error)
            self._end(client)
            return
        if client.sock is None or rng.random() < 0.2:
            self._end(client)
        else:
            self._pool.append(client)  # Idle, whatever its server does.

    def _request(self, client: _Client) -> None:
        token, number = client.account.token, client.requests
        client.requests += 1
        size = self._rng.choice((0, 10, 1000, 5000))
        client.request("GET", stream.path(token, number, size))
        # Once http.client has closed, the next request would make another connection.
        client.auto_open = 0
        with client.getresponse() as answer:
            if self._rng.random() < 0.1:
                return  # The rest is left unread.
            try:
                body = answer.read()
            except http.client.IncompleteRead as error:
                body = error.partial
        # It may be short: http.client takes headers that are cut off for whole ones.
        if body != stream.down(token + number)[: min(len(body), size)]:
            raise BrokenPromiseError(
                f"connection {token:016x}: request {number} has another's answer"
            )

    def _meets(self, error: BaseException) -> None:
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            self._tally.expected[type(error).__name__] += 1
        else:
            self._tally.meets(error)

    def _end(self, client: _Client) -> None:
        for _ in range(100):
            with contextlib.suppress(StruckError):
                client.close()
                break
        if client.local_port:
            self._tally.ended(
                client.account,
                client.local_port,
                None,
                None,
                self._policy,
                peer=client.peer,
                may_lag=True,
                reads_ahead=True,
                is_plain=True,
            )

    def settle(self) -> None:
        """All that idle in the pool, and have been closed by their server, have been ended."""
        try:
            kernel.wait_until(
                lambda: all(
                    client.sock is None or kernel.state_of(client.sock) != "CLOSE_WAIT"
                    for client in self._pool
                ),
                "the watcher has ended what was left idle",
            )
        except AssertionError as error:
            raise BrokenPromiseError(
                f"{error}: {[repr(client.sock) for client in self._pool]}"
            ) from None
        for client in self._pool:
            self._end(client)
        self._pool.clear()

    def close(self) -> None:
        self._enforcement.remove()
