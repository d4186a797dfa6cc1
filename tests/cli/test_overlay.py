"""The operator's verbs: an overlay is made, its document changed and signed, certificates issued."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2psipd.cli.main import main
from p2psipd.overlay_files import OverlayFiles, OverlayFilesError, load_credential, load_key
from p2psipd.proto.identity.certificate import DAY, CertificateError, Role
from p2psipd.proto.reload.overlay_config import parse_configuration


def run(*arguments: object) -> Result:
    """One call of the command."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def good(*arguments: object) -> Any:
    """The JSON of a call that must succeed."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    """The directory of a fresh overlay."""
    good("overlay", "init", "Overlay.example", "--dir", tmp_path / "op", "--bootstrap", "127.0.1.1:6084",
         "--domain", "overlay.example", "--domain", "phones.example")  # fmt: skip
    return tmp_path / "op"


def test_init_makes_a_valid_signed_document(operator: Path) -> None:
    """After init the document verifies under its printed fingerprint, and says what was asked for."""
    shown = good("overlay", "show", operator / "overlay.xml")
    again = good("overlay", "show", operator / "overlay.xml", "--fingerprint", shown["fingerprint"])
    assert again == shown
    assert (shown["overlay"], shown["sequence"], shown["bootstrap_nodes"]) == ("overlay.example", 1, ["127.0.1.1:6084"])
    assert shown["domains"] == [r"overlay\.example", r"phones\.example"]
    assert len(shown["kinds"]) == 8
    assert "phones" in run("overlay", "show", operator / "overlay.xml").output


def test_secret_keys_are_the_owner_s_alone(operator: Path) -> None:
    """Private keys are mode 0600 and the authority's directory 0700, whatever the umask."""
    good("ca", "issue", "--dir", operator, "peer", "peer1", "--out", operator / "peer1")
    keys = [*operator.glob("ca/*.key"), operator / "peer1" / "node.key"]
    assert len(keys) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    assert stat.S_IMODE((operator / "ca").stat().st_mode) == 0o700


