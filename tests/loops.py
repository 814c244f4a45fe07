"""Coroutines on asyncio's own loop and on uvloop, in debug mode, with nothing left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop
from peer import TIMEOUT

Result = TypeVar("Result")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


class Loop:
    """Runs one coroutine, and keeps what the loop's exception handler was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.complaints: list[dict[str, Any]] = []

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """In a new loop; no task may be left, and nothing may have been complained of."""
        with asyncio.Runner(loop_factory=LOOPS[self.name], debug=True) as runner:
            runner.get_loop().set_exception_handler(lambda _, what: self.complaints.append(what))
            result = runner.run(self._whole(main))
        gc.collect()  # What was never retrieved or awaited is complained of now.
        complaints, self.complaints = self.complaints, []
        assert not complaints, complaints
        return result

    async def _whole(self, main: Coroutine[Any, Any, Result]) -> Result:
        async with asyncio.timeout(3 * TIMEOUT):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result
