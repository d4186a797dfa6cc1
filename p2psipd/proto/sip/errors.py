"""The one family of exceptions that leaves the SIP core.

Every error carries the SIP status code that answers the fault (RFC 3261 section 21) and, where one could be
formed, the partially parsed request that the answer is made from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2psipd.proto.sip.message import Request

__all__ = [
    "MalformedMessage",
    "MalformedUri",
    "MessageTooLarge",
    "SipError",
    "UnsupportedScheme",
    "UnsupportedVersion",
]


class SipError(Exception):
    """A fault in SIP input, or in what a local user asked of the SIP core.

    `status` is the answer's status code and `reason` its reason phrase (plain text, no line ends).
    `request` is what to answer with `make_response(error.request, error.status, error.reason)`; None means
    drop: nothing to answer.
    """

    status: int = 400

    def __init__(self, reason: str, *, status: int | None = None, request: Request | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        if status is not None:
            self.status = status
        self.request = request


class MalformedMessage(SipError):
    """The bytes are no SIP message, or a header that must be understood is malformed: 400 (RFC 3261 21.4.1)."""


class MalformedUri(MalformedMessage):
    """A URI or address is not well formed: 400."""


class UnsupportedScheme(SipError):
    """A well-formed URI of a scheme that the operation can't use: 416 (RFC 3261 section 21.4.14)."""

    status = 416


class UnsupportedVersion(SipError):
    """Not SIP/2.0: 505 (RFC 3261 section 21.5.6)."""

    status = 505


class MessageTooLarge(SipError):
    """Beyond the limits for header or body: 513 (RFC 3261 section 21.5.7)."""

    status = 513
