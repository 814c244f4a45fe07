"""One benchmark in a process of its own: `python -m benchmarks.alone NAME`, with --quick perhaps.

It prints a row as JSON on each line: what one benchmark leaves, such as a watcher, or memory that
malloc has got used to, is none of the next one's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.report import Row
from benchmarks.results import as_dict, row_of


def rows_of(name: str, quick: bool) -> Iterator[Row]:
    """Raises CalledProcessError where it fails; its traceback is on stderr then."""
    command = [sys.executable, "-m", "benchmarks.alone", name, *(["--quick"] if quick else [])]
    # In a group of its own: Ctrl-C is for this process, which ends that one.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield row_of(json.loads(line))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # With the servers that it has started.
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _main(name: str, *options: str) -> None:
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for row in importlib.import_module(f"benchmarks.{name}").rows("--quick" in options):
        print(json.dumps(as_dict(row)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
