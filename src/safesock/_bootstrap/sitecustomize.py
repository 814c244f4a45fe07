"""Imported by every Python that `safesock run` starts, as it starts: enforces, and leaves no trace.

It may be another Python than the one that safesock is installed for, so safesock is loaded from
where this file is. A `sitecustomize` of the program's own is imported as if this were not here.
"""

import importlib
import os
import sys


def _enforce() -> None:
    if os.environ.get("SAFESOCK_OFF", "0") != "0" or "SAFESOCK_RUN" not in os.environ:
        return
    if sys.version_info < (3, 11) or not sys.platform.startswith("linux"):
        return
    import importlib.util

    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if "safesock" not in sys.modules:
        where = os.path.join(folder, "__init__.py")
        spec = importlib.util.spec_from_file_location("safesock", where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["safesock"] = module
        spec.loader.exec_module(module)
    from safesock._run import begin

    begin()


def _give_way() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.abspath(one) != here]
    ours = sys.modules.pop(__name__)
    try:
        importlib.import_module("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault(__name__, ours)


try:
    _enforce()
except Exception as error:
    sys.stderr.write(f"safesock: not enforced: {error}\n")
_give_way()
