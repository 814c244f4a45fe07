"""The client that blocks: SafeSocket made in all ways, TLS, and the Connector in its three ways."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import cast

import kernel
import tenacity

import safesock
from chaos import stream
from chaos.ledger import FIXED_PORTS
from chaos.places import Address, Places, draw_policy
from chaos.talking import read, say, talk
from chaos.tally import Account, BrokenPromiseError, Tally
from chaos.weather import StruckError
from safesock import Connector, Policy, Reconnect, ReconnectError, SafeSocket

_SECONDS = 0.5
# Left idle in a round, for the watcher.
_IDLE = 12


class Blocking:
    def __init__(self, places: Places, rng: random.Random, tally: Tally) -> None:
        self._places, self._rng, self._tally = places, rng, tally
        # Made once, as each reads a file.
        self._contexts = [self._secured() for _ in range(8)]
        self._plain_context = places.tls()
        self._idle: list[tuple[SafeSocket, Account, int, str]] = []
        self._last: tuple[SafeSocket, Account, int, str] | None = None

    def _secured(self) -> tuple[ssl.SSLContext, Policy]:
        policy = draw_policy(self._rng)
        return safesock.secure(self._places.tls(), policy), policy

    def exchange(self) -> None:
        """One of all kinds, to its end."""
        kinds = (
            self._by_hand,
            self._by_hand,
            self._by_hand,
            self._with_tls,
            self._left_idle,
            self._dropped,
            self._in_turns,
            self._for_life,
        )
        with self._met():
            self._rng.choice(kinds)()

    def settle(self) -> None:
        """What was left idle has been ended by the watcher; nothing is left open."""
        try:
            kernel.wait_until(
                lambda: all(sock.fileno() < 0 or _is_open(sock) for sock, *_ in self._idle),
                "the watcher has ended what was left idle",
            )
        except AssertionError as error:
            raise BrokenPromiseError(f"{error}: {[repr(one) for one in self._idle]}") from None
        for sock, account, port, peer in self._idle:
            self._end(sock, account, port, peer)
        self._idle.clear()

    # Connections that are made one by one --------------------------------------------------------

    def _made(self, address: Address, policy: Policy) -> SafeSocket:
        rng = self._rng
        way = rng.randrange(4)
        if way == 0:
            return safesock.create_connection(address, _SECONDS, policy=policy)
        if way == 1:
            return safesock.wrap(socket.create_connection(address, _SECONDS), policy)
        sock = SafeSocket(policy=policy)
        try:
            sock.settimeout(_SECONDS)
            if way == 2:
                sock.connect(address)
            elif number := sock.connect_ex(address):
                raise OSError(number, "connect_ex")
        except BaseException:
            sock.close()
            raise
        return sock

    def _by_hand(self) -> None:
        peer, address = self._places.draw(self._rng)
        account = self._tally.account()
        with self._met():
            sock = self._made(address, draw_policy(self._rng))
            self._talk_and_end(sock, account, peer)

    def _with_tls(self) -> None:
        peer, address = self._places.draw(self._rng)
        account = self._tally.account(self._tally.name())
        context, policy = self._rng.choice(self._contexts)
        with self._met():
            plain = self._made(address, policy)
            port = plain.getsockname()[1]
            try:
                tls = context.wrap_socket(plain, server_hostname=stream.hostname(account.name))
            except BaseException:
                plain.close()
                self._tally.counts["handshakes that failed"] += 1
                raise
            self._talk_and_end(cast(SafeSocket, tls), account, peer, port)

    def _talk_and_end(
        self, sock: SafeSocket, account: Account, peer: str, port: int | None = None
    ) -> None:
        try:
            with _noted(account):
                port = port or sock.getsockname()[1]
                talk(sock, account, self._rng, self._tally.counts)
        finally:
            self._end(sock, account, port, peer)

    def _left_idle(self) -> None:
        """As a pool does: whether the peer closes is not looked at."""
        peer, address = self._places.draw(self._rng)
        account = self._tally.account()
        policy = draw_policy(self._rng, self._rng.choice(("close", "release")))
        if len(self._idle) >= _IDLE or not policy.watch:
            return
        with self._met():
            sock = self._made(address, policy)
            try:
                with _noted(account):
                    port = sock.getsockname()[1]
                    say(sock, account, self._rng)
                self._idle.append((sock, account, port, peer))
            except BaseException:
                self._end(sock, account, None, peer)
                raise

    def _dropped(self) -> None:
        """Its owner forgets it."""
        peer, address = self._places.draw(self._rng)
        account = self._tally.account()
        policy = draw_policy(self._rng)
        with self._met():
            sock = self._made(address, policy)
            port = sock.getsockname()[1]
            say(sock, account, self._rng)
            read(sock, account, self._rng, self._rng.randrange(1 + account.sizes[1]))
            if sock.loss is None:
                del sock
                self._tally.ended(account, port, None, None, policy, peer=peer)
            else:
                self._end(sock, account, port, peer)

    # A connection that comes back ----------------------------------------------------------------

    def _connector(
        self, address: Address, policy: Policy, greet: Callable[[SafeSocket], object] | None = None
    ) -> Connector:
        rng = self._rng
        wait = tenacity.wait_random(0, 0.05)
        return Connector(
            address,
            policy=policy,
            reconnect=Reconnect(attempts=4, deadline=2.0, wait=wait, stable_after=0.2),
            timeout=_SECONDS,
            on_connect=greet,
            local_address=("", rng.choice(FIXED_PORTS)) if rng.random() < 0.2 else None,
            abort_previous=rng.random() < 0.3,
        )

    def _in_turns(self) -> None:
        peer, address = self._places.draw(self._rng)
        policy = draw_policy(self._rng)
        left = self._rng.randrange(2, 6)
        with self._met(), self._connector(address, policy) as connector:
            turns = iter(connector)
            try:
                with contextlib.closing(connector), contextlib.closing(turns):  # type: ignore[type-var]
                    for sock in turns:
                        self._take_turn(connector, sock, peer)
                        left -= 1
                        if not left:
                            break
            except StruckError:
                if self._last is not None:
                    self._last[1].struck = True
                raise
            finally:
                self._take_leave()

    def _take_turn(self, connector: Connector, sock: SafeSocket, peer: str) -> None:
        self._take_leave()
        account = self._tally.account()
        self._last = sock, account, sock.getsockname()[1], peer
        with self._met(), _noted(account):
            sock.settimeout(_SECONDS)
            talk(sock, account, self._rng, self._tally.counts)
            connector.confirm()

    def _take_leave(self) -> None:
        """Of the connection of the turn before, which is over."""
        last, self._last = self._last, None
        if last is not None:
            self._tally.counts["turns of a connector"] += 1
            self._end(*last)

    def _for_life(self) -> None:
        peer, address = self._places.draw(self._rng)
        policy = draw_policy(self._rng, "close")
        greeted: list[tuple[Account, int]] = []

        def greet(sock: SafeSocket) -> None:
            greeted[:] = [(self._tally.account(), sock.getsockname()[1])]
            say(sock, greeted[0][0], self._rng)

        with self._met(), self._connector(address, policy, greet) as connector:
            sock = connector.socket()
            try:
                sock.settimeout(_SECONDS)
                for _ in range(self._rng.randrange(2, 6)):
                    self._one_life(sock, connector, greeted, peer)
            finally:
                sock.close()

    def _one_life(
        self,
        sock: SafeSocket,
        connector: Connector,
        greeted: list[tuple[Account, int]],
        peer: str,
    ) -> None:
        """One connection of it, to its end, which is told once."""
        try:
            while data := sock.recv(65536):
                greeted[0][0].reads(data)
            self._tally.counts["ends told to a socket for life"] += 1
        except ReconnectError as error:
            self._tally.meets(error)
            connector.confirm()
            return
        except (OSError, StruckError) as error:
            self._tally.meets(error)
            if isinstance(error, StruckError) and greeted:
                greeted[0][0].struck = True
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if not greeted:
            return  # Struck before it has dialled.
        report = sock.close_report
        account, port = greeted[0]
        if report is None or report.local[1] != port:
            if account.struck:  # It may go on with that connection, or with another one.
                return
            raise BrokenPromiseError(
                f"a socket for life: not the end of its connection: {report}, {port}"
            )
        greeted.clear()
        self._tally.ended(account, port, sock.loss, report, sock.policy, peer=peer)
        connector.confirm()

    # The end -------------------------------------------------------------------------------------

    def _end(self, sock: SafeSocket, account: Account, port: int | None, peer: str) -> None:
        policy = sock.policy
        for _ in range(100):
            try:
                sock.close()
                break
            except StruckError:
                account.struck = True
        if sock.fileno() != -1:
            raise BrokenPromiseError(f"still open after close: {sock!r}")
        report = sock.close_report
        if report is None and not account.struck:
            raise BrokenPromiseError(f"closed, and no report: {sock!r}")
        if port is None:
            if report is None:
                return
            port = report.local[1]
        self._tally.ended(account, port, sock.loss, report, policy, peer=peer)

    @contextlib.contextmanager
    def _met(self) -> Iterator[None]:
        """What is to be expected is counted."""
        try:
            yield
        except (OSError, StruckError) as error:
            self._tally.meets(error)


@contextlib.contextmanager
def _noted(account: Account) -> Iterator[None]:
    """What a signal handler raises: a second one may have struck what the first has left."""
    try:
        yield
    except StruckError:
        account.struck = True
        raise


def _is_open(sock: SafeSocket) -> bool:
    try:
        return kernel.state_of(sock) != "CLOSE_WAIT"
    except OSError as error:
        if error.errno == errno.EBADF:
            return True
        raise
