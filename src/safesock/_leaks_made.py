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
    from collections.abc import Iterable, Iterator
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
# What calls a task, in asyncio and in trio: the frames outside are of whoever runs the loop.
_STEPS = ("Handle._run", "unrolled_run")


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

    address: what it was called with. calls: outermost first. thread: its number for the system, as
    Python's own is used again, and its name where it is not the main one. meanwhile: where others
    waited for it, if none of the calls in its task or thread is the test's own.
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

    def pause(self) -> None:
        """No more, until it is started again."""
        self._pid = 0

    def close(self) -> None:
        """No more, and what there is is forgotten."""
        self.pause()
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
    meanwhile = () if _has_own(calls) else _elsewhere()
    return Made(address, calls, threading.get_native_id(), _name_of_thread(), meanwhile)


def _name_of_thread() -> str | None:
    ident = threading.get_ident()
    if ident == threading.main_thread().ident:
        return None
    return next((one.name for one in threading.enumerate() if one.ident == ident), "?")


def _calls(frame: FrameType | None) -> Iterator[Call]:
    """Innermost first."""
    while frame is not None and not _is_of_a_runner(frame):
        yield _call(frame)
        frame = frame.f_back


def _call(frame: FrameType) -> Call:
    return Call(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _is_of_a_runner(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(_RUNNERS)


# Tasks and threads ------------------------------------------------------------------------------


def _has_own(calls: tuple[Call, ...]) -> bool:
    """In its task, if it is in one: clients that try several addresses do so in one for each."""
    starts = [place for place, call in enumerate(calls) if call.function in _STEPS]
    return any(call.is_own() for call in calls[max(starts, default=0) :])


def _elsewhere() -> tuple[Call, ...]:
    """The test's own lines at which other tasks, or the main thread, wait."""
    for waiting in (_tasks_of_asyncio, _tasks_of_trio, _main_thread):
        try:
            own = [last for calls in waiting() if (last := _last_own(calls)) is not None]
        except Exception:  # They may be half imported, or another thread's.
            continue
        if own:
            return tuple(dict.fromkeys(own))[:_MOST_TASKS]
    return ()


def _last_own(calls: Iterable[Call]) -> Call | None:
    return next((call for call in reversed(list(calls)) if call.is_own()), None)


def _tasks_of_asyncio() -> Iterator[Iterable[Call]]:
    asyncio = sys.modules["asyncio"]
    current = asyncio.current_task()
    return (_suspended(one.get_coro()) for one in asyncio.all_tasks() if one is not current)


def _tasks_of_trio() -> Iterator[Iterable[Call]]:
    task = sys.modules["trio"].lowlevel.current_task()
    while task.parent_nursery is not None:
        task = task.parent_nursery.parent_task
        yield _suspended(task.coro)


def _main_thread() -> Iterator[Iterable[Call]]:
    main = threading.main_thread().ident
    if main is not None and main != threading.get_ident():
        yield list(_calls(sys._current_frames()[main]))[::-1]


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
