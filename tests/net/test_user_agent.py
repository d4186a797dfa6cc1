"""The user agent on real loopback sockets: calls with audio over UDP and TCP, and what is left behind."""

from __future__ import annotations

import random
import wave
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import InvalidAddressError
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from p2psipd.net.media import AudioStream, RtpSession
from p2psipd.net.sip_transports import SipTransports
from p2psipd.net.user_agent import CallFailed, RegistrationFailed, UserAgent, UserAgentError, UserCall, answer_with_tone
from p2psipd.proto.media.rtp import RtpPacket, decode_packet
from p2psipd.proto.media.tone import ToneGenerator
from p2psipd.proto.sip.agent_io import KeepAliveAnswered
from p2psipd.proto.sip.flow import Flow


def pause(seconds: float) -> Deferred[None]:
    """Let audio flow for so long."""
    return deferLater(reactor, seconds, lambda: None)


class CallTests(TestCase):
    """Two agents that call each other directly."""

    timeout = 20

    async def _pair(self, transport: str) -> tuple[UserAgent, UserAgent]:
        agents = []
        for name, host in (("alice", "127.1.9.1"), ("bob", "127.1.9.2")):
            agent = UserAgent(reactor, f"sip:{name}@{host}", transport=transport, bind=host)
            self.addCleanup(lambda agent=agent: Deferred.fromCoroutine(agent.stop()))
            await agent.start()
            agents.append(agent)
        return agents[0], agents[1]

    async def _call(self, transport: str) -> None:
        alice, bob = await self._pair(transport)
        taken: list[UserCall] = []

        def take(call: UserCall) -> None:
            taken.append(call)
            call.answer(880)

        bob.on_call = take
        call = await alice.call(bob.contact, tone=440)
        await taken[0].established()
        # A phone that stood still for a tenth of a second gives up that time: long enough for it to weigh little.
        await pause(1.5)
        self.assertTrue(call.is_established)
        await call.hang_up()
        await taken[0].ended()
        for heard, own, other in ((call, 440, 880), (taken[0], 880, 440)):
            sound = heard.received_tone((440, 880))
            self.assertGreater(sound["power"][other], 0.9)
            self.assertLess(sound["power"][own], 0.05)
            self.assertGreater(sound["seconds"], 0.3)
            self.assertEqual(sound["lost"], 0)
        path = Path(self.mktemp())
        call.write_wav(path)
        with wave.open(str(path)) as file:
            self.assertEqual(
                (file.getframerate(), file.getnframes()), (8000, round(8000 * call.received_tone()["seconds"]))
            )
        lines = [(entry.direction, entry.line.split()[0], entry.method) for entry in alice.ladder]
        self.assertEqual(lines[0], ("->", "INVITE", "INVITE"))
        self.assertEqual(lines[-1], ("<-", "SIP/2.0", "BYE"))
        self.assertIn(("->", "ACK", "ACK"), lines)

    def test_call_over_udp(self) -> Deferred[None]:
        """A tone each way is heard at the other end, over UDP."""
        return Deferred.fromCoroutine(self._call("udp"))

    def test_call_over_tcp(self) -> Deferred[None]:
        """A tone each way is heard at the other end, with SIP over TCP."""
        return Deferred.fromCoroutine(self._call("tcp"))

    def test_digits_hold_and_a_recording(self) -> Deferred[None]:
        """Keys arrive as telephone events and none twice; on hold nothing is sent; samples are played once."""

        async def scenario() -> None:
            alice, bob = await self._pair("udp")
            taken: list[UserCall] = []
            bob.on_call = lambda call: (taken.append(call), call.answer(None))
            call = await alice.call(bob.contact, play=ToneGenerator(600).samples(16000))
            call.send_digits("12#")
            for _ in range(100):
                if taken[0].digits == "12#" and not call.is_sending_digits:
                    break
                await pause(0.1)
            self.assertEqual(taken[0].digits, "12#")
            self.assertFalse(call.is_sending_digits)
            with self.assertRaises(ValueError):
                call.send_digits("x")
            await taken[0].hold()
            await pause(0.05)
            self.assertTrue(call.is_held)
            sent = call.received_tone()["sent"]
            await pause(0.2)
            self.assertEqual(call.received_tone()["sent"], sent)
            await taken[0].hold(False)
            await pause(0.2)
            self.assertGreater(call.received_tone()["sent"], sent)
            await call.hang_up()
            heard = taken[0].received_tone((600,))
            # The keys and the hold are silence in the recording, and tear its blocks apart.
            self.assertGreater(heard["power"][600], 0.5, heard)
            self.assertEqual(heard["lost"], 0)
            with self.assertRaises(UserAgentError):
                await call.hold()

        return Deferred.fromCoroutine(scenario())

    def test_refusals_and_messages(self) -> Deferred[None]:
        """A call that nobody takes fails with 480, a MESSAGE arrives, OPTIONS is answered."""

        async def scenario() -> None:
            alice, bob = await self._pair("udp")
            with self.assertRaises(CallFailed) as caught:
                await alice.call(bob.contact)
            self.assertEqual(caught.exception.status, 480)
            texts: list[tuple[str, str]] = []
            bob.on_message = lambda sender, text: texts.append((sender, text))
            self.assertEqual(await alice.message(bob.contact, "hello"), 200)
            self.assertEqual(texts, [("sip:alice@127.1.9.1", "hello")])
            self.assertEqual(await alice.options(bob.contact), 200)

        return Deferred.fromCoroutine(scenario())

    def test_nobody_answers_in_time(self) -> Deferred[None]:
        """After the timeout the call is cancelled and fails; the callee is told."""

        async def scenario() -> None:
            alice, bob = await self._pair("udp")
            ringing: list[UserCall] = []
            bob.on_call = ringing.append
            with self.assertRaises(CallFailed) as caught:
                await alice.call(bob.contact, timeout=0.2)
            self.assertEqual(caught.exception.status, 487)
            self.assertEqual(await ringing[0].ended(), "cancelled by the caller")

        return Deferred.fromCoroutine(scenario())

    def test_a_connection_that_is_refused_fails_the_call_at_once(self) -> Deferred[None]:
        """Over TCP nobody waits 32 seconds for a port where nobody listens."""

        async def scenario() -> None:
            alice, bob = await self._pair("tcp")
            gone = bob.contact
            await bob.stop()
            with self.assertRaises(CallFailed) as caught:
                await alice.call(gone)
            self.assertEqual(caught.exception.status, 503)

        return Deferred.fromCoroutine(scenario())

    def test_registering_where_no_registrar_is(self) -> Deferred[None]:
        """A phone is no registrar: REGISTER is refused, and the error says with what."""

        async def scenario() -> None:
            _, bob = await self._pair("udp")
            carol = UserAgent(
                reactor, "sip:carol@overlay.example", server=("127.1.9.2", int(bob.contact.split(":")[2].split(";")[0]))
            )
            self.addCleanup(lambda: Deferred.fromCoroutine(carol.stop()))
            with self.assertRaises(RegistrationFailed) as caught:
                await carol.register()
            self.assertEqual(caught.exception.status, 405)

        return Deferred.fromCoroutine(scenario())

    def test_keep_alives_are_answered(self) -> Deferred[None]:
        """A node answers a phone's keep-alives: STUN over UDP, a line end over TCP (RFC 5626 section 4.4)."""

        async def scenario() -> None:
            node = SipTransports(reactor, *(lambda *_: None for _ in range(3)))
            self.addCleanup(lambda: gatherResults([d for d in node.stop() if d is not None]))
            for transport, listen in (("udp", node.listen_udp), ("tcp", node.listen_tcp)):
                server = listen(("127.1.60.21", 0))
                phone = UserAgent(reactor, "sip:a@x", server=server, transport=transport, bind="127.1.60.22")
                self.addCleanup(lambda phone=phone: Deferred.fromCoroutine(phone.stop()))
                await phone.start()
                answered: list[object] = []
                phone.feed = answered.append  # type: ignore[method-assign]
                network: Any = phone._network
                flow = Flow(transport.upper(), server, ("127.1.60.22", network.port))
                if transport == "tcp":
                    network.send(flow, b"\r\n")
                network.keep_alive(flow)
                for _ in range(40):
                    if not answered:
                        await pause(0.05)
                self.assertEqual([type(each) for each in answered], [KeepAliveAnswered], transport)

        return Deferred.fromCoroutine(scenario())

    def test_garbage_is_survived(self) -> Deferred[None]:
        """Octets that are no SIP change nothing."""

        async def scenario() -> None:
            alice, bob = await self._pair("udp")
            bob.on_call = answer_with_tone(None)
            network: Any = bob._network
            for garbage in (b"", b"\r\n\r\n", b"\0" * 30, b"INVITE sip:x SIP/2.0\r\n\r\n", b"\xff" * 1000):
                network.datagramReceived(garbage, ("127.1.9.1", 9))
            call = await alice.call(bob.contact)
            await call.hang_up()

        return Deferred.fromCoroutine(scenario())


