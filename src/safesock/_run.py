"""`safesock run`: an unmodified program under `enforce`.

The program takes the place of this process by execve(2), so that its exit status, signals and
input are its own. What it is to do travels in its environment: a `sitecustomize` module in front
of PYTHONPATH, which every Python imports as it starts, and the options for it.
"""

from __future__ import annotations

import os
import sys

from safesock._option_values import close_mode, number
from safesock._policy import Policy, seconds_in, sweep_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

    # As on the command line; what is given twice is there twice.
    Pairs = list[tuple[str, str]]

OPTIONS = "SAFESOCK_RUN"
BOOTSTRAP = os.path.join(os.path.dirname(__file__), "_bootstrap")
# As env(1) and nohup(1) end.
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127


def options_in(namespace: Namespace) -> str:
    """Those of the command line, as the program's environment takes them. Raises ValueError."""
    pairs = [("close", namespace.close), ("grace", namespace.grace)]
    if namespace.sweep is not None:
        pairs.append(("sweep", namespace.sweep))
    if namespace.report:
        pairs.append(("report", "yes"))
    pairs += [("except", text) for text in namespace.excepted]
    _meant_by(pairs)
    return ";".join(f"{name}={value}" for name, value in pairs)


def _meant_by(pairs: Pairs) -> tuple[Policy, float | None, Callable[[Any], bool] | None]:
    """The policy, the seconds between sweeps, and whom they are for."""
    one = dict(pairs)
    grace = seconds_in("--grace", number("--grace", one["grace"]))
    policy = Policy(close_mode(one["close"]), on_loss="release", grace=grace)
    sweep = sweep_in("--sweep", number("--sweep", one["sweep"])) if "sweep" in one else None
    excepted = [value for name, value in pairs if name == "except"]
    if not excepted:
        return policy, sweep, None
    from safesock._excepted import all_but

    return policy, sweep, all_but(excepted)


def run(command: list[str], options: str) -> int:
    """Becomes *command*. Returns, with an exit status, only when it cannot."""
    import signal

    environment = dict(os.environ)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = BOOTSTRAP if not path else BOOTSTRAP + os.pathsep + path
    environment[OPTIONS] = options
    # Python ignores these, and what is ignored stays so in the program. What they were before it
    # started nobody can tell.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        return _cannot(_NOT_FOUND, f"there is no program {command[0]!r}", command[0])
    except (OSError, ValueError) as error:
        return _cannot(_NOT_EXECUTABLE, f"cannot run {command[0]!r}: {error}", command[0])


def _cannot(status: int, why: str, program: str) -> int:
    if program.endswith(".py") or (status == _NOT_FOUND and os.path.isfile(program)):
        why += f" (is it safesock run -- python {program}?)"
    print(f"safesock: error: {why}", file=sys.stderr)
    return status


def begin() -> None:
    """In the program, before anything of its own."""
    from safesock import _background

    if not _background.IS_POSSIBLE:
        return
    from safesock._enforce import enforce

    pairs = []
    for text in os.environ[OPTIONS].split(";"):
        name, _, value = text.partition("=")
        pairs.append((name, value))
    policy, sweep, only = _meant_by(pairs)
    enforcement = enforce(policy, only=only, sweep=sweep)
    if ("report", "yes") in pairs:
        from safesock._run_report import Reporter

        Reporter(enforcement)
