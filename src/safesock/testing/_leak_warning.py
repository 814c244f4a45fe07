"""What `safesock_leaks = warn` warns with."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pytest

    Base = pytest.PytestWarning
else:
    try:
        import pytest

        Base = pytest.PytestWarning
    except ImportError:  # Then nobody warns, and the name is there all the same.
        Base = UserWarning


class LeakedConnectionWarning(Base):
    """A test has left a TCP connection in CLOSE_WAIT, or the descriptor of one that is over.

    A pytest.PytestWarning, where pytest is installed.
    """
