"""The client's part in a thread of its own, for clients that block until the server has acted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from safesock.testing._wait import late

Result = TypeVar("Result")


class ClientCall(Generic[Result]):
    """A call of the client's that goes on in another thread: see `ScriptedPeer.run_client`."""

    def __init__(self, call: Callable[[], Result], timeout: float) -> None:
        self._timeout = timeout
        self._future: Future[Result] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(call,), name="safesock peer's client", daemon=True
        )
        self._thread.start()

    def result(self) -> Result:
        """What the call gave. Raises what it raised; TimeoutError when it is not over within the
        peer's timeout."""
        self._thread.join(self._timeout)
        if not self._future.done():
            raise late(self._timeout, "the end of the client's call")
        return self._future.result()

    def _run(self, call: Callable[[], Result]) -> None:
        try:
            self._future.set_result(call())
        except BaseException as error:
            self._future.set_exception(error)
