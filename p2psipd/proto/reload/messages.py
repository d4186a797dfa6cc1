"""Every message body of RFC 6940, by name and by message code.

The bodies live beside this module by the RFC's chapters (topology 6.4.2, links 6.5, storage 7); the rest of
the program imports them from here.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

import attrs

from p2psipd.proto.octets import Reader, opaque16, u16
from p2psipd.proto.reload.bodies import Body, DataModel, Kinds, MessageCode
from p2psipd.proto.reload.errors import InvalidMessage, ReloadError, error_for
from p2psipd.proto.reload.link_messages import (
    CANDIDATE_HOST,
    CANDIDATE_RELAY,
    CANDIDATE_SRFLX,
    CONFIG_UPDATE_CONFIG,
    CONFIG_UPDATE_KIND,
    DTLS_UDP_SR,
    DTLS_UDP_SR_NO_ICE,
    EXP_LINK,
    TLS_TCP_FH_NO_ICE,
    AppAttachAns,
    AppAttachReq,
    AttachAns,
    AttachReq,
    ConfigUpdateAns,
    ConfigUpdateReq,
    IceCandidate,
    PingAns,
    PingReq,
)
from p2psipd.proto.reload.security import Signature
from p2psipd.proto.reload.storage_messages import (
    APPEND,
    ArrayEntry,
    ArrayEntryMeta,
    DataValue,
    DictionaryEntry,
    DictionaryEntryMeta,
    FetchAns,
    FetchKindResponse,
    FetchReq,
    FindAns,
    FindReq,
    MetaData,
    MetaDataValue,
    StatAns,
    StatKindResponse,
    StatReq,
    StoreAns,
    StoredData,
    StoredDataSpecifier,
    StoredDataValue,
    StoredMetaData,
    StoreKindData,
    StoreKindResponse,
    StoreReq,
    read_stored_data,
    read_value,
    unknown_kinds_info,
)
from p2psipd.proto.reload.topology_messages import (
    PROBE_NUM_RESOURCES,
    PROBE_RESPONSIBLE_SET,
    PROBE_UPTIME,
    JoinAns,
    JoinReq,
    LeaveAns,
    LeaveReq,
    ProbeAns,
    ProbeReq,
    RouteQueryAns,
    RouteQueryReq,
    UpdateAns,
    UpdateReq,
)

__all__ = [
    "APPEND",
    "BODY_BY_CODE",
    "CANDIDATE_HOST",
    "CANDIDATE_RELAY",
    "CANDIDATE_SRFLX",
    "CONFIG_UPDATE_CONFIG",
    "CONFIG_UPDATE_KIND",
    "DTLS_UDP_SR",
    "DTLS_UDP_SR_NO_ICE",
    "EXP_LINK",
    "PROBE_NUM_RESOURCES",
    "PROBE_RESPONSIBLE_SET",
    "PROBE_UPTIME",
    "TLS_TCP_FH_NO_ICE",
    "AppAttachAns",
    "AppAttachReq",
    "ArrayEntry",
    "ArrayEntryMeta",
    "AttachAns",
    "AttachReq",
    "Body",
    "ConfigUpdateAns",
    "ConfigUpdateReq",
    "DataModel",
    "DataValue",
    "DictionaryEntry",
    "DictionaryEntryMeta",
    "ErrorResponse",
    "FetchAns",
    "FetchKindResponse",
    "FetchReq",
    "FindAns",
    "FindReq",
    "IceCandidate",
    "JoinAns",
    "JoinReq",
    "Kinds",
    "LeaveAns",
    "LeaveReq",
    "MessageCode",
    "MetaData",
    "MetaDataValue",
    "PingAns",
    "PingReq",
    "ProbeAns",
    "ProbeReq",
    "RouteQueryAns",
    "RouteQueryReq",
    "Signature",
    "StatAns",
    "StatKindResponse",
    "StatReq",
    "StoreAns",
    "StoreKindData",
    "StoreKindResponse",
    "StoreReq",
    "StoredData",
    "StoredDataSpecifier",
    "StoredDataValue",
    "StoredMetaData",
    "UpdateAns",
    "UpdateReq",
    "decode_body",
    "is_request",
    "read_stored_data",
    "read_value",
    "unknown_kinds_info",
]


@attrs.frozen
class ErrorResponse(Body):
    """A failure: an ``ErrorCode``, and ``info`` in UTF-8 unless the error says otherwise (6.3.3.1)."""

    code: ClassVar[int] = MessageCode.ERROR
    error_code: int
    info: bytes = b""

    @classmethod
    def of(cls, error: ReloadError) -> Self:
        """The response that reports ``error``."""
        return cls(int(error.code), error.info)

    def error(self) -> ReloadError:
        """The exception that this response reports."""
        return error_for(self.error_code, self.info)

    def _write(self) -> bytes:
        return u16(self.error_code) + opaque16(self.info)

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls(reader.u16(), reader.opaque16())


BODY_BY_CODE: Final[dict[int, type[Body]]] = {
    int(body.code): body
    for body in (
        ProbeReq, ProbeAns, AttachReq, AttachAns, StoreReq, StoreAns, FetchReq, FetchAns, FindReq, FindAns,
        JoinReq, JoinAns, LeaveReq, LeaveAns, UpdateReq, UpdateAns, RouteQueryReq, RouteQueryAns, PingReq,
        PingAns, StatReq, StatAns, AppAttachReq, AppAttachAns, ConfigUpdateReq, ConfigUpdateAns,
        ErrorResponse,
    )
}  # fmt: skip


def is_request(code: int) -> bool:
    """Whether a message code is a request's: odd, and not the error code (RFC 6940 section 6.3.3)."""
    return bool(code & 1) and code != MessageCode.ERROR


def decode_body(code: int, data: bytes, kinds: Kinds | None = None) -> Body:
    """The body of a message by its code.

    ``kinds`` gives the data model of every known kind.  Raises ``InvalidMessage`` for a code without a body
    class or malformed octets, ``UnknownKind`` where a storage body names a kind that is not in ``kinds``.
    """
    body = BODY_BY_CODE.get(code)
    if body is None:
        raise InvalidMessage(f"unknown message code {code:#x}")
    return body.decode(data, kinds)
