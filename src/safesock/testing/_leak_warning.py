"""What `safesock_leaks = warn` warns with."""

from __future__ import annotations


class LeakedConnectionWarning(UserWarning):
    """A test has left a TCP connection in CLOSE_WAIT, or the descriptor of one that is over."""
