"""`safesock connect`: stdin to the peer, the peer to stdout, over one connection after the other.

Nothing that `send` has accepted is sent again. What stdin gave and no connection has accepted yet,
64 KiB at most, is for the next connection; while there is none, stdin is not read.

All waiting is in one poll(2), so that each direction goes on where the other cannot. stdin and
stdout are shared with other programs, so they are left blocking: they are read and written only
when poll says so, and then at most PIPE_BUF bytes are written, for which a pipe that has room has
enough of it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import sys
import time

from safesock import _signals
from safesock._connector import Connector
from safesock._errors import ReconnectError
from safesock._netcat_link import Link
from safesock._netcat_news import News
from safesock._netcat_tls import Tls

DONE, FAILED = 0, 1

_CHUNK = 65536
_NO_READER = select.POLLERR | select.POLLHUP | select.POLLNVAL


def run(connector: Connector, tls: Tls | None, news: News, wait: float) -> int:
    """Copies until the end; gives the exit status. The connector is closed then. *wait*: seconds
    that the peer may be silent after the end of input.

    Raises KeyboardInterrupt, BrokenPipeError when nobody reads stdout, other OSErrors of stdin and
    stdout, and SystemExit at SIGTERM.
    """
    with _signals.raised() as woken, connector:
        return Netcat(connector, tls, news, wait, woken).run()


class Netcat:
    """What `run` does. *woken*: a descriptor that is readable when a signal has come."""

    def __init__(
        self, connector: Connector, tls: Tls | None, news: News, wait: float, woken: int
    ) -> None:
        self._connector = connector
        self._tls = tls
        self._news = news
        self._wait = wait
        self._woken = woken
        # A number that is closed must not be used: it may be given to a connection.
        self._stdin = None if sys.stdin is None else sys.stdin.fileno()
        self._stdout = None if sys.stdout is None else sys.stdout.fileno()
        # Set only when all input has been accepted by a connection.
        self._at_end = self._stdin is None
        self._unsent = memoryview(b"")
        self._unwritten = memoryview(b"")
        # When the peer was last heard of, or could have been but for what is unwritten.
        self._heard = 0.0

    def run(self) -> int:
        """The exit status."""
        while True:
            try:
                link = Link(self._connector.connect(), self._tls)
            except ReconnectError as error:
                return self._give_up(error)
            self._news.connected(link.sock)
            self._copy(link)
            link.close()
            if self._at_end:
                return self._finish(link)
            self._news.tell(f"lost: {link.how()}")

    def _give_up(self, error: ReconnectError) -> int:
        if self._unsent:
            self._news.tell(f"{len(self._unsent)} bytes that were read from stdin were not sent")
        self._news.fail(str(error))
        return FAILED

    def _finish(self, link: Link) -> int:
        if link.missing or link.error is not None:
            self._news.fail(f"after the end of input: {link.how()}")
            return FAILED
        self._news.tell(f"ended: {link.how()}")
        return DONE

    def _copy(self, link: Link) -> None:
        """Until the connection is over and all of it is written, or has been silent for too long
        after the end of input."""
        while self._unwritten or not link.over:
            ready = self._poll(link)
            of_link = ready.get(link.sock.fileno(), 0)
            if not of_link and self._has_waited(link):
                return
            if self._woken in ready:
                os.read(self._woken, _CHUNK)  # Its handler has not raised.
            if self._stdin in ready:
                self._read()
            link.note(of_link)
            if not self._unwritten and (of_link or link.has_input()):
                self._receive(link)
            self._write(ready)
            if not link.peer_has_closed and not link.over:
                self._send(link)

    def _poll(self, link: Link) -> dict[int, int]:
        """What has happened, by descriptor."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if self._stdin is not None and not self._at_end and not self._unsent and not link.over:
            poll.register(self._stdin, select.POLLIN)
        if self._stdout is not None:
            # With no event as well: it still tells when its reader has gone.
            poll.register(self._stdout, select.POLLOUT if self._unwritten else 0)
        to_send = bool(self._unsent) or (self._at_end and not link.half_closed)
        events = link.events(read=not self._unwritten, write=to_send)
        if events:
            poll.register(link.sock.fileno(), events)
        return dict(poll.poll(self._milliseconds(link)))

    def _milliseconds(self, link: Link) -> int | None:
        if self._unwritten:
            return None
        if link.has_input():
            return 0
        if not link.half_closed:
            return None
        return math.ceil(max(self._heard + self._wait - time.monotonic(), 0.0) * 1000)

    def _has_waited(self, link: Link) -> bool:
        """Whether the peer has been silent for too long after the end of input."""
        now = time.monotonic()
        if not link.half_closed or self._unwritten or now < self._heard + self._wait:
            return False
        if link.peer_goes_on():
            self._heard = now
            return False
        return True

    def _read(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return  # Somebody else made it non-blocking, and was quicker.
        self._at_end = not data
        self._unsent = memoryview(data)

    def _receive(self, link: Link) -> None:
        data = link.receive()
        if data:
            self._unwritten = memoryview(data)
            self._heard = time.monotonic()

    def _write(self, ready: dict[int, int]) -> None:
        if self._stdout is None:
            if self._unwritten:
                raise BrokenPipeError(errno.EPIPE, "stdout is closed")
            return
        events = ready.get(self._stdout, 0)
        if events & _NO_READER:
            raise BrokenPipeError(errno.EPIPE, "nobody reads stdout")
        if events & select.POLLOUT:
            with contextlib.suppress(BlockingIOError):
                size = os.write(self._stdout, self._unwritten[: select.PIPE_BUF])
                self._unwritten = self._unwritten[size:]
            self._heard = time.monotonic()

    def _send(self, link: Link) -> None:
        if self._unsent:
            self._unsent = self._unsent[link.send(self._unsent) :]
        if self._at_end and not link.half_closed and not link.over:
            link.half_close()
            self._heard = time.monotonic()
