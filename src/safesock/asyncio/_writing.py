"""What a transport does with what is written to it."""

from __future__ import annotations

import asyncio
import collections
import itertools
from asyncio import constants, transports
from asyncio.log import logger

from safesock import _kernel
from safesock._kernel import Raw
from safesock.asyncio._base import SafeTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Buffer

    from safesock._socket import SafeSocket

_send, _sendmsg = Raw.send, Raw.sendmsg
# The most buffers that sendmsg(2) takes (IOV_MAX).
_MOST_BUFFERS = 1024
NOT_NOW = (BlockingIOError, InterruptedError)


class WritingTransport(transports._FlowControlMixin, SafeTransport):
    """Sends what is written: now as far as the kernel takes it, the rest as soon as it does."""

    # Of asyncio's.
    _extra: dict[str, Any]
    if TYPE_CHECKING:

        def _maybe_pause_protocol(self) -> None: ...

        def _maybe_resume_protocol(self) -> None: ...

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: SafeSocket) -> None:
        super().__init__(None, loop)
        self._sock = sock
        # Its number while it is open: it is taken out of the loop before it is closed.
        self._fd = sock.fileno()
        # What the kernel has not taken yet, and how many bytes that is.
        self._buffer: collections.deque[Any] = collections.deque()
        self._buffered = 0
        # Asked to end; nothing goes out any more; there is to be a half-close.
        self._closing = self._gone = self._eof = False
        # The loop calls when the kernel takes more.
        self._writes = False
        self._discarded = 0

    def _force_close(self, error: BaseException | None, *, is_cut: bool = False) -> None:
        """By the policy, now. *is_cut*: something that was accepted has been dropped."""
        raise NotImplementedError

    def _leave_the_loop(self) -> bool:
        """Before the descriptor may be closed. Whether something that was accepted is dropped."""
        raise NotImplementedError

    def _listen(self, on: bool) -> None:
        """Whether the loop is to call when there is something to read."""
        raise NotImplementedError

    def write(self, data: Any) -> None:
        """Sends *data*, now as far as the kernel takes it, and the rest as soon as it does."""
        if type(data) is not bytes:
            data = _bytes_of(data)
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data:
            return
        if self._gone:
            self._discard()
        elif self._buffer:
            self._keep(data, 0)
        else:
            try:
                sent = _send(self._sock, data)
            except NOT_NOW:
                sent = 0
            except OSError as error:
                self._hold(data)
                self._write_failed(error)
                return
            if sent != len(data):
                self._keep(data, sent)

    def _keep(self, data: Any, sent: int) -> None:
        rest = memoryview(data)[sent:]
        # What its owner can change is copied.
        self._hold(rest if type(data) is bytes else bytes(rest))
        self._wants_to_write(True)
        self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        """As `write` for each of them, by one sendmsg(2)."""
        data = [bytes(memoryview(part)) for part in list_of_data]
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if not any(data):
            return
        if self._gone:
            self._discard()
            return
        was_empty = not self._buffer
        for part in data:
            if part:
                self._hold(part)
        if was_empty:
            self._write_ready()
        if self._buffer:
            self._wants_to_write(True)
            self._maybe_pause_protocol()

    def get_write_buffer_size(self) -> int:
        """The bytes that the kernel has not taken yet."""
        return self._buffered

    def can_write_eof(self) -> bool:
        """True."""
        return True

    def write_eof(self) -> None:
        """FIN (a half-close), after what was written has been sent."""
        if self._closing or self._eof:
            return
        self._eof = True
        if not self._buffer:
            self._sock.shutdown(_kernel.SHUT_WR)

    def _discard(self) -> None:
        if self._discarded >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._discarded += 1

    def _wants_to_write(self, on: bool) -> None:
        if self._loop.is_closed():
            on = False
        elif on and not self._writes:
            self._loop.add_writer(self._fd, self._write_ready)
        elif self._writes and not on:
            self._loop.remove_writer(self._fd)
        self._writes = on

    def _send_what_goes(self) -> None:
        """Before the end: what the kernel takes at once."""
        try:
            if self._buffer:
                self._drop_sent(_sendmsg(self._sock, itertools.islice(self._buffer, _MOST_BUFFERS)))
        except OSError:
            pass  # It is over.

    def _write_ready(self) -> None:
        try:
            sent = _sendmsg(self._sock, itertools.islice(self._buffer, _MOST_BUFFERS))
        except NOT_NOW:
            return
        except OSError as error:
            self._write_failed(error)
            return
        self._drop_sent(sent)
        self._maybe_resume_protocol()
        if not self._buffer:
            self._wants_to_write(False)
            if self._closing:
                self._force_close(None)
            elif self._eof:
                self._half_close()

    def _half_close(self) -> None:
        try:
            self._sock.shutdown(_kernel.SHUT_WR)
        except OSError:
            pass  # The connection is over, which the next read tells.

    def _hold(self, part: Any) -> None:
        self._buffer.append(part)
        self._buffered += len(part)

    def _drop_sent(self, sent: int) -> None:
        buffer = self._buffer
        self._buffered -= sent
        while sent:
            first = buffer.popleft()
            if len(first) > sent:
                buffer.appendleft(memoryview(first)[sent:])
                break
            sent -= len(first)

    def _write_failed(self, error: OSError) -> None:
        """Or seems to have succeeded, as the first send does where the watcher has ended it."""
        data = tuple(self._buffer)
        connection = self._sock._connection
        held = 0
        if connection is not None and connection.may_forgive():
            held = self._buffered
            self._drop_sent(held)  # Then it is counted by that, and what does not fit, here.
        is_cut = self._leave_the_loop()
        told, size = error, None
        try:
            size = self._sock._unsent(error, *data)
        except OSError as other:
            told = other
        if connection is not None and held:
            connection.leave_unsent(held - (size or 0))
        if size is None:
            self._force_close(told, is_cut=is_cut)
            return
        self._listen(True)
        self._maybe_resume_protocol()
        if self._closing:
            self._force_close(None)


def _bytes_of(data: Any) -> Any:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    return data.cast("B") if isinstance(data, memoryview) and data.nbytes != len(data) else data
