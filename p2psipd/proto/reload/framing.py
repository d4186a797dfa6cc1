"""The framing header of a link (RFC 6940 section 6.6.2) and its round-trip estimate (6.6.5, RFC 6298).

Every message is a DATA frame with a sequence number (from 0, one more for each frame of this connection) and
is acknowledged at once by an ACK frame.  On TLS over TCP nothing is retransmitted: the acknowledgements
measure the round trip, and a link that leaves one unanswered for longer than ``rto`` is suspect.

The ACK's ``received`` field, as we read "the N-M bit of the received bitmask": bits are numbered from 0 at
the least significant end, so the packet before N is ``1 << 1`` and bit 0 is never set; M reaches back to
N-31.  (Some decoders take bit 0 for N-1; nothing on a reliable link depends on the difference.)
"""

from __future__ import annotations

from math import ceil
from struct import Struct
from typing import Final, NamedTuple

from p2psipd.proto.reload.errors import InvalidMessage, MessageTooLarge

DATA: Final = 128
ACK: Final = 129
MAX_FRAME: Final = 0xFFFFFF
DEFAULT_MAX_MESSAGE: Final = 65000
MIN_RTO: Final = 0.1
INITIAL_RTO: Final = 1.0
# Sequence numbers whose sending times are remembered; a link this far behind is about to be given up.
MAX_UNACKED: Final = 4096

_SEQUENCES: Final = 0x100000000
_MASK: Final = 0xFFFFFFFF
_DATA_HEAD = Struct(">BIBH")
_ACK = Struct(">BII")
_SEQUENCE = Struct(">I")
_SEQUENCE_RECEIVED = Struct(">II")
_DATA_HEAD_SIZE: Final = _DATA_HEAD.size
_ACK_SIZE: Final = _ACK.size


class DataFrame(NamedTuple):
    """A message with its sequence number."""

    sequence: int
    message: bytes


class AckFrame(NamedTuple):
    """The acknowledgement of ``sequence`` and the bitmap of those received before it."""

    sequence: int
    received: int


Frame = DataFrame | AckFrame


def encode_data(sequence: int, message: bytes) -> bytes:
    """A DATA frame; ``MessageTooLarge`` beyond 2^24-1 octets."""
    size = len(message)
    if size > MAX_FRAME:
        raise MessageTooLarge(f"a frame holds at most {MAX_FRAME} octets, not {size}")
    return _DATA_HEAD.pack(DATA, sequence & _MASK, size >> 16, size & 0xFFFF) + message


def encode_ack(sequence: int, received: int) -> bytes:
    """An ACK frame."""
    return _ACK.pack(ACK, sequence & _MASK, received & _MASK)


class FrameDecoder:
    """Cuts a stream of octets into frames, keeping at most one incomplete frame.

    After it has raised, the stream has no known frame boundary any more and every further call raises again.
    """

    __slots__ = ("_buffer", "_failed", "_max_message")

    def __init__(self, max_message: int = DEFAULT_MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._buffer = bytearray()
        self._failed = False

    @property
    def buffered(self) -> int:
        """How many octets of an incomplete frame are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes.

        Raises ``InvalidMessage`` for an unknown frame type and ``MessageTooLarge`` for a length beyond the
        limit, as soon as the length has been seen.
        """
        if self._failed:
            raise InvalidMessage("the stream is unreadable since an earlier fault")
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer) if self._complete() else b""
            if not data:
                return []
            self._buffer.clear()
        frames: list[Frame] = []
        position = 0
        size = len(data)
        while position < size:
            frame_type = data[position]
            if frame_type == ACK:
                stop = position + _ACK_SIZE
                if stop > size:
                    break
                # Half as dear as to call the class, and each message comes with two frames.
                frames.append(tuple.__new__(AckFrame, _SEQUENCE_RECEIVED.unpack_from(data, position + 1)))
            else:
                stop = self._data_end(data, position)
                if stop > size or stop < 0:
                    break
                (sequence,) = _SEQUENCE.unpack_from(data, position + 1)
                frames.append(tuple.__new__(DataFrame, (sequence, data[position + _DATA_HEAD_SIZE : stop])))
            position = stop
        if position < size:
            self._buffer += data[position:]
        return frames

    def _complete(self) -> bool:
        buffer = self._buffer
        if buffer[0] == ACK:
            return len(buffer) >= _ACK_SIZE
        return 0 <= self._data_end(buffer, 0) <= len(buffer)

    def _data_end(self, data: bytes | bytearray, position: int) -> int:
        """Where the DATA frame at ``position`` ends, -1 while its length has not been seen."""
        if data[position] != DATA:
            self._failed = True
            self._buffer.clear()
            raise InvalidMessage(f"unknown frame type {data[position]}")
        start = position + _DATA_HEAD_SIZE
        if start > len(data):
            return -1
        length = int.from_bytes(data[position + 5 : start], "big")
        if length > self._max_message:
            self._failed = True
            self._buffer.clear()
            raise MessageTooLarge(f"a frame announces {length} octets, at most {self._max_message} are taken")
        return start + length


