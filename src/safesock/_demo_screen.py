"""How the demo looks: lines that stay, and, in a terminal, one at the bottom that is redrawn.

Without a terminal, or in a dumb one, it is the lines that stay and no control character.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import NamedTuple, TextIO

from safesock._demo_kernel import Count
from safesock._kernel import TcpState

WIDTH = 79
_TO_START_AND_ERASE = "\r\x1b[K"
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32"}

POOLS_HEAD = f"""\
{"plain sockets":>51}{"safesock":>21}
{"":33}CLOSE_WAIT descriptors  CLOSE_WAIT descriptors"""


class Attempt(NamedTuple):
    """One connection from a fixed port: its error, if any, and what is on the port afterwards."""

    error: OSError | None
    after: TcpState | None

    def __format__(self, spec: str) -> str:
        went = errno.errorcode.get(self.error.errno or 0, "failed") if self.error else "connected"
        return format(f"{went}; port {f'in {self.after.name}' if self.after else 'free'}", spec)


def ports_head(plain: int, safe: int) -> str:
    """The head of act 2: the two local ports."""
    return f"  turn  {f'plain, local port {plain}':<35} safesock, local port {safe}"


class Screen:
    """Where the demo is shown. *stream* may be None: a process may have no stdout."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        terminal = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = terminal and not os.environ.get("NO_COLOR")
        # A line that wraps cannot be redrawn.
        self._redraws = terminal and shutil.get_terminal_size().columns >= WIDTH
        self._drawn = False

    def say(self, text: str = "", style: str = "") -> None:
        """A line that stays."""
        self.erase()
        self._write(self.paint(text, style) + "\n")

    def draw(self, text: str) -> None:
        """The line at the bottom, until the next one is said or drawn."""
        if self._redraws:
            self._drawn = True
            self._write(_TO_START_AND_ERASE + text)

    def erase(self) -> None:
        """Takes the line at the bottom away."""
        if self._drawn:
            self._drawn = False
            self._write(_TO_START_AND_ERASE)

    def paint(self, text: str, style: str) -> str:
        """In a style of `_STYLES`, where there are colours."""
        if not style or not self._colours:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    def pools_row(self, seconds: float, text: str, plain: Count, safe: Count) -> str:
        """One line of act 1: when, what, and what the kernel has counted on either side."""
        return f"{seconds:4.1f} s  {text:<25}{self._count(plain)}  {self._count(safe)}"

    def ports_row(self, turn: int, plain: Attempt, safe: Attempt) -> str:
        """One line of act 2: one connection more on either side, from the same port."""
        return f"{turn:6}  {self._cell(f'{plain:<35}', plain)} {self._cell(f'{safe}', safe)}"

    def _cell(self, text: str, attempt: Attempt) -> str:
        return self.paint(text, "red" if attempt.error else "green")

    def _count(self, count: Count) -> str:
        style = "red" if count.close_wait else "green"
        return f"{self.paint(f'{count.close_wait:10}', style)} {count.descriptors:11}"

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
