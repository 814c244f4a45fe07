"""An audit in a terminal, by rich, which is an extra: importing this raises ImportError without."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from safesock import _audit_words
from safesock._audit_records import Audit
from safesock._audit_words import HEAD, NUMBERS, Section

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TextIO


class Screen:
    """A table for each process. A context manager, for a table that lives."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)

    def show(self, found: Audit, older_than: float | None) -> None:
        """Once; what could not be read has been told."""
        self._console.print(_drawn(found, older_than))

    def draw(self, found: Audit, older_than: float | None) -> None:
        """In place of the one before; below it where that is no terminal."""
        drawn = _drawn(found, older_than)
        notes = [Text(f"safesock: {note}", style="dim") for note in found.notes]
        if self._console.is_terminal:
            self._live.update(Group(drawn, *notes), refresh=True)
        else:
            lines = _audit_words.lines(found, older_than)
            print(*lines, *notes, sep="\n", file=self._console.file, flush=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()


def _drawn(found: Audit, older_than: float | None) -> Group:
    tables = [_table(section) for section in _audit_words.sections(found, older_than)]
    is_bad = bool(found.found(older_than))
    verdict = Text(_audit_words.verdict(found, older_than), style="bold red" if is_bad else "green")
    return Group(*tables, verdict)


def _table(section: Section) -> Table:
    # Text, and not str: brackets are no markup here.
    table = Table(title=Text(section.heading), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(HEAD):
        table.add_column(name, justify="right" if column in NUMBERS else "left", no_wrap=column > 0)
    for row, is_found in zip(section.rows, section.found, strict=True):
        table.add_row(*map(Text, row), style="red" if is_found else "")
    return table
