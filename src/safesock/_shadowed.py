"""What `safesock run` has imported before the program, and the program has modules of its own for.

A `queue.py` beside the program's script, or in PYTHONPATH, comes before the standard library's, but
not once that has been imported: it is taken out of `sys.modules` again. safesock keeps what it has
imported, and everybody else imports what they would have imported without it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_STANDARD = os.path.realpath(os.path.dirname(os.__file__))
# How sys.argv begins where there is no script, while Python starts.
_NO_SCRIPT = ("", "-", "-c", "-m")


def give_back(loaded: Iterable[str], ahead: list[str]) -> None:
    """*loaded*: the modules that were not there before; *ahead*: what comes before the standard
    library in `sys.path`, but for the place of the script, which Python has yet to put there."""
    mine = {one for one in loaded if one.partition(".")[0] != "safesock"}
    for place in (*_place_of_the_script(), *ahead):
        if os.path.realpath(place) == _STANDARD:
            continue  # They would be imported again from where they are.
        for name in _modules_in(place) & mine:
            if not _is_part_of_python(name):
                _forget(name, mine)


def _place_of_the_script() -> list[str]:
    if sys.flags.safe_path or not sys.argv:
        return []
    if sys.argv[0] in _NO_SCRIPT:
        return [os.curdir]
    found = os.path.realpath(sys.argv[0])
    return [found if os.path.isdir(found) or _is_zip(found) else os.path.dirname(found)]


def _is_zip(path: str) -> bool:
    """Python takes such a file for the place itself. By its end, where there is no comment."""
    try:
        with open(path, "rb") as file:
            file.seek(-22, os.SEEK_END)
            return file.read(4) == b"PK\x05\x06"
    except OSError:
        return False


def _modules_in(place: str) -> set[str]:
    """Their names; nothing for a zip file."""
    try:
        entries = os.listdir(place)
    except OSError:
        return set()
    return {entry.partition(".")[0] for entry in entries if _is_module(place, entry)}


def _is_module(place: str, entry: str) -> bool:
    _, _, ending = entry.partition(".")
    if ending:
        return ending in ("py", "pyc") or entry.endswith(".so")
    return os.path.isfile(os.path.join(place, entry, "__init__.py"))


def _is_part_of_python(name: str) -> bool:
    """Whether it comes before all that is in `sys.path`."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and spec.origin in ("built-in", "frozen")


def _forget(name: str, loaded: set[str]) -> None:
    for one in loaded:
        if one == name or one.startswith(f"{name}."):
            sys.modules.pop(one, None)
