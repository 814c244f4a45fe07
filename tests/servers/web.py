"""nginx."""

from __future__ import annotations

import signal

from servers.base import HOST, Server

_CONFIGURATION = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_timeout 1h;
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    server {{
        listen {host}:{port};
        listen {host}:{tls_port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""


class Nginx(Server):
    needs = ("nginx",)
    package = "nginx-light"

    def prepare(self) -> None:
        (self.folder / "nginx.conf").write_text(_CONFIGURATION.format(host=HOST, **vars(self)))

    def command(self) -> list[str]:
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def drop(self) -> None:
        """New workers begin, and the old ones close what is idle."""
        self.tell(signal.SIGHUP)