class _Socket:
    """A UDP port that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[tuple[bytes, tuple[str, int]]] = []
        self.fault: Exception | None = None

    def write(self, data: bytes, address: tuple[str, int]) -> None:
        if self.fault is not None:
            raise self.fault
        self.written.append((data, address))

    def stopListening(self) -> None:
        """Nothing to free."""


class _Reactor(Clock):
    """A clock on which UDP ports can be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.socket = _Socket()

    def listenUDP(self, port: int, protocol: Any, interface: str) -> Any:
        protocol.transport = self.socket
        return self.socket


FAR = AudioStream("127.0.0.5", 4000, 0, "PCMU")


class PaceTests(SynchronousTestCase):
    """The RTP clock, on a virtual one."""

    def setUp(self) -> None:
        self.reactor = _Reactor()
        self.session = RtpSession(self.reactor, "127.0.0.1", random.Random(1), ToneGenerator(440))
        self.session.listen()
        self.session.begin(FAR)

    def _packets(self) -> list[RtpPacket]:
        return [decode_packet(data) for data, _ in self.reactor.socket.written]

    def test_fifty_packets_a_second(self) -> None:
        """Packets leave every 20 ms with rising numbers and timestamps, the first one marked."""
        self.reactor.pump([0.02] * 50)
        packets = self._packets()
        self.assertEqual(len(packets), 51)
        self.assertEqual([packet.marker for packet in packets[:3]], [True, False, False])
        self.assertEqual(
            {
                (b.sequence - a.sequence, b.timestamp - a.timestamp & 0xFFFFFFFF)
                for a, b in zip(packets, packets[1:], strict=False)
            },
            {(1, 160)},
        )

    def test_a_late_wake_up_catches_up(self) -> None:
        """After 70 ms of delay the packets that became due leave together."""
        self.reactor.advance(0.07)
        self.assertEqual(len(self._packets()), 4)

    def test_a_long_pause_is_given_up(self) -> None:
        """After a second of standstill one packet leaves, marked, and the timestamp tells the gap."""
        self.reactor.advance(1.0)
        first, second = self._packets()
        self.assertTrue(second.marker)
        self.assertEqual((second.sequence - first.sequence, second.timestamp - first.timestamp & 0xFFFFFFFF), (1, 8000))

    def test_hold_stops_the_sending(self) -> None:
        """While the far side holds, nothing is sent, and the clock goes on."""
        self.session.begin(FAR._replace(sending=False))
        self.reactor.pump([0.02] * 10)
        self.session.begin(FAR)
        self.reactor.pump([0.02] * 2)
        first, *_, last = self._packets()
        self.assertEqual(len(self._packets()), 3)
        self.assertEqual(last.timestamp - first.timestamp & 0xFFFFFFFF, 12 * 160)

    def test_no_way_for_a_while(self) -> None:
        """What cannot be sent is counted, and the clock goes on: the network may come back."""
        faults = (PermissionError(), OSError("Network is unreachable"), InvalidAddressError("::1", "IPv6"))
        for self.reactor.socket.fault in faults:
            self.reactor.pump([0.02])
        self.reactor.socket.fault = None
        self.reactor.pump([0.02])
        first, last = self._packets()
        self.assertEqual(last.timestamp - first.timestamp & 0xFFFFFFFF, 4 * 160)
        self.assertEqual((self.session.sent, self.session.unsent), (2, 3))

    def test_stopping_leaves_no_timer(self) -> None:
        """A stopped session has no delayed call; stopping twice is harmless."""
        self.session.stop()
        self.session.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def _hear(self, number: int, host: str) -> None:
        self.session.datagramReceived(RtpPacket(0, number, number * 160, 9, bytes(160)).encode(), (host, 4000))

    def test_strangers_and_garbage_are_counted(self) -> None:
        """Once audio came, packets of other hosts are dropped and counted, and so is what is no RTP."""
        self._hear(1, "127.0.0.5")
        self._hear(2, "127.0.0.6")
        self.session.datagramReceived(b"junk", ("127.0.0.5", 4000))
        self.assertEqual((self.session.strangers, self.session.malformed), (1, 1))
        self.assertEqual(self.session.received_tone()["packets"], 1)

    def test_audio_may_come_from_one_other_host(self) -> None:
        """A phone that sends from another address than it receives at is heard, until the agreed one sends."""
        self._hear(1, "127.0.0.6")
        self._hear(2, "127.0.0.7")
        self._hear(2, "127.0.0.5")
        self._hear(3, "127.0.0.6")
        self.assertEqual((self.session.strangers, self.session.received_tone()["packets"]), (2, 2))

    def test_lost_packets_are_silence_in_the_recording(self) -> None:
        """A recording keeps its length when a packet is lost."""
        for number in (0, 1, 3):
            packet = RtpPacket(0, number, number * 160, 9, bytes(160))
            self.session.datagramReceived(packet.encode(), ("127.0.0.5", 4000))
        heard = self.session.received_tone()
        self.assertEqual((heard["seconds"], heard["lost"]), (0.08, 1))
