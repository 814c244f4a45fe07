"""Byte-exact accounting: what clients say of their connections, held against what the peer says.

A client tells, of each connection whose peer is the proxy, once it is closed:

token, port: which one it was.
least, most: the bytes that were accepted for sending: one number where safesock has counted
    (`CloseReport.sent`), and the same on the wire with TLS.
unacknowledged, unread, cause, mode, reset: of the `CloseReport`; None where there is none.
got: the bytes that have been read off the connection; None where that is not known: with TLS, and
    with streams, which read ahead.
read_by_program: those that its program has read; None with TLS, where the wire has others.
exact: all that was accepted must have arrived, where the peer has read to the end.
lossy: it went over the cable that loses packets, so a RST may be lost, and others may end it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
# The close mode of a `Drain` that a signal handler has cut short: FIN, and then RST.
INTERRUPTED = "Drain, interrupted"
# The local ports of connectors that have a fixed one. What such a one dials next may meet what the
# peer still has of its last connection, and reset that (RFC 9293, 3.10.7.3).
FIXED_PORTS = range(20_000, 30_000)
# Of the peer's ends those at which it has read all that came.
_READ_ALL = ("fin", "rst")
_TOLD, _UNREAD, _NOT_TOLD = _SHORT = (
    "bytes not acknowledged, and told so",
    "bytes acknowledged, and not read by the peer",
    "bytes lost where no report tells of it",
)


class Ledger:
    """Matches the two, whichever comes first, and keeps what does not fit in `broken`."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.checked = self.exact = self.nameless = 0
        # Bytes, of connections whose own count is exact: how many that is not, `in_part` says.
        self.sent = self.received = self.in_part = 0
        # Why bytes that were sent have not been received.
        self.short: Counter[str] = Counter(dict.fromkeys(_SHORT, 0))
        self.faults: Counter[str] = Counter()
        self._clients: dict[tuple[int, int], Record] = {}
        self._peers: dict[tuple[int, int], Record] = {}
        # Of connections that ended before the peer had their names, by port.
        self._unnamed: dict[int, list[Record]] = {}

    def client(self, record: Record) -> None:
        key = record["token"], record["port"]
        peer = self._peers.pop(key, None)
        if peer is None:
            self._clients[key] = record
        else:
            self._check(record, peer)

    def peer(self, record: Record) -> None:
        self.faults[record["fault"]] += 1
        if record["token"] is None:
            self._unnamed.setdefault(record["port"], []).append(record)
            return
        key = record["token"], record["port"]
        client = self._clients.pop(key, None)
        if client is None:
            self._peers[key] = record
        else:
            self._check(client, record)

    @property
    def unmatched(self) -> int:
        """What clients have told, and the peer has not yet."""
        return len(self._clients)

    def finish(self) -> None:
        """Nothing more comes. What clients have told and the peer has not must have ended before
        the peer knew who it was. (The peer may know of more: of attempts that failed.) A port is
        used again, and which of its nameless connections was whose nobody knows: one must fit."""
        # Those with the most first: what fits one of them fits all that come after.
        for client in sorted(self._clients.values(), key=_acknowledged, reverse=True):
            self.nameless += 1
            acknowledged = _acknowledged(client)
            unnamed = self._unnamed.get(client["port"], [])
            fitting = next((peer for peer in unnamed if _may_have_had(peer, acknowledged)), None)
            if fitting is not None:
                unnamed.remove(fitting)
            elif unnamed:
                self._breaks("acknowledged and not received", client, unnamed[0])
            elif acknowledged > 0:
                self._breaks("acknowledged, and the peer knows of no such connection", client, {})
        self._clients.clear()

    def _check(self, client: Record, peer: Record) -> None:
        self.checked += 1
        self.exact += is_exact(client, peer)
        if client["least"] == client["most"]:
            self.sent += client["most"]
            self.received += peer["received"]
            self._explain(client["most"] - peer["received"], client["unacknowledged"])
        else:
            self.in_part += 1
        for what in faults_of(client, peer):
            self._breaks(what, client, peer)

    def _explain(self, short: int, unacknowledged: int | None) -> None:
        if unacknowledged is None:
            self.short[_NOT_TOLD] += short
        else:
            self.short[_TOLD] += (told := min(short, unacknowledged))
            self.short[_UNREAD] += short - told

    def _breaks(self, what: str, client: Record, peer: Record) -> None:
        self.broken.append(f"{what}: the client {client}, the peer {peer}")


def _acknowledged(client: Record) -> int:
    """The bytes that the peer's kernel must have had."""
    known = client["unacknowledged"]
    return 0 if known is None else int(client["least"]) - int(known)


def _may_have_had(peer: Record, acknowledged: int) -> bool:
    return peer["end"] not in _READ_ALL or acknowledged <= peer["received"]


def is_exact(client: Record, peer: Record) -> bool:
    """Whether the contract promises that all has arrived."""
    counted = client["least"] == client["most"]
    return bool(client["exact"] and counted and peer["end"] == "fin")


def faults_of(client: Record, peer: Record) -> Iterator[str]:
    """What is not as the contract promises."""
    yield from _of_what_was_sent(client, peer)
    if client["cause"] is not None:
        yield from _of_the_end(client, peer)
    if client["read_by_program"] is not None:
        yield from _of_what_was_read(client, peer)


def _of_what_was_sent(client: Record, peer: Record) -> Iterator[str]:
    if peer["received"] > client["most"]:
        yield "the peer has received more than was accepted"
    if is_exact(client, peer) and peer["received"] != client["most"]:
        yield "the peer has not received what was accepted, and a clean close promises that"
    known = client["unacknowledged"]
    if known is not None:
        if not 0 <= known <= client["least"]:
            yield "not so many can be unacknowledged"
        if peer["end"] in _READ_ALL and client["least"] - known > peer["received"]:
            yield "the peer has not received what was acknowledged"


def _of_the_end(client: Record, peer: Record) -> Iterator[str]:
    if client["lossy"] or peer["end"] in ("own", "none"):
        return
    if client["reset"] and client["mode"] == "Abort" and peer["end"] != "rst":
        yield "an abortive close that the peer does not see as RST"
    if client["cause"] == "RST" and not peer["reset"]:
        yield "lost by a RST that nobody has sent"
    if client["cause"] == "FIN" and not peer["fin"]:
        yield "lost by a FIN that nobody has sent"
    promised = client["mode"] not in ("Abort", INTERRUPTED) and not client["reset"]
    is_known = client["got"] is not None and client["port"] not in FIXED_PORTS
    unexplained = promised and is_known and peer["end"] == "rst"
    # Graceful answers what comes after the close with RST (RFC 1122).
    if unexplained and peer["written"] <= client["got"] + (client["unread"] or 0):
        yield "a RST where a FIN was promised"


def _of_what_was_read(client: Record, peer: Record) -> Iterator[str]:
    if client["read_by_program"] > peer["written"]:
        yield "more was read than the peer has sent"
    known = None not in (client["got"], client["unread"]) and client["cause"] == "FIN"
    if known and client["got"] + client["unread"] != peer["written"]:
        yield "what came before the FIN is neither read nor counted as unread"
