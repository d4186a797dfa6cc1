"""What all message bodies share: their codes, and the turning of codec faults into RELOAD errors."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from struct import error as StructError
from typing import ClassVar, Self

from p2psipd.proto.octets import OctetsError, Reader
from p2psipd.proto.reload.errors import InvalidMessage


class MessageCode(IntEnum):
    """The message codes of RFC 6940 section 14.8; an answer's code is its request's plus one."""

    PROBE_REQ = 0x1
    PROBE_ANS = 0x2
    ATTACH_REQ = 0x3
    ATTACH_ANS = 0x4
    STORE_REQ = 0x7
    STORE_ANS = 0x8
    FETCH_REQ = 0x9
    FETCH_ANS = 0xA
    FIND_REQ = 0xD
    FIND_ANS = 0xE
    JOIN_REQ = 0xF
    JOIN_ANS = 0x10
    LEAVE_REQ = 0x11
    LEAVE_ANS = 0x12
    UPDATE_REQ = 0x13
    UPDATE_ANS = 0x14
    ROUTE_QUERY_REQ = 0x15
    ROUTE_QUERY_ANS = 0x16
    PING_REQ = 0x17
    PING_ANS = 0x18
    STAT_REQ = 0x19
    STAT_ANS = 0x1A
    APP_ATTACH_REQ = 0x1D
    APP_ATTACH_ANS = 0x1E
    CONFIG_UPDATE_REQ = 0x21
    CONFIG_UPDATE_ANS = 0x22
    ERROR = 0xFFFF


def method_name(code: int) -> str:
    """What the RFC calls the method of a request: "AppAttach"; its code where there is none."""
    try:
        words = MessageCode(code).name.removesuffix("_REQ").split("_")
    except ValueError:
        return f"method {code:#x}"
    return "".join(word.capitalize() for word in words)


class DataModel(Enum):
    """How the values of a kind are addressed (RFC 6940 section 7.2), in the words of the document."""

    SINGLE = "SINGLE"
    ARRAY = "ARRAY"
    DICTIONARY = "DICTIONARY"


Kinds = Mapping[int, DataModel]
NO_KINDS: Kinds = {}


class Body:
    """A message body: ``code``, ``encode()`` and ``decode()``.

    A body class defines ``_write`` and ``_read``; both may raise ``OctetsError``, callers of ``encode`` and
    ``decode`` see ``ReloadError`` only.
    """

    __slots__ = ()
    code: ClassVar[int]

    def encode(self) -> bytes:
        """The body's octets; ``InvalidMessage`` if a value does not fit its field."""
        try:
            return self._write()
        except (OctetsError, StructError) as error:
            raise InvalidMessage(f"{type(self).__name__} cannot be written: {error}") from None

    @classmethod
    def decode(cls, data: bytes, kinds: Kinds | None = None) -> Self:
        """Read a body that fills ``data`` exactly.

        ``kinds`` gives the data model of each known kind; only the bodies of storage messages need it.
        Raises ``InvalidMessage`` for malformed octets, ``UnknownKind`` where a kind is named that is not in
        ``kinds``.
        """
        reader = Reader(data)
        try:
            body = cls._read(reader, NO_KINDS if kinds is None else kinds)
            reader.expect_end()
        except OctetsError as error:
            raise InvalidMessage(f"{cls.__name__}: {error}") from None
        return body

    def _write(self) -> bytes:
        return b""

    @classmethod
    def _read(cls, reader: Reader, kinds: Kinds) -> Self:
        return cls()
