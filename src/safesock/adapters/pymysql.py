"""PyMySQL, with a policy for its connection.

    from safesock.adapters.pymysql import connect

    connection = connect(host=host, port=port, user="tester", policy=policy)

`connect`, or `Connection`, takes what PyMySQL's takes, `ssl` and *policy* among them. `ping` with
reconnect=True, and `connection.connect()`, make the next connection go by the policy too.

What PyMySQL has connected, with its own exceptions, is taken over once the login is done. `close`
sends COM_QUIT first, as ever; then the connection ends by the policy.
"""

from __future__ import annotations

import socket

from safesock import _kernel
from safesock._extras import brought_by
from safesock._open import wrap
from safesock.adapters._policies import for_client

with brought_by("pymysql"):
    import pymysql
    import pymysql.connections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from safesock._policy import Policy

    Base = pymysql.connections.Connection[pymysql.cursors.Cursor]
else:
    Base = pymysql.connections.Connection

__all__ = ["Connection", "connect"]


class Connection(Base):
    """PyMySQL's, with a *policy*. Raises ValueError for on_loss="close"."""

    def __init__(self, *args: Any, policy: Policy | None = None, **kwargs: Any) -> None:
        self.policy: Policy = for_client(policy)
        super().__init__(*args, **kwargs)

    def connect(self, sock: socket.socket | None = None) -> None:
        """As PyMySQL's; then the connection goes by the policy. One over AF_UNIX, or over a *sock*
        that is no TCP socket, is left alone."""
        super().connect(sock)
        self._take_over()

    def _take_over(self) -> None:
        made: Any = self
        if not isinstance(made._sock, socket.socket) or not _kernel.is_tcp(made._sock):
            return
        made._rfile.close()  # It has no more to give: the server speaks when it is asked.
        made._sock = wrap(made._sock, self.policy)
        made._rfile = made._sock.makefile("rb")


connect = Connection
