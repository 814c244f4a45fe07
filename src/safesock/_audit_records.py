"""What an audit finds: values."""

from __future__ import annotations

from safesock._kernel import TcpState
from safesock._policy import Policy
from safesock._value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Address = tuple[str, int]

_CLOSE_WAIT = TcpState.CLOSE_WAIT.name


class HeldConnection(Value):
    """A TCP connection, and the descriptor that holds it: see `audit`.

    pid, fd: the process and its descriptor. Both are None where the process is not known, which is
        so in an audit of the whole host only.
    state: its TCP state, such as "ESTABLISHED" or "CLOSE_WAIT"; "CLOSE" for one that is over.
    age: for how many seconds it has been in CLOSE_WAIT. It is counted from the last that came from
        its peer: that is the peer's FIN, unless keepalive, or what this side has sent since, was
        answered later. None in other states, and where the system does not tell.
    local, peer: its addresses; peer is None when it is over, as the kernel has forgotten it then.
    unread: bytes received that the program has not read.
    unacknowledged: bytes sent that the peer's kernel has not acknowledged.
    inode: the kernel's number of the socket: duplicates and forked children have the same one.
    accepted: whether it was accepted, and not made, by this host: its local port is listened on.
    lost: it is over, by a reset or a timeout, and this side has never shut it down: no table of
        the system's shows it any more, and the descriptor is all that is left.
    policy: the `Policy` that governs it, as far as safesock watches it in this very process.
    made: where in the code the socket was made, as lines "file:number", the last call last: for
        those that have a policy, in a program that has started `tracemalloc`.
    """

    __slots__ = (
        "pid",
        "fd",
        "state",
        "age",
        "local",
        "peer",
        "unread",
        "unacknowledged",
        "inode",
        "accepted",
        "lost",
        "policy",
        "made",
    )
    pid: int | None
    fd: int | None
    state: str
    age: float | None
    local: Address | None
    peer: Address | None
    unread: int | None
    unacknowledged: int | None
    inode: int
    accepted: bool
    lost: bool
    policy: Policy | None
    made: tuple[str, ...]

    def __init__(
        self,
        pid: int | None,
        fd: int | None,
        state: str,
        age: float | None,
        local: Address | None,
        peer: Address | None,
        unread: int | None,
        unacknowledged: int | None,
        inode: int,
        accepted: bool = False,
        lost: bool = False,
        policy: Policy | None = None,
        made: tuple[str, ...] = (),
    ) -> None:
        self._set_all(
            pid,
            fd,
            state,
            age,
            local,
            peer,
            unread,
            unacknowledged,
            inode,
            accepted,
            lost,
            policy,
            made,
        )

    def is_found(self, older_than: float | None = None) -> bool:
        """Whether it is left behind: lost, or in CLOSE_WAIT, and for longer than so many seconds.
        When a lost one was lost is not known: it counts in any case."""
        if self.lost or self.state != _CLOSE_WAIT:
            return self.lost
        return older_than is None or (self.age is not None and self.age > older_than)


class Audit(Value):
    """The TCP connections of a process: see `audit`. It can be iterated over, and has a length.

    connections: a tuple of `HeldConnection`, those that have been in CLOSE_WAIT for longest first.
    notes: what could not be read, and why, in words; an empty tuple where all could.
    """

    __slots__ = ("connections", "notes")
    connections: tuple[HeldConnection, ...]
    notes: tuple[str, ...]

    def __init__(
        self, connections: tuple[HeldConnection, ...], notes: tuple[str, ...] = ()
    ) -> None:
        self._set(connections=connections, notes=notes)

    def found(self, older_than: float | None = None) -> tuple[HeldConnection, ...]:
        """Those that are left behind: in CLOSE_WAIT, for longer than so many seconds, or lost."""
        return tuple(one for one in self.connections if one.is_found(older_than))

    def __iter__(self) -> Iterator[HeldConnection]:
        return iter(self.connections)

    def __len__(self) -> int:
        return len(self.connections)

    def __getitem__(self, index: int) -> HeldConnection:
        return self.connections[index]
