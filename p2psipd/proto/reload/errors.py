"""RELOAD's errors: one exception class for each error code of RFC 6940 section 14.9.

An exception here is what an ErrorResponse says on the wire.  A decoder that meets malformed octets raises
``InvalidMessage``; whether that is answered or dropped in silence is the peer core's decision (section
6.3.3.1).
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final


class ErrorCode(IntEnum):
    """The error codes of RFC 6940 section 14.9."""

    FORBIDDEN = 0x2
    NOT_FOUND = 0x3
    REQUEST_TIMEOUT = 0x4
    GENERATION_COUNTER_TOO_LOW = 0x5
    INCOMPATIBLE_WITH_OVERLAY = 0x6
    UNSUPPORTED_FORWARDING_OPTION = 0x7
    DATA_TOO_LARGE = 0x8
    DATA_TOO_OLD = 0x9
    TTL_EXCEEDED = 0xA
    MESSAGE_TOO_LARGE = 0xB
    UNKNOWN_KIND = 0xC
    UNKNOWN_EXTENSION = 0xD
    RESPONSE_TOO_LARGE = 0xE
    CONFIG_TOO_OLD = 0xF
    CONFIG_TOO_NEW = 0x10
    IN_PROGRESS = 0x11
    EXP_A = 0x12
    EXP_B = 0x13
    INVALID_MESSAGE = 0x14


class ReloadError(Exception):
    """An error with its wire code.

    ``detail`` is text for people; ``info`` is what goes into ``error_info``: the detail in UTF-8 unless the
    error defines something else there (StoreAns for Generation_Counter_Too_Low, the Kind-IDs for
    Unknown_Kind).
    """

    code: int = ErrorCode.INVALID_MESSAGE
    _MAX_DETAIL: ClassVar[int] = 1000

    def __init__(self, detail: str = "", info: bytes | None = None, *, code: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.info = detail[: self._MAX_DETAIL].encode("utf-8", "replace") if info is None else info
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{error_name(self.code)}: {self.detail}" if self.detail else error_name(self.code)


class Forbidden(ReloadError):
    """The requester may not do this."""

    code = ErrorCode.FORBIDDEN


class NotFound(ReloadError):
    """The resource or node does not exist, or the application is not supported."""

    code = ErrorCode.NOT_FOUND


class RequestTimeout(ReloadError):
    """No answer came in time."""

    code = ErrorCode.REQUEST_TIMEOUT


class GenerationCounterTooLow(ReloadError):
    """A Store expected an older state than there is; ``info`` is an encoded StoreAns."""

    code = ErrorCode.GENERATION_COUNTER_TOO_LOW


class IncompatibleWithOverlay(ReloadError):
    """Another overlay, protocol version or parameter than ours."""

    code = ErrorCode.INCOMPATIBLE_WITH_OVERLAY


class UnsupportedForwardingOption(ReloadError):
    """A critical forwarding option is not understood."""

    code = ErrorCode.UNSUPPORTED_FORWARDING_OPTION


class DataTooLarge(ReloadError):
    """A value or their number exceeds the limits of its kind."""

    code = ErrorCode.DATA_TOO_LARGE


class DataTooOld(ReloadError):
    """The storage time is not newer than the stored value's."""

    code = ErrorCode.DATA_TOO_OLD


class TtlExceeded(ReloadError):
    """The message made too many hops."""

    code = ErrorCode.TTL_EXCEEDED


class MessageTooLarge(ReloadError):
    """The message exceeds the overlay's max-message-size."""

    code = ErrorCode.MESSAGE_TOO_LARGE


class UnknownKind(ReloadError):
    """A request names kinds that are not known; ``info`` is ``KindId<0..2^8-1>``."""

    code = ErrorCode.UNKNOWN_KIND


class UnknownExtension(ReloadError):
    """A critical message extension is not understood."""

    code = ErrorCode.UNKNOWN_EXTENSION


class ResponseTooLarge(ReloadError):
    """The answer would exceed max_response_length."""

    code = ErrorCode.RESPONSE_TOO_LARGE


class ConfigTooOld(ReloadError):
    """The request was made under an older configuration document."""

    code = ErrorCode.CONFIG_TOO_OLD


class ConfigTooNew(ReloadError):
    """The request was made under a newer configuration document."""

    code = ErrorCode.CONFIG_TOO_NEW


class InProgress(ReloadError):
    """An Attach between the two nodes is already under way."""

    code = ErrorCode.IN_PROGRESS


class InvalidMessage(ReloadError):
    """Malformed, or wrong in a way that no other code names."""

    code = ErrorCode.INVALID_MESSAGE


ERROR_BY_CODE: Final[dict[int, type[ReloadError]]] = {
    int(error.code): error
    for error in (
        Forbidden, NotFound, RequestTimeout, GenerationCounterTooLow, IncompatibleWithOverlay,
        UnsupportedForwardingOption, DataTooLarge, DataTooOld, TtlExceeded, MessageTooLarge, UnknownKind,
        UnknownExtension, ResponseTooLarge, ConfigTooOld, ConfigTooNew, InProgress, InvalidMessage,
    )
}  # fmt: skip


def error_name(code: int) -> str:
    """The RFC's name of a code, such as ``Error_Not_Found``; ``Error_0x15`` for one that it does not name."""
    try:
        words = ErrorCode(code).name
    except ValueError:
        return f"Error_{code:#x}"
    # The registry writes "TTL" in capitals and the preposition "with" small.
    return "Error_" + words.title().replace("Ttl", "TTL").replace("_With_", "_with_")


def error_for(code: int, info: bytes) -> ReloadError:
    """The exception for an ErrorResponse that was received; an unknown code gives a plain ``ReloadError``."""
    text_is_binary = code in (ErrorCode.GENERATION_COUNTER_TOO_LOW, ErrorCode.UNKNOWN_KIND)
    detail = "" if text_is_binary else info.decode("utf-8", "replace")
    known = ERROR_BY_CODE.get(code)
    return ReloadError(detail, info, code=code) if known is None else known(detail, info)
