"""What `safesock connect` tells on stderr."""

from __future__ import annotations

import os
import sys

from safesock._errors import shown
from safesock._reconnect import Reconnect
from safesock._socket import SafeSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tenacity


class News:
    """One line each."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def tell(self, text: str) -> None:
        """Unless nobody wants to know."""
        if not self._quiet:
            _write(text)

    def fail(self, text: str) -> None:
        """Why the exit status is what it is."""
        _write(f"error: {text}")

    def connected(self, sock: SafeSocket) -> None:
        """It may have been lost already."""
        try:
            local, peer = sock.getsockname(), sock.getpeername()
        except OSError:
            self.tell("connected")
        else:
            self.tell(f"connected from {shown(local)} to {shown(peer)}")

    def reconnect(self, attempts: int, deadline: float) -> Reconnect:
        """With the default strategies, and news of what they decide."""
        default = Reconnect(attempts, deadline)
        failed = ""

        def retry(state: tenacity.RetryCallState) -> bool:
            nonlocal failed
            error = state.outcome.exception() if state.outcome is not None else None
            what = str(error) or type(error).__name__
            failed = f"attempt {state.attempt_number} of {default.attempts}: {what}; "
            return default.retry(state)

        def wait(state: tenacity.RetryCallState) -> float:
            # Not asked about before: the loss of a connection, which was told when it happened.
            nonlocal failed
            seconds = default.wait(state)
            if state.attempt_number < default.attempts:
                self.tell(f"{failed}trying again in {seconds:.1f} s")
            failed = ""
            return seconds

        return Reconnect(attempts, deadline, wait, retry)


def _write(text: str) -> None:
    # Past the buffer of sys.stderr: what could not be written would be tried again at exit.
    if sys.stderr is None:
        return
    line = f"safesock: {' '.join(text.split())}\n".encode(errors="backslashreplace")
    try:
        os.write(sys.stderr.fileno(), line)
    except OSError:
        pass  # Nobody reads it, and the data goes on all the same.
