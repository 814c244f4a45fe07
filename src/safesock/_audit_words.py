"""What an audit comes to: for people, lines grouped by peer, and a verdict; for programs, JSON."""

from __future__ import annotations

import json
from typing import NamedTuple

from safesock import _proc
from safesock._audit_records import Audit, HeldConnection
from safesock._errors import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEAD = ("peer", "fd", "state", "age", "unread", "unacknowledged", "local")
# The columns that are numbers.
NUMBERS = frozenset({1, 4, 5})
# Connections of one peer that are shown; --json has them all.
_SHOWN = 5
_LONGEST_NAME = 60
_GAP = "  "
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Section(NamedTuple):
    """One process: a heading, rows in the columns of `HEAD`, and which of them are found."""

    heading: str
    rows: list[tuple[str, ...]]
    found: list[bool]


def sections(audit: Audit, older_than: float | None) -> list[Section]:
    """Processes and peers with something found come first, then those with the oldest."""
    by_pid: dict[int | None, list[HeldConnection]] = {}
    for one in _found_first(audit, older_than):
        by_pid.setdefault(one.pid, []).append(one)
    return [_section(pid, ones, older_than) for pid, ones in by_pid.items()]


def _found_first(ones: Iterable[HeldConnection], older_than: float | None) -> list[HeldConnection]:
    # They come oldest first, and stay so.
    return sorted(ones, key=lambda one: not one.is_found(older_than))


def _section(pid: int | None, ones: list[HeldConnection], older_than: float | None) -> Section:
    rows: list[tuple[str, ...]] = []
    found: list[bool] = []
    for who, group in _by_peer(ones).items():
        for turn, one in enumerate(group[:_SHOWN]):
            rows.append(_row("" if turn else who, one))
            found.append(one.is_found(older_than))
        if len(group) > _SHOWN:
            rows.append(("", "", f"and {len(group) - _SHOWN} more", "", "", "", ""))
            found.append(False)
    return Section(_heading(pid, len(ones)), rows, found)


def _by_peer(ones: Iterable[HeldConnection]) -> dict[str, list[HeldConnection]]:
    groups: dict[str, list[HeldConnection]] = {}
    for one in ones:
        groups.setdefault(_who(one), []).append(one)
    return groups


def _who(one: HeldConnection) -> str:
    """Clients come from another port each time."""
    if one.accepted and one.local is not None:
        host = "clients" if one.peer is None else one.peer[0]
        return f"from {host} to port {one.local[1]}"
    return "to a peer not known any more" if one.peer is None else f"to {shown(one.peer)}"


def _heading(pid: int | None, count: int) -> str:
    who = "processes that are not ours to read" if pid is None else f"process {pid} ({_name(pid)})"
    return f"{who}: {many(count, 'connection')}"


def _name(pid: int) -> str:
    """Its command line, or its name where there is no psutil."""
    try:
        import psutil  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        words = _proc.command(pid)
    else:
        try:
            process = psutil.Process(pid)
            words = " ".join(process.cmdline()) or process.name()
        except psutil.Error:
            words = _proc.command(pid)
    # A process may call itself what it likes: no control character gets to the terminal.
    clean = "".join(letter if letter.isprintable() else " " for letter in words)
    return clean if len(clean) <= _LONGEST_NAME else f"{clean[:_LONGEST_NAME]}..."


def _row(who: str, one: HeldConnection) -> tuple[str, ...]:
    numbers = (
        "?" if number is None else str(number) for number in (one.unread, one.unacknowledged)
    )
    state = f"{one.state} (lost)" if one.lost else one.state
    age = "" if one.age is None else duration(one.age)
    if one.age is None and one.state == "CLOSE_WAIT":
        age = "?"
    local = "?" if one.local is None else shown(one.local)
    return who, "?" if one.fd is None else str(one.fd), state, age, *numbers, local


def duration(seconds: float) -> str:
    """In the two largest units that matter."""
    whole = int(seconds)
    for turn, (unit, size) in enumerate(_UNITS):
        if whole >= size:
            rest = whole % size
            more = _UNITS[turn + 1 : turn + 2] if rest else ()
            parts = [f"{whole // size} {unit}"]
            parts += [f"{rest // smaller} {name}" for name, smaller in more if rest >= smaller]
            return " ".join(parts)
    return "0 s"


def many(count: int, what: str) -> str:
    """With an s where it is to be."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def lines(audit: Audit, older_than: float | None) -> list[str]:
    """As plain text, with the verdict last."""
    written = []
    for section in sections(audit, older_than):
        rows = [HEAD, *section.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        written.append(section.heading)
        written += [_aligned(row, widths) for row in rows]
        written.append("")
    return [*written, verdict(audit, older_than)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        cell.rjust(width) if column in NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return _GAP.join(cells).rstrip()


# The verdict ------------------------------------------------------------------------------------


def verdict(audit: Audit, older_than: float | None) -> str:
    """What it is all about, in one line."""
    # Duplicates and forked children hold the same connection.
    found = {one.inode: one for one in audit.found(older_than)}.values()
    left = [one for one in found if not one.lost]
    parts = [
        _left(ones, accepted)
        for accepted in (False, True)
        if (ones := [one for one in left if one.accepted is accepted])
    ]
    lost = sum(one.lost for one in found)
    if lost:
        it = "is" if lost == 1 else "are"
        parts.append(
            f"{many(lost, 'connection')} {it} over, by reset or timeout, and the program still "
            f"holds {_them(lost)}: it has to close the descriptor{'' if lost == 1 else 's'}"
        )
    if parts:
        return "; ".join(parts)
    longer = "" if older_than is None else f" for longer than {duration(older_than)}"
    return f"nothing is in CLOSE_WAIT{longer}: {many(len(audit), 'connection')} looked at"


def _left(ones: list[HeldConnection], accepted: bool) -> str:
    count, peers = len(ones), _by_peer(ones)
    where = next(iter(peers)) if len(peers) == 1 else f"with {len(peers)} peers, {_most(peers)}"
    ages = [one.age for one in ones if one.age is not None]
    oldest = f", {'' if count == 1 else 'the oldest '}for {duration(max(ages))}" if ages else ""
    if accepted:
        said = (
            f"the client{'' if count == 1 else 's'} closed {_them(count)}, and the program that "
            f"accepted {_them(count)} has not: its code has to"
        )
    else:
        said = (
            f"the server closed {_them(count)}, and the program has not: start it by safesock run "
            f"-- ..., or call safesock.enforce() in it"
        )
    return f"{many(count, 'connection')} in CLOSE_WAIT {where}{oldest}: {said}"


def _most(peers: dict[str, list[HeldConnection]]) -> str:
    who, ones = max(peers.items(), key=lambda item: len(item[1]))
    return f"{len(ones):,} of them {who}"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def as_json(audit: Audit, older_than: float | None) -> str:
    """A list, with an object on each line."""
    # At once: an encoder that is called for each takes longer. No name has a brace in it.
    return json.dumps([_object(one, older_than) for one in audit]).replace("}, {", "},\n{")


def _object(one: HeldConnection, older_than: float | None) -> dict[str, object]:
    return {
        "pid": one.pid,
        "fd": one.fd,
        "state": one.state,
        "age": one.age,
        "local": None if one.local is None else shown(one.local),
        "peer": None if one.peer is None else shown(one.peer),
        "unread": one.unread,
        "unacknowledged": one.unacknowledged,
        "inode": one.inode,
        "accepted": one.accepted,
        "lost": one.lost,
        "found": one.is_found(older_than),
    }
