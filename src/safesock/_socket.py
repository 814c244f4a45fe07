"""`SafeSocket`: a `socket.socket` that notices the loss of its connection and ends it properly."""

from __future__ import annotations

from safesock._policy import policy_or_default
from safesock._transfer import TransferSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from safesock._connection import Connection
    from safesock._policy import Policy


class SafeSocket(TransferSocket):
    """A `socket.socket` whose TCP connection ends by a policy, and whose loss is noticed.

    The constructor takes what `socket.socket` takes, and *policy* (None: `Policy()`). Any family
    and type will do; what is governed is a TCP connection that this socket made by `connect` or
    `connect_ex`. A listening or accepted socket, a duplicate, and one made with *fileno*, are left
    alone; `safesock.wrap` takes over an existing connection.

    Where it differs from `socket.socket`, once the connection is governed:

    - The call that meets the loss tells of it as ever (b"", or the same exception). With
      on_loss="close" the connection has then been shut down and its descriptor closed, and
      `fileno()` is -1. From then on, until `close()`, reading gives b"", sending raises
      BrokenPipeError, `getpeername` and `getsockname` go on answering, and calls that need a
      descriptor raise OSError (ENOTCONN).
    - `close()` carries out the policy: see `Graceful`, `Drain`, `Linger` and `Abort`. It ends the
      connection also where a duplicate descriptor exists, wakes threads that are blocked on it,
      and does not raise. In a forked child it closes the child's descriptor only.
    - A socket that is collected without `close()` ends by its policy as well (and gives the same
      ResourceWarning). One that a daemon thread still holds when the interpreter exits is never
      collected: the kernel closes it. Where a signal handler raises at the very moment at which
      CPython is to collect it, its descriptor stays open: call `close()`.
    - `bind` to a port other than 0 sets SO_REUSEADDR, unless the policy says otherwise.
    """

    __slots__ = ("_connection", "_policy")
    __module__ = "safesock"

    _connection: Connection | None
    _policy: Policy

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        policy: Policy | None = None,
    ) -> None:
        self._connection = None
        self._policy = policy_or_default(policy)
        super().__init__(family, type, proto, fileno)
