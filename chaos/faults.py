"""What the proxy does to a connection, and at which byte: drawn from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

NONE, CUT, TRUNCATE, RESET, DELAY, HOLE = "none", "cut", "truncate", "reset", "delay", "hole"
KINDS = (CUT, TRUNCATE, RESET, DELAY, HOLE)
_WEIGHTS = {NONE: 44, CUT: 16, TRUNCATE: 8, RESET: 16, DELAY: 12, HOLE: 4}


@dataclass(frozen=True)
class Fault:
    """cut: FIN to both sides; truncate: the rest of what the server sends is dropped; reset: RST;
    delay: nothing passes for *seconds*; hole: the same, and then a cut or a RST (*then*).

    It strikes when *position* bytes have passed: of the client's, or of the server's (*down*).
    """

    kind: str = NONE
    position: int = 0
    down: bool = False
    seconds: float = 0.0
    then: str = CUT


def draw(rng: random.Random) -> Fault:
    kind = rng.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
    # Within the header, within what is usual, anywhere.
    far = rng.choice((30, 30, 2000, 2000, 2000, 60_000))
    seconds = rng.uniform(0.1, 0.3) if kind == HOLE else rng.uniform(0.002, 0.05)
    down = kind == TRUNCATE or rng.random() < 0.5
    return Fault(kind, rng.randrange(far), down, seconds, rng.choice((CUT, RESET)))