class AckHistory:
    """Which sequence numbers have arrived: gives the bitmap of each acknowledgement in constant time."""

    __slots__ = ("_bits", "_highest")

    def __init__(self) -> None:
        self._highest: int | None = None
        self._bits = 0  # bit k: highest - k has arrived; bit 0 is highest itself

    def note(self, sequence: int) -> int:
        """Remember ``sequence``; the ``received`` bitmap for its acknowledgement."""
        if self._highest is None:
            self._highest, self._bits = sequence, 1
            return 0
        if sequence == self._highest + 1:  # nearly always
            self._highest = sequence
            received = self._bits << 1 & _MASK
            self._bits = received | 1
            return received
        ahead = (sequence - self._highest) % _SEQUENCES
        if ahead < _SEQUENCES // 2:
            self._bits = ((self._bits << ahead) | 1) & _MASK if ahead < 32 else 1
            self._highest = sequence
            return self._bits & ~1
        behind = _SEQUENCES - ahead
        if behind >= 32:
            return 0
        self._bits |= 1 << behind
        return (self._bits >> behind) & ~1


class FramedLink:
    """One connection's framing: numbers and acknowledges messages, and estimates the round trip.

    Round-trip figures are seconds; ``srtt`` and ``rttvar`` are None until the first acknowledgement.
    """

    __slots__ = ("_decoder", "_history", "_sent", "_unacked", "rto", "rttvar", "srtt")

    def __init__(self, max_message: int = DEFAULT_MAX_MESSAGE) -> None:
        self._decoder = FrameDecoder(max_message)
        self._history = AckHistory()
        self._sent = 0
        self._unacked: list[tuple[int, float]] = []  # an empty deque would take 600 octets of each link
        self.srtt: float | None = None
        self.rttvar: float | None = None
        self.rto = INITIAL_RTO

    @property
    def oldest_unacked_at(self) -> float | None:
        """When the oldest message that has not been acknowledged was sent, or None if all have been."""
        return self._unacked[0][1] if self._unacked else None

    @property
    def unacked(self) -> int:
        """How many messages await their acknowledgement."""
        return len(self._unacked)

    def send(self, message: bytes, now: float) -> bytes:
        """The octets that carry ``message``; ``MessageTooLarge`` beyond 2^24-1 octets."""
        sequence = self._sent & _MASK
        frame = encode_data(sequence, message)
        self._sent += 1
        unacked = self._unacked
        if len(unacked) < MAX_UNACKED:
            unacked.append((sequence, now))
        return frame

    def receive(self, data: bytes, now: float) -> tuple[list[bytes], bytes]:
        """The messages that ``data`` completes, and the acknowledgements to send back at once.

        Raises ``InvalidMessage`` or ``MessageTooLarge`` for garbage; the link cannot be used after that.
        """
        messages: list[bytes] = []
        acks = b""
        for frame in self._decoder.feed(data):
            if frame.__class__ is DataFrame:
                sequence, message = frame
                messages.append(message)
                acks += _ACK.pack(ACK, sequence, self._history.note(sequence))
            else:
                self._acknowledged(frame[0], now)
        return messages, acks

    def _acknowledged(self, sequence: int, now: float) -> None:
        """Measure with the acknowledged message; TCP keeps the order, so those before it arrived as well."""
        if self._unacked and self._unacked[0][0] == sequence:  # nearly always: they are acknowledged one by one
            self._measure(now - self._unacked.pop(0)[1])
            return
        behind = (self._sent - sequence) % _SEQUENCES
        if not 0 < behind <= min(self._sent, _SEQUENCES // 2):
            raise InvalidMessage(f"acknowledgement of {sequence}, which was never sent")
        unacked = self._unacked
        while unacked and (self._sent - unacked[0][0]) % _SEQUENCES >= behind:
            sent_sequence, sent_at = unacked.pop(0)
            if sent_sequence == sequence:
                self._measure(now - sent_at)

    def _measure(self, rtt: float) -> None:
        """RFC 6298 section 2 with a clock granularity of a millisecond (RFC 6940 section 6.6.3.1)."""
        if rtt < 0.0:
            rtt = 0.0
        if self.srtt is None or self.rttvar is None:
            self.srtt = rtt
            self.rttvar = rtt / 2
        else:
            self.rttvar = 0.75 * self.rttvar + 0.25 * abs(self.srtt - rtt)
            self.srtt = 0.875 * self.srtt + 0.125 * rtt
        rto = self.srtt + max(0.001, 4 * self.rttvar)
        self.rto = MIN_RTO if rto <= MIN_RTO else ceil(rto * 1000 - 1e-6) / 1000
