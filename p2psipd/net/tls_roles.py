"""Inbound connections between nodes on which either side may be the TLS client.

Whoever sent the AppAttach is the TLS server, whichever side opened the connection (RFC 6940 section 6.5.1.13). So a
listener meets clients, who speak first, and servers, who wait: after a moment of silence it speaks itself.
"""

from __future__ import annotations

from typing import Any, Final, cast

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.protocol import connectionDone as _done
from twisted.python.failure import Failure

from p2psipd.net.tls import NodeTls, TlsProtocol, tls_factory

#: A TLS client's first octets come with the end of TCP's handshake; a lost packet costs most of this.
SILENCE_SECONDS: Final = 1.0


class EitherRole(Factory):
    """Puts `wrapped` behind TLS, as server or as client, as the other side behaves."""

    noisy = False

    def __init__(self, tls: NodeTls, wrapped: IProtocolFactory, clock: Any) -> None:
        self.clock = clock
        self.server = tls_factory(tls, False, wrapped, clock)
        self.client = tls_factory(tls, True, wrapped, clock)
        self._wrapped = wrapped

    def buildProtocol(self, addr: Any) -> Protocol | None:
        """None, which closes the connection, where the wrapped factory gives None."""
        wrapped: Any = self._wrapped.buildProtocol(addr)
        return None if wrapped is None else _Undecided(self, wrapped)


class _Undecided(Protocol):
    """A connection whose other side has neither spoken nor been silent for long."""

    def __init__(self, owner: EitherRole, wrapped: Any) -> None:
        self._owner = owner
        self._wrapped = wrapped
        self._silence: Any = None

    def connectionMade(self) -> None:
        """Listen for a moment."""
        self._silence = self._owner.clock.callLater(SILENCE_SECONDS, self._speak)

    def dataReceived(self, data: bytes) -> None:
        """The other side is the client."""
        self._silence.cancel()
        self._become(self._owner.server).dataReceived(data)

    def _speak(self) -> None:
        """The other side waits for us."""
        self._become(self._owner.client)

    def _become(self, factory: Any) -> Any:
        transport: Any = self.transport
        made = cast(Any, TlsProtocol)(factory, self._wrapped)
        transport.protocol = made
        made.makeConnection(transport)
        return made

    def connectionLost(self, reason: Failure = _done) -> None:
        """Gone before it was anything."""
        if self._silence.active():
            self._silence.cancel()
        self._wrapped.connectionLost(reason)
