"""The transport: asyncio's selector transport on a `SafeSocket`, by `add_reader` and `add_writer`
alone, so that uvloop will do as well.

What a call that came back empty or with an error means for the connection is decided by the socket,
as without asyncio; here it is put in the order that protocols expect.
"""

from __future__ import annotations

import asyncio
import warnings
from asyncio import constants, selector_events, trsock

from safesock import _kernel
from safesock._beside import apart, beside
from safesock._kernel import Raw, TcpState
from safesock._policy import Abort, mode_within, seconds_of
from safesock.asyncio._connect import wake
from safesock.asyncio._writing import NOT_NOW, WritingTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from safesock._socket import SafeSocket

_recv, _recv_into = Raw.recv, Raw.recv_into
# The most that is asked of recv(2) at a time.
MOST = 256 * 1024


class SocketTransport(WritingTransport):
    """A `SafeTransport` without TLS."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: SafeSocket,
        protocol: asyncio.BaseProtocol,
    ) -> None:
        super().__init__(loop, sock)
        self._extra["socket"] = trsock.TransportSocket(sock)
        self._extra["sockname"] = _kernel.local_name(sock)
        self._extra["peername"] = _kernel.peer_name(sock)
        # Being closed; the protocol has been told.
        self._ended = self._told = False
        self._paused = self._peer_has_closed = False
        # The loop calls when there is something to read.
        self._reads = False
        # libuv calls once where there is an error, and not again for what can be read before it.
        self._calls_once = not isinstance(loop, selector_events.BaseSelectorEventLoop)
        self._waiters: list[asyncio.Future[None]] = []
        self._time_limit: asyncio.TimerHandle | None = None
        # How much is read at a time; the protocol may say.
        self.read_size = MOST
        self.set_protocol(protocol)

    def begin(self, waiter: asyncio.Future[None] | None = None) -> None:
        """Has `connection_made` called, then reads, then wakes *waiter*: all soon."""
        self._loop.call_soon(self._protocol.connection_made, self)
        self.begin_to_read()
        if waiter is not None:
            self._loop.call_soon(wake, waiter)

    def begin_to_read(self) -> None:
        """Soon."""
        self._loop.call_soon(self._listen, True)

    def __repr__(self) -> str:
        state = "closed" if self._ended else "closing" if self._closing else "open"
        return f"<safesock.asyncio.SafeTransport {state} {self._sock!r}>"

    # Reading -----------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """The protocol that gets what comes from now on."""
        self._protocol: Any = protocol
        self._is_buffered = isinstance(protocol, asyncio.BufferedProtocol)
        if self._reads:
            self._listen(False)
            self._listen(True)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol."""
        return self._protocol  # type: ignore[no-any-return]

    def is_reading(self) -> bool:
        """Whether it is neither paused nor closing."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """No more `data_received`; the end of the connection is noticed all the same."""
        if self.is_reading():
            self._paused = True
            self._listen(False)

    def resume_reading(self) -> None:
        """After `pause_reading`."""
        if self._paused and not self._closing:
            self._paused = False
            self._listen(True)

    def _listen(self, on: bool) -> None:
        on = on and self.is_reading() and not self._peer_has_closed
        if self._loop.is_closed():
            on = False
        elif on and not self._reads:
            self._loop.add_reader(self._fd, self._reader())
        elif self._reads and not on:
            self._loop.remove_reader(self._fd)
        self._reads = on

    def _reader(self) -> Callable[[], None]:
        return self._read_into if self._is_buffered else self._read_bytes

    def _read_on(self) -> None:
        if self._reads:
            self._reader()()

    def _read_on_after_an_error(self) -> None:
        if _kernel.tcp_state(self._sock) is TcpState.CLOSE:
            self._loop.call_soon(self._read_on)

    def _read_bytes(self) -> None:
        try:
            data = _recv(self._sock, self.read_size)
        except NOT_NOW:
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._at_end()
            return
        if self._calls_once:
            self._read_on_after_an_error()
        try:
            self._protocol.data_received(data)
        except BaseException as error:
            self._protocol_failed(error, "data_received")

    def _read_into(self) -> None:
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except BaseException as error:
            self._protocol_failed(error, "get_buffer")
            return
        try:
            count = _recv_into(self._sock, buffer)
        except NOT_NOW:
            return
        except OSError as error:
            self._lost(error)
            return
        if not count:
            self._at_end()
            return
        if self._calls_once:
            self._read_on_after_an_error()
        try:
            self._protocol.buffer_updated(count)
        except BaseException as error:
            self._protocol_failed(error, "buffer_updated")

    def _protocol_failed(self, error: BaseException, call: str) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        message = f"Fatal error: protocol.{call}() call failed."
        about = {"message": message, "exception": error, "transport": self}
        self._loop.call_exception_handler({**about, "protocol": self._protocol})
        self._force_close(error)

    # The loss ----------------------------------------------------------------------------------

    def _at_end(self) -> None:
        """The peer has closed its side."""
        self._peer_has_closed = True
        self._listen(False)
        if self._sock.policy.on_loss != "close":
            self._tell_end(self._note_end())
            return
        self._send_what_goes()
        self._closing = self._gone = True
        self._leave_the_loop()
        if self._may_block():
            self._beside(self._note_end, self._tell_end)
        else:
            self._tell_end(self._note_end())

    def _note_end(self) -> OSError | None:
        """What the policy says is done. Gives the error that the watcher kept for its owner."""
        try:
            self._sock._nothing(b"", 1, 0)
        except OSError as error:
            return error
        return None

    def _tell_end(self, error: OSError | None) -> None:
        if self._ended:
            return  # Aborted meanwhile.
        closes = self._gone
        if closes or error is not None:
            self._force_close(error)  # First: whoever goes on in `eof_received` is to find it so.
        if error is not None:
            return
        try:
            stays = self._protocol.eof_received()
        except BaseException as failure:
            self._protocol_failed(failure, "eof_received")
            return
        if not stays and not closes:
            self.close()

    def _lost(self, error: OSError) -> None:
        """After a call that failed with *error*."""
        is_cut = self._leave_the_loop()
        told = error
        try:
            if self._sock._told(error):
                self._at_end()
                return
        except OSError as other:
            told = other
        self._force_close(told, is_cut=is_cut)

    # The end -----------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether it is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Ends the connection by its policy, after what was written has been sent."""
        if self._closing:
            return
        self._closing = True
        self._listen(False)
        mode = self._sock.policy.close
        if not self._buffer or isinstance(mode, Abort):
            self._force_close(None)
        elif self._may_block():
            self._time_limit = self._loop.call_later(seconds_of(mode), self.abort)

    def abort(self) -> None:
        """RST, at once; what has not been sent is dropped, and counted."""
        if not self._gone:
            self._sock._close_by(Abort())
        self._force_close(None)

    def _force_close(self, error: BaseException | None, *, is_cut: bool = False) -> None:
        """By the policy, now; by a RST, where a FIN would make what is cut off look complete."""
        is_cut |= self._leave_the_loop()
        if self._ended:
            return
        if is_cut and not self._gone and self._sock.loss is None:
            self._sock._close_by(Abort())
        self._closing = self._gone = self._ended = True
        if self._time_limit is not None:
            left = self._time_limit.when() - self._loop.time()
            self._sock._close_by(mode_within(self._sock.policy.close, left))
        if self._may_block():
            self._beside(self._sock.close, lambda _: self._say_lost(error))
        else:
            self._sock.close()
            if not self._loop.is_closed():  # Else there is nobody to be told.
                self._loop.call_soon(self._say_lost, error)

    def _say_lost(self, error: BaseException | None) -> None:
        self._told = True
        try:
            self._protocol.connection_lost(error)
        finally:
            for waiter in self._waiters:
                wake(waiter)

    def _leave_the_loop(self) -> bool:
        """Before the descriptor may be closed. What has not been sent is counted: was there any?"""
        self._listen(False)
        self._wants_to_write(False)
        if self._time_limit is not None:
            self._time_limit.cancel()
        if not self._buffer:
            return False
        if self._sock._connection is not None:
            self._sock._connection.leave_unsent(self._buffered)
        self._drop_sent(self._buffered)
        return True

    def _may_block(self) -> bool:
        connection = self._sock._connection
        if connection is None or connection.close_is_due:
            return False
        return connection.may_block()

    def _beside(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Does it in a thread, and goes on in the loop with what it gave."""

        def run() -> None:
            answer = work()
            try:
                self._loop.call_soon_threadsafe(then, answer)
            except RuntimeError:
                pass  # The loop has been closed: nobody waits for it.

        self._apart(run)

    def _apart(
        self, work: Callable[[], object], start: Callable[[Callable[[], object]], bool] = beside
    ) -> None:
        if not start(work):
            # Better cut short than the loop held up.
            self._sock._close_by(mode_within(self._sock.policy.close, 0))
            work()

    def _end(self) -> None:
        """As `close`."""
        self.close()

    async def _wait_ended(self) -> None:
        """Until the descriptor is closed and `connection_lost` has been called."""
        if not self._told:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def __del__(self) -> None:
        if getattr(self, "_ended", True):  # Unset when __init__ raised.
            return
        warnings.warn(f"unclosed transport {self!r}", ResourceWarning, 2, source=self)
        if self._buffer:
            self._sock._close_by(Abort())
        if self._may_block() and not self._loop.is_closed():
            self._apart(self._sock.close, apart)
        else:
            self._sock.close()
