"""Asks a Modbus/TCP device for registers, from one local port that a firewall lets through:
python modbus_client.py HOST PORT --local-port 40000 --register 7 --times 10
"""

import argparse
import asyncio
import struct
import sys

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
                pdu = struct.pack(">BHH", 3, register, count)  # Read holding registers.
                self._writer.write(struct.pack(">HHHB", self._number, 0, len(pdu) + 1, 1) + pdu)
                number, _, length, _ = struct.unpack(">HHHB", await self._reader.readexactly(7))
                function, size, *data = await self._reader.readexactly(length - 1)
            if (number, function, size) != (self._number, 3, 2 * count):
                raise ConnectionError(f"unexpected answer {number}, {function}, {data}")
        except BaseException:
            self._writer.close()  # A late answer must not be taken for the next one's.
            raise
        self._connector.confirm()
        return struct.unpack(f">{count}H", bytes(data))


async def main() -> None:
    parser = argparse.ArgumentParser(description="Asks a Modbus/TCP device for a register.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    for name, default in {"--local-port": 0, "--register": 0, "--times": 1}.items():
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    address, local = (options.host, options.port), ("", options.local_port)
    async with Connector(address, local_address=local) as connector:
        device = Device(connector)
        for _ in range(options.times):
            try:
                print(*await device.read(options.register), flush=True)
            except (OSError, EOFError) as error:  # EOFError: lost in the middle of an answer.
                print(f"modbus_client: {error!r}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
