"""The command `safesock`. It takes nothing but the standard library and safesock itself.

Exit statuses beside those of the commands: 2 for wrong arguments and for what cannot be done, with
one line that says why; 130 after Ctrl-C; 141 when the reader of the output has gone; 143 after
SIGTERM, where that is handled.
"""

from __future__ import annotations

import argparse
import os
import select
import sys

import safesock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

_CANNOT, _INTERRUPTED, _NO_READER = 2, 130, 141

_DEMO = """\
Starts a server on loopback that closes on its clients, and shows what becomes of
their sockets: plain ones beside safesock's, counted by the kernel. First an idle
pool, then one fixed local port that is used again and again. It takes about ten
seconds, and Linux.
"""
_CONNECT = """\
A netcat that comes back. Copies stdin to the peer and the peer to stdout. When
the peer closes, or the connection is lost, it connects again, from the same local
port if you like, a bounded number of times. What stdin gave and no connection had
accepted yet is sent on the next one; nothing is ever sent twice. What happens is
told on stderr.

At the end of input the sending side is shut down (FIN, with TLS close_notify), and
what the peer still says is copied until it closes, or falls silent.
"""
_CONNECT_END = """\
exit status:
  0    all input was sent, and the peer has closed or had nothing more to say
  1    no connection: the attempts or the deadline are used up; or, after the end
       of input, bytes were lost that the peer's kernel had not acknowledged
  2    wrong arguments, or stdin or stdout cannot be used
  130  Ctrl-C     141  nobody reads stdout     143  SIGTERM
  However it ends, the connection is closed as --close says.

environment: SSL_CERT_FILE and SSL_CERT_DIR name the certificates that --tls trusts,
instead of the system's

example: a device that admits one source port, for as long as an hour without it
  safesock connect --local-port 40000 --attempts 500 --deadline 3600 192.0.2.7:4001
"""
_RUN = """\
Runs a program with one close policy for all its TCP connections, whatever client
makes them: when the peer has closed and the client does not react, the connection
is ended, and nothing stays in CLOSE_WAIT. The Python processes that it starts are
covered too. The program is not changed, and keeps its exit status, its signals, its
stdin and its sys.argv. There is a thread in each process that has connections: from
Python 3.12 on, os.fork() in one may give a DeprecationWarning.
"""
_RUN_END = """\
exit status: the program's own; 126 if it cannot be run, 127 if there is none,
2 for wrong arguments

environment: SAFESOCK_OFF turns it off, for the program and what it starts, unless it
is empty or 0; a program's own safesock.enforce() goes on. What is to be done travels
in PYTHONPATH and SAFESOCK_RUN.

It takes Linux and Python 3.11 or later: an older one runs the program as it is, and
nothing is told. So does one that is told to ignore its environment (-E, -I, -S), or
started without PYTHONPATH. It is not for programs that go on sending after the peer's
half-close: see --except.

Modules that safesock needs, such as socket, threading and queue, are imported before
the program begins. Those of the same name beside its script or in PYTHONPATH come
first all the same; in a folder that it puts into sys.path later, or in a zip file,
they do not.

examples:
  safesock run -- python app.py --its-own option
  safesock run --sweep 30 -m gunicorn app:app
  safesock run --except 10.0.0.0/8:514 --except [::1] -- python app.py
"""
_AUDIT = """\
Shows the TCP connections that processes hold: descriptor, state, for how long in
CLOSE_WAIT, bytes unread and unacknowledged, addresses; by peer, what is left behind
and oldest first, with a verdict at the end. Left behind is what is in CLOSE_WAIT:
the peer has closed, and the program has not. So is a connection that was lost by a
reset or a timeout, and whose descriptor is still open, which no table of the
system's shows. It changes nothing, and takes Linux.
"""
_AUDIT_END = """\
exit status: 0 if nothing is left behind, 1 if something is, 2 for wrong arguments, and
if the process cannot be read; 130 after Ctrl-C

The age is counted from the last that came from the peer: its FIN, unless keepalive has
been answered since. What cannot be read is told on stderr. Other users' processes, and
the lost connections of any other process, take root, or CAP_SYS_PTRACE. Tables and
command lines look better with rich and psutil: pip install 'safesock[cli]'.

--json gives a list of objects with pid, fd, state, age (seconds, or null), local, peer,
unread, unacknowledged, inode, accepted, lost, and found: whether it is left behind.

examples:
  safesock audit --pid 4711
  safesock audit --older-than 60 --json      a health check
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


class _CommandParser(_Parser):
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """What is unknown to a command is told by that, not by `safesock`."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


class _RunFormatter(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """argparse gives no name to the first of all that is left."""
        text = super()._format_args(action, default_metavar)
        return f"{action.metavar} {text}" if action.nargs == argparse.REMAINDER else text


def main(argv: list[str] | None = None) -> int:
    """Runs the command and gives its exit status. Raises SystemExit as argparse does."""
    try:
        try:
            arguments = _parser().parse_args(argv)
            status: int = arguments.run(arguments)
            return status
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
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )

    def command(name: str, run: Callable[..., object], **texts: Any) -> argparse.ArgumentParser:
        texts.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        made: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False, **texts)
        made.set_defaults(run=run, parser=made)
        return made

    command(
        "demo",
        _demo,
        help="plain sockets beside safesock ones, on a server that closes on them",
        description=_DEMO,
        epilog=_DEMO_END,
    )
    connect = command(
        "connect",
        _connect,
        help="a netcat that comes back, from the same port",
        description=_CONNECT,
        epilog=_CONNECT_END,
    )
    _add_options(connect)
    run = command(
        "run",
        _run,
        help="an unmodified program, none of whose connections stays in CLOSE_WAIT",
        description=_RUN,
        epilog=_RUN_END,
        usage="safesock run [options] (-- COMMAND [ARGUMENT ...] | -m MODULE [ARGUMENT ...])",
        formatter_class=_RunFormatter,
    )
    _add_run_options(run)
    audit = command(
        "audit",
        _audit,
        help="the TCP connections of processes, and which are left in CLOSE_WAIT",
        description=_AUDIT,
        epilog=_AUDIT_END,
    )
    _add_audit_options(audit)
    return parser


