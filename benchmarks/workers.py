"""Programs of different kinds, each a process of its own, that take turns at the same work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def working(benchmark: str, kind: str, address: tuple[str, int]) -> Iterator[subprocess.Popen[str]]:
    """`python -m benchmarks.<benchmark> <kind> <host> <port>`: what `ask` asks."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", kind, *map(str, address)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(worker: subprocess.Popen[str], what: str = "") -> float:
    """Has it do that once; what it took."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{what}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())
