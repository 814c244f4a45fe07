"""Uses connections, waits for a line on stdin, and uses them twice more.

    python -m clients NAME PORT COUNT FOLDER [CA]

Each time it prints, as a line of JSON, what each of them gave. With CA it is TLS.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import logging
import sys
from typing import Any

from clients.uses import CLIENTS, ON_TRIO, Uses, Where

MODULES = ("web", "databases", "messages", "sessions", "streams")
_TIMES = 3


def show(uses: Uses) -> None:
    print(json.dumps(uses), flush=True)


def main(name: str, port: str, count: str, folder: str, ca: str | None = None) -> None:
    logging.basicConfig(level=logging.INFO)
    # It runs when so many objects have been made, and what it frees then may complain: that is told
    # of one client more or less with every object more or less.
    gc.disable()
    for module in MODULES:
        importlib.import_module(f"clients.{module}")
    steps = CLIENTS[name](Where(int(port), int(count), ca, folder))
    if not inspect.isasyncgen(steps):
        for time in range(_TIMES):
            show(next(steps))
            if not time:
                sys.stdin.readline()
        steps.close()
    elif name in ON_TRIO:
        import trio

        trio.run(use, steps, trio.to_thread.run_sync)
    else:
        asyncio.run(use(steps, asyncio.to_thread))


async def use(steps: Any, in_thread: Any) -> None:
    for time in range(_TIMES):
        show(await anext(steps))
        if not time:
            await in_thread(sys.stdin.readline)
    await steps.aclose()


main(*sys.argv[1:])
