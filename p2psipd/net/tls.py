"""TLS contexts: mutual TLS between nodes of an overlay, and plain server TLS for phones.

Both are made with pyOpenSSL and handed to Twisted as connection creators.  Three rules hold for every
context here:

* a server context has a session-id context, and no session is cached or ticketed, so that each connection
  is judged anew (a resumed session would skip the certificate);
* idle connections give their buffers back (``MODE_RELEASE_BUFFERS``, 15 KB a link);
* no ALPN callback is set: a client that offers protocols is answered without any, where Twisted's own
  options would answer ``internal_error`` to a factory that names none.

Between nodes OpenSSL checks the chain and the proof of possession, and ``judge`` (``Trust.check``) then
decides: the form of the certificate, its dates, its overlay and revocation are beyond OpenSSL (an empty
subject with a non-critical subjectAltName passes there).  A refusal by ``judge`` ends the handshake with an
alert.  Under TLS 1.3 the dialler's handshake is complete before the acceptor has judged: the refusal then
arrives as a lost connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from twisted.internet.interfaces import IAddress, IProtocolFactory, IReactorTime
    from twisted.internet.protocol import Protocol

    from p2psipd.proto.identity.certificate import NodeCertificate

    PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey

#: TLS 1.2 suites; those of TLS 1.3 are OpenSSL's own.
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_OPTIONS = SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE

#: OpenSSL's X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT: whether the overlay permits such certificates is for
#: ``judge`` to say (RFC 6940 section 11.3.1).
_SELF_SIGNED = 18

#: Raises :class:`p2psipd.proto.identity.certificate.CertificateError` when the certificate (DER) is not
#: acceptable.
Judge = Callable[[bytes], "NodeCertificate"]


class KeyLog:
    """Writes TLS session secrets in NSS key log format; for captures in a lab, never on a node that
    matters.
    """

    def __init__(self, path: str) -> None:
        # Whoever reads this file can read the connections.
        self._file = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0)

    def __call__(self, connection: SSL.Connection, line: bytes) -> None:
        """pyOpenSSL's key log callback."""
        self._file.write(line + b"\n")


