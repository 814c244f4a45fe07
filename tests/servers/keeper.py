"""Runs a server, and ends with it all that it has started, whatever becomes of the tests.

    python keeper.py USER COMMAND...

Prints the server's process id. Servers leave children behind when they are killed, and daemons that
are nobody's child: here they become this process's own. It kills them when the server ends, and all
of it when its stdin does, as whoever wanted it is gone then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """The processes that this one has started, those that they have started, and so on."""
    found: list[int] = []
    asked = [pid]
    while asked:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{asked.pop()}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                asked += children
    return found


def end_all() -> None:
    """Until there is no child left, as those of the dead come to us."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.wait()


def as_user(name: str | None) -> dict[str, Any]:
    """How subprocess starts it as this user, where we are root."""
    if not name or os.getuid():
        return {}
    user = pwd.getpwnam(name)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def main(user: str, *command: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, **as_user(user))
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print(server.pid, flush=True)
        select.select([sys.stdin, os.pidfd_open(server.pid)], [], [])
    finally:
        end_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
