"""What one client process has seen: counts, and the account of each connection."""

from __future__ import annotations

import errno
import random
import ssl
import traceback
from collections import Counter
from dataclasses import dataclass

from chaos import stream
from chaos.ledger import INTERRUPTED
from chaos.messages import tell
from chaos.weather import StruckError
from safesock import CloseReport, Linger, Loss, Policy, ReconnectError

# What may become of a connection here, by type, or, where a type says too little, by errno.
_EXPECTED = (
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    StruckError,
)
_ERRNOS = {
    errno.EAGAIN,  # connect_ex, at the socket's timeout
    errno.EMFILE,
    errno.ENOBUFS,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
}


ANY = 1 << 62
# What is counted of the connections that are in no ledger: how many there were.
STRAIGHT = "straight to the server"


class BrokenPromiseError(Exception):
    """Not as the contract promises."""


@dataclass
class Account:
    """One connection, as its program sees it."""

    token: int
    # The name that the proxy sees: with TLS, the one in clear.
    name: int = 0
    tls: bool = False
    # Of the bytes handed over: those certainly accepted, and those that may have been.
    least: int = 0
    most: int = 0
    got: int = 0
    sizes: tuple[int, int] = (0, 0)
    # A signal handler has raised amid it: what was counted by the program may be short.
    struck: bool = False

    def reads(self, data: bytes) -> None:
        """Raises `BrokenPromiseError` where these are not the next of this connection."""
        expected = stream.down(self.token)[self.got : self.got + len(data)]
        if self.got + len(data) > self.sizes[1] or data != expected:
            raise BrokenPromiseError(
                f"connection {self.token:016x}: others' bytes at {self.got} of its own"
            )
        self.got += len(data)


class Tally:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.counts: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()

    def account(self, name: int | None = None) -> Account:
        """Of a new connection; *name*: with TLS, the one in clear."""
        rng = self.rng
        sizes = (rng.choice(_SIZES)(rng), rng.choice(_SIZES)(rng))
        token = rng.getrandbits(64)
        return Account(token, token if name is None else name, name is not None, sizes=sizes)

    def name(self) -> int:
        return self.rng.getrandbits(64)

    def meets(self, error: BaseException) -> None:
        """Raises `BrokenPromiseError` for what is not to be expected here."""
        name = type(error).__name__
        if type(error) is OSError and error.errno is not None:
            name = f"OSError({errno.errorcode.get(error.errno)})"
            known = error.errno in _ERRNOS
        else:
            known = isinstance(error, _EXPECTED) or getattr(error, "errno", None) in _ERRNOS
        if isinstance(error, ReconnectError):
            self.counts["reconnects given up"] += 1
        if not known:
            words = "".join(traceback.format_exception(error))
            raise BrokenPromiseError(f"an exception that nothing explains: {words}") from error
        self.expected[name] += 1

    def ended(
        self,
        account: Account,
        port: int,
        loss: Loss | None,
        report: CloseReport | None,
        policy: Policy,
        *,
        peer: str,
        may_lag: bool = False,
        reads_ahead: bool = False,
        is_plain: bool = False,
    ) -> None:
        """After the close. *peer*: "proxy", "cable" (the proxy behind it), or "server". *may_lag*:
        what was accepted need not have been sent when a loss was told. *reads_ahead*: of its
        program. *is_plain*: the program's own socket, which loses what the standard library's does
        where it closes with input unread."""
        self.counts["connections"] += 1
        cause = None if report is None else report.cause.name
        self.losses[cause or _why_not_told(account, is_plain)] += 1
        if report is not None:
            self._judge(account, loss, report)
        if peer == "server":
            self.counts[STRAIGHT] += 1
            return
        least, most = account.least, account.most
        if account.tls:
            least, most = 0, ANY  # On the wire there are others.
        if report is not None and report.sent is not None:
            least = most = report.sent
        mode = policy.close if report is None else report.mode
        delivers = type(mode).__name__ != "Abort" and not (report is not None and report.reset)
        in_time = policy.on_loss == "close" and not may_lag
        clean = cause in ((None, "CLOSED", "FIN") if in_time else (None, "CLOSED"))
        tell(
            "client",
            token=account.name,
            port=port,
            least=least,
            most=most,
            exact=delivers and clean and not is_plain and not (account.tls and report is None),
            unacknowledged=None if report is None else report.unacknowledged,
            unread=None if report is None else report.unread,
            cause=cause,
            mode=type(mode).__name__ if type(mode) is type(policy.close) else INTERRUPTED,
            reset=report is not None and report.reset,
            got=None if account.tls or reads_ahead else account.got,
            read_by_program=None if account.tls or is_plain else account.got,
            lossy=peer == "cable",
            on_loss=policy.on_loss,
        )

    def _judge(self, account: Account, loss: Loss | None, report: CloseReport) -> None:
        where = f"connection {account.token:016x}"
        if loss is not None and loss.cause is not report.cause:
            raise BrokenPromiseError(f"{where}: lost by {loss.cause}, and closed by {report.cause}")
        if report.sent is not None and not account.tls:  # noqa: SIM102
            if not account.least <= report.sent <= account.most:
                raise BrokenPromiseError(
                    f"{where}: {account.least} to {account.most} bytes were accepted, and"
                    f" {report.sent} counted: {loss}, {report}"
                )
        if loss is not None and loss.lifetime > report.lifetime + 1e-6:
            raise BrokenPromiseError(f"{where}: lost after it was closed: {loss}, {report}")
        if isinstance(report.mode, Linger):
            self.counts["lingered"] += 1


def _why_not_told(account: Account, is_plain: bool) -> str:
    """Where there is no report."""
    if is_plain:
        return "by other people's clients, under enforce: not told"
    if account.struck:
        return "closed while a signal handler raised: not told"
    return "forgotten by their owner: not told"


def _tiny(rng: random.Random) -> int:
    return rng.randrange(100)


def _usual(rng: random.Random) -> int:
    return rng.randrange(4000)


def _large(rng: random.Random) -> int:
    return rng.randrange(stream.LONGEST // 2)


_SIZES = (_tiny, _tiny, _tiny, _usual, _usual, _usual, _usual, _usual, _usual, _large)
