"""The policy file of direct peering: what it may say, and which faults are found before anything starts."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from p2psipd.config import ConfigError, tables
from p2psipd.config.peering import Peering, PeeringFile, read_peering, system_authorities
from p2psipd.proto.identity.policy import SanMatch, Usage, fingerprint
from p2psipd.proto.peering.own_certificates import CertificateUse
from p2psipd.proto.peering.peers import IdentityKind
from tests.proto.identity.domain_certificates import DAY, WALL, TestAuthority, dns, ec_key, pem, rsa_key, self_signed

CA = TestAuthority()
OTHER_CA = TestAuthority("Other CA")

FILE = """\
[trust]
system_authorities = false
authorities = ["ca.pem"]
revocation_lists = ["ca.crl"]

[accept]
domains = ["b.test"]
authorities = ["other.pem"]
deny = ["evil.test"]

[identity]
send = "both"
url = "https://{domain}:8443/identity/"

[[certificate]]
name = "ec"
domains = ["a.test", "a2.test"]
certificate = "a.pem"
key = "a.key"

[[certificate]]
name = "rsa"
domains = ["a.test", "a2.test"]
certificate = "rsa.pem"
key = "rsa.key"
use = ["identity"]

[[peer]]
domain = "b.test"
identity = "rfc4474"
san_match = "any"
pins = ["sha256:@PIN@"]
server_certificate_as_client = true
certificate = "ec"

