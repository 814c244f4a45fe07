"""What a module says where the package that it is for is not installed."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = {
    "safesock.adapters.anyio": ("anyio", "anyio"),
    "safesock.adapters.httpcore": ("httpcore", "httpx"),
    "safesock.adapters.httpx": ("httpx", "httpx"),
    "safesock.adapters.pymysql": ("pymysql", "pymysql"),
    "safesock.adapters.redis": ("redis", "redis"),
    "safesock.adapters.redis.asyncio": ("redis", "redis"),
    "safesock.adapters.requests": ("requests", "requests"),
    "safesock.adapters.urllib3": ("urllib3", "urllib3"),
    "safesock.otel": ("opentelemetry", "otel"),
}
# None in sys.modules is a package that cannot be found.
PROGRAM = f"""
import importlib, sys
sys.modules |= dict.fromkeys({[package for package, _ in EXTRAS.values()]})
for module in {list(EXTRAS)}:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_a_missing_package_is_told_with_the_extra_that_brings_it() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ended.stderr == ""
    for line, (_, extra) in zip(ended.stdout.splitlines(), EXTRAS.values(), strict=True):
        assert line.endswith(f": pip install 'safesock[{extra}]'")
