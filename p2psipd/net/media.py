"""Audio of one call over UDP: an RTP session that sends a packet every 20 ms and keeps account of what comes.

The pace is held against the monotonic clock, not against the last wake-up: a late wake-up sends the packets
that have become due, and after a pause of more than a tenth of a second the RTP clock jumps ahead instead of
flooding the far side.
"""

from __future__ import annotations

import struct
import wave
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError, InvalidAddressError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol

from p2psipd.proto.media.errors import MediaError
from p2psipd.proto.media.g711 import SAMPLE_RATE, decode, encode
from p2psipd.proto.media.rtp import Reception, RtpPacket, decode_packet
from p2psipd.proto.media.telephone_event import DigitReceiver, DigitSender
from p2psipd.proto.media.tone import tone_shares

PACKET_SECONDS: Final = 0.02
PACKET_SAMPLES: Final = 160
CATCH_UP: Final = 5
"""At most this many packets leave in one wake-up; further behind, the time is given up."""
RECORD_SECONDS: Final = 600
"""Received audio kept for one call (9.6 MB); what comes later is counted but not kept."""
PORT_ATTEMPTS: Final = 50
MAX_DIGITS: Final = 1000
MAX_PACKET: Final = 1500
MAX_RATE: Final = 200
"""What an echo sends back of one call: octets a packet, packets a second."""

_SILENT_PACKET: Final = array("h", bytes(2 * PACKET_SAMPLES))


class AudioStream(NamedTuple):
    """Where an RTP session sends to, and how: what offer and answer agreed on.

    `host` "" and `sending` False both stop the sending; `codec` is PCMU or PCMA. `events` is the payload type of
    telephone events (RFC 4733), None where the far side takes none.
    """

    host: str
    port: int
    payload_type: int
    codec: str
    sending: bool = True
    receiving: bool = True
    events: int | None = None


class Source(Protocol):
    """What is sent: a tone, a recording."""

    def samples(self, count: int) -> array[int]:
        """The next `count` samples."""
        ...


class RtpEcho(DatagramProtocol):
    """One RTP port that sends every packet back to where it came from, with an SSRC of its own.

    It listens to the host that the SDP named, or while that has sent nothing to the first other one (a phone behind a
    NAT), and from then on to that address alone: nobody can have a third party sent anything but by its own packets,
    one for one and no larger. `counts` tells what was echoed and dropped.
    """

    def __init__(self, random: Any, seconds: Callable[[], float]) -> None:
        self._ssrc = struct.pack("!I", random.getrandbits(32))
        self._seconds = seconds
        self._port: Any = None
        self._wanted = ("", 0)
        self._sending = False
        self._source: tuple[str, int] | None = None
        self._second = 0.0
        self._in_second = 0
        self.counts: Counter[str] = Counter()

    def listen(self, reactor: Any, host: str, port: int) -> None:
        """Take the port. Raises CannotListenError."""
        self._port = reactor.listenUDP(port, self, interface=host)

    def begin(self, address: tuple[str, int], sending: bool) -> None:
        """Echo for the phone whose SDP named `address`, from now on; `sending` False while it holds the call."""
        if address != self._wanted:
            self._source = None
        self._wanted, self._sending = address, sending

    def stop(self) -> None:
        """Free the port. Harmless when called again."""
        if self._port is not None:
            port, self._port = self._port, None
            port.stopListening()

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """One datagram: RTP of our phone goes back, all else is dropped."""
        source = (addr[0], addr[1])
        if not self._is_ours(source):
            self.counts["strangers"] += 1
        elif not 12 <= len(datagram) <= MAX_PACKET or datagram[0] >> 6 != 2:
            self.counts["malformed"] += 1
        elif self._too_many():
            self.counts["too_many"] += 1
        else:
            self._source = source
            if self._sending and self.transport is not None:
                try:
                    self.transport.write(datagram[:8] + self._ssrc + datagram[12:], source)
                    self.counts["echoed"] += 1
                except OSError:
                    # There is no way back: a network that is down for a while.
                    self.counts["unsent"] += 1

    def _is_ours(self, source: tuple[str, int]) -> bool:
        """Before the first packet anybody, then that one source; but the host of the SDP takes its place back."""
        if self._source is None or source == self._source:
            return True
        return source[0] == self._wanted[0] != self._source[0]

    def _too_many(self) -> bool:
        now = self._seconds()
        if now - self._second >= 1.0:
            self._second, self._in_second = now, 0
        self._in_second += 1
        return self._in_second > MAX_RATE

    def connectionRefused(self) -> None:
        """An ICMP error says that nobody listens there: no matter, whoever sends gets answers."""


