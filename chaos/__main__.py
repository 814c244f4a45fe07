"""The command: see the package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import chaos
from chaos.interruption import Interruption

_STATUS = """exit status: 0, all was as promised; 1, something was not; 2, wrong arguments; 130, it
was interrupted: the first Ctrl-C ends it in order, the second at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(given)
    kinds = tuple(options.only or chaos.KINDS) * options.times
    for package in ("trustme", "uvloop") if "uvloop" in kinds else ("trustme",):
        if importlib.util.find_spec(package) is None:
            parser.error(f"it takes {package}: pip install -e '.[test]'")
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
        given += ["--seed", str(options.seed)]
    interruption = Interruption()
    interruption.listen()
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    return _run(options, kinds, interruption, shlex.join(["python", "-m", "chaos", *given]))


def _run(
    options: argparse.Namespace, kinds: tuple[str, ...], interruption: Interruption, again: str
) -> int:
    # Not before: they take the extra, and a while.
    from chaos.run import Run
    from chaos.summary import as_json, as_text

    run = Run(str(options.seed), options.seconds, kinds, options.at_least, interruption)
    run.go()
    print(as_text(run), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(run), indent=2) + "\n", encoding="utf-8")
    if run.broken:
        print(f"\nNOT as promised: {run.broken[0]}", file=sys.stderr)
        for more in run.broken[1:10]:
            print(f"and: {more}", file=sys.stderr)
        print(f"\nOnce more: {again}", file=sys.stderr)
        return 1
    return 130 if run.interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description=chaos.__doc__,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=_seconds, default=60.0, help="how long, once the clients are warm (60)")
    add("--seed", type=int, help="what decides on the faults (a random one)")
    add(
        "--at-least",
        type=_count,
        default=0,
        metavar="N",
        help="go on until there are N connections, for at most 120 s more; else status 1",
    )
    add("--json", type=_file, metavar="FILE", help="the figures, for programs")
    add(
        "--only",
        action="append",
        choices=chaos.KINDS,
        help="this kind of client; may be given again",
    )
    add("--times", type=int, choices=range(1, 9), default=1, help="clients of each kind (1)")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"takes seconds, above 0: not {text!r}")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"takes a number, from 0: not {text!r}")
    return int(text)


def _file(text: str) -> Path:
    """Now, not when the run is over."""
    try:
        Path(text).open("a", encoding="utf-8").close()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"cannot be written: {error}") from None
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