def new_context(session_id: bytes, keylog: KeyLog | None) -> SSL.Context:
    """A context that keeps the rules of this module; certificates and verification are the caller's matter."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_session_id(session_id)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_cipher_list(_CIPHERS)
    if keylog is not None:
        # TLS 1.2 only: after the tickets of TLS 1.3 a decoder loses what shares their segment.
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.set_keylog_callback(keylog)
    return context


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class NodeTls:
    """Mutual TLS between nodes of one overlay, for both ends; used for links and for SIP between nodes.

    ``certificate`` is this node's (DER), ``roots`` the overlay's root certificates (DER).  ``judge`` is
    called with the other side's certificate during each handshake.  ``last_refusal`` says why it last
    refused, for the log.
    """

    def __init__(
        self,
        certificate: bytes,
        private_key: PrivateKey,
        roots: Iterable[bytes],
        judge: Judge,
        *,
        keylog: KeyLog | None = None,
    ) -> None:
        self._judge = judge
        self._keylog = keylog
        self._context = self._make(certificate, private_key, roots)

    def update(self, certificate: bytes, private_key: PrivateKey, roots: Iterable[bytes]) -> None:
        """Use these from the next connection on; open connections stay as they are."""
        self._context = self._make(certificate, private_key, roots)

    def _make(self, certificate: bytes, private_key: PrivateKey, roots: Iterable[bytes]) -> SSL.Context:
        context = new_context(b"p2psipd-node", self._keylog)
        context.use_certificate(x509.load_der_x509_certificate(certificate))
        context.use_privatekey(private_key)
        context.check_privatekey()
        store = context.get_cert_store()
        if store is not None:
            for root in roots:
                store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(root)))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        context.set_verify_depth(3)
        return context

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """OpenSSL's callback, once a certificate of the chain, the root first; False refuses."""
        if not ok and not (depth == 0 and error == _SELF_SIGNED):
            return _refuse(connection, chain_fault(error))
        if depth:
            return True
        try:
            self._judge(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        except ValueError as reason:
            return _refuse(connection, str(reason))
        return True

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection for the dialling side."""
        return SSL.Connection(self._context, None)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection for the accepting side."""
        return SSL.Connection(self._context, None)


class CertificateFileError(ValueError):
    """A certificate or key file does not hold what it should; the message says which and why."""


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """TLS with a server certificate, for phones.  Files are PEM: the chain, leaf first, and the key.

    With ``client_authorities`` (a PEM file of roots) clients are asked for a certificate.  They need not have one,
    and one that those roots do not vouch for counts as none: :attr:`TlsProtocol.verified` says which it was.

    Raises :class:`CertificateFileError` when the files cannot be used.
    """

    def __init__(
        self, certificate_file: str, key_file: str, *, client_authorities: str = "", keylog: KeyLog | None = None
    ) -> None:
        self._files = (certificate_file, key_file)
        self._client_authorities = client_authorities
        self._keylog = keylog
        self._context = self._make()

    def reload(self) -> None:
        """Read the files again; on an error the old context stays and :class:`CertificateFileError` is
        raised.
        """
        self._context = self._make()

    def _make(self) -> SSL.Context:
        certificate_file, key_file = self._files
        context = new_context(b"p2psipd-phones", self._keylog)
        try:
            context.use_certificate_chain_file(certificate_file)
            context.use_privatekey_file(key_file)
            context.check_privatekey()
            if self._client_authorities:
                context.load_verify_locations(self._client_authorities)
        except (SSL.Error, OSError) as error:
            detail = error.args[0] if error.args else error
            raise CertificateFileError(f"{certificate_file} and {key_file}: {detail}") from None
        if self._client_authorities:
            context.set_verify(SSL.VERIFY_PEER, _look_at_client)
        return context

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection for the accepting side."""
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(protocol)
        return connection


#: Octets that wait for more: a few messages, so that nobody waits long for the first.
_GATHERED_AT_MOST = 4096


class EagerTransport:
    """A TCP transport that writes at once what the socket takes.

    Twisted's own ``write`` waits for the reactor to say that the socket is writable, which costs three system
    calls and a turn of the reactor for each message.  Whatever the socket does not take goes that way.  Between
    ``gather`` and ``release`` small records wait for each other: many messages in one read are answered with few
    system calls.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._gathering = False
        self._gathered = b""

    def gather(self) -> None:
        """Hold back what is written until ``release``."""
        self._gathering = True

    def release(self) -> None:
        """Write what was held back."""
        self._gathering = False
        if self._gathered:
            data, self._gathered = self._gathered, b""
            self._write(data)

    def write(self, data: bytes) -> None:
        """Write ``data``, in order with what was written before."""
        if self._gathering:
            self._gathered += data
            if len(self._gathered) < _GATHERED_AT_MOST:
                return
            data, self._gathered = self._gathered, b""
        self._write(data)

    def loseConnection(self) -> None:
        """Close when everything is written."""
        self.release()
        self._transport.loseConnection()

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport.connected and not transport.dataBuffer and not getattr(transport, "_tempDataBuffer", True):
            sent = transport.writeSomeData(data)
            if isinstance(sent, int):
                if sent == len(data):
                    return
                data = data[sent:]
            # Else the connection is lost, which the reactor is going to find as well and to tell.
        transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class RecordBoundary:
    """Where the records of a TLS stream end (RFC 8446 section 5.1: five octets, the last two of them a length)."""

    __slots__ = ("_head", "_rest")

    def __init__(self) -> None:
        self._head = b""  # a head of which not all octets are there
        self._rest = 0  # how many octets of the record under way are still to come

    @property
    def inside(self) -> bool:
        """Whether a record has begun and not ended."""
        return bool(self._rest or self._head)

    def whole_records(self, data: bytes) -> int:
        """How many records the next octets of the stream, ``data``, are; 0 unless they begin and end with one."""
        size = len(data)
        begun = self._rest or self._head
        if begun:
            data = self._head + data
            size = len(data)
        elif size >= 5 and 5 + (data[3] << 8 | data[4]) == size:  # nearly always
            return 1
        end = self._rest
        count = 0
        while end + 5 <= size:
            end += 5 + (data[end + 3] << 8 | data[end + 4])
            count += 1
        if end == size:
            self._rest, self._head = 0, b""
            return 0 if begun else count
        self._rest = max(0, end - size)
        self._head = data[end:]
        return 0


#: OpenSSL's name for the state of a server that has not yet read a ClientHello.
_NOT_BEGUN = b"before SSL initialization"


class TlsProtocol(TLSMemoryBIOProtocol):
    """TLS over a connection.

    ``refusal`` says why the other side's certificate was refused, if it was.  ``verified`` is whether its chain was
    good, where a listener asks for certificates without demanding them.  ``failed`` is whether the connection ended
    in the midst of its handshake; one on which not even that was begun did not.  ``told`` is whether somebody
    else's log line names the refusal.
    """

    refusal = ""
    verified = False
    failed = False
    told = False

    def makeConnection(self, transport: Any) -> None:
        """Begin the handshake."""
        self._boundary = RecordBoundary()
        TLSMemoryBIOProtocol.makeConnection(self, transport)
        if hasattr(transport, "writeSomeData") and self.transport is transport:
            self.transport = cast(Any, EagerTransport(transport))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone; note how far it had come."""
        if not self._handshakeDone and self._tlsConnection is not None:
            self.failed = self._boundary.inside or self._tlsConnection.get_state_string() != _NOT_BEGUN
        TLSMemoryBIOProtocol.connectionLost(self, reason)

    def dataReceived(self, data: bytes) -> None:
        """Octets of the connection; what is said about them goes out together."""
        transport = self.transport
        if not isinstance(transport, EagerTransport):
            TLSMemoryBIOProtocol.dataReceived(self, data)
            return
        transport.gather()
        try:
            records = self._boundary.whole_records(data)
            if records and self._handshakeDone and not self._appSendBuffer:
                self._receive_records(data, records)
            else:
                TLSMemoryBIOProtocol.dataReceived(self, data)
        finally:
            transport.release()

    def _receive_records(self, data: bytes, count: int) -> None:
        """Nearly all that ever comes: whole records of application data.  Twisted would ask OpenSSL for more after
        them, and for something to send, and have two exceptions for an answer.
        """
        self._tlsConnection.bio_write(data)
        for _ in range(count):
            if self._lostTLSConnection:
                return
            try:
                octets = self._tlsConnection.recv(len(data))
            except (SSL.WantReadError, SSL.ZeroReturnError):
                cast(Any, self)._flushReceiveBIO()
                return
            except SSL.Error:
                cast(Any, self)._tlsShutdownFinished(Failure())
                return
            if self._aborted:
                return
            self.wrappedProtocol.dataReceived(octets)


#: OpenSSL's X509_V_ERR_INVALID_PURPOSE.  Public authorities issue certificates for servers alone; that its holder is
#: a client here takes nothing from what the certificate says of its domain.
_WRONG_PURPOSE = 26


def _look_at_client(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
    """OpenSSL's callback, once a certificate of the chain, the root first; always True: nobody needs a certificate."""
    protocol = connection.get_app_data()
    if isinstance(protocol, TlsProtocol):
        good = bool(ok) or (depth == 0 and error == _WRONG_PURPOSE)
        if not good:
            protocol.refusal = chain_fault(error)
        protocol.verified = good and not protocol.refusal
    return True


#: What OpenSSL's commonest verdicts on a chain mean (X509_V_ERR_...).
_CHAIN_FAULTS = {
    2: "not under an authority that is known here",
    7: "its signature does not verify",
    9: "not valid yet",
    10: "expired",
    18: "self-signed",
    19: "not under an authority that is known here",
    20: "not under an authority that is known here",
    21: "not under an authority that is known here",
    23: "revoked",
    26: "not for this use",
}


def chain_fault(error: int) -> str:
    """Why OpenSSL refused a certificate, by its error number, in words for the log."""
    return _CHAIN_FAULTS.get(error, "chain not good") + f" (OpenSSL error {error})"


def _refuse(connection: SSL.Connection, reason: str) -> bool:
    """Keep the reason where :attr:`TlsProtocol.refusal` shows it; always False."""
    protocol = connection.get_app_data()
    if isinstance(protocol, TlsProtocol):
        protocol.refusal = reason
    return False


class TlsFactory(TLSMemoryBIOFactory):
    """Wraps a factory in TLS, one record for each ``write``.

    Twisted's default gathers small writes with a delayed call each; our callers gather by themselves.
    """

    protocol = TlsProtocol

    def buildProtocol(self, addr: IAddress | None) -> TLSMemoryBIOProtocol | None:  # type: ignore[override]
        """None, which closes the connection before any TLS, where the wrapped factory gives None."""
        wrapped: Protocol | None = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else cast(Any, TlsProtocol)(self, wrapped)


def tls_factory(creator: Any, is_client: bool, wrapped: IProtocolFactory, clock: IReactorTime) -> TlsFactory:
    """``wrapped`` behind TLS.  ``is_client`` is the TLS role, which need not be the TCP role."""
    return TlsFactory(creator, is_client, wrapped, clock)


def peer_certificate(transport: object) -> bytes | None:
    """The DER of the certificate that the other side of a TLS transport has shown, or None."""
    certificate = transport.getPeerCertificate()  # type: ignore[attr-defined]
    return None if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def protocol_version(transport: object) -> str:
    """Such as ``TLSv1.3``."""
    name: str = transport.getHandle().get_protocol_version_name()  # type: ignore[attr-defined]
    return name


def read_pem_chain(path: str | Path) -> Sequence[bytes]:
    """The certificates of a PEM file as DER, in order.  Raises :class:`CertificateFileError`."""
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        chain = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{path}: {error}") from None
    return [certificate.public_bytes(Encoding.DER) for certificate in chain]
