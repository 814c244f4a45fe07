"""`safesock run`: an unmodified program under `enforce`.

The program takes the place of this process by execve(2), so that its exit status, signals and
input are its own. What it is to do travels in its environment: a `sitecustomize` module in front
of PYTHONPATH, which every Python imports as it starts, and the options for it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys

from safesock._option_values import close_mode, number
from safesock._policy import Policy, positive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from typing import Any

    from safesock._enforce import Enforcement

OPTIONS = "SAFESOCK_RUN"
BOOTSTRAP = os.path.join(os.path.dirname(__file__), "_bootstrap")
# As env(1) and nohup(1) end.
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


def options_in(namespace: Namespace) -> dict[str, Any]:
    """Those of the command line, as the program's environment takes them. Raises ValueError."""
    options = {name: getattr(namespace, name) for name in ("close", "grace", "sweep", "report")}
    _meant_by(options)
    return options


def _meant_by(options: Mapping[str, Any]) -> tuple[Policy, float | None]:
    policy = Policy(
        close_mode(options["close"]), on_loss="release", grace=number("--grace", options["grace"])
    )
    sweep = options["sweep"]
    return policy, None if sweep is None else positive("--sweep", number("--sweep", sweep))


def run(command: list[str], options: Mapping[str, Any]) -> int:
    """Becomes *command*. Returns, with an exit status, only when it cannot."""
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = BOOTSTRAP if not path else BOOTSTRAP + os.pathsep + path
    environment[OPTIONS] = json.dumps(options)
    # Python ignores these, and what is ignored stays so in the program.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        print(f"safesock: error: there is no program {command[0]!r}", file=sys.stderr)
        return _NOT_FOUND
    except (OSError, ValueError) as error:
        print(f"safesock: error: cannot run {command[0]!r}: {error}", file=sys.stderr)
        return _NOT_EXECUTABLE


def begin() -> None:
    """In the program, before anything of its own."""
    from safesock._enforce import enforce

    options = json.loads(os.environ[OPTIONS])
    policy, sweep = _meant_by(options)
    enforcement = enforce(policy, sweep=sweep)
    if options["report"]:
        atexit.register(_report, enforcement)


def _report(enforcement: Enforcement) -> None:
    found = enforcement.report()
    if not found.seen and not found.missed:
        return  # pip, a compiler, and other Pythons that are part of the way.
    text = (
        f"safesock: process {os.getpid()}: {found.seen} connections seen, "
        f"{found.released} released, {found.aborted} aborted, {found.missed} missed\n"
    )
    if sys.stderr is not None:
        sys.stderr.write(text)
