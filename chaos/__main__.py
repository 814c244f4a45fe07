"""The command: see the package."""

from __future__ import annotations

import argparse
import json
import math
import secrets
import signal
import sys
from pathlib import Path

import chaos
from chaos.run import Run
from chaos.summary import as_json, as_text
from chaos.worker import KINDS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    seed = options.seed if options.seed is not None else secrets.randbelow(10**6)
    run = Run(
        str(seed), options.seconds, tuple(options.only or KINDS) * options.times, options.at_least
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: run.interrupt())
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    run.go()
    print(as_text(run), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(run), indent=2) + "\n", encoding="utf-8")
    if run.broken:
        print(f"\nNOT as promised: {run.broken[0]}", file=sys.stderr)
        for more in run.broken[1:10]:
            print(f"and: {more}", file=sys.stderr)
        print(
            f"\nOnce more: python -m chaos --seconds {options.seconds:g} --seed {seed}",
            file=sys.stderr,
        )
        return 1
    return 130 if run.interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description=chaos.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, help="what decides on the faults (a random one)")
    parser.add_argument(
        "--at-least", type=int, default=0, metavar="N", help="go on until so many connections"
    )
    parser.add_argument("--json", type=_file, metavar="FILE", help="the figures, for programs")
    parser.add_argument(
        "--only", action="append", choices=KINDS, help="this kind of client; may be given again"
    )
    parser.add_argument(
        "--times", type=int, choices=range(1, 9), default=1, help="clients of each kind (1)"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"takes seconds, above 0: not {text!r}")
    return seconds


def _file(text: str) -> Path:
    """Now, not when the run is over."""
    try:
        Path(text).open("a", encoding="utf-8").close()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot be written: {error}") from None
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
