"""`audit`: the TCP connections that a process holds.

The kernel's table of the network namespace is joined with /proc/PID/fd. What the table does not
have, as it is of another namespace or over, is asked by its descriptor; for another process that is
a duplicate, where that is allowed.
"""

from __future__ import annotations

import errno
import os
import sys

from safesock import _kernel, _kernel_diag, _proc, _watch
from safesock._audit_records import Audit, HeldConnection
from safesock._kernel import TcpState
from safesock._value import said
from safesock._ward import Ward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator
    from typing import Any

    from safesock._kernel_diag import Row

    # Of a network namespace: its connections by inode, and the ports that are listened on.
    Table = tuple[dict[int, Row], set[int]]
    # Of one as well, by the number of a process in it: the inodes of what is known to be no TCP.
    Others = Callable[[int], Container[int]]

_NAMES = {state: state.name for state in TcpState}


_MOST_PID = 2**31 - 1


def audit(pid: int | None = None) -> Audit:
    """The TCP connections that process *pid* holds, or this one (None): descriptor, state, age of
    the CLOSE_WAIT, bytes unread and unacknowledged, and addresses. It changes none of them.

    Listening sockets, and what no descriptor holds any more, such as TIME_WAIT, are left out. Those
    of this process that safesock watches come with their policy.

    Raises ProcessLookupError where there is no such process, PermissionError where its descriptors
    are not ours to read: those of another user's process are root's, or take CAP_SYS_PTRACE. Linux
    only: OSError elsewhere.
    """
    _refuse_elsewhere()
    own = os.getpid()
    if pid is None or _number(pid) == own:
        watched = _watch.watched()
        return _audit_of(_with_what_is_known(one, watched) for one in _audit_pid(own))
    return _audit_pid(pid)


def _audit_pid(pid: int) -> Audit:
    try:
        sockets = dict(_proc.sockets_of(pid))
        # Of our own we can have some in several.
        here = pid == os.getpid() or _proc.network_of(pid) == _proc.network_here()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    except PermissionError:
        raise PermissionError(
            errno.EPERM,
            f"the descriptors of process {pid} are not ours to read: that takes its user, root or "
            "CAP_SYS_PTRACE",
        ) from None
    notes: list[str] = []
    table = _table(pid, here, set(sockets.values()))
    return _audit_of(list(_held(pid, sockets, table, _proc.other_sockets, notes)), notes)


def audit_host(*, unowned: bool) -> Audit:
    """The same of all processes whose descriptors can be read; with *unowned*, what others hold
    too, as far as this network namespace shows it."""
    _refuse_elsewhere()
    here = _proc.network_here()
    tables = {here: _table(os.getpid(), True, None)}
    others: dict[int, set[int]] = {}
    held: list[HeldConnection] = []
    notes: list[str] = []
    owned: set[int] = set()
    hidden = 0
    for pid in _proc.processes():
        try:
            sockets = dict(_proc.sockets_of(pid))
            network = _proc.network_of(pid)
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # It has ended.
        if network not in tables:
            tables[network] = _proc.connections(pid)
        owned.update(sockets.values())
        held += _held(pid, sockets, tables[network], _once(others, network), notes)
    rows, listening = tables[here]
    strangers = [row for row in rows.values() if row.inode not in owned]
    if unowned:
        held += [_connection(None, None, row, listening) for row in strangers]
    if hidden:
        shown = "shown without" if unowned else "left out; --all shows them without"
        notes.append(
            f"the descriptors of {_many(hidden, 'process', 'es')} are not ours to read: their "
            f"connections are {shown} process and descriptor"
        )
    return _audit_of(held, notes)


def _once(found: dict[int, set[int]], network: int) -> Others:
    """Looked for when it is wanted first, and the same for all processes of that network: a host
    has many, and each of them nearly all kinds of sockets."""

    def others(pid: int) -> set[int]:
        if network not in found:
            found[network] = _proc.other_sockets(pid)
        return found[network]

    return others


def _refuse_elsewhere() -> None:
    if not _kernel.LINUX:
        raise OSError(errno.ENOSYS, "audit takes Linux")