def test_init_does_not_overwrite(operator: Path) -> None:
    """A directory that holds an overlay already is left alone, with exit code 1."""
    before = (operator / "overlay.xml").read_bytes()
    result = run("overlay", "init", "overlay.example", "--dir", operator)
    assert result.exit_code == 1 and "already" in result.output
    assert (operator / "overlay.xml").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("overlay", "init", "not a name"),
        ("overlay", "init", "o.example", "--bootstrap", "host.example:6084"),
        ("overlay", "init", "o.example", "--bootstrap", "127.0.0.1:99999"),
        ("overlay", "update", "--bad-node", "abc"),
        ("ca", "issue", "king", "x", "--out", "x"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A name, address, Node-ID or role that cannot be is a usage error (exit code 2) and leaves nothing behind."""
    result = run(*arguments, "--dir", tmp_path / "new")
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "new").exists()


def test_issue_for_every_role(operator: Path) -> None:
    """Each role's certificate has the name of the profile, is trusted under the document, and fits its key."""
    configuration = parse_configuration((operator / "overlay.xml").read_bytes(), wall=time.time())
    trust, seen = configuration.trust(), set()
    for role, name in (("peer", "p"), ("registrar", "r"), ("provisioning", "v"), ("user", "alice")):
        made = good("ca", "issue", "--dir", operator, role, name, "--out", operator / role)
        owner = load_credential(made["certificate"], made["key"])
        certificate = trust.check(owner.certificate.der, time.time())
        assert certificate.role is Role(role) and certificate.node_id.hex() == made["node_id"]
        assert certificate.not_after <= time.time() + 30 * DAY
        seen.add(certificate.node_id)
    assert len(seen) == 4, "every Node-ID is drawn"
    assert certificate.user == "alice@overlay.example"
    listed = good("ca", "list", "--dir", operator)
    assert [entry["role"] for entry in listed] == ["peer", "registrar", "provisioning", "user"]
    assert [entry["name"] for entry in good("ca", "list", "--dir", operator, "--role", "registrar")] == ["r"]


def test_issue_refuses(operator: Path) -> None:
    """A user of a domain that is not served, and a directory with a certificate already, are refused."""
    result = run("ca", "issue", "--dir", operator, "user", "eve@other.example", "--out", operator / "eve")
    assert result.exit_code == 2 and "not served" in result.output and not (operator / "eve").exists()
    assert run("ca", "issue", "--dir", operator, "user", "x y@overlay.example", "--out", operator / "x").exit_code == 2
    good("ca", "issue", "--dir", operator, "user", "bob@Phones.Example", "--out", operator / "bob")
    result = run("ca", "issue", "--dir", operator, "user", "bob", "--out", operator / "bob")
    assert result.exit_code == 1 and "--renew" in result.output


def test_renewal_keeps_node_id_and_key(operator: Path) -> None:
    """A renewed certificate has the same Node-ID and key, so that records and identity stay (section 11.3)."""
    first = good("ca", "issue", "--dir", operator, "peer", "p", "--out", operator / "p", "--days", "1")
    key = (operator / "p" / "node.key").read_bytes()
    second = good("ca", "issue", "--dir", operator, "peer", "p", "--out", operator / "p", "--renew")
    assert second["node_id"] == first["node_id"] and second["not_after"] > first["not_after"]
    assert (operator / "p" / "node.key").read_bytes() == key
    elsewhere = good("ca", "issue", "--dir", operator, "peer", "p", "--out", operator / "lost", "--renew")
    assert elsewhere["node_id"] == first["node_id"]
    assert (operator / "lost" / "node.key").read_bytes() != key
    assert run("ca", "issue", "--dir", operator, "peer", "q", "--out", operator / "q", "--renew").exit_code == 1
    good("overlay", "update", "--dir", operator, "--bad-node", first["node_id"])
    result = run("ca", "issue", "--dir", operator, "peer", "p", "--out", operator / "p", "--renew")
    assert result.exit_code == 1 and "revoked" in result.output
    assert good("ca", "list", "--dir", operator)[0]["revoked"] is True


def test_update_writes_the_successor(operator: Path) -> None:
    """An update is accepted by whoever has the previous document: next sequence, same signer, same fingerprint."""
    previous = parse_configuration((operator / "overlay.xml").read_bytes(), wall=time.time())
    made = good("overlay", "update", "--dir", operator, "--bad-node", "77" * 16, "--domain", "more.example",
                "--bootstrap", "[2001:db8::1]:7000", "--days", "10")  # fmt: skip
    following = parse_configuration((operator / "overlay.xml").read_bytes(), wall=time.time(), previous=previous)
    assert following.sequence == made["sequence"] == 2
    assert following.bad_nodes == {b"\x77" * 16} and following.serves("more.example")
    assert following.bootstrap_nodes == (("2001:db8::1", 7000),)
    assert abs(following.expiration - time.time() - 10 * DAY) < 60
    good("overlay", "update", "--dir", operator, "--good-node", "77" * 16)
    third = parse_configuration((operator / "overlay.xml").read_bytes(), wall=time.time(), previous=following)
    assert third.bad_nodes == frozenset() and third.domains == ("overlay.example", "phones.example", "more.example")


def test_document_edited_by_hand_is_signed(operator: Path) -> None:
    """An edited document is refused by show with line and reason, not lost by update, and put in force by sign."""
    path = operator / "overlay.xml"
    text = path.read_text().replace('sequence="1"', 'sequence="5"').replace("<initial-ttl>20<", "<initial-ttl>30<")
    path.write_text(text)
    result = run("overlay", "show", path)
    assert result.exit_code == 78 and f"{path}:3: signature" in result.output
    assert run("overlay", "update", "--dir", operator).exit_code == 1
    assert good("overlay", "sign", path, "--dir", operator)["sequence"] == 5
    assert good("overlay", "show", path)["initial_ttl"] == 30
    assert good("overlay", "update", "--dir", operator)["sequence"] == 6


def test_sign_demands_a_newer_sequence_and_good_values(operator: Path, tmp_path: Path) -> None:
    """What other nodes would refuse is not signed: an old sequence, a wrong value; the document in force stays."""
    before = (operator / "overlay.xml").read_bytes()
    for old, new, expected in (
        ("<initial-ttl>20<", "<initial-ttl>30<", "not newer"),
        ("<initial-ttl>20<", "<initial-ttl>3000<", "an integer from 1 to 255"),
        ("<no-ice>true<", "<no-ice>perhaps<", "true or false expected"),
    ):
        edited = tmp_path / "edited.xml"
        edited.write_text(before.decode().replace(old, new))
        result = run("overlay", "sign", edited, "--dir", operator)
        assert result.exit_code == 78 and expected in result.output, result.output
    assert (operator / "overlay.xml").read_bytes() == before


def test_foreign_elements_are_not_lost(operator: Path) -> None:
    """A document with elements that update would drop is left to be edited by hand."""
    path = operator / "overlay.xml"
    extra = '<e:x xmlns:e="urn:e"/><initial-ttl>'
    path.write_text(path.read_text().replace("<initial-ttl>", extra).replace('sequence="1"', 'sequence="2"'))
    good("overlay", "sign", path, "--dir", operator)
    result = run("overlay", "update", "--dir", operator)
    assert result.exit_code == 1 and "{urn:e}x" in result.output


def test_show_of_a_wrong_fingerprint(operator: Path) -> None:
    """A document under another fingerprint than the trusted one is a configuration fault."""
    result = run("overlay", "show", operator / "overlay.xml", "--fingerprint", "sha256:" + "00" * 32)
    assert result.exit_code == 78 and "is trusted" in result.output


def test_no_overlay_there(tmp_path: Path) -> None:
    """A directory without an overlay is told with what would make one."""
    for arguments in (("overlay", "update"), ("ca", "list"), ("ca", "issue", "peer", "x", "--out", tmp_path / "x")):
        result = run(*arguments, "--dir", tmp_path)
        assert result.exit_code == 1 and "p2psip overlay init" in result.output


def test_damaged_files_are_told(operator: Path, tmp_path: Path) -> None:
    """A journal, key or certificate that is damaged is named, and nothing is issued with it."""
    (operator / "ca" / "issued.jsonl").write_text("{}\n")
    result = run("ca", "list", "--dir", operator)
    assert result.exit_code == 1 and "issued.jsonl:1" in result.output
    with pytest.raises(OverlayFilesError):
        load_key(operator / "overlay.xml")
    with pytest.raises(OverlayFilesError):
        load_key(tmp_path / "absent.key")
    with pytest.raises(CertificateError):
        load_credential(operator / "ca" / "ca.pem", operator / "ca" / "ca.key")
    (operator / "ca" / "signer.key").write_bytes((operator / "ca" / "ca.key").read_bytes())
    result = run("overlay", "update", "--dir", operator)
    assert result.exit_code == 1 and "does not belong" in result.output


def test_expired_document_can_be_renewed(operator: Path) -> None:
    """When the document has expired the operator's tool still opens it and writes the successor."""
    later = time.time() + 400 * DAY
    files = OverlayFiles.open(operator, later)
    made = files.update(attrs_later(files, later), later)
    assert made.sequence == 2 and made.expiration > later


def attrs_later(files: OverlayFiles, wall: float) -> Any:
    """The configuration with another year of validity."""
    import attrs

    return attrs.evolve(files.configuration, expiration=float(int(wall) + 365 * DAY))


@pytest.mark.foreign("openssl")
def test_openssl_verifies_the_files(operator: Path) -> None:
    """OpenSSL verifies node.pem against ca.pem and finds that node.key belongs to it."""
    good("ca", "issue", "--dir", operator, "registrar", "r", "--out", operator / "r")
    node = operator / "r" / "node.pem"
    subprocess.run(["openssl", "verify", "-CAfile", operator / "ca" / "ca.pem", node], check=True, capture_output=True)
    of_key = ["openssl", "pkey", "-in", operator / "r" / "node.key", "-pubout"]
    of_certificate = ["openssl", "x509", "-in", node, "-noout", "-pubkey"]
    assert subprocess.check_output(of_key) == subprocess.check_output(of_certificate)
