"""The control service as its client asks it over the socket, and what a node tells about itself."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from p2psipd import metrics
from p2psipd.control import Control, ControlRefused, ControlUnreachable
from p2psipd.net.links import LinkLimits
from p2psipd.proto.identity.certificate import Role, parse_certificate
from p2psipd.proto.identity.signing import Credential
from p2psipd.proto.reload.errors import NotFound, RequestTimeout
from p2psipd.proto.reload.kinds import PROXY_REGISTRATION
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.reload.peer_io import Misbehaved, StoreValue
from p2psipd.proto.reload.peer_parameters import PeerParameters
from p2psipd.proto.reload.sip_usage import ProxyRegistration
from p2psipd.proto.reload.wire import NodeDestination
from p2psipd.services.admin import AdminService, BadRequest, ControlSocketInUse, Resource, Text
from p2psipd.services.inspection import BadArgument, Inspection
from p2psipd.services.overlay_factory import make_overlay
from tests.net.identities import OVERLAY, authority, node

OWN = node(0x1A, role=Role.REGISTRAR, lifetime=20 * 86400.0)


def fail(error: Exception) -> Any:
    raise error


class AdminTests(TestCase):
    """A control socket with a few resources, asked by the client that ``p2psip`` uses."""

    timeout = 20

    def setUp(self) -> None:
        # Unix sockets have short names, so not in trial's own directory.
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "control.sock")
        self.cancelled: Deferred[None] = Deferred()
        self.service = self.serve()

    def serve(self, **more: Any) -> AdminService:
        resources = {
            "/now": Resource("GET", lambda given: {"given": dict(given)}),
            "/later": Resource("GET", lambda _: self.later()),
            "/never": Resource("GET", lambda _: self.never()),
            "/order": Resource("POST", lambda given: dict(given)),
            "/bad": Resource("GET", lambda _: fail(BadRequest("expected a name"))),
            "/missing": Resource("GET", lambda _: fail(NotFound("no such thing"))),
            "/slow": Resource("GET", lambda _: fail(RequestTimeout("late"))),
            "/broken": Resource("GET", lambda _: fail(KeyError("a secret"))),
            "/metrics": Resource("GET", lambda _: Text("a 1\n")),
        }
        service = AdminService(reactor, self.path, resources, **more)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    async def later(self) -> str:
        await deferLater(reactor, 0)
        return "later"

    async def never(self) -> None:
        try:
            await Deferred()
        except CancelledError:
            self.cancelled.callback(None)
            raise

    def ask(self, resource: str, **parameters: Any) -> Deferred[Any]:
        return deferToThread(lambda: Control(self.path).get(resource, **parameters))

    async def refused(self, resource: str) -> ControlRefused:
        try:
            await self.ask(resource)
        except ControlRefused as error:
            return error
        self.fail("was not refused")

    async def test_answers(self) -> None:
        """An answer is JSON, at once or later; parameters come through whatever they hold."""
        self.assertEqual(await self.ask("/now", name="sip:bob@x & ü"), {"given": {"name": "sip:bob@x & ü"}})
        self.assertEqual(await self.ask("/later"), "later")
        ordered = await deferToThread(lambda: Control(self.path).post("/order", {"seconds": 3}))
        self.assertEqual(ordered, {"seconds": "3"})

    async def test_refusals(self) -> None:
        """Each error has its status and a sentence; one of ours says nothing of its inside."""
        for resource, status, text in (
            ("/nothing", 404, "no resource /nothing; there are /bad, "),
            ("/order", 405, "/order is asked with POST"),
            ("/bad", 400, "expected a name"),
            ("/missing", 404, "no such thing"),
            ("/slow", 504, "late"),
            ("/broken", 500, "an error in this node, see its log"),
        ):
            error = await self.refused(resource)
            self.assertEqual(error.status, status)
            self.assertIn(text, str(error))
            self.assertNotIn("secret", str(error))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    async def test_bad_body(self) -> None:
        """A body that is no JSON object is refused."""
        for body in ([1], "x"):
            with self.assertRaises(ControlRefused):
                await deferToThread(lambda body=body: Control(self.path).post("/order", body))

    async def test_client_goes_away(self) -> None:
        """What a client no longer waits for is cancelled."""
        with self.assertRaises(ControlUnreachable):
            await deferToThread(lambda: Control(self.path, 0.2).get("/never"))
        await self.cancelled

    async def test_socket(self) -> None:
        """The socket is for its owner and group alone, and is gone when the node has stopped."""
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o660)
        await self.service.stopService()
        self.assertFalse(os.path.exists(self.path))

    async def test_left_behind(self) -> None:
        """The socket of a node that was killed is replaced, that of a living node is not."""
        with self.assertRaises(ControlSocketInUse):
            AdminService(reactor, self.path, {}).startService()
        await self.service.stopService()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        self.serve()
        self.assertEqual(await self.ask("/later"), "later")

    async def test_what_is_no_socket_stays(self) -> None:
        """A file that stands where the socket should be is refused, and not removed."""
        path = f"{self.path}.key"
        with open(path, "w"):
            self.addCleanup(os.unlink, path)
        with self.assertRaises(ControlSocketInUse):
            AdminService(reactor, path, {}).startService()
        self.assertTrue(os.path.exists(path))

    async def test_metrics_over_tcp(self) -> None:
        """Over TCP there are the metrics and nothing else."""
        from urllib.error import HTTPError
        from urllib.request import urlopen

        await self.service.stopService()
        service = self.serve(metrics=("127.0.0.1", 0))
        url = f"http://127.0.0.1:{service._ports[1].getHost().port}"
        self.assertEqual(await deferToThread(lambda: urlopen(f"{url}/metrics", timeout=5).read()), b"a 1\n")
        with self.assertRaises(HTTPError):
            await deferToThread(lambda: urlopen(f"{url}/now", timeout=5))


class SipOfOneCall:
    """A SIP side with one phone and one call that goes on."""

    def registrations(self) -> list[Mapping[str, Any]]:
        return [{"aor": "sip:bob@overlay.example"}]

    def calls(self) -> list[Mapping[str, Any]]:
        return [{"call_id": "a", "ended_at": None}, {"call_id": "b", "ended_at": 1.0}]

    def ladder(self, call_id: str) -> list[Mapping[str, Any]]:
        return [{"line": "INVITE"}] if call_id == "a" else []

    def problems(self) -> list[str]:
        return []


class InspectionTests(SynchronousTestCase):
    """A node alone, over a clock that the test turns."""

    def setUp(self) -> None:
        from twisted.internet.testing import MemoryReactorClock

        self.clock = MemoryReactorClock()
        self.wall = time.time()
        configuration = OverlayConfiguration(overlay_name=OVERLAY, root_certs=(authority(OVERLAY).certificate,))
        self.node = make_overlay(
            self.clock,
            configuration,
            Credential(parse_certificate(OWN.certificate), OWN.key),
            PeerParameters(addresses=(("127.0.0.1", 6084),), first=True),
            LinkLimits(9, 9, 9, 9, 2.0, 2.0, 1 << 20),
            listen=("127.0.0.1", 6084),
            now=0.0,
            wall=lambda: self.wall,
        )
        self.overlay = self.node.service
        self.look = Inspection(
            self.overlay,
            self.node.core,
            ["peer", "sip"],
            "1.2",
            SipOfOneCall(),
            wall=lambda: self.wall,
            now=self.clock.seconds,
        )

    def start(self) -> None:
        self.overlay.startService()

    def result(self, coroutine: Any) -> Any:
        deferred = Deferred.fromCoroutine(coroutine)
        self.clock.pump([0.1] * 20)
        return self.successResultOf(deferred)

    def put(self) -> None:
        """Store a binding of bob's here."""
        registration = ProxyRegistration(
            "bob@overlay.example", (NodeDestination(self.overlay.node_id),), "sip:bob@192.0.2.1", expires_at=9
        )
        value = StoreValue(registration.encode(), 60, registration.key)
        self.result(self.overlay.store("bob@overlay.example", PROXY_REGISTRATION, [value]))

    def test_status(self) -> None:
        """The status says who and how the node is, in the fields that ``p2psip status`` reads."""
        self.start()
        self.clock.advance(5)
        status = self.look.status()
        self.assertEqual(status["node_id"], OWN.node_id.hex())
        self.assertEqual((status["overlay"], status["joined"], status["up_seconds"]), (OVERLAY, True, 5.0))
        self.assertEqual((status["peers"], status["links"], status["records"]), (0, 0, 0))
        self.assertEqual((status["registrations"], status["calls"]), (1, 1))
        self.assertEqual((status["roles"], status["problems"]), (["peer", "sip"], []))

    def test_problems(self) -> None:
        """Each thing that is wrong is one line with its remedy."""
        self.start()
        self.wall += 19.5 * 86400
        (line,) = self.look.problems()
        self.assertIn("expires in 0.5 days", line)
        self.wall += 86400
        self.assertIn("has expired", self.look.problems()[0])

    def test_not_joined(self) -> None:
        """A node that does not get in says so after a while."""
        self.assertEqual(self.look.problems(), [])
        self.clock.advance(60)
        self.assertIn("not joined", self.look.problems()[0])

    def test_not_joined_for_a_reason(self) -> None:
        """Who is refused learns why sooner."""
        self.start()
        self.overlay.is_joined, self.overlay.last_failure = False, "refused"
        self.clock.advance(6)
        self.assertIn("the last reason: refused", self.look.problems()[0])

    def test_twin(self) -> None:
        """A node with the same certificate is a problem for as long as it is told of."""
        self.start()
        self.overlay._misbehaved(Misbehaved(None, None, "identity", "a node at 192.0.2.1 port 1 has the same"))
        (line,) = self.look.problems()
        self.assertTrue(line.startswith("a node at 192.0.2.1 port 1 has the same: stop one"), line)
        self.clock.advance(661)
        self.assertEqual(self.look.problems(), [])

    def test_cut_off(self) -> None:
        """A node without links says so with the last reason, unless it is the one that founds the overlay."""
        self.start()
        self.overlay.link_failed(0, "refused")
        self.assertEqual(self.look.problems(), [])
        self.node.core.parameters = self.node.core.parameters._replace(first=False)
        (line,) = self.look.problems()
        self.assertEqual(line, "no links: this node is cut off from the overlay; the last reason: refused")

    def test_a_name_is_read_as_a_sip_uri(self) -> None:
        """Scheme and host in any case, parameters and escapes: the same address; what is no URI is refused."""
        self.start()
        self.put()
        for name in ("SIP:bob@OVERLAY.example", "sip:bob@overlay.example;transport=tcp", "sip:%62ob@overlay.example"):
            self.assertTrue(self.result(self.look.get(name))["values"], name)
        self.assertFalse(self.result(self.look.get("sip:Bob@overlay.example"))["values"])
        self.failureResultOf(Deferred.fromCoroutine(self.look.get("sip:bob@")), BadArgument)

    def test_records_and_get(self) -> None:
        """A stored record is listed, and fetched with its signer and who answered."""
        self.start()
        self.put()
        (row,) = self.look.records()
        self.assertEqual((row["kind"], row["holds"]), ("PROXY-REGISTRATION", "primary"))
        answer = self.result(self.look.get("sip:bob@overlay.example"))
        self.assertEqual((answer["found"], answer["answered_by"]), (True, OWN.node_id.hex()))
        (value,) = answer["values"]
        self.assertIn("sip:bob@192.0.2.1", value["value"])
        self.assertEqual(value["signer"], f"{OWN.node_id.hex()}@registrar.{OVERLAY}")
        nothing = self.result(self.look.get("sip:carol@overlay.example", "0x1"))
        self.assertEqual((nothing["found"], nothing["values"]), (False, []))

    def test_trace_and_ping(self) -> None:
        """A node alone is responsible for everything, and answers its own ping."""
        self.start()
        traced = self.result(self.look.trace("sip:bob@overlay.example"))
        self.assertEqual((traced["answered_by"], traced["hop_count"]), (OWN.node_id.hex(), 0))
        self.assertEqual(self.result(self.look.ping("00"))["node"], OWN.node_id.hex())
        self.assertEqual(self.result(self.look.probe(OWN.node_id.hex()))["resources"], 0)

    def test_arguments(self) -> None:
        """What is no Node-ID, no known beginning of one, no kind, no name, is refused with what was expected."""
        self.start()
        for work in (self.look.ping("xyz"), self.look.ping("ff"), self.look.get("x", "NO-KIND"), self.look.trace("")):
            self.failureResultOf(Deferred.fromCoroutine(work), BadArgument)

    def test_ladder(self) -> None:
        """A call has its ladder; a call that nobody knows is not found."""
        self.assertEqual(self.look.ladder("a")["messages"], [{"line": "INVITE"}])
        with self.assertRaises(NotFound):
            self.look.ladder("c")


class MetricsTests(SynchronousTestCase):
    """The metrics page."""

    def test_parsed_by_prometheus(self) -> None:
        """Prometheus' own parser reads the page, and finds each number once."""
        snapshot = metrics.Snapshot(
            build={"version": "1"}, overlay=OVERLAY, roles=("peer",), started_at=1.0, ready=True,
            links={"in": 2, "out": 3}, handshaking=1, connection_results={"accepted": 4}, inputs={"LinkUp": 5},
            outputs={"SendToLink": 6}, faults=0, rejected={"signature": 7}, peer_events={"x": 8}, members=9,
            records=10, stored_bytes=11, certificate_expires_at=12.0, registrations=13, calls=14,
            sip_events={"INVITE": 15},
        )  # fmt: skip
        page = metrics.render(metrics.make_registry(lambda: snapshot))
        families = list(text_string_to_metric_families(page))
        names = [family.name for family in families]
        self.assertEqual(len(names), len(set(names)))
        values = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
        self.assertEqual(values["p2psip_connections", "in"], 2)
        self.assertEqual(values["p2psip_messages_rejected_total", "signature"], 7)
        self.assertEqual(values["p2psip_stored_records",], 10)
        self.assertIn(("process_resident_memory_bytes",), values)
