"""The verbs that provision users, on an overlay of one dictionary."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from twisted.internet.task import Clock

from p2psipd.cli import user as module
from p2psipd.cli.main import main
from p2psipd.overlay_files import OverlayFiles, load_credential
from p2psipd.proto.identity.certificate import Role, generate_private_key
from p2psipd.proto.reload.errors import RequestTimeout
from p2psipd.proto.reload.ids import resource_id
from p2psipd.proto.reload.kinds import DIGEST_CREDENTIAL, DIGEST_KEY
from p2psipd.proto.reload.overlay_config import OverlayConfiguration
from p2psipd.proto.sip.shared_secret import OwnSecret
from p2psipd.provisioning_files import ProvisioningFiles
from p2psipd.services.epoch_keys import EpochKeys
from p2psipd.services.overlay_location import OverlayCredentials
from p2psipd.services.provisioning import Provisioner
from tests.services.provisioning_world import FakeOverlay

ALICE = "alice@overlay.example"


class World:
    """An operator's directory with one registrar and the provisioning side, and the overlay they act on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "provisioning"
        files = OverlayFiles.create(root, "overlay.example", bootstrap_nodes=[("127.0.1.1", 6084)])
        files.issue(Role.REGISTRAR, "r1", root / "r1")
        files.issue(Role.PROVISIONING, "lab", self.directory)
        credential = load_credential(self.directory / "node.pem", self.directory / "node.key")
        self.overlay = FakeOverlay(files.configuration, credential)

    def run(self, *arguments: object, given: str | None = None) -> Result:
        """One call of `p2psip user`."""
        verb, *rest = [str(argument) for argument in arguments]
        return CliRunner().invoke(main, ["user", verb, "--dir", str(self.directory), *rest], input=given)

    def good(self, *arguments: object, given: str | None = None) -> Any:
        """The JSON of a call that must succeed."""
        result = self.run(*arguments, "--json", given=given)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def password_is(self, name: str, password: str, registrar: str = "r1") -> bool:
        """Whether a registrar, reading the overlay, would accept this password."""
        owner = load_credential(self.root / registrar / "node.pem", self.root / registrar / "node.key")
        keys = EpochKeys(self.overlay, "overlay.example", owner, OwnSecret(b"own"), Clock())
        found = asyncio.run(OverlayCredentials(self.overlay, keys).ha1(name, "overlay.example"))
        wanted = module_hash(name, password)
        return found is not None and found["SHA-256"] == wanted


def module_hash(name: str, password: str) -> bytes:
    """HA1 with SHA-256."""
    import hashlib

    return hashlib.sha256(f"{name}:overlay.example:{password}".encode()).digest()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The verbs reach a dictionary instead of starting a node."""
    made = World(tmp_path / "op")

    def with_dictionary(
        place: module.Place,
        files: ProvisioningFiles,
        configuration: OverlayConfiguration,
        work: Callable[[Provisioner], Awaitable[None]],
    ) -> None:
        provisioner = Provisioner(
            made.overlay,
            configuration.overlay_name,
            files.credential,
            files.epochs,
            wall=module.time.time,
            draw=module.secrets.token_bytes,
            draw_key=generate_private_key,
        )

        async def run() -> None:
            await work(provisioner)

        asyncio.run(run())

    monkeypatch.setattr(module, "with_overlay", with_dictionary)
    monkeypatch.delenv("P2PSIP_PASSWORD", raising=False)
    return made


def test_added_user_can_register(world: World) -> None:
    """After add every registrar of the operator's journal accepts the password and no other."""
    made = world.good("add", "alice", "--password", "secret")
    assert made == {"users": [ALICE], "registrars": 1, "epoch": 1}
    assert world.password_is("alice", "secret") and not world.password_is("alice", "other")
    assert [entry["user"] for entry in world.good("list")] == [ALICE]


def test_a_name_may_be_a_sip_uri(world: World) -> None:
    """The verbs that look at a user take "sip:", so this one does; what is left with a colon is nobody's name."""
    assert world.good("add", f"sip:{ALICE}", "--password", "secret")["users"] == [ALICE]
    assert world.password_is("alice", "secret")
    assert world.run("add", "tel:123@overlay.example", "--password", "x").exit_code == 2


def test_no_password_is_kept(world: World) -> None:
    """Neither password nor HA1 is in any file of the provisioning side, and its files are the owner's alone."""
    world.good("add", "alice", "--password", "correct-horse")
    for path in world.directory.iterdir():
        content = path.read_bytes()
        assert b"correct-horse" not in content and module_hash("alice", "correct-horse").hex().encode() not in content
    assert stat.S_IMODE((world.directory / "epochs.json").stat().st_mode) == 0o600


