"""What all servers have in common: a folder, two ports, and a process that is ours."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from kernel import wait_until
from tls_peer import Certificates

HOST = "127.0.0.1"
# Seconds until a server answers; some are slow where four of them start at once.
STARTS = 120.0
_SEARCHED = ["/usr/sbin", "/usr/local/sbin", *os.get_exec_path()]


def program(name: str, *folders: str) -> str | None:
    """Where it is installed; those of servers are often not in PATH."""
    return shutil.which(name, path=os.pathsep.join([*folders, *_SEARCHED]))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """Between `with`, it answers on `port`, and with TLS on `tls_port`."""

    # Without which it cannot be started, and the packages that have them.
    needs: ClassVar[Sequence[str]] = ()
    package: ClassVar[str]
    # Whom it runs as, where it refuses to be root.
    user: ClassVar[str | None] = None
    has_tls = True

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.log = folder / "log"
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.authority = folder / "ca.pem"
        certificates.authority.cert_pem.write_to_path(str(self.authority))
        certificates.certificate.private_key_pem.write_to_path(str(self.key))
        certificates.certificate.cert_chain_pems[0].write_to_path(str(self.certificate))
        self.key.chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def why_not(cls) -> str | None:
        """Why it cannot be started here, if it cannot."""
        missing = [name for name in cls.needs if not cls.find(name)]
        return f"{cls.package} is not installed: no {missing[0]}" if missing else None

    @classmethod
    def find(cls, name: str) -> str | None:
        return program(name)

    # For those that derive from it ---------------------------------------------------------------

    def prepare(self) -> None:
        """Once, before it is started."""

    def command(self) -> list[str]:
        """In the foreground."""
        raise NotImplementedError

    def drop(self) -> None:
        """Closes all connections of its clients, and goes on. As its own kind does it."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.port, self.tls_port) if self.has_tls else (self.port,)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user(),
                group=self._group(),
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )
        wait_until(self.answers, f"{type(self).__name__} answers", STARTS)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
        return all(self._listens(port) for port in self.ports)

    def _listens(self, port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((HOST, port)) == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.process
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def signal_sessions(self, number: signal.Signals, name: str | None = None) -> None:
        """To the processes that it has started, each for a connection; to those of this *name*."""
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if name in (None, Path(f"/proc/{pid}/comm").read_text().strip()):
                    os.kill(pid, number)

    def _descendants(self) -> list[int]:
        assert self.process is not None
        found: list[int] = []
        asked = [self.process.pid]
        while asked:
            path = Path(f"/proc/{asked.pop()}")
            with contextlib.suppress(FileNotFoundError):
                for task in (path / "task").iterdir():
                    asked += [int(pid) for pid in (task / "children").read_text().split()]
            found += asked
        return list(dict.fromkeys(found))

    def _user(self) -> int | None:
        return pwd.getpwnam(self.user).pw_uid if self.user and not os.getuid() else None

    def _group(self) -> int | None:
        return pwd.getpwnam(self.user).pw_gid if self.user and not os.getuid() else None

    def __enter__(self) -> Self:
        if self.user and not os.getuid():
            shutil.chown(self.folder, self.user)
            for file in self.folder.iterdir():
                shutil.chown(file, self.user)
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def run(self, *command: str) -> str:
        """A command of its package, as the user that it runs as; gives what that printed."""
        done = subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STARTS,
            user=self._user(),
            group=self._group(),
            extra_groups=[] if self.user else None,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
