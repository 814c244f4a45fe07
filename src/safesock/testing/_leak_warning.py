"""What `safesock_leaks = warn` warns with."""

from __future__ import annotations

import pytest


class LeakedConnectionWarning(pytest.PytestWarning):
    """A test has left a TCP connection in CLOSE_WAIT, or the descriptor of one that is over."""
