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
        tables, verdict = _tables(found, older_than), _verdict(found, older_than)
        self._console.print(*tables, verdict)

    def draw(self, found: Audit, older_than: float | None) -> None:
        """In place of the one before; below it where that is no terminal."""
        notes = [Text(f"safesock: {note}", style="dim") for note in found.notes]
        if self._console.is_terminal:
            # What does not fit a terminal is cut off at its end.
            verdict, tables = _verdict(found, older_than), _tables(found, older_than)
            self._live.update(Group(verdict, *notes, *tables), refresh=True)
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


def _verdict(found: Audit, older_than: float | None) -> Text:
    is_bad = bool(found.found(older_than))
    return Text(_audit_words.verdict(found, older_than), style="bold red" if is_bad else "green")


def _tables(found: Audit, older_than: float | None) -> list[Table]:
    return [_table(section) for section in _audit_words.sections(found, older_than)]


def _table(section: Section) -> Table:
    # Text, and not str: brackets are no markup here.
    table = Table(title=Text(section.heading), title_justify="left", box=box.SIMPLE_HEAD)
    for column, name in enumerate(HEAD):
        table.add_column(name, justify="right" if column in NUMBERS else "left", no_wrap=column > 0)
    for row, is_found in zip(section.rows, section.found, strict=True):
        table.add_row(*map(Text, row), style="red" if is_found else "")
    return table
