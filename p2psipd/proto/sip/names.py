"""Names of SIP: methods, headers, their compact forms, which of them are lists, and reason phrases (IANA registry)."""

from __future__ import annotations

import re

from p2psipd.proto.sip.errors import MalformedMessage

__all__ = ["CANONICAL", "LIST_HEADERS", "METHODS", "REASONS", "canonical", "canonical_raw", "written"]

METHODS = frozenset({
    "ACK", "BYE", "CANCEL", "INFO", "INVITE", "MESSAGE", "NOTIFY", "OPTIONS", "PRACK", "PUBLISH", "REFER",
    "REGISTER", "SUBSCRIBE", "UPDATE",
})

_COMPACT = {
    "a": "accept-contact", "b": "referred-by", "c": "content-type", "d": "request-disposition",
    "e": "content-encoding", "f": "from", "i": "call-id", "j": "reject-contact", "k": "supported",
    "l": "content-length", "m": "contact", "n": "identity-info", "o": "event", "r": "refer-to",
    "s": "subject", "t": "to", "u": "allow-events", "v": "via", "x": "session-expires", "y": "identity",
}
_WRITTEN = (
    "Accept", "Accept-Contact", "Accept-Encoding", "Accept-Language", "Alert-Info", "Allow", "Allow-Events",
    "Authentication-Info", "Authorization", "Call-ID", "Call-Info", "Contact", "Content-Disposition",
    "Content-Encoding", "Content-Language", "Content-Length", "Content-Type", "CSeq", "Date", "Diversion",
    "Error-Info", "Event", "Expires", "Flow-Timer", "From", "History-Info", "Identity", "Identity-Info",
    "In-Reply-To", "Max-Breadth", "Max-Forwards", "MIME-Version", "Min-Expires", "Min-SE", "Organization",
    "P-Asserted-Identity", "P-Associated-URI", "P-Preferred-Identity", "Path", "Priority", "Privacy",
    "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Require", "RAck", "Reason", "Record-Route",
    "Refer-To", "Referred-By", "Reject-Contact", "Replaces", "Reply-To", "Request-Disposition", "Require",
    "Retry-After", "Route", "RSeq", "Security-Client", "Security-Server", "Security-Verify", "Server",
    "Service-Route", "Session-Expires", "SIP-ETag", "SIP-If-Match", "Subject", "Subscription-State",
    "Supported", "Timestamp", "To", "Unsupported", "User-Agent", "Via", "Warning", "WWW-Authenticate",
)
# Canonical and written form of the names as they are most often given.
_KNOWN = {spelling: (name.lower(), name) for name in _WRITTEN for spelling in (name, name.lower())}

# The canonical form of those spellings, for who can't afford a call.
CANONICAL = {spelling: known[0] for spelling, known in _KNOWN.items()}
_TOKEN = re.compile(rb"[A-Za-z0-9\-.!%*_+`'~]++")

# Headers whose grammar is a comma-separated list (RFC 3261 section 7.3.1).  Never split: credentials,
# dates, free text.
LIST_HEADERS = frozenset({
    "accept", "accept-contact", "accept-encoding", "accept-language", "alert-info", "allow", "allow-events",
    "call-info", "contact", "content-encoding", "content-language", "diversion", "error-info", "history-info",
    "in-reply-to", "p-asserted-identity", "p-associated-uri", "p-preferred-identity", "path", "proxy-require",
    "reason", "record-route", "reject-contact", "require", "route", "security-client", "security-server",
    "security-verify", "service-route", "supported", "unsupported", "via", "warning",
})

REASONS = {
    100: "Trying", 180: "Ringing", 181: "Call Is Being Forwarded", 182: "Queued", 183: "Session Progress",
    199: "Early Dialog Terminated", 200: "OK", 202: "Accepted", 204: "No Notification",
    300: "Multiple Choices", 301: "Moved Permanently", 302: "Moved Temporarily", 305: "Use Proxy",
    380: "Alternative Service", 400: "Bad Request", 401: "Unauthorized", 402: "Payment Required",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable",
    407: "Proxy Authentication Required", 408: "Request Timeout", 410: "Gone",
    412: "Conditional Request Failed", 413: "Request Entity Too Large", 414: "Request-URI Too Long",
    415: "Unsupported Media Type", 416: "Unsupported URI Scheme", 417: "Unknown Resource-Priority",
    420: "Bad Extension", 421: "Extension Required", 422: "Session Interval Too Small",
    423: "Interval Too Brief", 424: "Bad Location Information", 425: "Bad Alert Message",
    428: "Use Identity Header", 429: "Provide Referrer Identity", 430: "Flow Failed",
    433: "Anonymity Disallowed", 436: "Bad Identity Info", 437: "Unsupported Credential",
    438: "Invalid Identity Header", 439: "First Hop Lacks Outbound Support", 440: "Max-Breadth Exceeded",
    469: "Bad Info Package", 470: "Consent Needed", 480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist", 482: "Loop Detected", 483: "Too Many Hops",
    484: "Address Incomplete", 485: "Ambiguous", 486: "Busy Here", 487: "Request Terminated",
    488: "Not Acceptable Here", 489: "Bad Event", 491: "Request Pending", 493: "Undecipherable",
    494: "Security Agreement Required", 500: "Server Internal Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Server Time-out", 505: "Version Not Supported",
    513: "Message Too Large", 555: "Push Notification Service Not Supported", 580: "Precondition Failure",
    600: "Busy Everywhere", 603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
    607: "Unwanted", 608: "Rejected",
}


def canonical(name: str) -> str:
    """The name in lower case, a compact form expanded."""
    known = CANONICAL.get(name)
    if known is not None:
        return known
    lower = name.lower()
    return _COMPACT.get(lower, lower) if len(lower) == 1 else lower


def written(name: str) -> str:
    """The name as the RFCs write it; one that is not known stays as it is.

    Raises MalformedMessage if it is no token.
    """
    known = _KNOWN.get(name) or _KNOWN.get(canonical(name))
    if known is not None:
        return known[1]
    if not _TOKEN.fullmatch(name.encode("utf-8", "replace")):
        raise MalformedMessage("bad header name")
    return name


def _spellings() -> dict[bytes, str]:
    table: dict[bytes, str] = {}
    for name in _WRITTEN:
        for spelling in (name, name.lower(), name.upper()):
            table[spelling.encode()] = name.lower()
    for short, lower in _COMPACT.items():
        table[short.encode()] = table[short.upper().encode()] = lower
    return table


# What nearly every header line begins with, so that no lower() is paid for it.
RAW_NAMES = _spellings()


def canonical_raw(name: bytes) -> str:
    """The canonical name of the octets before the colon.  Raises MalformedMessage if they are no token."""
    known = RAW_NAMES.get(name)
    if known is not None:
        return known
    stripped = name.rstrip(b" \t\r\n")
    if not _TOKEN.fullmatch(stripped):
        raise MalformedMessage("bad header name")
    return canonical(stripped.decode("ascii"))
