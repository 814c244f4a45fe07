"""Prints the lines that a server sends, and comes back when the connection is lost.

python line_client.py HOST PORT [--hello TEXT] [--attempts N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from safesock import KeepAlive, Policy, Reconnect, ReconnectError
from safesock.asyncio import Connector


async def follow(connector: Connector, hello: str) -> None:
    async for reader, writer in connector:  # Closed at the end of each turn.
        try:
            writer.write(hello.encode() + b"\n")
            async for line in reader:
                connector.confirm()  # It works: the next outage has all its attempts.
                print(line.decode(errors="replace").rstrip("\n"), flush=True)
        except (OSError, ValueError) as error:  # A reset; a line that is too long.
            print(f"line_client: {error}", file=sys.stderr)
        # What the peer's kernel had not acknowledged may have to be said again.
        cause = writer.loss.cause.name if writer.loss else "our side"
        unknown = writer.loss.unacknowledged if writer.loss else 0
        print(f"line_client: ended by {cause}, {unknown} bytes unknown", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints the lines that a server sends.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--hello", default="hello", help="the line to begin with")
    parser.add_argument("--attempts", type=int, default=8, help="for one outage")
    options = parser.parse_args()
    # A peer that has vanished without a FIN is noticed as well.
    policy = Policy(keepalive=KeepAlive(idle=30), user_timeout=30)
    try:
        reconnect = Reconnect(attempts=options.attempts)
        connector = Connector((options.host, options.port), policy=policy, reconnect=reconnect)
        asyncio.run(follow(connector, options.hello))
    except ReconnectError as error:
        print(f"line_client: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