def _number(pid: object) -> int:
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise TypeError(f"audit(pid) takes the number of a process, or None: not {said(pid)}")
    if pid < 1:
        raise ValueError(f"audit(pid) takes the number of a process, or None: not {said(pid)}")
    if pid > _MOST_PID:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {said(pid)}")
    return pid


def _audit_of(held: Iterable[HeldConnection], notes: Iterable[str] = ()) -> Audit:
    oldest_first = sorted(held, key=lambda one: -1.0 if one.age is None else one.age, reverse=True)
    return Audit(tuple(oldest_first), tuple(notes))


def _table(pid: int, here: bool, wanted: Container[int] | None) -> Table:
    """sock_diag knows the ages, and is for our own network namespace; /proc is for any."""
    if here:
        try:
            return _kernel_diag.connections(wanted), _kernel_diag.listening()
        except (OSError, ValueError):
            pass  # A kernel without it, or a sandbox; or one that answers otherwise.
    return _proc.connections(pid)


def _held(
    pid: int, sockets: dict[int, int], table: Table, others_of: Others, notes: list[str]
) -> Iterator[HeldConnection]:
    rows, listening = table
    found = {fd: rows[inode] for fd, inode in sockets.items() if inode in rows}
    unclear = [fd for fd, row in found.items() if _lacks_age(row)]
    missing = sockets.keys() - found.keys()
    if missing:
        others = others_of(pid)
        missing = {fd for fd in missing if sockets[fd] not in others}
    if unclear or missing:
        try:
            looked = _kernel_diag.look_into(pid, [*unclear, *missing], listening)
        except OSError as error:
            _note(pid, error, len(unclear), len(missing), notes)
        else:
            found |= {fd: row for fd, row in looked.items() if row.inode == sockets[fd]}
    for fd, row in found.items():
        yield _connection(pid, fd, row, listening)


def _lacks_age(row: Row) -> bool:
    return row.state is TcpState.CLOSE_WAIT and row.age is None


def _note(pid: int, error: OSError, unclear: int, missing: int, notes: list[str]) -> None:
    if isinstance(error, ProcessLookupError):
        return  # It has ended.
    if unclear:
        notes.append(
            f"process {pid}: the age of {_many(unclear, 'connection')} in CLOSE_WAIT is not told: "
            f"that takes its network namespace, or CAP_SYS_PTRACE ({error.strerror})"
        )
    if missing:
        notes.append(
            f"process {pid}: {_many(missing, 'socket')} in no table of the system's, of an unknown "
            "kind: new, or what is left of a connection that is over; to ask takes CAP_SYS_PTRACE "
            f"({error.strerror})"
        )


def _many(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else ending}"


def _connection(
    pid: int | None, fd: int | None, row: Row, listening: Container[int]
) -> HeldConnection:
    accepted = row.local is not None and row.local[1] in listening
    state, local, peer, unread, unacknowledged, inode, age, lost = row
    return HeldConnection(
        pid, fd, _NAMES[state], age, local, peer, unread, unacknowledged, inode, accepted, lost
    )


# This process -----------------------------------------------------------------------------------


def _with_what_is_known(one: HeldConnection, by_fd: dict[int, Any]) -> HeldConnection:
    watched = None if one.fd is None else by_fd.get(one.fd)
    if watched is None:
        return one
    connection = watched.connection if isinstance(watched, Ward) else watched._connection
    peer = one.peer
    if peer is None and connection is not None and isinstance(connection.peer, tuple):
        peer = _kernel_diag.plain(connection.peer[0]), connection.peer[1]
    sock = watched.owner() if isinstance(watched, Ward) else watched
    return one.__replace__(peer=peer, policy=watched.policy, made=_made(sock))


def _made(sock: object) -> tuple[str, ...]:
    """By tracemalloc, which somebody has to have started: it costs nothing before."""
    tracemalloc = sys.modules.get("tracemalloc")
    trace = None if tracemalloc is None else tracemalloc.get_object_traceback(sock)
    return () if trace is None else tuple(f"{one.filename}:{one.lineno}" for one in trace)