class RtpSession(DatagramProtocol):
    """One RTP port. `listen()` takes an even port, `begin()` starts or redirects the stream, `stop()` frees
    the port.

    `source` is sent, silence if None; `send_digits` sends keys in its place, and keys that come are in `digits`.
    Audio is taken from the agreed host; from another one only while that has sent nothing (a phone behind a NAT, or
    with several addresses), and then from that one alone. Packets of any other host are counted in `strangers` and
    dropped; malformed ones are counted in `malformed`, and `unsent` are those for which there was no way.
    """

    def __init__(self, reactor: Any, host: str, random: Any, source: Source | None = None) -> None:
        self._reactor = reactor
        self._host = host
        self._random = random
        self._playing = source
        self._sending_digits = DigitSender(PACKET_SAMPLES)
        self._receiving_digits = DigitReceiver()
        self._port: Any = None
        self._stream: AudioStream | None = None
        self._source: str | None = None
        self._call: IDelayedCall | None = None
        self._due = 0.0
        self._sequence = random.getrandbits(15)
        self._timestamp = random.getrandbits(32)
        self._ssrc = random.getrandbits(32)
        self._marker = True
        self._audio = array("h")
        self._expected_timestamp: int | None = None
        self._first_at: float | None = None
        self._last_at = 0.0
        self.reception = Reception()
        self.digits = ""
        self.sent = 0
        self.unsent = 0
        self.strangers = 0
        self.malformed = 0

    @property
    def port(self) -> int:
        """The local UDP port; `listen()` comes first."""
        address = self._port.getHost()
        assert isinstance(address, IPv4Address | IPv6Address)
        return address.port

    def listen(self) -> None:
        """Take a free even port (RFC 3550 section 11); CannotListenError if there is none."""
        for _ in range(PORT_ATTEMPTS):
            candidate = 16384 + 2 * self._random.getrandbits(13)
            try:
                self._port = self._reactor.listenUDP(candidate, self, interface=self._host)
                return
            except CannotListenError:
                continue
        raise CannotListenError(self._host, 0, OSError(f"no free RTP port in {PORT_ATTEMPTS} tries"))

    def play(self, source: Source | None) -> None:
        """Send this from the next packet on; None is silence."""
        self._playing = source

    @property
    def takes_digits(self) -> bool:
        """Whether the far side agreed to telephone events."""
        return self._stream is not None and self._stream.events is not None

    @property
    def sends_digits(self) -> bool:
        """Whether keys are still to be sent."""
        return not self._sending_digits.idle

    def send_digits(self, digits: str) -> None:
        """Send these keys, a tenth of a second each; ValueError for what is no key."""
        self._sending_digits.add(digits)

    def begin(self, stream: AudioStream) -> None:
        """Send to and listen for `stream` from now on; called again when a re-INVITE changes it."""
        if stream == self._stream:
            return
        self._stream = stream
        self._source = None
        self._marker = True
        if self._call is None and self._port is not None:
            self._due = self._reactor.seconds()
            self._wake()

    def stop(self) -> None:
        """End sending and free the port; what was received stays readable. Harmless when called again."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._port is not None:
            port, self._port = self._port, None
            port.stopListening()

    def _wake(self) -> None:
        """Send what has become due and arm the timer for the next packet."""
        now = self._reactor.seconds()
        behind = int((now - self._due) / PACKET_SECONDS) + 1
        if behind > CATCH_UP:
            skipped = behind - 1
            self._due += skipped * PACKET_SECONDS
            self._timestamp = self._timestamp + skipped * PACKET_SAMPLES & 0xFFFFFFFF
            self._marker = True
            behind = 1
        for _ in range(behind):
            self._send_one()
        self._due += behind * PACKET_SECONDS
        self._call = self._reactor.callLater(max(0.0, self._due - now), self._wake)

    def _send_one(self) -> None:
        """Send the next packet, or let its time pass while the stream is on hold."""
        stream = self._stream
        if stream is not None and stream.host and self.transport is not None and stream.sending:
            packet = self._next_packet(stream)
            try:
                self.transport.write(packet.encode(), (stream.host, stream.port))
                self.sent += 1
            except (OSError, InvalidAddressError):
                # A broadcast address, one of the other address family, a network that is down for a while.
                self.unsent += 1
            self._marker = False
            self._sequence = self._sequence + 1 & 0xFFFF
        self._timestamp = self._timestamp + PACKET_SAMPLES & 0xFFFFFFFF

    def _next_packet(self, stream: AudioStream) -> RtpPacket:
        """A key while there are keys to be sent, else audio."""
        event = self._sending_digits.next(self._timestamp) if stream.events is not None else None
        if event is not None and stream.events is not None:
            payload, began, first = event
            return RtpPacket(stream.events, self._sequence, began, self._ssrc, payload, first)
        samples = self._playing.samples(PACKET_SAMPLES) if self._playing else _SILENT_PACKET
        payload = encode(samples, stream.codec)
        return RtpPacket(stream.payload_type, self._sequence, self._timestamp, self._ssrc, payload, self._marker)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Take one datagram from the network; anything that is not our stream is counted and dropped."""
        stream = self._stream
        if stream is None or addr[0] not in (stream.host, self._source or addr[0]):
            self.strangers += 1
            return
        try:
            packet = decode_packet(datagram)
        except MediaError:
            self.malformed += 1
            return
        self._source = addr[0]
        now = self._reactor.seconds()
        if packet.payload_type == stream.events:
            if self.reception.receive(packet, now, SAMPLE_RATE, timed=False):
                self._receive_digits(packet)
            return
        if packet.payload_type != stream.payload_type or not stream.receiving:
            return
        if self.reception.receive(packet, now, SAMPLE_RATE):
            self._first_at = now if self._first_at is None else self._first_at
            self._last_at = now
            self._record(packet, stream.codec)

    def _receive_digits(self, packet: RtpPacket) -> None:
        try:
            self.digits += self._receiving_digits.receive(packet.payload, packet.timestamp)
        except MediaError:
            self.malformed += 1
        # A flood of keys is no call: what nobody will read is not kept.
        self.digits = self.digits[-MAX_DIGITS:]

    def connectionRefused(self) -> None:
        """An ICMP error says that nobody listens yet; RTP goes on regardless (the far side may be opening its
        port)."""

    def _record(self, packet: RtpPacket, codec: str) -> None:
        """Append the packet's samples at their place in time; late packets are not put back."""
        samples = decode(packet.payload, codec)
        if self._expected_timestamp is not None:
            gap = packet.timestamp - self._expected_timestamp & 0xFFFFFFFF
            if gap >= 0x80000000:
                return
            if gap <= SAMPLE_RATE:
                # Missing time is silence, so that a tone's power falls by what was lost and the length stays
                # right.
                samples = array("h", bytes(2 * gap)) + samples
        self._expected_timestamp = packet.timestamp + len(packet.payload) & 0xFFFFFFFF
        room = RECORD_SECONDS * SAMPLE_RATE - len(self._audio)
        self._audio.extend(samples[:room])

    def received_tone(self, frequencies: Iterable[float] = (440.0, 880.0)) -> dict[str, Any]:
        """What was heard: `{"power": {Hz: share of all energy, 0 to 1}, "seconds": audio received, "packets",
        "lost", "late", "sent", "jitter_ms"}`."""
        return {
            "power": tone_shares(self._audio, frequencies),
            "seconds": round(len(self._audio) / SAMPLE_RATE, 3),
            "packets": self.reception.received,
            "lost": self.reception.lost,
            "late": self.reception.late,
            "sent": self.sent,
            "jitter_ms": round(1000 * self.reception.jitter / SAMPLE_RATE, 3),
        }

    def write_wav(self, path: str | Path) -> None:
        """Write what was received as a WAV file: 16 bit, 8 kHz, mono."""
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(self._audio.tobytes())
