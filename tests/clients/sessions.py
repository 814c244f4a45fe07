"""Clients of mail, files and shells: they log in, and stay so."""

from __future__ import annotations

import ftplib
import imaplib
import smtplib
from collections.abc import Iterator
from typing import Any

from clients.uses import HOST, TIMEOUT, Uses, Where, client, told


@client("smtplib")
def smtp(where: Where) -> Iterator[Uses]:
    made: list[smtplib.SMTP] = [
        smtplib.SMTP_SSL(HOST, where.port, "localhost", timeout=TIMEOUT, context=where.context)
        if where.context
        else smtplib.SMTP(HOST, where.port, "localhost", timeout=TIMEOUT)
        for _ in range(where.count)
    ]
    while True:
        yield [told(one.noop) for one in made]


@client("ftplib")
def ftp(where: Where) -> Iterator[Uses]:
    def logged_in() -> ftplib.FTP:
        one = ftplib.FTP_TLS(context=where.context) if where.context else ftplib.FTP()
        one.connect(HOST, where.port, TIMEOUT)
        one.login()
        return one

    made = [logged_in() for _ in range(where.count)]
    while True:
        yield [told(one.pwd) for one in made]


@client("imaplib")
def imap(where: Where) -> Iterator[Uses]:
    def logged_in() -> imaplib.IMAP4:
        one = (
            imaplib.IMAP4_SSL(HOST, where.port, ssl_context=where.context, timeout=TIMEOUT)
            if where.context
            else imaplib.IMAP4(HOST, where.port, TIMEOUT)
        )
        one.login("tester", "none")
        return one

    made = [logged_in() for _ in range(where.count)]
    while True:
        yield [told(one.noop) for one in made]


@client("paramiko")
def ssh(where: Where) -> Iterator[Uses]:
    import paramiko

    def patient(*arguments: Any, **options: Any) -> paramiko.Transport:
        made = paramiko.Transport(*arguments, **options)
        made.handshake_timeout = TIMEOUT
        return made

    def logged_in() -> paramiko.SSHClient:
        one = paramiko.SSHClient()
        one.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        one.connect(
            HOST,
            where.port,
            "root",
            key_filename=f"{where.folder}/client",
            look_for_keys=False,
            allow_agent=False,
            banner_timeout=TIMEOUT,
            auth_timeout=TIMEOUT,
            transport_factory=patient,
        )
        return one

    def ask(one: paramiko.SSHClient) -> Any:
        return one.exec_command("echo hello", timeout=TIMEOUT)[1].read()

    made = [logged_in() for _ in range(where.count)]
    while True:
        yield [told(ask, one) for one in made]
