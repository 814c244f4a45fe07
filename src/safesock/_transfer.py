"""Reading and writing of a socket whose connection is governed.

Each read and write is one Python call around the C method; what it costs more is paid only when it
came back empty or with an error.
"""

from __future__ import annotations

import socket

from safesock import _kernel
from safesock._governed import GovernedSocket, broken_pipe
from safesock._kernel import Raw
from safesock._loss import Cause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Buffer

# Looked up once: on the hot path every attribute counts. Windows has no recvmsg and sendmsg.
_recv, _recv_into = Raw.recv, Raw.recv_into
_recvfrom, _recvfrom_into = Raw.recvfrom, Raw.recvfrom_into
_send, _sendall = Raw.send, Raw.sendall
_sendto: Any = Raw.sendto
_recvmsg: Any = getattr(Raw, "recvmsg", None)
_recvmsg_into: Any = getattr(Raw, "recvmsg_into", None)
_sendmsg: Any = getattr(Raw, "sendmsg", None)

_GiveUp: type[Exception] = socket._GiveupOnSendfile  # type: ignore[attr-defined]

# Reads that do not speak of the stream: an empty answer to them is not its end.
_ASIDE = int(getattr(socket, "MSG_OOB", 0) | getattr(socket, "MSG_ERRQUEUE", 0))


