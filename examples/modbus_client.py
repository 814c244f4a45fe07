"""Asks a Modbus/TCP device for registers, from one local port that a firewall lets through."""

import argparse
import asyncio
import struct
import sys

from safesock import ReconnectError
from safesock.asyncio import Connector


class Device:
    def __init__(self, connector: Connector, timeout: float = 2.0) -> None:
        self._connector, self._timeout, self._number = connector, timeout, 0
        self._writer: asyncio.StreamWriter | None = None

    async def read(self, register: int, count: int = 1) -> tuple[int, ...]:
        """Asks once; after an exception it is for the caller to decide whether to ask again."""
        if self._writer is None or self._writer.is_closing():
            self._reader, self._writer = await self._connector.connect()
        try:
            async with asyncio.timeout(self._timeout):
                self._number = (self._number + 1) % 65536
                request = self._number, 0, 6, 1, 3, register, count  # Read holding registers.
                self._writer.write(struct.pack(">HHHBBHH", *request))
                number, _, length, _ = struct.unpack(">HHHB", await self._reader.readexactly(7))
                function, size, *data = await self._reader.readexactly(length - 1)
            if (number, function, size) != (self._number, 3, 2 * count):
                raise ConnectionError(f"unexpected answer {number}, {function}, {data}")
        except BaseException:
            self._writer.close()  # A late answer must not be taken for the next one's.
            raise
        self._connector.confirm()
        return struct.unpack(f">{count}H", bytes(data))


async def poll(host: str, port: int, local_port: int, register: int, times: int) -> None:
    async with Connector((host, port), local_address=("", local_port)) as connector:
        device = Device(connector)
        for _ in range(times):
            try:
                print(*await device.read(register), flush=True)
            except (OSError, EOFError) as error:  # EOFError: lost in the middle of an answer.
                if isinstance(error, ReconnectError):
                    raise  # It has been tried often enough.
                print(f"modbus_client: {error!r}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Asks a Modbus/TCP device for a register.")
    parser.add_argument("host")
    for name, default in {"port": None, "--local-port": 0, "--register": 0, "--times": 1}.items():
        parser.add_argument(name, type=int, default=default)
    try:
        asyncio.run(poll(**vars(parser.parse_args())))
    except (ReconnectError, ValueError) as error:
        sys.exit(f"modbus_client: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
