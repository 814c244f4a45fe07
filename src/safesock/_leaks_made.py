"""Where connections were made: Python tells its audit hooks of each connect(2), whatever the class
of the socket, in the thread that makes it and before it is made. What is not Python's (libpq,
uvloop) is not told.

An audit hook cannot be taken away: it is there once it has been asked for, and does nothing while
nobody records. Nothing of it may raise, as that would be raised by the connect.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from typing import NamedTuple

from safesock import _kernel, _proc
from safesock._kernel import Raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any

_MOST_CALLS = 100
_MOST_TASKS = 3
# So many records are kept before those of closed sockets are looked for.
_ENOUGH = 1000
_OWN = os.path.dirname(__file__) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = ("site-packages", "dist-packages")
# Who calls the test: no frame from there on is the test's.
_RUNNERS = ("_pytest.", "pluggy.")


class Call(NamedTuple):
    """A line that was being executed."""

    file: str
    line: int
    function: str

    def is_own(self) -> bool:
        """Whether it is of the code under test or the test: nothing that is installed."""
        return library(self.file) is None


class Made(NamedTuple):
    """One connect(2).

    address: what it was called with. calls: outermost first. thread: its ident, and its name where
    it is not the main one. meanwhile: what other tasks of its event loop waited for, where none of
    the calls is the test's own.
    """

    address: Any
    calls: tuple[Call, ...]
    thread: int
    thread_name: str | None
    meanwhile: tuple[Call, ...]


@functools.cache
def library(file: str) -> str | None:
    """The installed package, or module of the standard library, that it is of."""
    parts = file.split(os.sep)
    for installed in _INSTALLED:
        if installed in parts:
            return _stem(parts[parts.index(installed) + 1 :])
    if file.startswith(_OWN):
        return "safesock"
    if file.startswith(_STANDARD):
        return _stem(file.removeprefix(_STANDARD).split(os.sep))
    return "importlib" if file.startswith("<frozen") else None


def _stem(parts: list[str]) -> str:
    return parts[0].removesuffix(".py") if parts else "?"


class Recorder:
    """Keeps where the connections of this process are made, by inode, while it is on."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}
        self._limit = _ENOUGH
        # 0: it is off. A forked child has another one.
        self._pid = 0

    def start(self) -> None:
        """From now on, in this process. May be called again."""
        self._pid = os.getpid()
        _listen(self)

    def stop(self) -> None:
        """No more. May be called again."""
        self._pid = 0
        self._made.clear()
        if self in _recorders:
            _recorders.remove(self)

    def made(self, inode: int) -> Made | None:
        """Where the connection of this socket was made, as far as it was recorded."""
        return self._made.get(inode)

    def keep_only(self, inodes: set[int]) -> None:
        """Forgets all others."""
        self._made = {inode: made for inode, made in self._made.items() if inode in inodes}

    def _note(self, sock: Any, address: Any) -> None:
        if self._pid != os.getpid() or not _kernel.is_tcp(sock):
            return
        inode = os.fstat(Raw.fileno(sock)).st_ino
        # A connect that is asked for again, as it did not block, goes on from the first.
        if inode in self._made:
            return
        if len(self._made) >= self._limit:
            self.keep_only({inode for _, inode in _proc.sockets_of(self._pid)})
            self._limit = max(_ENOUGH, 2 * len(self._made))
        self._made[inode] = _made_here(address)


_recorders: list[Recorder] = []
_has_hook = False


def _listen(recorder: Recorder) -> None:
    global _has_hook
    if recorder not in _recorders:
        _recorders.append(recorder)
    if not _has_hook:
        _has_hook = True
        sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect":
        return
    try:
        for recorder in tuple(_recorders):
            recorder._note(*arguments)
    except Exception:
        pass


def _made_here(address: Any) -> Made:
    calls = tuple(_calls(sys._getframe(3)))[:_MOST_CALLS][::-1]
    thread = threading.get_ident()
    meanwhile = () if any(call.is_own() for call in calls) else tuple(_elsewhere())
    return Made(address, calls, thread, _name_of(thread), meanwhile[:_MOST_TASKS])


def _name_of(thread: int) -> str | None:
    if thread == threading.main_thread().ident:
        return None
    return next((one.name for one in threading.enumerate() if one.ident == thread), "?")


def _calls(frame: FrameType | None) -> Iterator[Call]:
    """Innermost first."""
    while frame is not None and not _is_of_a_runner(frame):
        yield _call(frame)
        frame = frame.f_back


def _call(frame: FrameType) -> Call:
    return Call(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _is_of_a_runner(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_RUNNERS)


# Tasks ------------------------------------------------------------------------------------------


def _elsewhere() -> Iterator[Call]:
    """The line of the test's own code at which each other task of this event loop waits: clients
    that try several addresses do so in a task for each."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return
    current = asyncio.current_task()
    for task in asyncio.all_tasks():
        own = [call for call in _suspended(task.get_coro()) if call.is_own()]
        if own and task is not current:
            yield own[-1]


def _suspended(one: Any) -> Iterator[Call]:
    """Outermost first, along what each coroutine awaits."""
    while one is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(one, f"{kind}_frame", None)
            if frame is not None:
                yield _call(frame)
                one = getattr(one, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return
