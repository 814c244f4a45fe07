"""What a loss is: which errors mean that a connection is over, and the records of its end."""

from __future__ import annotations

import enum
import errno

from safesock._policy import CloseMode
from safesock._value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Cause(enum.Enum):
    """Why a connection is over.

    FIN: the peer closed, or a TLS peer sent close_notify.
    RST: the peer, or something on the way, reset it.
    TIMEOUT: nothing answered: retransmission, TCP_USER_TIMEOUT or keepalive gave up.
    UNREACHABLE: nothing answered, and the network says that there is no way to the peer.
    ABORTED: this host ended it: `ss -K`, or another holder of the same connection.
    CLOSED: its owner closed it, without a loss before: only in a `CloseReport`.
    """

    FIN = "fin"
    RST = "rst"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    ABORTED = "aborted"
    CLOSED = "closed"


# What an error of a read or a write says of an established connection: it is over, by this cause,
# or (None) nothing. An errno that is not here says nothing.
_CAUSES: dict[str, Cause | None] = {
    "ECONNRESET": Cause.RST,
    "EPIPE": Cause.RST,
    "ETIMEDOUT": Cause.TIMEOUT,
    "ENETRESET": Cause.TIMEOUT,
    "EHOSTUNREACH": Cause.UNREACHABLE,
    "ENETUNREACH": Cause.UNREACHABLE,
    "EHOSTDOWN": Cause.UNREACHABLE,
    "ENETDOWN": Cause.UNREACHABLE,
    "ENONET": Cause.UNREACHABLE,
    "ECONNABORTED": Cause.ABORTED,
    "ENOTCONN": Cause.ABORTED,
    "ESHUTDOWN": Cause.ABORTED,
    "EAGAIN": None,
    "EWOULDBLOCK": None,
    "EINTR": None,
    "EINPROGRESS": None,
    "EALREADY": None,
    "EISCONN": None,
    "ECONNREFUSED": None,
    "ENOBUFS": None,
    "ENOMEM": None,
    "EBADF": None,
    "ENOTSOCK": None,
    "EINVAL": None,
    "EFAULT": None,
    "EMSGSIZE": None,
    "EDESTADDRREQ": None,
    "EOPNOTSUPP": None,
    "EACCES": None,
    "EPERM": None,
    "EMFILE": None,
    "EIO": None,
}

CAUSE_BY_ERRNO: Mapping[int, Cause | None] = {
    getattr(errno, name): cause for name, cause in _CAUSES.items() if hasattr(errno, name)
}


def cause_of(error: OSError) -> Cause | None:
    """Why the connection is over, or None when *error* does not say that it is.

    A timeout of the socket module is a TimeoutError without an errno: no loss.
    """
    return None if error.errno is None else CAUSE_BY_ERRNO.get(error.errno)


class End(Value):
    """What `Loss` and `CloseReport` have in common."""

    __slots__ = (
        "cause",
        "error",
        "local",
        "peer",
        "connection",
        "lifetime",
        "sent",
        "unacknowledged",
        "unread",
    )
    cause: Cause
    error: BaseException | None
    local: Any
    peer: Any
    connection: int
    lifetime: float
    sent: int | None
    unacknowledged: int | None
    unread: int | None

    def __init__(
        self,
        cause: Cause,
        error: BaseException | None,
        local: Any,
        peer: Any,
        connection: int,
        lifetime: float,
        sent: int | None,
        unacknowledged: int | None,
        unread: int | None,
    ) -> None:
        self._set(
            cause=cause,
            error=error,
            local=local,
            peer=peer,
            connection=connection,
            lifetime=lifetime,
            sent=sent,
            unacknowledged=unacknowledged,
            unread=unread,
        )


class Loss(End):
    """How a connection was lost, before its owner closed it: `sock.loss`.

    cause: a `Cause`.
    error: the exception that told of the loss, without its traceback, or None.
    local, peer: the addresses, as `getsockname` and `getpeername` gave them.
    connection: which one it was: in each process, they are numbered from 1, with the attempts to
        make one.
    lifetime: seconds from the connect to this record.
    sent: bytes that `send` accepted, over the whole connection; for TLS, bytes on the wire, with
        the handshake. Those that others sent who hold the same connection are among them.
    unacknowledged: those of them that the peer's kernel had not acknowledged (SIOCOUTQ). What is
        acknowledged has reached the peer's kernel: that is not to say that the peer's program has
        read it, let alone acted on it.
    unread: bytes received that the program had not read at the time of this record; for TLS,
        decrypted ones and those of records still encrypted.

    Numbers that the system does not tell are None.
    """

    __slots__ = ()


class CloseReport(End):
    """How a connection was closed: `sock.close_report`, once its descriptor was closed.

    The bytes are counted when the close was done; those unacknowledged, with `Linger`, when the
    kernel began to wait. The fields are those of a `Loss`, and:

    mode: the close mode that was carried out.
    reset: whether this side sent RST: `Abort`, or a `Drain` that met its timeout.
    """

    __slots__ = ("mode", "reset")
    mode: CloseMode
    reset: bool

    def __init__(
        self,
        cause: Cause,
        error: BaseException | None,
        local: Any,
        peer: Any,
        connection: int,
        lifetime: float,
        sent: int | None,
        unacknowledged: int | None,
        unread: int | None,
        mode: CloseMode,
        reset: bool,
    ) -> None:
        super().__init__(
            cause, error, local, peer, connection, lifetime, sent, unacknowledged, unread
        )
        self._set(mode=mode, reset=reset)