[[federation]]
domain = "c.test"
through = ["b.test"]
"""
NO_EMERGENCY = "calls to the emergency services are answered 404: [emergency] target is not set"
PINNED = self_signed(dns("b.test"))


def certificate_pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def read(directory: Path, text: str = FILE, wall: float = WALL) -> Peering:
    names = dns("a.test", "a2.test")
    files = {
        "ca.pem": certificate_pem(CA.der),
        "other.pem": certificate_pem(OTHER_CA.der),
        "ca.crl": CA.revocation_list(),
        "a.pem": certificate_pem(CA.issue(names)),
        "a.key": pem(ec_key(1)),
        "rsa.pem": certificate_pem(CA.issue(names, rsa_key())),
        "rsa.key": pem(rsa_key()),
        "peering.toml": text.replace("@PIN@", fingerprint(PINNED)).encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return read_peering(directory / "peering.toml", wall)


def faults(directory: Path, text: str, wall: float = WALL) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read(directory, text, wall)
    return [str(fault).replace(str(directory) + os.sep, "") for fault in error.value.faults]


def test_the_whole_file(tmp_path: Path) -> None:
    """Every key of the file arrives in the policy, the certificates and the URLs."""
    peering = read(tmp_path)
    default, b = peering.policy.settings("x.test"), peering.policy.settings("B.test")
    assert default.send == (IdentityKind.RFC4474, IdentityKind.RFC8224) and b.send == (IdentityKind.RFC4474,)
    assert (default.san_match, b.san_match) == (SanMatch.RFC5922, SanMatch.ANY)
    assert (default.client_usage, b.client_usage) == (Usage.CLIENT, Usage.SERVER_AS_CLIENT)
    assert b.certificate == "ec" and b.anchors.pins == {fingerprint(PINNED)} and not b.anchors.roots
    assert set(default.anchors.roots) == {CA.der, OTHER_CA.der}
    assert peering.policy.client([PINNED], WALL).domains == {"b.test"}
    rsa = peering.own.for_identity("a2.test", IdentityKind.RFC4474)
    assert rsa is not None and rsa.uses == {CertificateUse.IDENTITY}
    url = peering.identity_url(rsa, "a2.test", IdentityKind.RFC4474)
    assert url == f"https://a2.test:8443/identity/{rsa.certificate.fingerprint[:16]}.cer"
    assert peering.own.domains == ("a.test", "a2.test") and peering.warnings == (NO_EMERGENCY,)


def test_peering_048_our_certificates_must_fit(tmp_path: Path) -> None:
    """A domain not in the certificate, an expired one and a foreign key are faults; a warning comes 14 days before."""
    wrong = FILE.replace(
        'domains = ["a.test", "a2.test"]\ncertificate = "a.pem"', 'domains = ["z.test"]\ncertificate = "a.pem"'
    )
    found = faults(tmp_path, wrong)
    assert found == ["peering.toml:17: certificate[0].domains: domain z.test not in certificate"]
    assert "it expired on" in "".join(faults(tmp_path, FILE, WALL + 31 * DAY))
    swapped = FILE.replace('key = "a.key"', 'key = "rsa.key"')
    assert faults(tmp_path, swapped) == ["peering.toml:19: certificate[0].key: expected the key of this certificate"]
    assert len(read(tmp_path, wall=WALL + 17 * DAY).warnings) == 3


def test_peering_056_the_url_names_a_host_of_the_certificate(tmp_path: Path) -> None:
    """A URL with a host that the TLS certificate does not name is refused at the start."""
    found = faults(tmp_path, FILE.replace("{domain}:8443", "elsewhere.test"))
    assert found[0].startswith(
        "peering.toml:13: identity.url: expected a host that the TLS certificate of a.test names"
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("san_match = ", "san_mach = ", 'peering.toml:31: peer[0].san_mach: unknown key. Did you mean "san_match"?'),
        ('send = "both"', 'send = "rfc4747"', "peering.toml:12: identity.send: expected"),
        ('use = ["identity"]', 'use = ["tls"]', "peering.toml:12: identity.send: expected a certificate for a.test"),
        ('"ca.pem"', '"none.pem"', "peering.toml:3: trust.authorities[0]: none.pem cannot be read"),
        ('"ca.crl"', '"a.key"', "peering.toml:4: trust.revocation_lists[0]: a.key: expected a revocation list"),
        ('"other.pem"', '"rsa.pem"', "peering.toml:1: trust: expected authorities"),
        ('certificate = "ec"', 'certificate = "rsa"', "peering.toml:34: peer[0].certificate: expected the name"),
        ('name = "rsa"', 'name = "ec"', "peering.toml:21: certificate[1]: expected a name of its own"),
        ("sha256:@PIN@", "sha256:12", "peering.toml:32: peer[0].pins[0]: expected"),
        ("[trust]", "[trust", "peering.toml:1: expected TOML"),
        ('url = "https://{domain}:8443/identity/"', "", "peering.toml:11: identity: expected url"),
    ],
)
def test_faults_have_line_and_key(tmp_path: Path, old: str, new: str, expected: str) -> None:
    """Each fault names file, line and key, and what was expected."""
    assert any(fault.startswith(expected) for fault in faults(tmp_path, FILE.replace(old, new))), faults(
        tmp_path, FILE.replace(old, new)
    )


def test_a_domain_has_one_entry(tmp_path: Path) -> None:
    """Two entries for one peer are a fault."""
    again = FILE + '\n[[peer]]\ndomain = "b.test"\n'
    assert "another above" in faults(tmp_path, again)[0]


def test_peering_046_the_system_authorities_can_be_loaded() -> None:
    """The well-known authorities of the system are there to be used."""
    assert len(system_authorities()) > 20


NUMBERS = """
[send]
deny = ["bad.test"]

[number_plan]
region = "US"
emergency = ["0911"]
short_codes = ["4000"]
prefixes = { "9011" = "+" }

[emergency]
target = "sip:psap@a.test"

[enum]
private_roots = ["e164.a.test"]
absent_codes = ["44"]
ranges = "users.txt"

[[carrier_enum]]
root = "carriers.test"
algorithm = "none"

[carrier]
ranges = "users.txt"

