"""What one run has found, where, and when: as JSON, and back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import safesock
from benchmarks.report import Row

FORMAT = 1


@dataclass(frozen=True)
class Machine:
    system: str
    processor: str
    cores: int
    python: str

    @classmethod
    def this(cls) -> Self:
        system = f"{platform.system()} {platform.release()}, {platform.machine()}"
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return cls(system, _processor(), len(os.sched_getaffinity(0)), python)

    def __str__(self) -> str:
        return f"{self.python} on {self.system}: {self.cores} cores of {self.processor}"


@dataclass
class Results:
    """rows: by benchmark. failed: the benchmarks that ended with an error.

    load: how many programs wanted to run, on average over a minute, when it began and ended.
    """

    machine: Machine
    safesock: str
    date: str
    quick: bool
    rows: dict[str, list[Row]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    @classmethod
    def here(cls, quick: bool) -> Self:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(Machine.this(), safesock.__version__, now, quick, load=[os.getloadavg()[0]])

    def all_rows(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    def with_bar(self) -> list[Row]:
        return [row for row in self.all_rows() if row.bar is not None]

    def missed(self) -> list[Row]:
        return [row for row in self.with_bar() if not row.reached]

    def to_json(self) -> str:
        found: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        found["rows"] = {name: [as_dict(row) for row in rows] for name, rows in self.rows.items()}
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError where it is not what `to_json` gives."""
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
                raise ValueError(f"no results of format {FORMAT}")
            found["machine"] = Machine(**found["machine"])
            found["rows"] = {
                name: [row_of(one) for one in rows] for name, rows in found["rows"].items()
            }
            return cls(**found)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the results of a run: {error}") from error


def as_dict(row: Row) -> dict[str, Any]:
    """With what is said of it: the same in all languages."""
    said = {"reached": row.reached, "missed_by": round(row.missed_by, 4)}
    return {**dataclasses.asdict(row), **said}


def row_of(found: dict[str, Any]) -> Row:
    """Raises ValueError where a figure is no number."""
    known = {one.name for one in dataclasses.fields(Row)}
    row = Row(**{name: value for name, value in found.items() if name in known})
    numbers = (row.bar, row.spread, row.ours, row.theirs)
    for number in (row.figure, *(one for one in numbers if one is not None)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"no number in the row {row.what!r}: {number!r}")
    if not all(isinstance(text, str) for text in (row.what, row.unit, row.note, row.against)):
        raise ValueError(f"no text where one has to be, in the row {row.what!r}")
    return row


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "an unknown processor"
