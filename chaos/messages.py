"""What the processes of a run tell: one JSON object a line, on stdout."""

from __future__ import annotations

import json
import select
import sys
import threading
from typing import Any

_lock = threading.Lock()


def tell(kind: str, **what: Any) -> None:
    line = json.dumps({"kind": kind, **what}, separators=(",", ":"))
    with _lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def is_over() -> bool:
    """Whether the run is: then stdin is at its end."""
    return bool(select.select([sys.stdin], [], [], 0)[0])