[routing]
table = "routes.txt"
"""


def test_numbers(tmp_path: Path) -> None:
    """Number plan, ENUM roots, ranges, routing table, emergency target and denied domains arrive where they count."""
    (tmp_path / "users.txt").write_text("+1212555 sip:{number}@a.test\n")
    (tmp_path / "routes.txt").write_text("* sip:{number}@carrier.test;user=phone\n")
    peering = read(tmp_path, FILE + NUMBERS)
    assert peering.plan is not None and peering.plan.read("9011442083661177").number == "+442083661177"
    assert str(peering.emergency) == "sip:psap@a.test" and peering.warnings == ()
    assert not peering.targets.permits("x.bad.test") and not peering.targets.permits("evil.test")
    assert peering.targets.permits("b.test")
    sources = peering.sources
    assert sources.private_roots == ("e164.a.test",) and sources.carrier_roots[0].root == "carriers.test"
    assert sources.routing_table is not None and sources.user_ranges is not None
    assert [str(uri) for uri in sources.routing_table.find("+493012345")] == ["sip:+493012345@carrier.test;user=phone"]


def test_faults_of_numbers(tmp_path: Path) -> None:
    """A bad target, an unknown region and a bad line of a table are faults at their lines, all told in one go."""
    (tmp_path / "users.txt").write_text("+1212555 sip:{number}@a.test\n")
    (tmp_path / "routes.txt").write_text("# prefixes\n+44 mailto:x\n")
    found = faults(tmp_path, FILE + NUMBERS.replace('"US"', '"Utopia"').replace("sip:psap@a.test", "psap"))
    assert [fault.split(": ")[1] for fault in found[:2]] == ["number_plan.region", "emergency.target"]
    assert found[2].startswith("routes.txt:2: expected a SIP URI")
    for key in ('emergency = [""]', 'short_codes = ["4 1"]'):
        (fault,) = faults(tmp_path, FILE + f'[number_plan]\nregion = "US"\n{key}\n')
        assert "expected a number as it is dialled" in fault
    (fault,) = faults(tmp_path, FILE + '[enum]\nabsent_codes = [""]\n')
    assert "enum.absent_codes[0]: expected the digits" in fault


def test_who_receives_through_us_must_be_reached(tmp_path: Path) -> None:
    """A federation through a domain of ours without servers would lead back to us: a fault, in the words of a line."""
    entry = '\n[[federation]]\ndomain = "branch.test"\nthrough = ["x.test", "a2.test"]\n'
    (fault,) = faults(tmp_path, FILE + entry)
    line = (FILE + entry).splitlines().index('domain = "branch.test"')
    assert fault.startswith(f"peering.toml:{line}: federation[1].servers: expected where branch.test itself is reached")
    assert "a2.test is ours" in fault
    assert read(tmp_path, FILE + entry + 'servers = "sip:branch.test"\n').policy.servers("branch.test")
    assert read(tmp_path, FILE + entry.replace("a2.test", "c2.test")).policy.servers("branch.test") is None


# ---- the example -------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[1] / "etc" / "peering.toml"


def test_the_example_shows_every_key_with_its_default() -> None:
    """etc/peering.toml names every key there is; one that is commented out and has a default shows it."""
    shown: dict[str, dict[str, tuple[bool, Any]]] = {}
    for name, block in re.findall(r"^\[+(\w+)\]+\n(.*?)(?=^\[|\Z)", EXAMPLE.read_text(), re.M | re.S):
        keys = re.findall(r"^(# )?(\w+) = (.+)$", block, re.M)
        shown[name] = {key: (bool(hidden), tomllib.loads(f"v = {value}")["v"]) for hidden, key, value in keys}
    sections = {name: tables.table_of(annotation) for name, annotation in tables.keys_of(PeeringFile).items()}
    assert {name: set(keys) for name, keys in shown.items()} == {
        name: set(tables.keys_of(section)) for name, section in sections.items() if section is not None
    }
    for name, keys in shown.items():
        for key, (hidden, value) in keys.items():
            default = getattr(sections[name], key, None)
            if hidden and default not in (None, (), "") and key != "prefixes":
                assert value == (list(default) if isinstance(default, tuple) else default), f"{name}.{key}"


def test_the_example_is_a_good_policy(tmp_path: Path) -> None:
    """With the certificate that it names, the example is read without a fault."""
    (tmp_path / "overlay.example.pem").write_bytes(certificate_pem(CA.issue(dns("overlay.example"))))
    (tmp_path / "overlay.example.key").write_bytes(pem(ec_key(1)))
    (tmp_path / "peering.toml").write_text(EXAMPLE.read_text())
    peering = read_peering(tmp_path / "peering.toml", WALL)
    assert peering.own.domains == ("overlay.example",) and peering.policy.settings("x.test").required
