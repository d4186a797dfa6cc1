"""SIP over real loopback sockets: datagrams, connections and their limits, and connections between nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from p2psipd.net import tls_roles
from p2psipd.net.datagrams import LOSING, RECEIVE_BUFFER
from p2psipd.net.interconnect import IDLE_SECONDS, KEEP_ALIVE_SECONDS, Interconnect
from p2psipd.net.refusals import LINES_PER_SECOND
from p2psipd.net.sip_transports import Limits
from p2psipd.net.tls import NodeTls, ServerTls
from p2psipd.proto.identity.certificate import CertificateError, NodeCertificate, Role, Trust, parse_certificate
from p2psipd.proto.reload.ids import NodeId
from p2psipd.proto.reload.peer_io import ApplicationAccepted
from p2psipd.proto.sip.locating import Unreachable
from p2psipd.proto.sip.message import Request, make_response
from tests.net.identities import Identity, node
from tests.net.sip_remotes import HOST, OPTIONS, Recorder, RemoteUdp, TransportsCase, told, until


class SipTransportsTests(TransportsCase):
    """Listeners for phones."""

    def test_datagram_and_answer(self) -> Deferred[None]:
        """A UDP request arrives on a flow whose write reaches the sender; the socket's buffer is as large as
        it may be.
        """

        async def scenario() -> None:
            transports = self.make()
            address = transports.listen_udp((HOST, 0))
            remote = RemoteUdp()
            port: Any = reactor.listenUDP(0, remote, interface="127.1.250.9")
            remote.transport.write(OPTIONS, address)
            remote.transport.write(b"\r\n\r\n", address)
            remote.transport.write(b"\0\1" * 20, address)
            remote.transport.write(b"\xff" * 100, address)
            await until(lambda: self.heard.malformed)
            ((flow, message),) = self.heard.messages
            assert isinstance(message, Request)
            flow.write(make_response(message, 200).encode())
            await until(lambda: remote.data)
            self.assertTrue(remote.data[0].startswith(b"SIP/2.0 200"))
            listener = transports.udp[0]
            self.assertEqual([transports.counters[f"datagrams_{name}"] for name in ("short", "other")], [1, 1])
            size = listener.transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            self.assertGreaterEqual(size, min(RECEIVE_BUFFER, _most_that_the_kernel_gives()))
            await port.stopListening()

        return Deferred.fromCoroutine(scenario())

    def test_what_nobody_has_read(self) -> None:
        """How much lies unread in the socket's buffer is told, also where it is a small one, and what found no room
        there is counted.
        """
        transports = self.make()
        address = transports.listen_udp((HOST, 0))
        self.assertEqual(transports.queued(), 0.0)
        larger = min(RECEIVE_BUFFER, _most_that_the_kernel_gives()) >= RECEIVE_BUFFER
        with socket.socket(type=socket.SOCK_DGRAM) as flood:
            for _ in range(20_000):
                flood.sendto(bytes(1200), address)
        self.assertGreaterEqual(transports.queued(), 0.9 if larger else LOSING)
        self.assertGreater(transports.counters["datagrams_dropped"], 1000)

    def test_connection_is_used_both_ways(self) -> Deferred[None]:
        """RFC 3261 18.2.2: a request to the address of an open connection goes over that connection."""

        async def scenario() -> None:
            transports = self.make()
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(OPTIONS[:40])
            await deferLater(reactor, 0.01)
            remote.transport.write(OPTIONS[40:] + OPTIONS)
            await until(lambda: len(self.heard.messages) == 2)
            flow = self.heard.messages[0][0]
            self.assertIs(await transports.reach("TCP", *flow.remote), flow)
            self.assertIs(transports.connection(flow.connection), flow)
            flow.write(b"hello")
            await until(lambda: remote.data == b"hello")
            remote.transport.abortConnection()
            await until(lambda: self.heard.lost)
            self.assertFalse(flow.alive)
            self.assertIsNone(transports.connection(flow.connection))

        return Deferred.fromCoroutine(scenario())

    def test_who_sends_no_more_gets_its_answers(self) -> Deferred[None]:
        """A client that ends its half of a TCP connection after its requests hears what they came to, then the end."""

        async def scenario() -> None:
            transports = self.make()
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(OPTIONS + OPTIONS.replace(b"OPTIONS", b"MESSAGE"))
            remote.transport.loseWriteConnection()
            await until(lambda: len(self.heard.messages) == 2)
            await deferLater(reactor, 0.05)
            self.assertFalse(self.heard.lost)
            for flow, message in self.heard.messages:
                flow.write(make_response(message, 200).encode())
            await until(lambda: self.heard.lost)
            self.assertEqual(remote.data.count(b"SIP/2.0 200"), 2)

        return Deferred.fromCoroutine(scenario())

    def test_ping_gets_pong(self) -> Deferred[None]:
        """RFC 5626 3.5.1: CRLF CRLF is answered with CRLF, also between messages."""

        async def scenario() -> None:
            transports = self.make()
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(b"\r\n\r\n" + OPTIONS + b"\r\n\r\n")
            await until(lambda: remote.data == b"\r\n\r\n")
            self.assertEqual(len(self.heard.messages), 1)

        return Deferred.fromCoroutine(scenario())

    def test_dialled_once_for_all_who_wait(self) -> Deferred[None]:
        """Two who want the same address at once share one new connection."""

        async def scenario() -> None:
            transports, other = self.make(), self.make()
            address = other.listen_tcp((HOST, 0))
            both = await gatherResults([Deferred.fromCoroutine(transports.reach("TCP", *address)) for _ in range(2)])
            self.assertIs(both[0], both[1])
            both[0].write(OPTIONS)
            await until(lambda: self.heard.messages)
            self.assertEqual(len(transports), 1)

        return Deferred.fromCoroutine(scenario())

    def test_nobody_there_is_unreachable(self) -> Deferred[None]:
        """An address that refuses is Unreachable, and leaves nothing in the table."""

        async def scenario() -> None:
            transports = self.make()
            with socket.socket() as unused:
                unused.bind((HOST, 0))
                port = unused.getsockname()[1]
            await self.assertFailure(Deferred.fromCoroutine(transports.reach("TCP", HOST, port)), Unreachable)
            await self.assertFailure(Deferred.fromCoroutine(transports.reach("SCTP", HOST, port)), Unreachable)
            self.assertEqual(len(transports), 0)

        return Deferred.fromCoroutine(scenario())

    def test_caps(self) -> Deferred[None]:
        """Connections beyond the cap of one address, or of all, are closed at once and counted."""

        async def scenario() -> None:
            transports = self.make(per_address=2)
            address = transports.listen_tcp((HOST, 0))
            with capturedLogs() as events:
                remotes = [await self.dial(address) for _ in range(3)]
                await until(lambda: remotes[2].closed)
                remotes[1].transport.write(b"no SIP\r\n\r\n")
                await until(lambda: remotes[1].closed)
            self.assertEqual(
                [event["address"] for event in events if "address" in event],
                [remotes[2].address, remotes[1].address],
            )
            self.assertFalse(remotes[0].closed)
            self.assertEqual(transports.counters["refused_per_address"], 1)
            await until(lambda: len(transports) == 1)
            again = await self.dial(address)
            again.transport.write(OPTIONS)
            await until(lambda: self.heard.messages)

        return Deferred.fromCoroutine(scenario())

    def test_garbage_closes_the_connection(self) -> Deferred[None]:
        """A stream whose framing is lost is closed; what came before it still counts."""

        async def scenario() -> None:
            transports = self.make()
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(OPTIONS + OPTIONS.replace(b"Content-Length: 0", b"Content-Length: -7"))
            await until(lambda: remote.closed)
            self.assertEqual(len(self.heard.messages), 1)
            self.assertEqual(transports.counters["closed_malformed"], 1)

        return Deferred.fromCoroutine(scenario())

    def test_tls_handshake_deadline(self) -> Deferred[None]:
        """A connection that completes no TLS handshake is closed after the deadline."""

        async def scenario() -> None:
            transports = self.make(handshake=0.1)
            certificate, key = node(1).write(Path(self.mktemp_directory()))
            remote = await self.dial(transports.listen_tls((HOST, 0), ServerTls(str(certificate), str(key))))
            await until(lambda: remote.closed)
            self.assertEqual(transports.counters["closed_handshake"], 1)

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_who_was_refused_and_why(self) -> Deferred[None]:
        """A handshake that fails, is not ended or not in time, and connections beyond a cap have a line each; one that
        merely closes has none.
        """

        async def scenario() -> None:
            transports = self.make(handshake=1.0, per_address=1)
            certificate, key = node(1).write(Path(self.mktemp_directory()))
            address = transports.listen_tls((HOST, 0), ServerTls(str(certificate), str(key)))
            with capturedLogs() as events:
                for octets, close in ((b"GET / HTTP/1.0\r\n\r\n", False), (b"", False), (_HELLO, True), (b"", True)):
                    remote = await self.dial(address)
                    remote.transport.write(octets)
                    await until(lambda remote=remote: len(transports) or remote.closed)
                    if close:
                        await deferLater(reactor, 0.02)
                        remote.transport.loseConnection()
                    await until(lambda: not len(transports))
                kept, refused = await self.dial(address), await self.dial(address)
                await until(lambda: refused.closed)
                transports.limits = Limits(connections=1)
                refused = await self.dial(address)
                await until(lambda: refused.closed)
                kept.transport.loseConnection()
                await until(lambda: not len(transports))
            cut = f"connection from 127.0.0.1 to TLS port {address[1]} ended: "
            self.assertEqual(
                [line.removeprefix(cut) for line in told(events)],
                [
                    "the TLS handshake failed: http request",
                    "the TLS handshake took too long",
                    "closed in the midst of the TLS handshake",
                    "too many connections from this address",
                    "too many connections",
                ],
            )

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_whose_datagrams_are_dropped(self) -> Deferred[None]:
        """Octets that are no SIP have a line, a flood of them few; what phones keep their way open with has none."""

        async def scenario() -> None:
            transports = self.make()
            address = transports.listen_udp((HOST, 0))
            remote = RemoteUdp()
            port: Any = reactor.listenUDP(0, remote, interface="127.1.250.9")
            indication = b"\0\x11\0\0\x21\x12\xa4\x42" + bytes(12)
            with capturedLogs() as events:
                remote.transport.write(b"\xff" * 100, address)
                for octets in (bytes(100), b"\r\n\r\n", indication, OPTIONS, *[b"no SIP, not at all"] * 50):
                    remote.transport.write(octets, address)
                await until(lambda: len(self.heard.malformed) == 51)
            dropped = f"datagram from 127.1.250.9 to UDP port {address[1]} dropped: "
            lines = told(events)
            self.assertEqual(lines[:2], [dropped + "no SIP message: bad start line", dropped + "neither SIP nor STUN"])
            self.assertEqual(lines.count(lines[1]), 1)
            self.assertLessEqual(len(lines), 2 * LINES_PER_SECOND + 1)
            await port.stopListening()

        return Deferred.fromCoroutine(scenario())

    def mktemp_directory(self) -> str:
        path = self.mktemp()
        os.makedirs(path)
        return path

    def test_peer_that_does_not_read_is_dropped(self) -> Deferred[None]:
        """What a peer leaves unread is bounded: beyond it the connection is dropped."""

        async def scenario() -> None:
            transports = self.make(unread=200_000)
            remote = await self.dial(transports.listen_tcp((HOST, 0)))
            remote.transport.write(OPTIONS)
            await until(lambda: self.heard.messages)
            remote.transport.pauseProducing()
            flow = self.heard.messages[0][0]
            for _ in range(2000):
                flow.write(b"x" * 10_000)
                if transports.counters["closed_slow"]:
                    break
                await deferLater(reactor, 0)
            await until(lambda: self.heard.lost)
            self.assertEqual(transports.counters["closed_slow"], 1)
            remote.transport.resumeProducing()

        return Deferred.fromCoroutine(scenario())


#: The beginning of a ClientHello.
_HELLO = bytes.fromhex("16030100c8010000c40303")


def _most_that_the_kernel_gives() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class InterconnectTests(TestCase):
    """Mutual TLS between nodes."""

    timeout = 30

    def setUp(self) -> None:
        self.nodes: dict[bytes, Interconnect] = {}
        self.heard: dict[bytes, Recorder] = {}
        self.attached: list[tuple[bytes, bytes]] = []
        self.revoked: set[bytes] = set()

    def make(self, identity: Identity, **options: Any) -> Interconnect:
        trust = Trust([identity.root], identity.overlay)

        def judge(der: bytes) -> NodeCertificate:
            judged = trust.check(der, time.time())
            if judged.node_id in self.revoked:
                raise CertificateError("revoked", "revoked")
            return judged

        async def app_attach(wanted: bytes) -> None:
            self.attached.append((identity.node_id, wanted))
            if wanted not in self.nodes:
                raise LookupError("no such node in the overlay")
            self.nodes[wanted].dial(identity.node_id, [made.address])

        made = Interconnect(
            reactor,
            identity.tls(),
            judge,
            listen=(HOST, 0),
            app_attach=app_attach,
            timeout=options.pop("timeout", 3.0),
            limits=Limits(**options),
        )
        recorder = self.heard[identity.node_id] = Recorder()
        made.start(recorder.receive, recorder.on_lost)
        self.nodes[identity.node_id] = made
        self.addCleanup(lambda: Deferred.fromCoroutine(self._stop(made)))
        return made

    async def _stop(self, made: Interconnect) -> None:
        waiting = made.stop()
        if waiting is not None:
            await waiting
        await until(lambda: not len(made))

    def test_attach_connects_once_and_both_ways(self) -> Deferred[None]:
        """AppAttach brings one inbound connection, whose certificate has the wanted Node-ID; both sides use
        it.
        """

        async def scenario() -> None:
            one, two = node(1, role=Role.REGISTRAR), node(2)
            first, second = self.make(one), self.make(two)
            flows = await gatherResults([Deferred.fromCoroutine(first.connect(two.node_id)) for _ in range(3)])
            self.assertEqual(len(set(flows)), 1)
            self.assertEqual(flows[0].peer.node_id, two.node_id)
            self.assertFalse(flows[0].peer.registrar)
            await until(lambda: second.pooled(one.node_id))
            back: Any = await second.connect(one.node_id)
            self.assertTrue(back.peer.registrar)
            self.assertEqual(self.attached, [(one.node_id, two.node_id)])
            back.write(OPTIONS)
            flows[0].write(OPTIONS)
            await until(lambda: self.heard[one.node_id].messages and self.heard[two.node_id].messages)

        return Deferred.fromCoroutine(scenario())

    def test_node_that_answers_passive_is_dialled(self) -> Deferred[None]:
        """RFC 6940 6.5.1.13: who attached dials a node that asks for it, and is the TLS server all the same."""

        async def scenario() -> None:
            clients: list[NodeTls] = []
            begin = NodeTls.clientConnectionForTLS
            self.patch(NodeTls, "clientConnectionForTLS", lambda tls, at: clients.append(tls) or begin(tls, at))
            self.patch(tls_roles, "SILENCE_SECONDS", 0.1)
            one, two = node(1), node(2)
            first, second = self.make(one), self.make(two)

            async def passive(wanted: bytes) -> ApplicationAccepted:
                return ApplicationAccepted(NodeId(wanted), 5061, (second.address,), b"passive")

            first._app_attach = passive
            flow: Any = await first.connect(two.node_id)
            self.assertFalse(flow.inbound)
            self.assertEqual((flow.remote, flow.peer.node_id), (second.address, two.node_id))
            self.assertEqual(clients, [second._tls])
            await until(lambda: second.pooled(one.node_id))
            flow.write(OPTIONS)
            await until(lambda: self.heard[two.node_id].messages)

        return Deferred.fromCoroutine(scenario())

    def test_connection_that_ends_before_tls(self) -> Deferred[None]:
        """A connection that is closed before a word was said leaves nothing behind."""

        async def scenario() -> None:
            first = self.make(node(1))
            with socket.create_connection(first.address, 2):
                await until(lambda: len(first._transports or ()) == 1)
            await until(lambda: len(first._transports or ()) == 0)

        return Deferred.fromCoroutine(scenario())

    def test_unknown_node_is_unreachable(self) -> Deferred[None]:
        """What goes wrong in the overlay is Unreachable to the caller."""

        async def scenario() -> None:
            first = self.make(node(1))
            await self.assertFailure(Deferred.fromCoroutine(first.connect(bytes(16))), Unreachable)
            self.assertEqual(first.counters["unreachable"], 1)

        return Deferred.fromCoroutine(scenario())

    def test_node_that_does_not_dial_is_unreachable(self) -> Deferred[None]:
        """A node that answers AppAttach and then does not connect is given up after the timeout."""

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, second = self.make(one, timeout=0.2), self.make(two)
            second.dial = lambda node_id, addresses: None  # type: ignore[method-assign]
            await self.assertFailure(Deferred.fromCoroutine(first.connect(two.node_id)), Unreachable)

        return Deferred.fromCoroutine(scenario())

    def test_stranger_is_refused(self) -> Deferred[None]:
        """A certificate of another overlay never becomes a connection, and the dialler does not count it as
        one.
        """

        async def scenario() -> None:
            one, stranger = node(1), node(3, "other.example")
            first, other = self.make(one, timeout=0.5), self.make(stranger)
            other.dial(one.node_id, [first.address])
            await until(lambda: other.counters["dial_failed"])
            self.assertIsNone(first.pooled(stranger.node_id))
            self.assertIsNone(other.pooled(one.node_id))

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_whose_certificate_is_refused(self) -> Deferred[None]:
        """At the node that judges, with the judge's words; at the other, why it could not dial."""

        async def scenario() -> None:
            one = node(1)
            first = self.make(one)
            self.revoked.add(node(5).node_id)
            late = node(4, issued_at=time.time() + 86400)
            port = f"connection from 127.0.0.1 to TLS port {first.address[1]} ended: certificate refused: "
            stranger = node(3, "other.example")
            for other, words, alert in (
                (stranger, "not under an authority that is known here (OpenSSL error 19)", "unknown ca"),
                (late, "not valid yet (OpenSSL error 9)", "bad certificate"),
                (node(5), "revoked", "Connection"),
            ):
                made = self.make(other)
                made._tls._context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
                made._judge = parse_certificate
                with capturedLogs() as events:
                    made.dial(one.node_id, [first.address])
                    await until(lambda made=made: made.counters["dial_failed"])  # type: ignore[misc]
                    await until(lambda events=events: len(told(events)) == 2)  # type: ignore[misc]
                ours, theirs = sorted(told(events))
                self.assertEqual(ours, port + words)
                self.assertIn(f"could not dial {one.node_id.hex()} for SIP: {HOST}: ", theirs)
                self.assertIn(alert, theirs)

        return Deferred.fromCoroutine(scenario())

    def test_the_log_names_who_shows_no_certificate(self) -> Deferred[None]:
        """Who shows none, and who talks something else, as the overlay port says it."""

        async def scenario() -> None:
            first = self.make(node(1))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

            def without() -> None:
                with socket.create_connection(first.address, 5) as plain, context.wrap_socket(plain) as client:
                    client.settimeout(5)
                    with contextlib.suppress(OSError):
                        client.recv(100)

            with capturedLogs() as events:
                reactor.suggestThreadPoolSize(2)
                await deferToThread(without)
                with socket.create_connection(first.address, 2) as plain:
                    plain.sendall(b"\xff" * 100)
                    await until(lambda: len(told(events)) == 2)
            said = [line.partition(" ended: ") for line in told(events)]
            self.assertEqual({line[0] for line in said}, {f"connection from 127.0.0.1 to TLS port {first.address[1]}"})
            self.assertEqual(
                [line[2] for line in said],
                [
                    "the TLS handshake failed: peer did not return a certificate",
                    "the TLS handshake failed: wrong version number",
                ],
            )

        return Deferred.fromCoroutine(scenario())

    def test_lost_connection_is_told_and_replaced(self) -> Deferred[None]:
        """When a pooled connection ends, its user is told, and the next request gets a new one."""

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, _ = self.make(one), self.make(two)
            flow: Any = await first.connect(two.node_id)
            flow.protocol.drop("test")
            await until(lambda: self.heard[one.node_id].lost == [flow])
            again: Any = await first.connect(two.node_id)
            self.assertIsNot(again, flow)
            self.assertTrue(again.alive)

        return Deferred.fromCoroutine(scenario())

    def test_who_attaches_again_while_it_is_dialled_is_dialled_again(self) -> Deferred[None]:
        """The connection under way may have been lost already, without our knowing; of all that asked meanwhile, one
        more is made, to where the last wanted it.
        """

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, second = self.make(one), self.make(two)
            second.dial(one.node_id, [first.address])
            second.dial(one.node_id, [("127.0.0.1", 1)])
            second.dial(one.node_id, [first.address])
            await until(lambda: len(first) == len(second) == 2)
            await until(lambda: not second._dialling)
            self.assertEqual(second.counters["dial_failed"], 0)

        return Deferred.fromCoroutine(scenario())

    def test_the_log_says_why_each_address_was_in_vain(self) -> Deferred[None]:
        """Where a node has several addresses, the reason of the first one counts as much as that of the last."""

        async def scenario() -> None:
            first = self.make(node(1))
            with socket.socket() as unused, capturedLogs() as events:
                unused.bind((HOST, 0))
                first.dial(bytes(16), [first.address, unused.getsockname()])
                await until(lambda: first.counters["dial_failed"])
            (line,) = told(events)
            self.assertIn(f"for SIP: {HOST}: another node answered; {HOST}: Connection was refused", line)

        return Deferred.fromCoroutine(scenario())

    def test_who_attaches_is_dialled_though_an_old_connection_seems_to_live(self) -> Deferred[None]:
        """A node that lost its end silently attaches again: it is dialled anew, and the new connection is used."""

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, second = self.make(one), self.make(two)
            old: Any = await first.connect(two.node_id)
            await until(lambda: second.pooled(one.node_id))
            dead: Any = second.pooled(one.node_id)
            first._pool.clear()
            new: Any = await first.connect(two.node_id)
            self.assertIsNot(new, old)
            await until(lambda: second.pooled(one.node_id) is not dead)
            self.assertTrue(dead.alive)

        return Deferred.fromCoroutine(scenario())

    def test_node_that_falls_silent_is_dropped(self) -> Deferred[None]:
        """A node that answers no keep-alive (RFC 5626 4.4.1) has its connection closed, and so are idle ones."""

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, _ = self.make(one), self.make(two)
            flow: Any = await first.connect(two.node_id)
            first.keep_alive()
            self.assertTrue(flow.alive)
            flow.protocol.last_heard -= 2 * KEEP_ALIVE_SECONDS
            with capturedLogs() as events:
                first.keep_alive()
                await until(lambda: not flow.alive)
                flow = await first.connect(two.node_id)
                flow.protocol.last_message -= IDLE_SECONDS + 1
                first.keep_alive()
                await until(lambda: not flow.alive)
            self.assertEqual(first.counters["dead"], 1)
            (line,) = told(events)
            self.assertEqual(line.partition(" ended: ")[2], "no keep-alive was answered")

        return Deferred.fromCoroutine(scenario())

    def test_node_that_hangs_is_noticed_by_what_it_is_sent(self) -> Deferred[None]:
        """Half a second after a request without a word back the other side is pinged; one that answers stays, one
        that does not is dropped two seconds later, and the requests on it fail.
        """

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, second = self.make(one), self.make(two)
            flow: Any = await first.connect(two.node_id)
            await until(lambda: second.pooled(one.node_id))
            # The answer to the greeting is still on its way.
            await deferLater(reactor, 0.05)
            first._keeper.cancel()
            clock = first._clock = Clock()
            clock.advance(flow.protocol.last_heard)
            first._keeper = clock.callLater(1000, lambda: None)

            def heard_now() -> None:
                flow.protocol.last_heard = clock.seconds()

            flow.write(OPTIONS)
            await until(lambda: self.heard[two.node_id].messages)
            pings = second._transports.counters["pings"]
            clock.advance(0.6)
            await until(lambda: second._transports.counters["pings"] == pings + 1)
            heard_now()
            clock.advance(0.5)
            self.assertFalse(first._watched)
            clock.advance(60)
            flow.write(OPTIONS)
            clock.advance(0.1)
            heard_now()
            flow.write(OPTIONS)
            for _ in range(3):
                clock.advance(0.5)
                self.assertTrue(flow.alive)
            # This process stands still for five seconds: what was said in them has not been read yet.
            clock.advance(5)
            self.assertTrue(flow.alive)
            heard_now()
            clock.advance(0.5)
            flow.write(OPTIONS)
            for _ in range(4):
                clock.advance(0.5)
                self.assertTrue(flow.alive)
            with capturedLogs() as events:
                for _ in range(3):
                    clock.advance(0.5)
            (line,) = told(events)
            self.assertEqual(line.partition(" ended: ")[2], "the other side hangs")
            await until(lambda: self.heard[one.node_id].lost == [flow])
            self.assertEqual(first.counters["silent"], 1)
            self.assertFalse([call for call in clock.getDelayedCalls() if call.func == first._look])

        return Deferred.fromCoroutine(scenario())

    def test_revoked_node_loses_its_connection(self) -> Deferred[None]:
        """When a newer configuration revokes a node, its open connection is closed, and it gets no other."""

        async def scenario() -> None:
            one, two = node(1), node(2)
            first, second = self.make(one, timeout=0.5), self.make(two)
            flow: Any = await first.connect(two.node_id)
            self.assertEqual(first.recheck(), 0)
            self.revoked.add(two.node_id)
            with capturedLogs() as events:
                self.assertEqual(first.recheck(), 1)
            (line,) = told(events)
            self.assertEqual(line.partition(" ended: ")[2], "certificate refused: revoked")
            await until(lambda: not flow.alive and second.pooled(one.node_id) is None)
            await self.assertFailure(Deferred.fromCoroutine(first.connect(two.node_id)), Unreachable)

        return Deferred.fromCoroutine(scenario())
