"""The table of errno values: what each says of an established connection."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from safesock import Cause
from safesock._loss import CAUSE_BY_ERRNO, cause_of

# Written out a second time, from the manual pages and the RFCs, not derived from the table.
LOSSES = {
    errno.ECONNRESET: Cause.RST,
    errno.EPIPE: Cause.RST,  # What the kernel makes of a RST that comes after the peer's FIN.
    errno.ETIMEDOUT: Cause.TIMEOUT,
    errno.ENETRESET: Cause.TIMEOUT,
    errno.EHOSTUNREACH: Cause.UNREACHABLE,
    errno.ENETUNREACH: Cause.UNREACHABLE,
    errno.EHOSTDOWN: Cause.UNREACHABLE,
    errno.ENETDOWN: Cause.UNREACHABLE,
    errno.ENONET: Cause.UNREACHABLE,
    errno.ECONNABORTED: Cause.ABORTED,
    errno.ENOTCONN: Cause.ABORTED,
    errno.ESHUTDOWN: Cause.ABORTED,
}

NO_LOSSES = [
    # Try again.
    errno.EAGAIN,
    errno.EWOULDBLOCK,
    errno.EINTR,
    # Of connect.
    errno.EINPROGRESS,
    errno.EALREADY,
    errno.EISCONN,
    errno.ECONNREFUSED,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    # The system is short of something.
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    # A local firewall rule, or a file that sendfile reads.
    errno.EPERM,
    errno.EACCES,
    errno.EIO,
    # Programming errors.
    errno.EBADF,
    errno.ENOTSOCK,
    errno.EINVAL,
    errno.EFAULT,
    errno.EMSGSIZE,
    errno.EDESTADDRREQ,
    errno.EOPNOTSUPP,
    errno.ENOPROTOOPT,
    errno.EAFNOSUPPORT,
]


def name(number: object) -> str:
    return errno.errorcode[number] if isinstance(number, int) else str(number)


@pytest.mark.parametrize(("number", "cause"), LOSSES.items(), ids=name)
def test_this_errno_is_a_loss_with_this_cause(number: int, cause: Cause) -> None:
    assert cause_of(OSError(number, os.strerror(number))) is cause


@pytest.mark.parametrize("number", NO_LOSSES, ids=name)
def test_this_errno_is_no_loss(number: int) -> None:
    assert cause_of(OSError(number, os.strerror(number))) is None


def test_no_other_errno_is_a_loss() -> None:
    losses = {number for number in errno.errorcode if cause_of(OSError(number, "")) is not None}
    assert losses == LOSSES.keys()
    assert {number for number, cause in CAUSE_BY_ERRNO.items() if cause} == LOSSES.keys()


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        TimeoutError("timed out"),
        OSError("no errno"),
        OSError(),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ],
    ids=repr,
)
def test_an_error_without_a_system_errno_is_no_loss(error: OSError) -> None:
    assert cause_of(error) is None


def test_every_cause_of_a_loss_is_in_the_table_but_fin() -> None:
    told_by_errno = {cause for cause in CAUSE_BY_ERRNO.values() if cause}
    assert set(Cause) - told_by_errno == {Cause.FIN, Cause.CLOSED}