def test_password_from_prompt_environment_and_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password may be typed twice, come from the environment, or from lines of a file or standard input."""
    assert world.run("add", "alice", given="one\none\n").exit_code == 0
    assert world.password_is("alice", "one")
    assert world.run("add", "zoe", given="one\ntwo\n").exit_code != 0
    world.good("add", "--from", "-", given="# people\nbob two words\n\ncarol@overlay.example three\n")
    assert world.password_is("bob", "two words") and world.password_is("carol", "three")
    monkeypatch.setenv("P2PSIP_PASSWORD", "four")
    world.good("passwd", "alice")
    assert world.password_is("alice", "four")


def test_add_and_passwd_mean_what_they_say(world: World) -> None:
    """add refuses a user that exists (unless told to replace), passwd and remove one that does not."""
    world.good("add", "alice", "--password", "one")
    result = world.run("add", "alice", "--password", "two")
    assert result.exit_code == 1 and "passwd" in result.output and world.password_is("alice", "one")
    world.good("add", "alice", "--password", "two", "--replace")
    assert world.password_is("alice", "two")
    assert world.run("passwd", "bob", "--password", "x").exit_code == 1
    assert world.run("remove", "bob").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("add",), None),
        (("add", "alice", "bob"), None),
        (("add", "alice", "--password", ""), None),
        (("add", "alice@other.example", "--password", "x"), None),
        (("add", "a b", "--password", "x"), None),
        (("add", "--from", "-"), "alice\n"),
    ],
)
def test_wrong_usage(world: World, arguments: tuple[str, ...], given: str | None) -> None:
    """Nobody named, no password, or a domain that is not served: a usage error, and nothing is stored."""
    assert world.run(*arguments, given=given).exit_code == 2
    assert world.overlay.held == {}


def test_removed_user_is_refused(world: World) -> None:
    """After remove no registrar finds a password, and the user is not listed."""
    world.good("add", "alice", "--password", "one")
    world.good("remove", "alice")
    assert not world.password_is("alice", "one") and world.good("list") == []
    assert world.overlay.held[resource_id(ALICE), DIGEST_CREDENTIAL, b""].value is None


def test_refresh_serves_a_new_registrar(world: World) -> None:
    """A registrar that was enrolled later is given the key by refresh, without any password."""
    world.good("add", "alice", "--password", "one")
    OverlayFiles.open(world.root).issue(Role.REGISTRAR, "r2", world.root / "r2")
    made = world.good("refresh")
    assert made["renewed"] == [ALICE] and made["registrars"] == 2
    assert world.password_is("alice", "one", "r2")


def test_rekey_shuts_a_revoked_registrar_out(world: World) -> None:
    """After bad-node and rekey the other registrars read on, the revoked one has no key of the new epoch."""
    OverlayFiles.open(world.root).issue(Role.REGISTRAR, "r2", world.root / "r2")
    world.good("add", "alice", "--password", "one")
    assert world.password_is("alice", "one", "r2")
    revoked = load_credential(world.root / "r2" / "node.pem", world.root / "r2" / "node.key").certificate.node_id
    update = ["overlay", "update", "--dir", str(world.root), "--bad-node", revoked.hex()]
    assert CliRunner().invoke(main, update).exit_code == 0
    assert world.good("rekey") == {"epoch": 2, "registrars": 1, "renewed": [ALICE], "missing": []}
    assert world.password_is("alice", "one", "r1")
    with pytest.raises(Exception, match="epoch 2"):
        world.password_is("alice", "one", "r2")
    assert list(json.loads((world.directory / "epochs.json").read_text())) == ["2"], "the old key is forgotten"


def test_lost_credential_is_told(world: World) -> None:
    """If a credential is not in the overlay any more, refresh names the user and exits 1; an old epoch is kept."""
    world.good("add", "alice", "--password", "one")
    world.good("add", "bob", "--password", "two")
    del world.overlay.held[resource_id(ALICE), DIGEST_CREDENTIAL, b""]
    result = world.run("refresh")
    assert result.exit_code == 1 and "p2psip user passwd alice@overlay.example" in result.output
    assert world.run("rekey").exit_code == 1
    assert list(json.loads((world.directory / "epochs.json").read_text())) == ["1", "2"]
    assert world.password_is("bob", "two")


def test_refused_store_changes_nothing(world: World) -> None:
    """When the overlay does not answer the exit code is 1 and the user is not listed."""
    world.overlay.refusal = RequestTimeout("nobody there")
    result = world.run("add", "alice", "--password", "one")
    assert result.exit_code == 1 and "nobody there" in result.output
    world.overlay.refusal = None
    assert world.good("list") == []
    world.good("add", "alice", "--password", "one")


def test_registrars_can_be_named(world: World) -> None:
    """Without the operator's directory registrars are named by their certificates; others are refused."""
    certificate = world.root / "r1" / "node.pem"
    journal = world.root / "ca" / "issued.jsonl"
    journal.unlink()
    result = world.run("add", "alice", "--password", "one")
    assert result.exit_code == 0 and "no registrar is known" in result.output
    world.good("passwd", "alice", "--password", "two", "--registrar", certificate)
    assert world.password_is("alice", "two")
    result = world.run("refresh", "--registrar", world.directory / "node.pem")
    assert result.exit_code == 1 and "a registrar's certificate expected" in result.output


def test_wrong_certificate_is_told(world: World) -> None:
    """A directory with another role's certificate, none, or damaged files is told before anything is asked."""
    for name in ("node.pem", "node.key"):
        (world.directory / name).write_bytes((world.root / "r1" / name).read_bytes())
    result = world.run("list")
    assert result.exit_code == 1 and "a provisioning certificate expected" in result.output
    (world.directory / "node.pem").unlink()
    assert world.run("list").exit_code == 1
    assert DIGEST_KEY not in {kind for _, kind, _ in world.overlay.held}


@pytest.mark.parametrize(
    ("name", "content"),
    [("epochs.json", "{"), ("epochs.json", '{"1": "AAAA"}'), ("epochs.json", "[]"), ("users.json", '{"a": 1}')],
)
def test_damaged_files_are_told(world: World, name: str, content: str) -> None:
    """A damaged file of the provisioning side stops the verb and is named; it is not overwritten."""
    (world.directory / name).write_text(content)
    result = world.run("add", "alice", "--password", "one")
    assert result.exit_code == 1 and name in result.output
    assert (world.directory / name).read_text() == content
