"""`subscribe`: a function that is called with every event."""

from __future__ import annotations

import functools
import inspect

from safesock import _hub
from safesock._value import said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from safesock.events import Event


class Subscription:
    """What `subscribe` gives: `remove()` ends it; so does the end of a `with` block."""

    __module__ = "safesock"
    __slots__ = ("_callback", "_is_removed", "_name")

    def __init__(self, callback: Callable[[Event], object]) -> None:
        self._callback = callback
        self._is_removed = False
        self._name = getattr(callback, "__qualname__", type(callback).__qualname__)

    def __repr__(self) -> str:
        state = "removed" if self._is_removed else "in force"
        return f"<{self.__module__}.{type(self).__name__} of {self._name}, {state}>"

    def __call__(self, event: Event) -> None:
        """Calls the function, unless this has been removed."""
        if not self._is_removed:
            self._callback(event)

    def remove(self) -> None:
        """The function is not called any more, but for a call that another thread is in. May be
        called again, from any thread, and by the function itself."""
        self._is_removed = True
        _hub.remove(self)

    def __enter__(self) -> Self:
        if self._is_removed:
            raise RuntimeError("this subscription has been removed: call safesock.subscribe again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def subscribe(callback: Callable[[Event], object]) -> Subscription:
    """Calls *callback* with every event from now on: one of the classes of `safesock.events`, for
    every TCP connection that safesock governs in this process, by whatever driver.

    The events of one connection come one after the other, in order: Connecting, Connected, Lost,
    Released, Closed, each at most once, whichever threads are at work with it. Those of others may
    come at the same time, from other threads. What happened before this call is not told.

    The callback is called where it happened, by the call that connects, reads, writes or closes,
    once that is done; in asyncio that is the loop, but for a close that waits (`Drain`, `Linger`),
    which has a thread of its own. That call waits for it: it is to be short, and must not wait for
    other threads. What the watcher, a sweep or the garbage collector comes upon is told some 20 ms
    later by a thread for that, unless a call of the owner's comes first. In that thread signals are
    blocked, and so they are in what it starts. A child that it forks is to end by os._exit: as in
    any thread but the main one, sys.exit there ends no more than the thread, with status 0 and no
    exit handler, and threads that never end, such as the watcher's, keep the process.

    Only a `Connector` that is dialling holds its lock meanwhile, which is its thread's own: the
    callback may use, make and close sockets, this one too, subscribe, and remove. It is told of its
    own connections as well. What it raises, KeyboardInterrupt too, is told by `sys.unraisablehook`,
    and changes nothing else. Who subscribes a function twice is called twice. A forked child
    inherits the subscribers; of a connection that it has inherited, it tells no more than a loss
    that it meets itself.

    Gives a handle: `remove()`, and it is a context manager. Raises TypeError for what is no plain
    function.
    """
    if not callable(callback) or _is_suspended(callback):
        raise TypeError(f"subscribe takes a plain function of one event: not {said(callback)}")
    made = Subscription(callback)
    _hub.add(made)
    return made


def _is_suspended(callback: Any) -> bool:
    """Whether a call of it would do nothing but make a coroutine or a generator."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    called = (callback, getattr(type(callback), "__call__", None))  # noqa: B004
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(is_of_kind(one) for one in called for is_of_kind in kinds)
