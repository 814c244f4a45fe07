"""The picture of `safesock demo` in the README: `python -m docs.record_demo` runs it in a terminal,
and draws what it has shown, in its colours.
"""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent / "demo.svg"
_COLUMNS = 80
_COMMAND = ["safesock", "demo"]
# Background, foreground, and the eight colours, of which the demo uses red and green.
_THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (86, 211, 100),
        (227, 179, 65),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)
# Rich's own fetches a font from the network.
_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font: bold 18px system-ui, 'DejaVu Sans', sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def in_terminal() -> str:
    """All that the demo writes to a terminal."""
    terminal, its_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(_COLUMNS)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", *_COMMAND],
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        env=environment,
    )
    os.close(its_end)
    output = b""
    try:
        while data := os.read(terminal, 65536):
            output += data
    except OSError:
        pass  # EIO: it has ended, and with it the terminal.
    finally:
        os.close(terminal)
    if process.wait():
        raise SystemExit("the demo has failed: no picture is made of that")
    return output.decode().replace("\r\n", "\n")


def drawn(output: str) -> str:
    """As SVG, each line as it was when it was left."""
    lines = [line.rpartition("\r\x1b[K")[2] for line in output.rstrip().split("\n")]
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), highlight=False)
    for line in (f"$ {' '.join(_COMMAND)}", "", *lines, ""):
        console.print(Text.from_ansi(line))
    return console.export_svg(
        title="safesock demo", theme=_THEME, code_format=_FORMAT, unique_id="demo"
    )


def main() -> None:
    PICTURE.write_text(drawn(in_terminal()), encoding="utf-8")


if __name__ == "__main__":
    main()
