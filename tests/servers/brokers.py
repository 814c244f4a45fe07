"""Mosquitto and RabbitMQ."""

from __future__ import annotations

import signal

from servers.base import HOST, Server

_LISTENER = """\
listener {port} {host}
protocol {protocol}
allow_anonymous true
"""
_TLS = """\
certfile {certificate}
keyfile {key}
"""


class Mosquitto(Server):
    """MQTT, over TCP or WebSocket."""

    needs = ("mosquitto",)
    package = "mosquitto"
    protocol = "mqtt"

    def prepare(self) -> None:
        told = {"host": HOST, "protocol": self.protocol, **vars(self)}
        in_clear = _LISTENER.format(**told)
        with_tls = (_LISTENER + _TLS).format(**told | {"port": self.tls_port})
        (self.folder / "mosquitto.conf").write_text(
            f"per_listener_settings true\nuser root\nmax_queued_messages 0\n{in_clear}{with_tls}"
        )

    def command(self) -> list[str]:
        return ["mosquitto", "-c", str(self.folder / "mosquitto.conf")]

    def drop(self) -> None:
        self.restart()


class MosquittoWebSocket(Mosquitto):
    protocol = "websockets"

    def prepare(self) -> None:
        super().prepare()
        with (self.folder / "mosquitto.conf").open("a") as file:
            # Without one that is no WebSocket's it ends at once.
            file.write(_LISTENER.format(port=self.reserve_port(), host=HOST, protocol="mqtt"))


class RabbitMq(Server):
    needs = ("rabbitmq-server", "epmd")
    package = "rabbitmq-server"
    user = "rabbitmq"
    ends_by = signal.SIGKILL  # It would take its time.

    def prepare(self) -> None:
        self._mapper, self._others = self.reserve_port(), self.reserve_port()
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            f"listeners.ssl.1 = {HOST}:{self.tls_port}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {self.key}\n"
            f"ssl_options.cacertfile = {self.authority}\n"
            "ssl_options.verify = verify_none\n"
            # By default it resets what it closes.
            "tcp_listen_options.linger.on = false\n"
        )
        (self.folder / "plugins").write_text("[].")

    def command(self) -> list[str]:
        # The one in PATH would change to a user that it is already.
        return self._with_settings("rabbitmq-server")

    def _with_settings(self, name: str, *arguments: str) -> list[str]:
        settings = {
            "HOME": self.folder,
            "RABBITMQ_NODENAME": f"safesock{self.port}@localhost",
            "RABBITMQ_DIST_PORT": self._others,
            "ERL_EPMD_PORT": self._mapper,
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_CONFIG_FILE": self.folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_LOG_BASE": self.folder / "logs",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        given = (f"{name}={value}" for name, value in settings.items())
        return ["env", *given, f"/usr/lib/rabbitmq/bin/{name}", *arguments]

    def drop(self) -> None:
        """As it does to clients whose heartbeats it has missed: FIN, without a word of AMQP."""
        end = "[exit(Pid, kill) || Pid <- rabbit_networking:local_connections()]."
        self.run(*self._with_settings("rabbitmqctl", "eval", end))
