"""Servers with a process for each connection: exim, vsftpd, Dovecot and OpenSSH."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from servers.base import HOST, Server

_EXIM = """\
exim_user = Debian-exim
exim_group = Debian-exim
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
pid_file_path = {folder}/pid
local_interfaces = <; [127.0.0.1]:{port} ; [127.0.0.1]:{tls_port}
tls_on_connect_ports = {tls_port}
tls_advertise_hosts = *
tls_certificate = {certificate}
tls_privatekey = {key}
smtp_accept_max = 300
smtp_accept_max_per_host = 300
host_lookup =
rfc1413_hosts =
"""
_VSFTPD = """\
listen=YES
listen_address={host}
listen_port={port}
background=NO
anonymous_enable=YES
local_enable=NO
anon_root={folder}/empty
secure_chroot_dir={folder}/empty
idle_session_timeout=3600
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
max_clients=300
max_per_ip=300
ssl_enable=YES
allow_anon_ssl=YES
force_anon_logins_ssl=NO
force_anon_data_ssl=NO
ssl_tlsv1=YES
require_ssl_reuse=NO
rsa_cert_file={certificate}
rsa_private_key_file={key}
"""
_DOVECOT = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap
listen = {host}
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
disable_plaintext_auth = no
mail_location = maildir:{folder}/mail
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
mail_max_userip_connections = 300
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=mail gid=mail home={folder}/mail
}}
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
  }}
  process_limit = 300
}}
service imap {{
  process_limit = 300
}}
service anvil {{
  client_limit = 1000
}}
"""


class Exim(Server):
    needs = ("exim4",)
    package = "exim4-daemon-light"
    needs_root = True

    def prepare(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "spool").mkdir()
        shutil.chown(self.folder / "spool", "Debian-exim", "Debian-exim")
        shutil.chown(self.key, "Debian-exim")
        shutil.chown(self.folder, "Debian-exim")
        (self.folder / "exim.conf").write_text(_EXIM.format(**vars(self)))

    def command(self) -> list[str]:
        return ["exim4", "-C", str(self.folder / "exim.conf"), "-bdf"]

    def drop(self) -> None:
        """421, and FIN."""
        self.signal_sessions(signal.SIGTERM)


class Vsftpd(Server):
    needs = ("vsftpd",)
    package = "vsftpd"
    needs_root = True
    has_tls = False

    def prepare(self) -> None:
        self.tls_port = self.port  # AUTH TLS.
        (self.folder / "empty").mkdir(mode=0o555)
        (self.folder / "vsftpd.conf").write_text(_VSFTPD.format(host=HOST, **vars(self)))

    def command(self) -> list[str]:
        return ["vsftpd", str(self.folder / "vsftpd.conf")]

    def drop(self) -> None:
        """Its own timeout comes early: 421, and FIN."""
        self.signal_sessions(signal.SIGALRM)


class Dovecot(Server):
    needs = ("dovecot", "doveadm")
    package = "dovecot-imapd"
    needs_root = True
    ends_by = signal.SIGKILL  # It would take its time.

    def prepare(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "mail").mkdir()
        shutil.chown(self.folder / "mail", "mail", "mail")
        (self.folder / "dovecot.conf").write_text(_DOVECOT.format(host=HOST, **vars(self)))

    def command(self) -> list[str]:
        return ["dovecot", "-F", "-c", str(self.folder / "dovecot.conf")]

    def drop(self) -> None:
        """* BYE, and FIN."""
        self.signal_sessions(signal.SIGTERM, "imap")


class OpenSsh(Server):
    needs = ("sshd", "ssh-keygen")
    package = "openssh-server"
    needs_root = True
    has_tls = False

    def prepare(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host", "client"):
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        (self.folder / "authorized").write_text((self.folder / "client.pub").read_text())
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {HOST}:{self.port}\nHostKey {self.folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nLoginGraceTime 0\nMaxStartups 300\nMaxSessions 300\n"
        )

    def command(self) -> list[str]:
        # It starts itself anew, by its whole path.
        return [str(self.find("sshd")), "-D", "-e", "-f", str(self.folder / "sshd_config")]

    def drop(self) -> None:
        self.signal_sessions(signal.SIGTERM)
