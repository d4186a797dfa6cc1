"""Certificate chains as files and web servers hold them: one DER certificate, or PEM, leaf first."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from p2psipd.proto.identity.policy import MAXIMUM_INTERMEDIATES

__all__ = ["read_chain"]


def read_chain(octets: bytes) -> tuple[bytes, ...]:
    """The certificates in ``octets`` as DER, at most a leaf and its intermediates.  Raises ValueError.

    RFC 4474 section 9 wants one DER certificate; PEM is what most signers of RFC 8224 serve.
    """
    if b"-----BEGIN CERTIFICATE-----" not in octets:
        return (x509.load_der_x509_certificate(octets).public_bytes(Encoding.DER),)
    found = x509.load_pem_x509_certificates(octets)
    if len(found) > 1 + MAXIMUM_INTERMEDIATES:
        raise ValueError(f"{len(found)} certificates, at most {1 + MAXIMUM_INTERMEDIATES} are read")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)
