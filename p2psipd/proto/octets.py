"""Reading and writing big-endian octet strings with length prefixes (RFC 6940 section 6.3.1).

``Reader`` walks over one ``bytes`` object and never past its end; the writer functions put a length before a
body.  Everything that can go wrong is an ``OctetsError``: a codec turns it into its own protocol's error.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

_U16 = Struct(">H")
_U32 = Struct(">I")
_U64 = Struct(">Q")


class OctetsError(ValueError):
    """The octets end too early, go on too long, or a value does not fit in its field."""


class Reader:
    """A cursor over ``data[start:end]``.

    ``position`` is the absolute index of the next octet to read, ``end`` that of the first one beyond the
    range. Lists are read in place: ``stop = reader.list16()`` gives the position at which the list ends, the
    items are read ``while reader.position < stop``, and ``reader.expect(stop)`` verifies that the last item
    ended exactly there.
    """

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        length = len(data)
        if end is None:
            end = length
        if not 0 <= start <= end <= length:
            raise OctetsError(f"range {start}..{end} is not within {length} octets")
        self.data = data
        self.position = start
        self.end = end

    def _advance(self, size: int) -> int:
        start = self.position
        stop = start + size
        if stop > self.end:
            raise OctetsError(f"{size} octets expected at {start}, {self.end - start} are left")
        self.position = stop
        return start

    def u8(self) -> int:
        """The next octet as an unsigned integer."""
        return self.data[self._advance(1)]

    def u16(self) -> int:
        """The next two octets as an unsigned integer."""
        value: int = _U16.unpack_from(self.data, self._advance(2))[0]
        return value

    def u24(self) -> int:
        """The next three octets as an unsigned integer."""
        start = self._advance(3)
        return int.from_bytes(self.data[start : start + 3], "big")

    def u32(self) -> int:
        """The next four octets as an unsigned integer."""
        value: int = _U32.unpack_from(self.data, self._advance(4))[0]
        return value

    def u64(self) -> int:
        """The next eight octets as an unsigned integer."""
        value: int = _U64.unpack_from(self.data, self._advance(8))[0]
        return value

    def boolean(self) -> bool:
        """The next octet as a Boolean; anything but 0 and 1 is an error (RFC 6940 section 6.3.1.1)."""
        value = self.data[self._advance(1)]
        if value > 1:
            raise OctetsError(f"a Boolean is 0 or 1, not {value}")
        return value == 1

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Several fixed fields at once, as laid out by a precompiled ``Struct``."""
        start = self.position  # as in _advance, without the call: this is where decoders spend their time
        stop = start + layout.size
        if stop > self.end:
            raise OctetsError(f"{layout.size} octets expected at {start}, {self.end - start} are left")
        self.position = stop
        return layout.unpack_from(self.data, start)

    def take(self, size: int) -> bytes:
        """The next ``size`` octets."""
        start = self.position
        stop = start + size
        if stop > self.end:
            raise OctetsError(f"{size} octets expected at {start}, {self.end - start} are left")
        self.position = stop
        return self.data[start:stop]

    def opaque8(self) -> bytes:
        """``opaque<0..2^8-1>``: one length octet, then so many octets."""
        start = self.position + 1
        if start > self.end:
            raise OctetsError(f"a length of 1 octet expected at {start - 1}")
        stop = start + self.data[start - 1]
        if stop > self.end:
            raise OctetsError(f"{stop - start} octets expected at {start}, {self.end - start} are left")
        self.position = stop
        return self.data[start:stop]

    def opaque16(self) -> bytes:
        """``opaque<0..2^16-1>``: two length octets, then so many octets."""
        start = self.position + 2
        if start > self.end:
            raise OctetsError(f"a length of 2 octets expected at {start - 2}")
        data = self.data
        stop = start + (data[start - 2] << 8 | data[start - 1])
        if stop > self.end:
            raise OctetsError(f"{stop - start} octets expected at {start}, {self.end - start} are left")
        self.position = stop
        return data[start:stop]

    def opaque24(self) -> bytes:
        """``opaque<0..2^24-1>``: three length octets, then so many octets."""
        return self.take(self.u24())

    def opaque32(self) -> bytes:
        """``opaque<0..2^32-1>``: four length octets, then so many octets."""
        return self.take(self.u32())

    def _stop(self, size: int) -> int:
        stop = self.position + size
        if stop > self.end:
            left = self.end - self.position
            raise OctetsError(f"a list of {size} octets starts at {self.position}, {left} are left")
        return stop

    def list8(self) -> int:
        """Read the one-octet length of a list; the position at which the list must end."""
        return self._stop(self.u8())

    def list16(self) -> int:
        """Read the two-octet length of a list; the position at which the list must end."""
        start = self.position + 2
        if start > self.end:
            raise OctetsError(f"a length of 2 octets expected at {start - 2}")
        self.position = start
        stop = start + (self.data[start - 2] << 8 | self.data[start - 1])
        if stop > self.end:
            raise OctetsError(f"a list that ends at {stop} leaves the range, which ends at {self.end}")
        return stop

    def list24(self) -> int:
        """Read the three-octet length of a list; the position at which the list must end."""
        return self._stop(self.u24())

    def list32(self) -> int:
        """Read the four-octet length of a list; the position at which the list must end."""
        start = self.position + 4
        if start > self.end:
            raise OctetsError(f"a length of 4 octets expected at {start - 4}")
        self.position = start
        stop = start + int.from_bytes(self.data[start - 4 : start], "big")
        if stop > self.end:
            raise OctetsError(f"a list that ends at {stop} leaves the range, which ends at {self.end}")
        return stop

    def rest(self) -> bytes:
        """Everything that is left."""
        start = self.position
        self.position = self.end
        return self.data[start : self.end]

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.position >= self.end

    def expect(self, stop: int) -> None:
        """Raise unless the cursor stands exactly at ``stop``, where a length said that a structure ends."""
        if self.position != stop:
            raise OctetsError(f"a structure that should end at {stop} ends at {self.position}")

    def expect_end(self) -> None:
        """Raise if anything is left."""
        if self.position != self.end:
            raise OctetsError(f"{self.end - self.position} octets too many")


