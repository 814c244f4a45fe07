"""What a command writes into a page, between two marks."""

from __future__ import annotations


def between(text: str, begin: str, end: str, found: str) -> str:
    """The page, with *found* in the place of what was there before. Raises ValueError where it has
    no place for it."""
    before, mark, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not (mark and last) or text.count(begin) > 1 or text.count(end) > 1:
        raise ValueError(f"no page for the results, which has {begin!r} once, then {end!r}")
    return f"{before}{begin}\n{found}\n{end}{after}"
