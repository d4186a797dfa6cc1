"""The user agent against phones of other projects: baresip both ways with audio, and SIPp's built-in
scenarios."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import wave
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ClientFactory, ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from p2psipd.net.user_agent import UserAgent, UserCall
from p2psipd.proto.media.tone import tone_shares

MODULES = Path("/usr/lib/baresip/modules")
OURS, THEIRS = "127.1.9.11", "127.1.9.12"

CONFIG = """\
sip_listen {host}:{port}
net_interface {host}
audio_source ausine,880
audio_player aubridge,phone
ausrc_srate 48000
ausrc_channels 2
auplay_srate 48000
auplay_channels 2
rtp_ports 20000-20100
module_path {modules}
module g711.so
module ausine.so
module aubridge.so
module sndfile.so
module_tmp uuid.so
module_tmp account.so
module_app ctrl_tcp.so
module_app menu.so
ctrl_tcp_listen {host}:{control}
snd_path {directory}
"""


def pause(seconds: float) -> Deferred[None]:
    """Let that much real time pass."""
    return deferLater(reactor, seconds, lambda: None)


def free_port(host: str) -> int:
    """A UDP and TCP port that nobody has at this moment."""
    with socket.socket() as tcp:
        tcp.bind((host, 0))
        return int(tcp.getsockname()[1])


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition of another process."""
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        await pause(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class Program(ProcessProtocol):
    """A foreign program: what it printed, and how it ended."""

    def __init__(self) -> None:
        self.output = b""
        self.code: int | None = None
        self._ended: list[Deferred[int]] = []

    @classmethod
    def start(cls, test: TestCase, *command: str, end: str = "KILL") -> Program:
        """Start it; it gets the signal `end` at the end of the test if it still runs."""
        program = cls()
        reactor.spawnProcess(program, command[0], command, os.environ)
        test.addCleanup(program.stop, end)
        return program

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        ended = reason.value
        assert isinstance(ended, ProcessDone | ProcessTerminated)
        self.code = -1 if ended.exitCode is None else ended.exitCode
        while self._ended:
            self._ended.pop().callback(self.code)

    def ended(self) -> Deferred[int]:
        """Fires with the exit code."""
        waiting: Deferred[int] = Deferred()
        if self.code is not None:
            waiting.callback(self.code)
        else:
            self._ended.append(waiting)
        return waiting

    def stop(self, end: str = "KILL") -> Deferred[int]:
        """End it by a signal, and wait until it is gone."""
        if self.code is None and self.transport is not None:
            self.transport.signalProcess(end)
        return self.ended()


class Control(Protocol):
    """baresip's ctrl_tcp: JSON in netstrings."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._data = b""

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        while (colon := self._data.find(b":")) > 0:
            length = int(self._data[:colon])
            if len(self._data) < colon + length + 2:
                return
            self.messages.append(json.loads(self._data[colon + 1 : colon + 1 + length]))
            self._data = self._data[colon + length + 2 :]

    def command(self, name: str, params: str = "") -> None:
        """Send a command."""
        data = json.dumps({"command": name, "params": params, "token": name}).encode()
        assert self.transport is not None
        self.transport.write(b"%d:%s," % (len(data), data))

    def keys(self) -> str:
        """The keys whose events came."""
        return "".join(str(m.get("param", "")) for m in self.messages if m.get("type") == "CALL_DTMF_START")

    def saw(self, kind: str) -> bool:
        """Has this event come?"""
        return any(message.get("type") == kind for message in self.messages)


class Baresip:
    """A baresip that sends 880 Hz and records what it hears."""

    def __init__(self, test: TestCase, directory: Path, transport: str) -> None:
        directory.mkdir(parents=True)
        self.directory = directory.resolve()
        self.port = free_port(THEIRS)
        self._control_port = free_port(THEIRS)
        self._test = test
        (directory / "config").write_text(
            CONFIG.format(
                host=THEIRS, port=self.port, control=self._control_port, directory=self.directory, modules=MODULES
            )
        )
        (directory / "contacts").write_text("")
        self.address = f"sip:phone@{THEIRS}:{self.port};transport={transport}"
        (directory / "accounts").write_text(
            f"<sip:phone@{THEIRS};transport={transport}>;regint=0;answermode=auto;audio_codecs=pcmu/8000/1,pcma/8000/1\n"
        )
        self.control = Control()

    async def start(self) -> None:
        """Start it and connect to its control port."""
        program = Program.start(self._test, "/usr/bin/baresip", "-f", str(self.directory), "-n", THEIRS)
        await until(lambda: b"baresip is ready" in program.output, 10, f"ready: {program.output!r}")
        factory = ClientFactory()
        factory.protocol = lambda: self.control  # type: ignore[assignment]
        reactor.connectTCP(THEIRS, self._control_port, factory)
        await until(lambda: self.control.transport is not None, 5, "control connection")
        assert self.control.transport is not None
        self._test.addCleanup(self.control.transport.loseConnection)

    def heard(self) -> dict[float, float]:
        """Shares of 440 and 880 Hz in its recording of the far side."""
        (path,) = self.directory.glob("dump-*-dec.wav")
        with wave.open(str(path)) as file:
            assert file.getnchannels() in (1, 2)
            samples = array("h", file.readframes(file.getnframes()))[:: file.getnchannels()]
            rate = file.getframerate()
        # The recognizer counts in samples of 8 kHz.
        scale = 8000 / rate
        shares = tone_shares(samples, (440 * scale, 880 * scale))
        return {440: shares[440 * scale], 880: shares[880 * scale]}


@pytest.mark.foreign("baresip")
@pytest.mark.system
class BaresipTests(TestCase):
    """Calls between our agent and baresip, peer to peer, with a tone checked at both ends."""

    timeout = 60

    async def _both(self, transport: str) -> tuple[UserAgent, Baresip]:
        agent = UserAgent(reactor, f"sip:ours@{OURS}", transport=transport, bind=OURS)
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        await agent.start()
        # A short name: baresip cuts the path of a recording at some hundred characters, wherever that leads.
        directory = tempfile.mkdtemp(prefix="p2psip-test-")
        self.addCleanup(shutil.rmtree, directory)
        phone = Baresip(self, Path(directory) / "baresip", transport)
        await phone.start()
        return agent, phone

    async def _check(self, call: UserCall, phone: Baresip) -> None:
        """Both ends heard the other's tone and not their own."""
        sound = call.received_tone((440, 880))
        self.assertGreater(sound["power"][880], 0.9, sound)
        self.assertLess(sound["power"][440], 0.05, sound)
        self.assertGreater(sound["seconds"], 0.8, sound)
        await until(lambda: phone.control.saw("CALL_CLOSED"), 5, "baresip's end of the call")
        heard = phone.heard()
        self.assertGreater(heard[440], 0.8, heard)
        self.assertLess(heard[880], 0.05, heard)

    async def _we_call(self, transport: str) -> None:
        agent, phone = await self._both(transport)
        call = await agent.call(phone.address, tone=440)
        await pause(1.5)
        self.assertEqual(await call.hang_up(), "hung up here")
        await self._check(call, phone)

    async def _they_call(self, transport: str) -> None:
        agent, phone = await self._both(transport)
        taken: list[UserCall] = []

        def take(call: UserCall) -> None:
            taken.append(call)
            call.answer(440)

        agent.on_call = take
        phone.control.command("dial", agent.contact)
        await until(lambda: bool(taken) and taken[0].is_established, 10, "a call from baresip")
        await pause(1.5)
        phone.control.command("hangup")
        self.assertEqual(await taken[0].ended(), "hung up by the far side")
        await self._check(taken[0], phone)

    async def _keys_and_hold(self) -> None:
        agent, phone = await self._both("udp")
        call = await agent.call(phone.address, tone=440)
        call.send_digits("4#")
        phone.control.command("sndcode", "7")
        phone.control.command("sndcode", "\x04")
        await until(lambda: call.digits == "7", 5, f"baresip's key: {call.digits}")
        await until(lambda: phone.control.keys() == "4#", 5, f"our keys: {phone.control.messages}")
        phone.control.command("hold")
        await until(lambda: call.is_held, 5, "baresip's hold")
        phone.control.command("resume")
        await until(lambda: not call.is_held, 5, "the end of it")
        await call.hold()
        await pause(0.1)
        before = call.received_tone()["packets"]
        await pause(0.3)
        self.assertEqual(call.received_tone()["packets"], before)
        await call.hold(False)
        await pause(0.3)
        self.assertGreater(call.received_tone()["packets"], before)
        await call.hang_up()

    def test_keys_and_hold(self) -> Deferred[None]:
        """Keys pass both ways as telephone events, each once; baresip holds us and we hold baresip, and resume."""
        return Deferred.fromCoroutine(self._keys_and_hold())

    def test_we_call_over_udp(self) -> Deferred[None]:
        """Our INVITE is answered by baresip, tones pass both ways, our BYE ends it."""
        return Deferred.fromCoroutine(self._we_call("udp"))

    def test_they_call_over_udp(self) -> Deferred[None]:
        """baresip's INVITE is answered by us, tones pass both ways, its BYE ends it."""
        return Deferred.fromCoroutine(self._they_call("udp"))

    def test_we_call_over_tcp(self) -> Deferred[None]:
        """The same with SIP over TCP."""
        return Deferred.fromCoroutine(self._we_call("tcp"))

    def test_they_call_over_tcp(self) -> Deferred[None]:
        """The same with SIP over TCP, called by baresip."""
        return Deferred.fromCoroutine(self._they_call("tcp"))


@pytest.mark.foreign("sipp")
@pytest.mark.system
class SippTests(TestCase):
    """SIPp's built-in scenarios against our agent."""

    timeout = 60

    async def _agent(self, transport: str = "udp") -> UserAgent:
        agent = UserAgent(reactor, f"sip:ours@{OURS}", transport=transport, bind=OURS)
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        await agent.start()
        return agent

    async def _uac(self, transport: str) -> None:
        agent = await self._agent(transport)
        agent.on_call = lambda call: call.answer(None)
        port = agent.contact.split(":")[2].split(";")[0]
        mode = {"udp": "u1", "tcp": "t1"}[transport]
        program = Program.start(
            self, "/usr/bin/sipp", "-sn", "uac", "-s", "ours", "-i", THEIRS, "-p", str(free_port(THEIRS)),
            "-t", mode, "-m", "10", "-r", "10", "-d", "100", "-l", "5", "-timeout", "30", "-nostdin",
            f"{OURS}:{port}",
        )  # fmt: skip
        self.assertEqual(await program.ended(), 0, program.output[-2000:])
        self.assertEqual(agent.calls, {})

    def test_uac_over_udp(self) -> Deferred[None]:
        """Ten calls of `sipp -sn uac` are answered and ended without one failure."""
        return Deferred.fromCoroutine(self._uac("udp"))

    def test_uac_over_tcp(self) -> Deferred[None]:
        """The same on one TCP connection."""
        return Deferred.fromCoroutine(self._uac("tcp"))

    def test_inside_a_call(self) -> Deferred[None]:
        """SIPp's re-INVITE for hold, UPDATE, INFO with a key and session timer are answered as its scenario demands."""

        async def scenario() -> None:
            agent = await self._agent()
            taken: list[UserCall] = []
            agent.on_call = lambda call: (taken.append(call), call.answer(None))
            port = agent.contact.split(":")[2].split(";")[0]
            file = str(Path(__file__).parent / "sipp" / "inside.xml")
            program = Program.start(
                self, "/usr/bin/sipp", "-sf", file, "-i", THEIRS, "-p", str(free_port(THEIRS)), "-m", "1",
                "-timeout", "15", "-timeout_error", "-nostdin", f"{OURS}:{port}",
            )  # fmt: skip
            self.assertEqual(await program.ended(), 0, program.output[-2000:])
            self.assertEqual(taken[0].digits, "9")

        return Deferred.fromCoroutine(scenario())

    def test_glare(self) -> Deferred[None]:
        """Our re-INVITE that SIPp refuses with 491 is sent again after 2.1 to 4 seconds, and accepted."""

        async def scenario() -> None:
            agent = await self._agent()
            port = free_port(THEIRS)
            file = str(Path(__file__).parent / "sipp" / "glare.xml")
            program = Program.start(
                self, "/usr/bin/sipp", "-sf", file, "-i", THEIRS, "-p", str(port), "-m", "1",
                "-timeout", "15", "-timeout_error", "-nostdin",
            )  # fmt: skip
            call = await agent.call(f"sip:service@{THEIRS}:{port}", timeout=10)
            began = reactor.seconds()
            await call.hold()
            self.assertTrue(2.0 < reactor.seconds() - began < 4.5)
            await call.hang_up()
            self.assertEqual(await program.ended(), 0, program.output[-2000:])

        return Deferred.fromCoroutine(scenario())

    def test_uas(self) -> Deferred[None]:
        """Our calls to `sipp -sn uas` are established and ended, and SIPp counts them as successes."""

        async def scenario() -> None:
            agent = await self._agent()
            port = free_port(THEIRS)
            program = Program.start(
                self, "/usr/bin/sipp", "-sn", "uas", "-i", THEIRS, "-p", str(port),
                "-m", "3", "-timeout", "30", "-nostdin",
            )  # fmt: skip
            for _ in range(3):
                call = await agent.call(f"sip:service@{THEIRS}:{port}", timeout=10)
                await pause(0.1)
                self.assertEqual(await call.hang_up(), "hung up here")
            self.assertEqual(await program.ended(), 0, program.output[-2000:])

        return Deferred.fromCoroutine(scenario())