def u8(value: int) -> bytes:
    """``value`` as one octet."""
    return _unsigned(value, 1)


def u16(value: int) -> bytes:
    """``value`` as two octets."""
    return _unsigned(value, 2)


def u24(value: int) -> bytes:
    """``value`` as three octets."""
    return _unsigned(value, 3)


def u32(value: int) -> bytes:
    """``value`` as four octets."""
    return _unsigned(value, 4)


def u64(value: int) -> bytes:
    """``value`` as eight octets."""
    return _unsigned(value, 8)


def opaque8(body: bytes) -> bytes:
    """``body`` behind a one-octet length."""
    size = len(body)
    if size > 0xFF:
        raise OctetsError(f"{size} octets do not fit behind a length of 1")
    return size.to_bytes(1, "big") + body


def opaque16(body: bytes) -> bytes:
    """``body`` behind a two-octet length."""
    size = len(body)
    if size > 0xFFFF:
        raise OctetsError(f"{size} octets do not fit behind a length of 2")
    return size.to_bytes(2, "big") + body


def opaque24(body: bytes) -> bytes:
    """``body`` behind a three-octet length."""
    size = len(body)
    if size > 0xFFFFFF:
        raise OctetsError(f"{size} octets do not fit behind a length of 3")
    return size.to_bytes(3, "big") + body


def opaque32(body: bytes) -> bytes:
    """``body`` behind a four-octet length."""
    size = len(body)
    if size > 0xFFFFFFFF:
        raise OctetsError(f"{size} octets do not fit behind a length of 4")
    return size.to_bytes(4, "big") + body


def _unsigned(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "big")
    except OverflowError:
        raise OctetsError(f"{value} does not fit in {size} octets") from None
