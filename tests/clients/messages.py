"""Clients of message brokers, and of WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import tenacity

from clients.uses import HOST, TIMEOUT, Uses, Where, client, in_tasks, side_by_side, told, told_by

# MQTT 3.1.1: CONNECT with a clean session and no name, PINGREQ.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
_PING = b"\xc0\x00"
# Mosquitto takes some tenths of a second for each WebSocket, and closes on whoever has been
# connected for five without a request, which a busy machine may bring about: then once more.
_AT_ONCE = 2
_again = tenacity.retry(stop=tenacity.stop_after_attempt(5), reraise=True)


@client("paho-mqtt")
def mqtt(where: Where) -> Iterator[Uses]:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    def connected() -> mqtt.Client:
        one = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        if where.context:
            one.tls_set_context(where.context)
        one.connect_timeout = TIMEOUT
        one.connect(HOST, where.port, keepalive=3600)
        while not one.is_connected():
            assert one.loop() == mqtt.MQTT_ERR_SUCCESS
        return one

    def publish(one: mqtt.Client) -> object:
        sent = one.publish("topic", b"text", qos=1)
        code = sent.rc
        while code == mqtt.MQTT_ERR_SUCCESS and not sent.is_published():
            code = one.loop()
        return code, sent.is_published()

    made = [connected() for _ in range(where.count)]
    while True:
        yield [told(publish, one) for one in made]


@client("pika")
def amqp(where: Where) -> Iterator[Uses]:
    import pika

    options = pika.SSLOptions(where.context, HOST) if where.context else None
    parameters = pika.ConnectionParameters(
        HOST,
        where.port,
        heartbeat=3600,
        ssl_options=options,
        socket_timeout=TIMEOUT,
        stack_timeout=TIMEOUT,
    )
    made = [pika.BlockingConnection(parameters) for _ in range(where.count)]
    channels = [one.channel() for one in made]

    def declare(channel: Any) -> object:
        return channel.queue_declare("", exclusive=True).method.message_count

    while True:
        yield [told(declare, one) for one in channels]


@client("websocket-client")
def websocket_client(where: Where) -> Iterator[Uses]:
    import websocket

    tls = {"context": where.context} if where.context else {}

    @_again
    def connected(_: int) -> Any:
        one = websocket.create_connection(
            where.url("ws"), subprotocols=["mqtt"], sslopt=tls, timeout=TIMEOUT
        )
        one.send_binary(_CONNECT)
        one.recv()
        return one

    def ping(one: Any) -> object:
        one.send_binary(_PING)
        return one.recv()

    made = side_by_side(connected, range(where.count), _AT_ONCE)
    while True:
        yield side_by_side(lambda one: told(ping, one), made)


def _of_websockets(where: Where) -> dict[str, Any]:
    patience = {"open_timeout": TIMEOUT, "ping_interval": None}
    return {"subprotocols": ["mqtt"], "ssl": where.context, "proxy": None, **patience}


@client("websockets")
def websockets_in_threads(where: Where) -> Iterator[Uses]:
    from websockets.sync.client import connect

    @_again
    def connected(_: int) -> Any:
        one = connect(where.url("ws"), **_of_websockets(where))
        one.send(_CONNECT)
        one.recv(TIMEOUT)
        return one

    def ping(one: Any) -> object:
        one.send(_PING)
        return one.recv(TIMEOUT)

    made = side_by_side(connected, range(where.count), _AT_ONCE)
    while True:
        yield side_by_side(lambda one: told(ping, one), made)


@client("websockets, async")
async def websockets_async(where: Where) -> AsyncIterator[Uses]:
    from websockets.asyncio.client import connect

    @_again
    async def connected(_: int) -> Any:
        one = await connect(where.url("ws"), **_of_websockets(where))
        await one.send(_CONNECT)
        await one.recv()
        return one

    async def ping(one: Any) -> object:
        await one.send(_PING)
        return await asyncio.wait_for(one.recv(), TIMEOUT)

    made = await in_tasks(connected, range(where.count), _AT_ONCE)
    while True:
        yield await in_tasks(lambda one: told_by(ping, one), made)
