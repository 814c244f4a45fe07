"""Ctrl-C, or SIGTERM: the first asks for the end, in order; the second for one at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

_WORDS = b"interrupted: it ends in order; once more ends it at once\n"


class Interruption:
    """What has been asked for: it is looked at where nothing is half done, so that nothing is left
    behind."""

    def __init__(self) -> None:
        self.asked = self.at_once = False

    def listen(self) -> None:
        """From now on, in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.hear)

    def hear(self, _number: int, _frame: FrameType | None) -> None:
        """The handler: it may run in the middle of a print, so it does not."""
        if self.asked:
            self.at_once = True
            return
        self.asked = True  # First: the second may come while the words are written.
        os.write(2, _WORDS)
