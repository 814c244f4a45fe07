"""`enforce`: one policy for all the connections that a process makes, by whatever client.

Methods of `socket.socket` are replaced in the class (see `_replaced`), so that every Python client
is reached, also one that took the class at import or derives from it. What has no `socket.socket`
(libpq, uvloop, gRPC) is found by a sweep over the descriptors.
"""

from __future__ import annotations

from safesock import _background, _forks, _kernel, _options, _unraisable
from safesock._kept import Kept, wards
from safesock._policy import FOR_CLIENTS, Policy, policy_or_default, sweep_in
from safesock._replaced import Methods
from safesock._sweep import Sweeper, missed
from safesock._value import Value, said
from safesock._ward import Ward, dismiss

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

_lock = _forks.lock()
# The last one is asked first.
_active: list[Enforcement] = []
_methods: Methods | None = None


class Report(Value):
    """What an enforcement has come to: `Enforcement.report`.

    seen: connections that were made under it.
    released: connections that the watcher or the sweep has ended by FIN, as their peers had closed.
    aborted: the same by RST, with `Abort`.
    missed: connections of this process that have been in CLOSE_WAIT for longer than the grace now,
        whoever made them: from before, of libraries in C, of peers that *only* leaves out. What
        listening sockets of this process have accepted does not count.
    """

    __slots__ = ("seen", "released", "aborted", "missed")
    seen: int
    released: int
    aborted: int
    missed: int

    def __init__(self, seen: int, released: int, aborted: int, missed: int) -> None:
        self._set(seen=seen, released=released, aborted=aborted, missed=missed)


class Enforcement:
    """One policy for all: see `enforce`. A context manager, which removes it at the end."""

    def __init__(self, policy: Policy, only: Callable[[Any], object] | None) -> None:
        self.policy = policy
        self._only = only
        self._counts = dict.fromkeys(("established", "released", "aborted"), 0)
        self._lock = _forks.lock()
        self._sweeper: Sweeper | None = None

    def __repr__(self) -> str:
        state = "in force" if self in _active else "removed"
        return f"<Enforcement {state}, {self.policy!r}>"

    def report(self) -> Report:
        """What was seen, and done, until now."""
        counts = self._counts
        left = missed(self.policy.grace)
        return Report(counts["established"], counts["released"], counts["aborted"], left)

    def remove(self) -> None:
        """Ends it: `socket.socket` is as it was before, unless another enforcement goes on.

        Connections that are alive go over to that one, or are left alone from here on. The thread
        that has watched them stays, asleep.
        """
        global _methods
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if self._sweeper is not None:
                self._sweeper.stop()
            if not _active and _methods is not None:
                _methods.restore()
                _methods = None
        for sock, ward in wards.all():
            # Bound methods are equal where their objects are the same.
            if ward.tell == self._count and not isinstance(sock, Kept):
                _go_over(sock, ward)

    def __enter__(self) -> Self:
        if self not in _active:
            raise RuntimeError("this enforcement has been removed: call safesock.enforce again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _applies_to(self, peer: Any) -> bool:
        try:
            return self._only is None or bool(self._only(peer))
        except Exception as error:
            # It is asked in the middle of somebody's connect, who knows nothing of it.
            _unraisable.report(error, "enforce(only): the connection is left alone")
            return False

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _sweep(self, seconds: float) -> None:
        if self.policy.on_loss != "keep":
            self._sweeper = Sweeper(seconds, self.policy.close, self._applies_to, self._count)


def enforce(
    policy: Policy | None = None,
    *,
    only: Callable[[Any], object] | None = None,
    sweep: float | None = None,
) -> Enforcement:
    """One *policy* for all the TCP connections that this process makes from now on, by whatever
    client: none of them stays in CLOSE_WAIT, and the clients behave as before.

    A connection is governed from its connect(2) on. When the peer has closed and the owner has not
    by the end of the policy's grace, the watcher ends it by shutdown(2), or a RST with `Abort`; the
    descriptor and what is unread stay with the owner, whose calls tell what they would have told
    without it: what is unread, the end, a first send that seems to succeed. Until then it is a
    plain socket, and reads and writes at its speed. A close goes by the policy too (with `Drain`
    and `Linger` it waits), but for `Graceful`, which leaves it as it is, and in a process that has
    been forked since. A forked child leaves alone what it has inherited.

    policy: None is `Policy(on_loss="release")`. With on_loss="close" the descriptor is closed in
        the call that tells of the loss, which most clients do not expect.
    only: a function of the peer's address, as getpeername(2) gives it; connections for which it
        gives False are left alone. It is called in the middle of connect, and may neither block nor
        raise: when it does, that is told by `sys.unraisablehook`, and the connection left alone.
    sweep: for connections without a `socket.socket`, duplicates, and those from before: seconds,
        from 0.1, after which any connection that this process has made, and that nothing of
        safesock governs, is ended if it is in CLOSE_WAIT and nothing has come from its peer for so
        long: one that goes on acknowledging what is sent to it is not gone. None: no sweep; nor
        with on_loss="keep", nor before Linux 4.19, which does not tell who has connected.

    Gives a handle: `remove()`, `report()`, and it is a context manager. Enforcements nest: of those
    that apply the last one counts. Servers' sockets, UDP and AF_UNIX are left alone, and so is what
    a `SafeSocket` governs. Raises TypeError and ValueError for what it cannot
    work with, and RuntimeError in a subinterpreter.

    A sweep goes by its own enforcement alone, and ends a `SafeSocket` of a policy with watch=False
    too. Subinterpreters are left alone.

    Not for programs that send after the peer's half-close: they take on_loss="keep" or *only*.
    Linux; elsewhere it changes nothing but how a close goes.
    """
    global _methods
    chosen = FOR_CLIENTS if policy is None else policy_or_default(policy)
    if only is not None and not callable(only):
        raise TypeError(f"only takes a function of the peer's address: not {said(only)}")
    if not _background.IS_POSSIBLE:
        raise RuntimeError("enforce works in the main interpreter only")
    if not chosen.watch:
        raise ValueError("enforce lives by the watcher: not with Policy(watch=False)")
    made = Enforcement(chosen, only)
    if sweep is not None:
        made._sweep(sweep_in("enforce(sweep)", sweep))
    with _lock:
        if _methods is None:
            _forks.count()
            _methods = Methods(_made, _are_for_all)
        _active.append(made)
    return made


def _made(sock: socket.socket, ward: Ward) -> None:
    if not ward.claim():
        return
    chosen = _chosen_for(_kernel.peer_name(sock))
    if chosen is None:
        dismiss(sock)
        return
    _options.prepare(sock, chosen.policy)
    ward.begins(sock, chosen.policy, chosen._count)
    chosen._count("established")
    if chosen not in _active:  # It has been removed meanwhile.
        _go_over(sock, ward)


def _are_for_all() -> bool:
    return all(one._only is None for one in tuple(_active))


def _go_over(sock: socket.socket, ward: Ward) -> None:
    other = None if ward.connection is None else _chosen_for(ward.connection.peer)
    if other is None:
        ward.leaves(sock, None)
    else:
        ward.leaves(sock, other.policy, other._count)


def _chosen_for(peer: Any) -> Enforcement | None:
    return next((one for one in reversed(_active) if one._applies_to(peer)), None)
