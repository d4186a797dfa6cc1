"""One TLS connection to a server of another domain, to see whether it would let us in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from p2psipd.net.tls import protocol_version, tls_factory
from p2psipd.proto.peering.checking import ProbeResult
from p2psipd.proto.sip.next_hops import Hop

__all__ = ["probe_tls"]

#: Under TLS 1.3 a server judges our certificate when the handshake is already over for us: it then closes within a
#: round trip. One that speaks, or is silent for so long, has let us in.
_PATIENCE_SECONDS: Final = 0.7
_PING: Final = b"\r\n\r\n"


@implementer(IHandshakeListener)
class _Probe(Protocol):
    def __init__(self, owner: _Probing) -> None:
        self._owner = owner

    def handshakeCompleted(self) -> None:
        """The server's certificate is good; a keep-alive (RFC 5626 section 4.4.1) makes it speak."""
        self._owner.shaken(self.transport)
        transport: Any = self.transport
        transport.write(_PING)

    def dataReceived(self, data: bytes) -> None:
        """It talks to us."""
        self._owner.let_in()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Refused, by it or by us."""
        self._owner.lost(getattr(self.transport, "refusal", ""), reason)


class _Probing(ClientFactory):
    noisy = False

    def __init__(self, reactor: Any, seconds: float) -> None:
        self._reactor = reactor
        self._protocol: Any = None
        self._version = ""
        self.result: Deferred[ProbeResult] = Deferred()
        self._timer = reactor.callLater(seconds, self._end, ProbeResult(False, "no TLS in time"))

    def buildProtocol(self, addr: object) -> Protocol:
        """The connection is there."""
        self._protocol = _Probe(self)
        return self._protocol  # type: ignore[no-any-return]

    def shaken(self, transport: Any) -> None:
        """The handshake is over on our side."""
        self._version = protocol_version(transport)
        self._timer.cancel()
        self._timer = self._reactor.callLater(_PATIENCE_SECONDS, self.let_in)

    def let_in(self) -> None:
        """It speaks to us, or has at least not thrown us out."""
        self._end(ProbeResult(True, f"{self._version}, certificate good, and it lets us in"))

    def lost(self, refusal: str, reason: Failure) -> None:
        """The connection ended before we ended it."""
        if refusal:
            text = f"we refuse it: {refusal}"
        elif self._version:
            text = f"it refuses us after the handshake: {reason.getErrorMessage()}"
        else:
            text = f"no TLS: {reason.getErrorMessage()}"
        self._end(ProbeResult(False, text))

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """No TCP connection."""
        self._end(ProbeResult(False, f"no connection: {reason.getErrorMessage()}"))

    def _end(self, result: ProbeResult) -> None:
        if self.result.called:
            return
        if self._timer.active():
            self._timer.cancel()
        self.result.callback(result)
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.abortConnection()


async def probe_tls(reactor: Any, towards: Callable[[str], Any], hop: Hop, seconds: float = 4.0) -> ProbeResult:
    """Connect to `hop`; `towards` makes the TLS side for its domain (DomainTls.towards, PeerTls.towards).

    Never fails: what goes wrong is in the result.
    """
    try:
        creator = towards(hop.domain)
    except Exception as error:
        # No certificate of ours fits, or the domain is no name: said in words.
        return ProbeResult(False, str(error))
    probing: Any = _Probing(reactor, seconds)
    connector = reactor.connectTCP(hop.host, hop.port, tls_factory(creator, True, probing, reactor), timeout=seconds)
    try:
        result: ProbeResult = await probing.result
        return result
    finally:
        connector.disconnect()
