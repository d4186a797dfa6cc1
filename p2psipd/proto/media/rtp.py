"""RTP (RFC 3550): the packet codec, and the receiver's account of sequence numbers, loss and jitter."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from p2psipd.proto.media.errors import MediaError

VERSION: Final = 2
MAX_DROPOUT: Final = 3000
"""A jump ahead of this many packets or more is a restarted sender, not loss (RFC 3550 appendix A.1)."""
MAX_MISORDER: Final = 100
"""A packet up to this far behind is late, not the sign of a restarted sender (RFC 3550 appendix A.1)."""

_FIXED: Final = struct.Struct("!BBHII")
_EXTENSION: Final = struct.Struct("!HH")


class RtpPacket(NamedTuple):
    """One packet (RFC 3550 section 5.1). `extension` is (profile, octets) or None; `csrc` at most 15
    sources."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    marker: bool = False
    csrc: tuple[int, ...] = ()
    extension: tuple[int, bytes] | None = None

    def encode(self) -> bytes:
        """The packet's octets, without padding; MediaError for a field out of its range."""
        if self.extension is not None and len(self.extension[1]) % 4:
            raise MediaError("an RTP header extension is a whole number of 32-bit words")
        if len(self.csrc) > 15:
            raise MediaError("an RTP packet names at most 15 contributing sources")
        first = VERSION << 6 | (self.extension is not None) << 4 | len(self.csrc)
        try:
            head = _FIXED.pack(
                first, self.marker << 7 | self.payload_type, self.sequence, self.timestamp, self.ssrc
            ) + struct.pack(f"!{len(self.csrc)}I", *self.csrc)
            if self.extension is not None:
                profile, octets = self.extension
                head += _EXTENSION.pack(profile, len(octets) // 4) + octets
        except struct.error as error:
            raise MediaError(f"an RTP field is out of range: {error}") from None
        return head + self.payload


def decode_packet(data: bytes) -> RtpPacket:
    """The packet in one datagram (RFC 3550 section 5.1 and the checks of appendix A.1); MediaError if it is
    none."""
    if len(data) < 12:
        raise MediaError("an RTP packet has at least 12 octets")
    first, second, sequence, timestamp, ssrc = _FIXED.unpack_from(data)
    if first >> 6 != VERSION:
        raise MediaError("not RTP version 2")
    if 200 <= second <= 207:
        raise MediaError("an RTCP packet on the RTP port")
    offset = 12 + 4 * (first & 0x0F)
    end = len(data)
    if first & 0x20:
        end -= data[-1]
        if not data[-1]:
            raise MediaError("RTP padding of zero octets")
    extension = None
    if first & 0x10:
        if offset + 4 > end:
            raise MediaError("the RTP header extension is cut short")
        profile, words = _EXTENSION.unpack_from(data, offset)
        extension = (profile, data[offset + 4 : offset + 4 + 4 * words])
        offset += 4 + 4 * words
    if offset > end:
        raise MediaError("the RTP header is longer than the packet")
    csrc = struct.unpack_from(f"!{first & 0x0F}I", data, 12)
    return RtpPacket(second & 0x7F, sequence, timestamp, ssrc, data[offset:end], bool(second & 0x80), csrc, extension)


class Reception:
    """What a receiver knows of one source: packets received, lost, late, doubled, and the jitter.

    RFC 3550 appendices A.1 (sequence), A.3 (loss) and A.8 (jitter). A new SSRC, or a jump that is no loss,
    starts the sequence again; the counts of before are kept.
    """

    __slots__ = (
        "_base", "_before", "_highest", "_recent", "_rejected", "_transit", "jitter", "late", "received",
        "repeated", "ssrc",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ssrc: int | None = None
        self.received = 0
        self.repeated = 0
        self.late = 0
        self.jitter = 0.0
        """Interarrival jitter in units of the RTP clock."""
        self._base = 0
        self._before = 0
        self._highest = -1
        self._recent = 0
        self._rejected: int | None = None
        self._transit: float | None = None

    @property
    def expected(self) -> int:
        """How many packets the source has sent, as far as the sequence numbers tell."""
        return self._before + (self._highest - self._base + 1 if self._highest >= 0 else 0)

    @property
    def lost(self) -> int:
        """Packets that were sent and never came, repeated ones not counted as arrivals."""
        return max(0, self.expected - self.received)

    def receive(self, packet: RtpPacket, now: float, clock_rate: int = 8000, *, timed: bool = True) -> bool:
        """Note a packet that arrived at `now` (monotonic seconds); False if it is a repetition or out of
        bounds. Packets of an event bear the time of its beginning: they are not `timed`, and tell no jitter."""
        if packet.ssrc != self.ssrc:
            self._restart(packet)
        else:
            ahead = (packet.sequence - self._highest) & 0xFFFF
            if ahead == 0:
                self.repeated += 1
                return False
            if ahead < MAX_DROPOUT:
                self._highest += ahead
                self._recent = (self._recent << ahead | 1) & (1 << MAX_MISORDER + 1) - 1
            elif ahead <= 0x10000 - MAX_MISORDER:
                # Two packets in sequence at the new place: the sender restarted; one alone is a stray.
                if packet.sequence != self._rejected:
                    self._rejected = packet.sequence + 1 & 0xFFFF
                    return False
                self._restart(packet)
            elif not self._note_late(0x10000 - ahead):
                return False
        self.received += 1
        if timed:
            self._note_transit(packet, now, clock_rate)
        return True

    def _restart(self, packet: RtpPacket) -> None:
        """Begin a sequence at `packet`; what was expected and not received so far stays lost."""
        self._before = self.expected
        self.ssrc = packet.ssrc
        self._base = self._highest = packet.sequence
        self._recent = 1
        self._rejected = None
        self._transit = None

    def _note_late(self, behind: int) -> bool:
        """Take a packet that is `behind` the highest one; False if it had come already or precedes the
        first."""
        if self._recent >> behind & 1:
            self.repeated += 1
            return False
        self._recent |= 1 << behind
        self.late += 1
        if self._highest - behind < self._base:
            self._base = self._highest - behind
        return True

    def _note_transit(self, packet: RtpPacket, now: float, clock_rate: int) -> None:
        """Update the jitter estimate (RFC 3550 appendix A.8)."""
        transit = now * clock_rate - packet.timestamp
        if self._transit is not None:
            difference = abs(transit - self._transit)
            # A wrap of the 32-bit timestamp is no jitter of half a day.
            if difference < 0x40000000:
                self.jitter += (difference - self.jitter) / 16
        self._transit = transit
