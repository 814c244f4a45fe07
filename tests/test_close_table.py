"""The tables of docs/close-policy.md are what this kernel does."""

from __future__ import annotations

import close_table


def test_the_page_says_what_was_measured() -> None:
    command = "it has changed: python tests/close_table.py --write"
    assert close_table.on_the_page() == close_table.measured(), command
