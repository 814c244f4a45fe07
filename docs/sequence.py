"""The sequence diagrams of docs/close-wait.md: `python -m docs.sequence` draws them again.

A test makes the same steps on real sockets, and compares the states that the kernel tells.
"""

from __future__ import annotations

import html
import textwrap
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent

PROGRAM, KERNEL, SERVER = 110, 370, 650  # Where their lines are.
_HEADS = {PROGRAM: "your program", KERNEL: "its kernel", SERVER: "the server"}
_WIDTH, _TOP, _MARGIN = 760, 64, 30
_ARROW, _STATE, _LINE = 38, 40, 19  # How high they are.
_LETTERS = 78  # In a line of a note.
# It brings its own ground, so that it can be read on a page of any colour.
_STYLE = """
svg { font: 15px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
.ground { fill: #f6f8fa; } text { fill: #1f2328; text-anchor: middle; }
.head { font-weight: 600; } .life { stroke: #8c959f; stroke-dasharray: 4 4; }
.wire { stroke: #0969da; stroke-width: 1.6; } .tip { fill: #0969da; }
.state { fill: #ddf4e4; stroke: #1a7f37; } .held { fill: #ffdcd7; stroke: #cf222e; }
.gone { fill: #eaeef2; stroke: #8c959f; } .note { fill: #fff5c4; stroke: #bf8700; }
.name { font: 13px ui-monospace, 'DejaVu Sans Mono', monospace; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #161b22; } text { fill: #e6edf3; } .life { stroke: #6e7681; }
  .wire { stroke: #58a6ff; } .tip { fill: #58a6ff; }
  .state { fill: #12361f; stroke: #3fb950; } .held { fill: #4e1518; stroke: #f85149; }
  .gone { fill: #21262d; stroke: #6e7681; } .note { fill: #3a2d05; stroke: #d29922; }
}
"""


class Arrow(NamedTuple):
    """A call, or a segment on the wire."""

    start: int
    end: int
    text: str


class Step(NamedTuple):
    """What happens, and the states of both ends after it; None where the kernel has none left.

    do: what the test does for it.
    """

    do: str
    arrows: tuple[Arrow, ...]
    client: str | None
    server: str | None
    note: str = ""


def _call(text: str) -> Arrow:
    return Arrow(PROGRAM, KERNEL, text)


def _result(text: str) -> Arrow:
    return Arrow(KERNEL, PROGRAM, text)


def _out(text: str) -> Arrow:
    return Arrow(KERNEL, SERVER, text)


def _in(text: str) -> Arrow:
    return Arrow(SERVER, KERNEL, text)


_BEGIN = (
    Step("connect", (_call("connect()"), _out("SYN, SYN-ACK, ACK")), "ESTABLISHED", "ESTABLISHED"),
    Step(
        "request", (_call("send(), recv()"), _out("request, answer")), "ESTABLISHED", "ESTABLISHED"
    ),
    Step("server closes", (_in("FIN"),), "CLOSE_WAIT", "FIN_WAIT2"),
)
DIAGRAMS = {
    "close-wait": (
        *_BEGIN,
        Step(
            "nothing",
            (),
            "CLOSE_WAIT",
            "FIN_WAIT2",
            "Nobody reads, nobody closes: the kernel waits for the program, for ever. "
            "The server's kernel forgets its half after a minute.",
        ),
        Step(
            "send",
            (_call("send(): no error"), _out("the next request"), _in("RST")),
            "CLOSE",
            None,
        ),
        Step(
            "recv end",
            (_result('recv(): b"", the end'),),
            "CLOSE",
            None,
            "Until somebody calls close(), a dead descriptor remains, which no ss shows.",
        ),
    ),
    "watched": (
        *_BEGIN,
        Step(
            "nothing",
            (),
            "CLOSE_WAIT",
            "FIN_WAIT2",
            "safesock's watcher sees the FIN (epoll, EPOLLRDHUP), and gives the program a second "
            "to react by itself: the grace.",
        ),
        Step("watcher", (_call("shutdown()"), _out("FIN")), "CLOSE", "TIME_WAIT"),
        Step(
            "recv end",
            (_result('recv(): b"", as ever'),),
            None,
            "TIME_WAIT",
            "The loss is told once, and the descriptor is closed. Nothing is left.",
        ),
    ),
}


def drawn(steps: tuple[Step, ...]) -> str:
    """As SVG."""
    y, parts = _TOP, []
    before: dict[int, str | None] = {KERNEL: "", SERVER: ""}
    for step in steps:
        for arrow in step.arrows:
            y += _ARROW
            parts += _arrow(arrow, y)
        states = {KERNEL: step.client, SERVER: step.server}
        if states != before:
            y += _STATE
            for lane, state in states.items():
                parts += _state(lane, y, state, changed=state != before[lane])
            before = states
        if step.note:
            lines = textwrap.wrap(step.note, _LETTERS)
            parts += _note(lines, y + 30)
            y += 30 + _LINE * len(lines)
    height = y + _MARGIN
    lives = [
        f'<line class="life" x1="{lane}" y1="{_TOP - 16}" x2="{lane}" y2="{height - 14}"/>'
        f'<text class="head" x="{lane}" y="{_TOP - 28}">{name}</text>'
        for lane, name in _HEADS.items()
    ]
    inner = "\n".join([*lives, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{_WIDTH}" height="{height}" rx="10"/>\n{inner}\n</svg>\n'
    )


def _arrow(arrow: Arrow, y: int) -> list[str]:
    right = arrow.end > arrow.start
    tip, back = (arrow.end, arrow.end - 10) if right else (arrow.end, arrow.end + 10)
    return [
        f'<line class="wire" x1="{arrow.start}" y1="{y}" x2="{back}" y2="{y}"/>'
        f'<path class="tip" d="M{tip} {y} L{back} {y - 5} L{back} {y + 5} Z"/>',
        _text((arrow.start + arrow.end) // 2, y - 7, arrow.text),
    ]


def _state(lane: int, y: int, state: str | None, *, changed: bool) -> list[str]:
    if not changed:
        return []
    name = state or "nothing"
    kind = {"CLOSE_WAIT": "held", "CLOSE": "gone", "nothing": "gone"}.get(name, "state")
    width = 9 * len(name) + 16
    return [
        f'<rect class="{kind}" x="{lane - width // 2}" y="{y - 20}" width="{width}" height="26"'
        ' rx="13"/>',
        _text(lane, y - 3, name, "name"),
    ]


def _note(lines: list[str], y: int) -> list[str]:
    left, width = 20, _WIDTH - 40
    return [
        f'<rect class="note" x="{left}" y="{y - 16}" width="{width}"'
        f' height="{_LINE * len(lines) + 10}" rx="4"/>',
        *(_text(_WIDTH // 2, y + 4 + _LINE * at, line) for at, line in enumerate(lines)),
    ]


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    which = f' class="{kind}"' if kind else ""
    return f'<text{which} x="{x}" y="{y}">{html.escape(text)}</text>'


def main() -> None:
    for name, steps in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(drawn(steps), encoding="utf-8")


if __name__ == "__main__":
    main()
