"""Runs every benchmark. Each asserts that the result is right before it prints what it cost."""

from __future__ import annotations

import argparse
import platform

from benchmarks import (
    audited,
    enforced,
    herd,
    hot_path,
    idle,
    imports,
    listened,
    reconnects,
    streams,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: noisy, but it has run")
    quick = parser.parse_args().quick
    print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}")
    benchmarks = (hot_path, listened, enforced, audited, idle, imports, reconnects, streams, herd)
    for benchmark in benchmarks:
        for row in benchmark.rows(quick):
            print(row, flush=True)


if __name__ == "__main__":
    main()