def _add_options(connect: argparse.ArgumentParser) -> None:
    """Numbers stay text: the library says which are out of range."""
    add = connect.add_argument
    add("address", metavar="HOST:PORT", help="such as example.org:80 or [::1]:80")
    add("--local-port", metavar="N", help="the local port of every connection")
    _add_close(
        connect,
        "graceful (FIN, the default), drain[=SECONDS] (FIN, and wait for the peer's), "
        "linger[=SECONDS] (FIN, and wait for the acknowledgement), abort (RST)",
    )
    add("--attempts", metavar="N", default="8", help="for one outage (default: 8)")
    add("--deadline", metavar="SECONDS", default="60", help="for one outage (default: 60)")
    add(
        "--timeout",
        metavar="SECONDS",
        default="10",
        help="for each address, for connecting and for the TLS handshake (default: 10)",
    )
    add(
        "--wait",
        metavar="SECONDS",
        default="5",
        help="how long the peer may be silent after the end of input (default: 5)",
    )
    add("--tls", action="store_true", help="TLS, with a certificate that is verified")
    add("-q", "--quiet", action="store_true", help="no news on stderr, only errors")


def _add_close(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--close", metavar="HOW", default="graceful", help=text)


def _add_run_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    _add_close(
        run,
        "what ends a connection that the client leaves in CLOSE_WAIT: FIN, or RST with abort. Its "
        "own close(2) too goes by this: graceful (the default) leaves it as it is; drain[=SECONDS] "
        "waits in it for the peer's FIN, linger[=SECONDS] for the acknowledgement, and so does an "
        "event loop that calls it; abort sends RST",
    )
    add(
        "--grace",
        metavar="SECONDS",
        default="1",
        help="how long a client may take to react to the peer's FIN (default: 1)",
    )
    add(
        "--sweep",
        metavar="SECONDS",
        help="end what has been in CLOSE_WAIT for so long, whatever library has made it: for "
        "libpq, uvloop, gRPC and others that are not Python (default: no sweep)",
    )
    add(
        "--except",
        dest="excepted",
        metavar="PEER",
        action="append",
        default=[],
        help="leave connections to this peer alone: HOST, HOST:PORT or :PORT, where HOST is an IP "
        "address or a network, no name, and IPv6 in brackets; may be given again",
    )
    add(
        "--report",
        action="store_true",
        help="tell on stderr what was done, each Python process at its exit: none that ends by a "
        "signal it does not handle, or by os._exit",
    )
    add(
        "-m",
        dest="module",
        metavar="MODULE",
        nargs=argparse.REMAINDER,
        help="run this module, as python -m does",
    )
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_audit_options(audit: argparse.ArgumentParser) -> None:
    add = audit.add_argument
    which = audit.add_mutually_exclusive_group()
    which.add_argument(
        "--pid", metavar="PID", help="of this process (default: of all that can be read)"
    )
    which.add_argument(
        "--all",
        dest="host",
        action="store_true",
        help="of the whole host: those of processes that cannot be read too, without descriptor",
    )
    add(
        "--older-than",
        metavar="SECONDS",
        help="only what has been in CLOSE_WAIT for longer counts as left behind; what was lost "
        "counts in any case, as the kernel does not tell when",
    )
    how = audit.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="a list of objects, on stdout")
    how.add_argument(
        "--watch", action="store_true", help="look every second, until Ctrl-C; it takes rich"
    )


def _audit(arguments: argparse.Namespace) -> int:
    from safesock import _audit_command

    try:
        options = _audit_command.options_in(arguments)
    except ValueError as error:
        arguments.parser.error(str(error))
    return _audit_command.run(options)


def _run(arguments: argparse.Namespace) -> int:
    from safesock import _run as runner

    command = arguments.command[arguments.command[:1] == ["--"] :]
    if arguments.module:
        command = [sys.executable, "-m", *arguments.module]
    if not command:
        arguments.parser.error("there is no program to run: safesock run -- python app.py")
    try:
        options = runner.options_in(arguments)
    except ValueError as error:
        arguments.parser.error(str(error))
    return runner.run(command, options)


def _connect(options: argparse.Namespace) -> int:
    if not hasattr(select, "poll"):
        return _cannot(OSError("connect takes poll(2), which this system does not have"))
    from safesock import _netcat, _netcat_options
    from safesock._netcat_news import News

    news = News(quiet=options.quiet)
    try:
        connector, tls = _netcat_options.connector(options, news)
        wait = _netcat_options.seconds_to_wait(options)
    except ValueError as error:
        options.parser.error(str(error))
    return _netcat.run(connector, tls, news, wait)


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
