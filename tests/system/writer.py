"""A node that stores one record after another in a lab, until the lab's peer dies; run by the tests beside it.

Usage: writer.py LAB. For each line on standard input it joins as a client and stores; for each acknowledged store it
prints "MONOTONIC-SECONDS RESOURCE-ID", and "end" when the peer has gone. It ends with its standard input.
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path

from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineReceiver

from p2psipd.overlay_files import load_credential
from p2psipd.proto.identity.certificate import generate_private_key
from p2psipd.proto.reload.errors import ReloadError
from p2psipd.proto.reload.ids import resource_id
from p2psipd.proto.reload.overlay_config import parse_configuration
from p2psipd.services.overlay_factory import client_session
from p2psipd.services.provisioning import Provisioner

STORE_SECONDS = 0.3
#: Between two stores: the control socket lists a thousand records, which is what 20 rounds may give.
PAUSE_SECONDS = 0.009


class Writer(LineReceiver):
    """Takes the orders, prints what was acknowledged."""

    delimiter = b"\n"

    def __init__(self, lab: Path) -> None:
        self._configuration = parse_configuration((lab / "overlay.xml").read_bytes(), wall=time.time())
        directory = lab / "provisioning"
        self._credential = load_credential(directory / "node.pem", directory / "node.key")
        self._count = 0

    def lineReceived(self, line: bytes) -> None:
        """Store until the peer has gone."""
        Deferred.fromCoroutine(self._store()).addErrback(self._failed)

    def _failed(self, failure: object) -> None:
        self.sendLine(f"error {failure!r}".encode())

    def connectionLost(self, reason: object = None) -> None:
        """The test has ended."""
        reactor.stop()

    async def _store(self) -> None:
        name = self._configuration.overlay_name
        async with client_session(reactor, self._configuration, self._credential) as overlay:
            provisioner = Provisioner(
                overlay,
                name,
                self._credential,
                {1: bytes(32)},
                wall=time.time,
                draw=secrets.token_bytes,
                draw_key=generate_private_key,
            )
            while True:
                self._count += 1
                aor = f"written{self._count}@{name}"
                storing = Deferred.fromCoroutine(provisioner.put_user(aor, "secret"))
                try:
                    await storing.addTimeout(STORE_SECONDS, reactor)
                except (ReloadError, TimeoutError):
                    # Said before the session is closed, which takes its time when nobody is there.
                    self.sendLine(b"end")
                    return
                self.sendLine(f"{time.monotonic()} {resource_id(aor).hex()}".encode())
                await deferLater(reactor, PAUSE_SECONDS)


if __name__ == "__main__":
    reactor.seconds = time.monotonic
    stdio.StandardIO(Writer(Path(sys.argv[1])))
    reactor.run()
