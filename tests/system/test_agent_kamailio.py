"""Our phone at a registrar and proxy of another project: Kamailio challenges with MD5 and with SHA-256, and carries
calls between two of our phones over UDP, TCP and TLS."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from p2psipd.net.user_agent import CallFailed, RegistrationFailed, UserAgent, UserCall

from .sip_nodes import server_tls
from .test_agent_foreign import Program, pause, until

PROXY, ALICE, BOB = "127.1.60.50", "127.1.60.51", "127.1.60.52"
DOMAIN = "kamailio.example"

CONFIG = """\
debug=1
log_stderror=yes
fork=yes
children=1
tcp_children=1
socket_workers=1
disable_tcp=no
enable_tls=yes
alias="{domain}"
listen=udp:{host}:5060
listen=tcp:{host}:5060
listen=tls:{host}:5061
loadmodule "tls.so"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "siputils.so"
loadmodule "textops.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "nathelper.so"
loadmodule "auth.so"
modparam("tls", "certificate", "{directory}/{host}.pem")
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "private_key", "{directory}/{host}.key")
modparam("registrar|nathelper", "received_avp", "$avp(received)")
modparam("auth", "algorithm", "{algorithm}")
request_route {{
    mf_process_maxfwd_header("10");
    force_rport();
    if (has_totag()) {{
        if (loose_route()) {{
            handle_ruri_alias();
            if (is_method("INVITE")) {{ set_contact_alias(); t_on_reply("answers"); }}
            t_relay();
            exit;
        }}
        if (is_method("ACK")) {{ if (t_check_trans()) t_relay(); exit; }}
        sl_send_reply("404", "Not here");
        exit;
    }}
    if (is_method("CANCEL")) {{ if (t_check_trans()) t_relay(); exit; }}
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("{domain}", "secret", "0", "$rm")) {{ www_challenge("{domain}", "1"); exit; }}
        fix_nated_register();
        save("location");
        exit;
    }}
    if (!pv_proxy_authenticate("{domain}", "secret", "0")) {{ proxy_challenge("{domain}", "1"); exit; }}
    consume_credentials();
    record_route();
    set_contact_alias();
    t_on_reply("answers");
    if (!lookup("location")) {{ sl_send_reply("404", "Not registered"); exit; }}
    t_relay();
}}
onreply_route[answers] {{ if (is_method("INVITE")) set_contact_alias(); }}
"""


@pytest.mark.foreign("kamailio")
@pytest.mark.system
class KamailioTests(TestCase):
    """One Kamailio a test."""

    timeout = 30

    async def _kamailio(self, algorithm: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="p2psip-test-"))
        self.addCleanup(shutil.rmtree, directory)
        server_tls(PROXY, directory)
        file = directory / "kamailio.cfg"
        file.write_text(CONFIG.format(host=PROXY, domain=DOMAIN, directory=directory, algorithm=algorithm))
        program = Program.start(
            self, "/usr/sbin/kamailio", "-DD", "-f", str(file), "-Y", str(directory), "-m", "32", "-M", "8",
            "-P", str(directory / "pid"), end="TERM",
        )  # fmt: skip
        probe = self._agent("probe", ALICE, "tcp")

        async def answers() -> None:
            while await probe.options(f"sip:{DOMAIN}") == 503:
                assert program.code is None, program.output[-3000:]
                await pause(0.1)

        await Deferred.fromCoroutine(answers()).addTimeout(10, reactor)
        await probe.stop()
        return directory

    def _agent(self, name: str, host: str, transport: str, password: str = "secret", ca_file: str = "") -> UserAgent:
        server = (PROXY, 5061 if transport == "tls" else 5060)
        agent = UserAgent(
            reactor, f"sip:{name}@{DOMAIN}", password, server=server, transport=transport, bind=host,
            ca_file=ca_file, server_name=PROXY,
        )  # fmt: skip
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        return agent

    async def _call(self, caller: UserAgent, callee: UserAgent) -> None:
        """A call with tones both ways, held and taken back, ended by the callee."""
        taken: list[UserCall] = []

        def take(call: UserCall) -> None:
            taken.append(call)
            call.answer(880)

        callee.on_call = take
        await callee.register()
        call = await caller.call(callee.aor, tone=440, timeout=5)
        await until(lambda: taken[0].is_established, 5, "the callee's ACK")
        await pause(0.5)
        for side, tone in ((call, 880), (taken[0], 440)):
            sound = side.received_tone()
            self.assertGreater(sound["power"][tone], 0.9, sound)
        await call.hold()
        await until(lambda: taken[0].is_held, 5, "hold at the callee")
        await call.hold(False)
        await taken[0].hang_up()
        self.assertEqual(await call.ended(), "hung up by the far side")
        await callee.unregister()

    def test_md5(self) -> Deferred[None]:
        """With MD5: registered over UDP and TCP, called between the two; a wrong password is 401, nobody there 404."""

        async def scenario() -> None:
            await self._kamailio("MD5")
            alice, bob = self._agent("alice", ALICE, "udp"), self._agent("bob", BOB, "tcp")
            self.assertGreater(await alice.register(), 0)
            await self._call(alice, bob)
            with self.assertRaises(CallFailed) as caught:
                await alice.call(bob.aor, timeout=5)
            self.assertEqual(caught.exception.status, 404)
            with self.assertRaises(RegistrationFailed) as refused:
                await self._agent("eve", BOB, "udp", "guessed").register()
            self.assertEqual(refused.exception.status, 401)

        return Deferred.fromCoroutine(scenario())

    def test_sha256_over_tls(self) -> Deferred[None]:
        """With SHA-256: both phones over TLS, whose certificate they check; what Kamailio sends goes over their own
        connections, for a phone is not to be dialled."""

        async def scenario() -> None:
            directory = await self._kamailio("SHA-256")
            trusted = str(directory / f"{PROXY}.pem")
            alice = self._agent("alice", ALICE, "tls", ca_file=trusted)
            bob = self._agent("bob", BOB, "tls", ca_file=trusted)
            await self._call(alice, bob)
            with self.assertRaises(RegistrationFailed) as caught:
                await self._agent("carol", ALICE, "tls").register()
            self.assertIn("certificate was refused", str(caught.exception))

        return Deferred.fromCoroutine(scenario())
