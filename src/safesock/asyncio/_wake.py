"""What a coroutine waits for that is to go on within the loop's own callback.

A Future wakes its task in the next iteration of the loop, after another look at the selector: for a
short message that is a third of the whole. Where the loop calls and no task runs, the task can go
on at once.
"""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context
    from typing import Any

_current_task = asyncio.current_task


class Wake:
    """A future for one task: what `await` and `Task.cancel` ask of one, and no more."""

    __slots__ = ("_asyncio_future_blocking", "_loop", "_callback", "_context", "_error", "_done")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._error: BaseException | None = None
        self._done = False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the task."""
        return self._loop

    def __await__(self) -> Generator[Wake, None, None]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        self.result()

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """By the task that waits."""
        self._callback, self._context = callback, context
        if self._done:
            self._soon()

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """By the task."""
        removed = self._callback is not None and self._callback == callback
        if removed:
            self._callback = None
        return int(removed)

    def result(self) -> None:
        """Raises what it was ended with."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # Its traceback holds this frame: a reference cycle.

    def done(self) -> bool:
        """Whether the task may go on."""
        return self._done

    def cancelled(self) -> bool:
        """Whether it was `cancel` that ended it."""
        return isinstance(self._error, asyncio.CancelledError)

    def cancel(self, msg: Any = None) -> bool:
        """By `Task.cancel`."""
        if self._done:
            return False
        self.set_exception(asyncio.CancelledError(*() if msg is None else (msg,)))
        return True

    def set_exception(self, error: BaseException) -> None:
        """The task goes on with *error*, soon."""
        self._error = error
        self._soon()

    def set_result(self, _: None) -> None:
        """The task goes on: at once where the loop calls, else soon."""
        callback, context = self._callback, self._context
        if callback is None or context is None or _current_task(self._loop) is not None:
            self._soon()
        else:
            self._done = True
            self._callback = None
            context.run(callback, self)

    def _soon(self) -> None:
        self._done = True
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)