class TransferSocket(GovernedSocket):
    """Reads and writes by which a loss is noticed, and told."""

    __slots__ = ()

    # Reading ---------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """recv(2)."""
        try:
            # Two calls, as passing on a flag that is not there costs a tenth of the whole.
            data = _recv(self, bufsize, flags) if flags else _recv(self, bufsize)
            if not data:
                data = self._nothing(data, bufsize, flags)
            connection = self._connection
            return data if connection is None or not connection.drops else b""
        except OSError as error:
            if self._told(error):
                return b""
            raise

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """recv(2) into a buffer."""
        try:
            size = _recv_into(self, buffer, nbytes, flags)
            if not size:
                size = self._nothing(0, buffer, flags)
            elif self._has_gap():
                size = 0
            return size
        except OSError as error:
            if self._told(error):
                return 0
            raise

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """recvfrom(2)."""
        try:
            answer = _recvfrom(self, bufsize, flags)
            if not answer[0]:
                answer = self._nothing(answer, bufsize, flags)
            elif self._has_gap():
                answer = b"", None
            return answer
        except OSError as error:
            if self._told(error):
                return b"", None
            raise

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """recvfrom(2) into a buffer."""
        try:
            answer = _recvfrom_into(self, buffer, nbytes, flags)
            if not answer[0]:
                answer = self._nothing(answer, buffer, flags)
            elif self._has_gap():
                answer = 0, None
            return answer
        except OSError as error:
            if self._told(error):
                return 0, None
            raise

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """recvmsg(2)."""
        try:
            answer = _recvmsg(self, bufsize, ancbufsize, flags)
            if not answer[0]:
                answer = self._nothing(answer, bufsize, flags)
            elif self._has_gap():
                answer = b"", [], 0, None
            return answer
        except OSError as error:
            if self._told(error):
                return b"", [], 0, None
            raise

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> Any:
        """recvmsg(2) into buffers."""
        buffers = tuple(buffers)
        try:
            answer = _recvmsg_into(self, buffers, ancbufsize, flags)
            if not answer[0]:
                answer = self._nothing(answer, buffers, flags)
            elif self._has_gap():
                answer = 0, [], 0, None
            return answer
        except OSError as error:
            if self._told(error):
                return 0, [], 0, None
            raise

    def _has_gap(self) -> bool:
        """Whether what was read just now may come after what another thread, which closes, has
        dropped: it is then to be taken for the end."""
        connection = self._connection
        return connection is not None and connection.drops

    def _nothing(self, answer: Any, asked: Any, flags: int) -> Any:
        """After a read that gave nothing: is it the end? Raises the error that was kept for it."""
        connection = self._governed()
        if connection is None or flags & _ASIDE or not _room(asked) or self._is_closed():
            return answer
        self._raise_untold(connection, connection.close_is_due)
        if connection.is_over(self):
            self._lose(Cause.FIN, None)
        return answer

    def _told(self, error: OSError) -> bool:
        """After a read that failed: whether it is to give b"", as its owner has been told of the
        loss, or the watcher has ended a connection that the peer had closed."""
        if self._is_gone():
            return True
        if self._was_aborted(error):
            return True
        self._failed(error)
        connection = self._connection
        ended_here = connection is not None and connection.was_ended_here(self._cause(error))
        return ended_here or self._is_echo()

    # Writing ---------------------------------------------------------------------------------

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """send(2)."""
        try:
            return _send(self, data, flags) if flags else _send(self, data)
        except OSError as error:
            size = self._unsent(error, data)
            if size is None:
                raise
            return size

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """send(2) until all is sent. After a loss, `loss.sent` says how much the kernel took."""
        try:
            _sendall(self, data, flags)
        except OSError as error:
            size = self._unsent(error, data)
            if size is None:
                raise
            if size < memoryview(data).nbytes:
                raise broken_pipe() from None

    def sendto(self, data: Buffer, *flags_and_address: Any) -> int:
        """sendto(2)."""
        try:
            sent: int = _sendto(self, data, *flags_and_address)
        except OSError as error:
            size = self._unsent(error, data)
            if size is None:
                raise
            return size
        return sent

    def sendmsg(self, buffers: Iterable[Buffer], *args: Any) -> int:
        """sendmsg(2)."""
        buffers = tuple(buffers)
        try:
            sent: int = _sendmsg(self, buffers, *args)
        except OSError as error:
            size = self._unsent(error, *buffers)
            if size is None:
                raise
            return size
        return sent

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As in the standard library: sendfile(2), or `send` where that is not possible."""
        if self._is_gone():
            raise broken_pipe()
        try:
            return super().sendfile(file, offset, count)
        except OSError as error:
            self._failed(error)
            raise

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        # socket.sendfile goes on with send after this, and the error of the connection is used up.
        try:
            return self._send_file(file, offset, count)
        except _GiveUp as gave_up:
            if isinstance(gave_up.args[0], OSError):
                self._failed(gave_up.args[0])
            if self._is_gone():
                raise broken_pipe() from None
            raise

    def _send_file(self, *args: Any) -> int:
        """The standard library asks for the number of the descriptor once, and goes on with it."""
        connection = self._connection
        if connection is None:
            sent: int = super()._sendfile_use_sendfile(*args)  # type: ignore[misc]
            return sent
        visit = connection.enter()
        try:
            if self._is_gone():
                raise broken_pipe()
            sent = super()._sendfile_use_sendfile(*args)  # type: ignore[misc]
        finally:
            del visit
            connection.leave(self)
        return sent

    def _unsent(self, error: OSError, *data: Buffer) -> int | None:
        """After a write that failed: the bytes to report as sent, or None to raise *error*."""
        if self._is_gone():
            raise broken_pipe() from None
        connection = self._governed()
        if connection is None or not connection.was_ended_here(self._cause(error)):
            self._failed(error)
            if self._is_echo():
                raise broken_pipe() from None
            return None
        if connection.may_forgive():
            size = sum(memoryview(part).nbytes for part in data)
            fits = min(size, _kernel.room(self))
            if fits:
                connection.forgive(fits)
            if fits or not size:
                return fits
        self._failed(error)
        if self._means_broken_pipe(error):
            return None
        raise broken_pipe() from None

    def _means_broken_pipe(self, error: OSError) -> bool:
        return isinstance(error, BrokenPipeError)


def _room(asked: Any) -> int:
    """The bytes that a read asked for: a number, a buffer or a tuple of buffers."""
    if hasattr(asked, "__index__"):
        return int(asked.__index__())
    if isinstance(asked, tuple):
        return sum(memoryview(buffer).nbytes for buffer in asked)
    return memoryview(asked).nbytes
