"""`enforce`: one policy for all the connections that a process makes, by whatever client.

The methods of `socket.socket` by which a connection begins and ends are replaced in the class, so
that every Python client is reached, also one that took the class at import or derives from it;
reading and writing stay C's own, and cost nothing. What has no `socket.socket` (libpq, uvloop,
gRPC) is found by a sweep over the descriptors.
"""

from __future__ import annotations

import errno
import functools
import socket
import threading
import weakref

from safesock import _kernel, _trio, _watch
from safesock._governed import GovernedSocket
from safesock._kept import Kept, wards
from safesock._kernel import Raw
from safesock._policy import Policy, policy_or_default, positive
from safesock._sweep import Sweeper, stale
from safesock._value import Value
from safesock._ward import Ward, count_forks, dismiss, ward_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

DEFAULT = Policy(on_loss="release")
_lock = threading.RLock()
# The last one is asked first.
_active: list[Enforcement] = []


class Report(Value):
    """What an enforcement has come to."""

    __slots__ = ("seen", "released", "aborted", "missed")
    # Connections that were made under it.
    seen: int
    # Those whose peer had closed, and that were ended by FIN, and by RST.
    released: int
    aborted: int
    # Connections of this process that are in CLOSE_WAIT now, and that nobody governs.
    missed: int

    def __init__(self, seen: int, released: int, aborted: int, missed: int) -> None:
        self._set(seen=seen, released=released, aborted=aborted, missed=missed)


