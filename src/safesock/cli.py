"""The command `safesock`. It takes nothing but the standard library and safesock itself.

Exit statuses beside those of the commands: 2 for wrong arguments and for what cannot be done, with
one line that says why; 130 after Ctrl-C; 141 when the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sys

import safesock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_CANNOT, _INTERRUPTED, _NO_READER = 2, 130, 141

_DEMO = """\
Starts a server on loopback that closes on its clients, and shows what becomes of
their sockets: plain ones beside safesock's, counted by the kernel. First an idle
pool, then one fixed local port that is used again and again. It takes about ten
seconds, and Linux.
"""
_DEMO_END = """\
exit status: 0 if safesock left nothing behind, 1 if it did, 2 if it cannot be shown
environment: NO_COLOR leaves the colours out; TERM=dumb gives plain lines, as in a pipe
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints the usage too."""
        line = " ".join(message.split())
        self.exit(_CANNOT, f"{self.prog}: error: {line} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit status. Raises SystemExit as argparse does."""
    try:
        try:
            arguments = _parser().parse_args(argv)
            return _demo(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # At exit it would be too late to be quiet about it.
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return _NO_READER
    except OSError as error:
        _drop_output()
        return _cannot(error)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="safesock",
        description="Client TCP sockets that end properly: no CLOSE_WAIT, nothing left behind.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"safesock {safesock.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser(
        "demo",
        help="plain sockets beside safesock ones, on a server that closes on them",
        description=_DEMO,
        epilog=_DEMO_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _demo(_: argparse.Namespace) -> int:
    from safesock import _demo

    try:
        return _demo.run(sys.stdout)
    except _demo.CannotShowError as error:
        return _cannot(error)


def _cannot(why: Exception) -> int:
    print(f"safesock: error: {why}", file=sys.stderr)
    return _CANNOT


def _drop_output() -> None:
    """What could not be written must not be tried again at exit, with a traceback."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
