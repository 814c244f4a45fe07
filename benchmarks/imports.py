"""How much longer `import safesock` takes than `import socket`."""

from __future__ import annotations

import compileall
import pathlib
import statistics
import subprocess
import sys
import time

import safesock
from benchmarks.report import Row


def rows(quick: bool) -> list[Row]:
    # As pip does when it installs a wheel; an editable install may not have been imported yet.
    assert compileall.compile_dir(pathlib.Path(safesock.__file__).parent, quiet=1)
    ours, theirs = [], []
    for _ in range(5 if quick else 40):
        theirs.append(_seconds("socket"))
        ours.append(_seconds("safesock"))
    mine, other = (statistics.median(each) * 1000 for each in (ours, theirs))
    what = "import safesock over import socket"
    return [Row(what, mine - other, 15, "ms", ours=mine, theirs=other, raw_unit="ms")]


def _seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(*rows(quick=False), sep="\n")