class Enforcement:
    """One policy for all: see `enforce`. A context manager, which removes it at the end."""

    def __init__(self, policy: Policy, only: Callable[[Any], object] | None) -> None:
        self.policy = policy
        self._only = only
        self._counts = dict.fromkeys(("established", "released", "aborted"), 0)
        self._sweeper: Sweeper | None = None

    def applies_to(self, peer: Any) -> bool:
        """Whether connections to this address are its affair."""
        try:
            return self._only is None or bool(self._only(peer))
        except Exception as error:
            # It is asked in the middle of somebody's connect, who knows nothing of it.
            _watch.report(error, "enforce(only): the connection is left alone")
            return False

    def count(self, what: str) -> None:
        """For the report."""
        with _lock:
            self._counts[what] += 1

    def report(self) -> Report:
        """What was seen, and done, until now."""
        counts = self._counts
        missed = sum(1 for _ in stale(self.policy.grace))
        return Report(counts["established"], counts["released"], counts["aborted"], missed)

    def sweep(self, seconds: float) -> None:
        """Every so often."""
        self._sweeper = Sweeper(seconds, self.policy.close, self.applies_to, self.count)

    def remove(self) -> None:
        """Ends it: `socket.socket` is as it was before, unless another enforcement goes on.
        Connections that are alive are left alone from here on."""
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if self._sweeper is not None:
                self._sweeper.stop()
            if not _active:
                _restore()
        for sock, ward in list(wards.items()):
            if ward.tell == self.count and not isinstance(sock, Kept):
                dismiss(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


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
    plain socket, and reads and writes at its speed. A close goes by the policy too, but for
    `Graceful`, which leaves it as it is, and in a process that has been forked since.

    policy: None is `Policy(on_loss="release")`. With on_loss="close" the descriptor is closed in
        the call that tells of the loss, which most clients do not expect.
    only: a function of the peer's address; connections for which it gives False are left alone.
    sweep: seconds after which any connection of this process in CLOSE_WAIT is ended, whatever
        library has made it: for those without a `socket.socket`. None: no sweep. What listening
        sockets of this process have accepted is left alone.

    Gives a handle: `remove()`, `report()`, and it is a context manager. Enforcements nest: of those
    that apply the last one counts. Servers' sockets, UDP and AF_UNIX are left alone, and so is what
    a `SafeSocket` governs.

    Not for programs that send after the peer's half-close: they take on_loss="keep" or *only*.
    """
    chosen = DEFAULT if policy is None else policy_or_default(policy)
    if only is not None and not callable(only):
        raise TypeError(f"only takes a function of the peer's address: not {only!r}")
    made = Enforcement(chosen, only)
    if sweep is not None:
        made.sweep(positive("enforce(sweep)", sweep))
    with _lock:
        if not _active:
            _replace()
        _active.append(made)
    return made


# In place of the methods of socket.socket -----------------------------------------------------

_plain_init: Any = socket.socket.__init__
_plain_detach: Any = socket.socket.detach
_plain_real_close: Any = socket.socket._real_close  # type: ignore[attr-defined]
# By descriptor: whose connection it is, for ssl, which makes a second object for it.
_by_fd: weakref.WeakValueDictionary[int, Ward] = weakref.WeakValueDictionary()


def _replace() -> None:
    count_forks()
    for name, function in _REPLACED.items():
        setattr(socket.socket, name, function)


def _restore() -> None:
    _trio.forget()
    for name in _REPLACED:
        if name in _OF_PYTHON:
            setattr(socket.socket, name, _OF_PYTHON[name])
        else:
            delattr(socket.socket, name)  # C's own comes to light again.


def _is_candidate(sock: socket.socket) -> bool:
    return not isinstance(sock, GovernedSocket) and _kernel.is_tcp(sock)


def _made(sock: socket.socket, ward: Ward) -> None:
    peer = _kernel.peer_name(sock)
    chosen = next((one for one in reversed(_active) if one.applies_to(peer)), None)
    if chosen is None:
        dismiss(sock)
        return
    _kernel.prepare(sock, chosen.policy)
    wards[sock] = ward
    _by_fd[sock.fileno()] = ward
    ward.begins(sock, chosen.policy, chosen.count)
    chosen.count("established")


def _goes_on(sock: socket.socket) -> None:
    """The kernel goes on connecting."""
    if ward_of(sock) is None:
        ward = wards[sock] = Ward(sock, _made)
        _watch.watch(ward, connecting=True)


def _connect(self: socket.socket, address: Any, /) -> None:
    try:
        Raw.connect(self, address)
    except OSError as error:
        number = errno.EINPROGRESS if error.errno is None else error.errno
        if number in _kernel.CONNECT_GOES_ON and _is_candidate(self):
            _goes_on(self)
        elif number == errno.EISCONN:
            _finished(self)
        raise
    if _is_candidate(self):
        _made(self, ward_of(self) or Ward(self, _made))


def _connect_ex(self: socket.socket, address: Any, /) -> int:
    number = Raw.connect_ex(self, address)
    if number in (0, errno.EISCONN):
        if _is_candidate(self) and (number == 0 or ward_of(self) is not None):
            _finished(self) if ward_of(self) else _made(self, Ward(self, _made))
    elif number in _kernel.CONNECT_GOES_ON and _is_candidate(self):
        _goes_on(self)
    return number


def _finished(sock: socket.socket) -> None:
    """A connect that went on has been made, as far as its owner knows."""
    ward = ward_of(sock)
    if ward is not None and ward.connection is None and _kernel.was_established(sock):
        _made(sock, ward)


def _getsockopt(self: socket.socket, *args: Any) -> Any:
    value = Raw.getsockopt(self, *args)
    if not value and _kernel.asks_for_error(args):
        _finished(self)
    return value


def _init(
    self: socket.socket,
    family: int = -1,
    type: int = -1,
    proto: int = -1,
    fileno: int | None = None,
) -> None:
    _plain_init(self, family, type, proto, fileno)
    if fileno is not None:
        ward = _by_fd.get(fileno)
        if ward is not None and _is_candidate(self):
            ward.is_wanted_by(self)


def _detach(self: socket.socket) -> int:
    ward = dismiss(self)
    heir = None if ward is None else ward.heir()
    fd: int = _plain_detach(self)
    if ward is not None and heir is not None and heir.fileno() == fd:
        ward.moves_to(heir)
        wards[heir] = ward
        if ward.policy is not None and ward.policy.watch:
            _watch.watch(ward)
    return fd


def _real_close(self: socket.socket, *args: Any) -> None:
    ward = dismiss(self)
    if ward is not None:
        ward.close(self)
    _plain_real_close(self, *args)


_OF_PYTHON = {
    "__init__": _plain_init,
    "detach": _plain_detach,
    "_real_close": _plain_real_close,
}
_REPLACED: dict[str, Any] = {
    "__init__": functools.wraps(_plain_init)(_init),
    "connect": functools.wraps(Raw.connect)(_connect),
    "connect_ex": functools.wraps(Raw.connect_ex)(_connect_ex),
    "getsockopt": functools.wraps(Raw.getsockopt)(_getsockopt),
    "detach": functools.wraps(_plain_detach)(_detach),
    "_real_close": functools.wraps(_plain_real_close)(_real_close),
}
