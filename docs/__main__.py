"""Builds the site of these pages: `python -m docs`. A link that leads nowhere is an error."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PAGES = Path(__file__).parent
SITE = PAGES.parent / "build" / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SITE, help=f"default: {SITE}")
    folder = parser.parse_args().folder
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print("the site is built by Sphinx: pip install -e '.[docs]'", file=sys.stderr)
        return 2
    status = build_main(
        ["-q", "--fail-on-warning", "--fresh-env", "-b", "html", str(PAGES), str(folder)]
    )
    if not status:
        print(folder / "index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
