"""Imported by every Python that `safesock run` starts, as it starts: enforces, and leaves no trace.

It may be any other Python than the one that safesock is installed for, of version 2.7 even: so this
is written for all of them, and safesock is loaded from where this file is. A `sitecustomize` of the
program's own is imported as if this were not here.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _is_wanted():
    # type: () -> bool
    if os.environ.get("SAFESOCK_OFF", "") not in ("", "0") or "SAFESOCK_RUN" not in os.environ:
        return False
    return sys.version_info >= (3, 11) and sys.platform.startswith("linux")


def _leave_path():
    # type: () -> None
    for one in [one for one in sys.path if os.path.abspath(one) == _HERE]:
        sys.path.remove(one)
        sys.path_importer_cache.pop(one, None)


def _enforce():
    # type: () -> None
    before, path = set(sys.modules), sys.path[:]
    home = os.path.dirname(os.__file__)
    folder = os.path.dirname(os.path.dirname(_HERE))
    # Whatever the program has in front of it, safesock takes the standard library's modules.
    standard = [one for one in path if one == home or os.path.basename(one) == "lib-dynload"]
    sys.path[:] = standard if home in standard else path
    sys.path.append(folder)
    try:
        from safesock._run import begin
        from safesock._shadowed import give_back

        begin()
    finally:
        sys.path[:] = path
        if folder not in path:
            sys.path_importer_cache.pop(folder, None)
    give_back(set(sys.modules) - before, path[: path.index(home)] if home in path else [])


_leave_path()
try:
    if _is_wanted():
        _enforce()
except Exception as error:
    if sys.stderr is not None:
        sys.stderr.write("safesock: not enforced: " + str(error) + "\n")
# Python 2 would clear what is in use here, if nobody had the module.
_ours = sys.modules.pop(__name__)
# Where there is no other, this raises what `site` expects when there is none at all.
__import__("sitecustomize")
