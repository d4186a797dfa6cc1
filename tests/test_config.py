"""The configuration file: checked whole, all faults at once, each with its line, and what was expected."""

from __future__ import annotations

import os
import re
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd import config
from p2psipd.config import material, tables
from p2psipd.config.apart import apart
from p2psipd.overlay_files import OverlayFiles
from p2psipd.proto.identity.certificate import Role
from p2psipd.proto.reload.overlay_config import trust_fingerprint
from p2psipd.toml_lines import key_lines

EXAMPLE = Path(__file__).parents[1] / "etc" / "p2psipd.toml"
MINIMAL = """\
[overlay]
document = "overlay.xml"
[identity]
certificate = "node.pem"
key = "node.key"
[node]
roles = ["peer"]
[peer]
listen = "127.0.0.1:6084"
"""


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an overlay, a registrar's identity, and the identities of some that don't belong here."""
    directory = tmp_path_factory.mktemp("overlay")
    files = OverlayFiles.create(directory, "overlay.example", bootstrap_nodes=[("127.0.0.1", 6084)])
    files.issue(Role.REGISTRAR, "first", directory)
    files.issue(Role.PEER, "plain", directory / "plain")
    other = OverlayFiles.create(directory / "other", "other.example", bootstrap_nodes=[("127.0.0.1", 6084)])
    other.issue(Role.REGISTRAR, "first", directory / "other")
    return directory


def faults_of(text: str, directory: Path) -> list[str]:
    """The faults of a file with this text, without the directory's name."""
    path = directory / "p2psipd.toml"
    path.write_text(text)
    with pytest.raises(config.ConfigError) as raised:
        config.load_all(path)
    return [str(fault).replace(f"{directory}/", "") for fault in raised.value.faults]


# ---- lines of keys ----


_KEYS = st.text("abcxyz_-0", min_size=1, max_size=4) | st.text("a. \"'#=[]é", min_size=0, max_size=4)
_SCALARS = st.integers(-9, 9) | st.booleans() | st.text("ab \"'\\#[]{}=,\n", max_size=6)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


class Writer:
    """Writes TOML in varied styles, as the drawn booleans say, and notes the line of each key path."""

    def __init__(self, choose: Any) -> None:
        self.choose = choose
        self.lines: list[str] = [""]
        self.places: dict[tuple[str | int, ...], int] = {}

    def put(self, text: str) -> None:
        first, *rest = text.split("\n")
        self.lines[-1] += first
        self.lines += rest

    def note(self, path: tuple[str | int, ...]) -> None:
        self.places.setdefault(path, len(self.lines))

    def key(self, key: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_-]+", key) and self.choose():
            return key
        if "'" not in key and self.choose():
            return f"'{key}'"
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    def value(self, path: tuple[str | int, ...], value: Any) -> None:
        match value:
            case bool():
                self.put("true" if value else "false")
            case int():
                self.put(str(value))
            case str():
                self.put(self.string(value))
            case list():
                self.put("[")
                for index, inner in enumerate(value):
                    self.put(' # [ not " a key = here\n  ' if self.choose() else " ")
                    self.note((*path, index))
                    self.value((*path, index), inner)
                    self.put("," if index + 1 < len(value) or self.choose() else " ")
                self.put("\n]" if self.choose() else "]")
            case dict():
                self.put("{")
                for index, (key, inner) in enumerate(value.items()):
                    self.put(", " if index else " ")
                    self.note((*path, key))
                    self.put(f"{self.key(key)} = ")
                    self.value((*path, key), inner)
                self.put("}")

    def string(self, text: str) -> str:
        if "'" not in text and "\n" not in text and self.choose():
            return f"'{text}'"
        if "'''" not in text and not text.endswith("'") and self.choose():
            return f"'''\n{text}'''"
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        if self.choose():
            # A newline right after the quotation marks would not count.
            return f'"""\n{escaped}"""'
        return '"{}"'.format(escaped.replace("\n", "\\n"))

    def table(self, path: tuple[str, ...], table: dict[str, Any]) -> None:
        later = {}
        for key, value in table.items():
            if isinstance(value, dict) and self.choose():
                later[key] = value
                continue
            self.put("# a = 1\n\n" if self.choose() else "")
            self.note((*path, key))
            self.put(f"{self.key(key)}{' ' if self.choose() else ''}= ")
            self.value((*path, key), value)
            self.put(" # and so on\n" if self.choose() else "\n")
        for key, value in later.items():
            header = ".".join(self.key(part) for part in (*path, key))
            for length in range(1, len(path) + 2):
                self.note((*path, key)[:length])
            self.put(f"[{header}]\n")
            self.table((*path, key), value)


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every key path that tomllib found."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path} | {found for key, entry in inner for found in paths_of(entry, (*path, key))}


@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.randoms(use_true_random=False))
def test_key_lines_agree_with_tomllib(document: dict[str, Any], random: Any) -> None:
    """However a document is written, the scanner finds exactly tomllib's key paths, each where it was written."""
    writer = Writer(lambda: random.random() < 0.5)
    writer.table((), document)
    text = "\n".join(writer.lines)
    assert tomllib.loads(text) == document
    lines = key_lines(text)
    assert set(lines) | {()} == paths_of(document)
    assert lines == writer.places


def test_arrays_of_tables() -> None:
    """Each element of an array of tables has its own lines, and so have tables inside it."""
    lines = key_lines('[[a]]\nb = 1\n[a.c]\nd = 2\n[[a]]\nb = 3\n[e]\nf.g = "x" # y\n')
    assert lines[("a", 0, "b")] == 2
    assert lines[("a", 0, "c", "d")] == 4
    assert lines[("a", 1, "b")] == 6
    assert lines[("e", "f", "g")] == 8


# ---- the example ----


def test_example_shows_every_key_with_its_default() -> None:
    """etc/p2psipd.toml names every key there is, and a key that is commented out shows its default."""
    text = EXAMPLE.read_text()
    shown: dict[str, dict[str, Any]] = {}
    for name, block in re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", text, re.M | re.S):
        keys = re.findall(r"^(# )?(\w+) = (.+)$", block, re.M)
        shown[name] = {key: (bool(hidden), tomllib.loads(f"v = {value}")["v"]) for hidden, key, value in keys}
    sections = {name: tables.table_of(annotation) for name, annotation in tables.keys_of(config.NodeConfig).items()}
    assert {name: set(keys) for name, keys in shown.items()} == {
        name: set(tables.keys_of(section)) for name, section in sections.items() if section is not None
    }
    for name, keys in shown.items():
        for key, (hidden, value) in keys.items():
            default = getattr(sections[name], key, None)
            if hidden and default not in (None, (), ""):
                assert value == (list(default) if isinstance(default, tuple) else default), f"{name}.{key}"


def test_example_starts_after_its_two_commands(overlay: Path) -> None:
    """The shipped example is a good configuration once the two commands that its header names have run."""
    shutil.copy(EXAMPLE, overlay / "example.toml")
    checked = config.load(overlay / "example.toml")
    material = config.load_material(checked)
    assert material.configuration.overlay_name == "overlay.example"
    assert checked.sip is not None and checked.sip.node_listen == ("127.0.0.1", config.DEFAULT_NODE_SIP_PORT)
    header = EXAMPLE.read_text().split("\n\n\n")[0]
    assert "p2psip overlay init overlay.example" in header
    assert "p2psip ca issue registrar" in header


# ---- faults ----


def test_all_faults_at_once(overlay: Path) -> None:
    """Every fault is told in one go, in the order of lines, each with its key and what was expected."""
    text = (
        MINIMAL.replace('roles = ["peer"]', 'roles = ["peer", "spi"]\nlog_level = "loud"\nsate = "x"')
        .replace('listen = "127.0.0.1:6084"', 'listen = "everywhere"\nfirst = 1\nmax_links = 0')
        .replace('key = "node.key"\n', "")
    )
    assert faults_of(text, overlay) == [
        "p2psipd.toml:3: identity.key: missing; expected this key",
        'p2psipd.toml:6: node.roles[1]: expected "peer", "sip", "echo" or "peering". Did you mean "sip"?',
        'p2psipd.toml:7: node.log_level: expected "debug", "info", "warn" or "error"',
        'p2psipd.toml:8: node.sate: unknown key. Did you mean "state"?',
        'p2psipd.toml:10: peer.listen: expected an address such as "192.0.2.1:6084" or "[2001:db8::1]:6084"',
        "p2psipd.toml:11: peer.first: expected true or false",
        "p2psipd.toml:12: peer.max_links: expected a number of at least 1",
    ]


def test_faults_between_keys_are_told_beside_the_others(overlay: Path) -> None:
    """What the other keys say wrongly among themselves is told in the same go as types and unknown keys, and a key
    that is at fault is told once."""
    text = MINIMAL.replace('"overlay.xml"', '"none.xml"').replace('"node.key"', "7") + "first = 1\n"
    text = text.replace('["peer"]', '["peer", "spi"]')
    assert [line.split(": expected")[0] for line in faults_of(text, overlay)] == [
        "p2psipd.toml:2: overlay.document",
        "p2psipd.toml:5: identity.key",
        "p2psipd.toml:7: node.roles[1]",
        "p2psipd.toml:10: peer.first",
    ]


_WEB = '[sip]\nwss = ["[::]:5443"]\n'


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("[peer]", "[pear]"), 'pear: unknown key. Did you mean "peer"?'),
        (('"127.0.0.1:6084"', '"0.0.0.0:6084"'), "p2psipd.toml:9: peer.listen: expected peer.advertise beside it"),
        (('"127.0.0.1:6084"', '"host.example:6084"'), "p2psipd.toml:9: peer.listen: expected a numeric IP address"),
        (('["peer"]', '["peer", "sip"]'), "sip: expected this table"),
        (
            ("[peer]", '[dns]\nservers = ["192.0.2.53"]\ndnssec = ["b.test"]\n[peer]'),
            "p2psipd.toml:8: dns.validating: expected one of dns.servers, whose word on DNSSEC counts",
        ),
        (('["peer"]', "[]"), "p2psipd.toml:7: node.roles: expected at least one element"),
        (('["peer"]', '["peer"]\nstate = "no/such/x.sqlite"'), "p2psipd.toml:8: node.state: expected a directory at"),
        (('["peer"]', '["peer"]\ncontrol = "' + "x" * 120 + '"'), "p2psipd.toml:8: node.control: expected a path of"),
        (('"node.key"', '"none.key"'), "p2psipd.toml:5: identity.key: expected a file, there is none at"),
        (('"overlay.xml"', '"overlay.xml"\nfingerprint = "sha256:12"'), 'expected "sha256:" and 64 hexadecimal'),
        (('"overlay.xml"', f'"overlay.xml"\nfingerprint = "sha256:{"0" * 64}"'), "is trusted"),
        (("[peer]", "[peer]\nbootstrap = [\n '192.0.2.1:1',\n '0.0.0.0:1',\n]"), "p2psipd.toml:11: peer.bootstrap[1]"),
        (("[peer]", "[peer"), "p2psipd.toml:8: expected TOML"),
        (("[peer]", "[echo]\nports = [1]\n[peer]"), "p2psipd.toml:9: echo.ports: expected a list of 2 elements"),
        (("[peer]", '[echo]\nuser = "A b"\n[peer]'), "p2psipd.toml:9: echo.user: expected a name of a-z"),
        (("[peer]", "[peer]\nconnect_seconds = nan"), "p2psipd.toml:9: peer.connect_seconds: expected a number above"),
        (("[peer]", "dns = 3\n[peer]"), "node.dns: unknown key"),
        (('[node]\nroles = ["peer"]', ""), "p2psipd.toml: node: missing; expected this table"),
        (('"node.pem"', '"plain/node.pem"'), "identity.key"),
        (('"node.pem"', '"overlay.xml"'), "p2psipd.toml:4: identity.certificate: "),
        (('"overlay.xml"', '"node.pem"'), "node.pem:"),
        (("[peer]", _WEB + "[peer]"), "sip.wss: expected sip.certificate and sip.key beside it"),
        (("[peer]", _WEB + "[peer]"), "sip.wss: expected sip.public_host beside it"),
        (("[peer]", '[sip]\ntcp = ["127.0.0.1:6084"]\n[peer]'), "sip.tcp: expected an address of its own"),
        (("[peer]", '[sip]\nudp = ["127.0.0.1:1"]\npublic_host = "a b"\n[peer]'), "p2psipd.toml:10: sip.public_host"),
        (("[peer]", '[echo]\nhost = "a b"\n[peer]'), "p2psipd.toml:9: echo.host: expected a numeric IP address"),
        (('["peer"]', '["peer"]\nlog_file = "no/such/log"'), "p2psipd.toml:8: node.log_file: expected a directory at"),
        (('["peer"]', '["peer"]\nkeylog = "/"'), "p2psipd.toml:8: node.keylog: expected a file, / is a directory"),
        (('["peer"]', '["peer"]\nstate = "a\\u0000b"'), "p2psipd.toml:8: node.state: expected the name of a file"),
        (('["peer"]', '["peer"]\ncontrol = "node.key"'), "p2psipd.toml:8: node.control: expected a socket or nothing"),
        (
            ("[peer]", '[sip]\ntcp = ["127.0.0.1:1"]\ndomains = ["a.test"]\nredirect_domains = ["b.test"]\n[peer]'),
            "sip.redirect_domains: expected domains of sip.domains, not b.test",
        ),
        (("[peer]", '[sip]\nudp = ["127.0.0.1:5060"]\ndomains = ["elsewhere.example"]\n[peer]'), None),
    ],
)
def test_each_fault(overlay: Path, change: tuple[str, str], fault: str | None) -> None:
    """Each kind of fault names its place and says what was expected; a file without fault has none."""
    text = MINIMAL.replace(*change)
    if "[sip]" in text and fault is not None:
        text = text.replace('["peer"]', '["peer", "sip"]')
    assert text != MINIMAL
    if fault is None:
        (overlay / "p2psipd.toml").write_text(text)
        assert config.load(overlay / "p2psipd.toml").sip is not None
        return
    assert any(fault in line for line in faults_of(text, overlay)), faults_of(text, overlay)


def test_what_the_files_hold_is_told_beside_the_faults_of_keys(overlay: Path) -> None:
    """A wrong key, one that is missing, and what is wrong in files that sound keys name: all at once, each once."""
    text = MINIMAL.replace('"node.pem"', '"node.key"').replace("[peer]", "[peer]\nfirst = 3")
    lines = faults_of(text.replace('listen = "127.0.0.1:6084"\n', ""), overlay)
    assert [line.partition(": expected")[0].partition("; ")[0] for line in lines] == [
        "p2psipd.toml:4: identity.certificate: node.key",
        "p2psipd.toml:8: peer.listen: missing",
        "p2psipd.toml:9: peer.first",
    ]


def test_an_empty_file(overlay: Path) -> None:
    """The tables that must be there are missing, and nothing is said of files that nobody named."""
    lines = faults_of("", overlay)
    assert [line.split(": ")[1] for line in lines] == ["overlay", "identity", "node", "peer"]


def test_other_overlay(overlay: Path) -> None:
    """A certificate of another overlay is refused before anything starts."""
    text = MINIMAL.replace('"node.', '"other/node.')
    (line,) = faults_of(text, overlay)
    assert line.startswith("p2psipd.toml:4: identity.certificate: ") and "other.example" in line


def test_role_of_certificate(overlay: Path) -> None:
    """A node with phones needs a registrar's certificate; a plain peer's will not do."""
    text = MINIMAL.replace('"node.', '"plain/node.').replace('["peer"]', '["peer", "sip"]')
    (line,) = faults_of(text + '[sip]\nudp = ["127.0.0.1:5060"]\n', overlay)
    assert line.startswith("p2psipd.toml:4: identity.certificate: ") and "registrar" in line


def test_expired(overlay: Path) -> None:
    """An expired certificate and an expired document are both faults."""
    (overlay / "p2psipd.toml").write_text(MINIMAL)
    checked = config.load(overlay / "p2psipd.toml")
    with pytest.raises(config.ConfigError, match="expired"):
        config.load_material(checked, time.time() + 40 * 86400)
    with pytest.raises(config.ConfigError, match=r"overlay\.xml:\d+: .*expired"):
        config.load_material(checked, time.time() + 4000 * 86400)


def test_document_read_apart(overlay: Path) -> None:
    """A child process reads the same of a document, good or bad, as this one does."""
    document = (overlay / "overlay.xml").read_bytes()
    for content in (document, document[:-20], document.replace(b"<initial-ttl>", b"<initial-ttl>x")):
        assert material.read_document_apart(content, time.time(), None) == material.read_document(
            content, time.time(), None
        )
    assert material.read_document_apart(document, time.time(), "sha256:0").reason == "fingerprint"


def test_work_apart() -> None:
    """What happens in the child stays there; what fails there fails here; without a child it is done here."""
    done: list[int] = []
    assert apart(lambda: (done.append(1), os.getpid()))[1] != os.getpid() and done == []
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 / 0)
    assert apart(lambda: (done.append(1), lambda: None))[0] is None and done == [1], "what cannot be handed over"


def test_document_in_force_is_not_read_again(overlay: Path) -> None:
    """At a reload the document in force is taken as it is; a changed, expired or differently trusted one is read."""
    document = (overlay / "overlay.xml").read_bytes()
    in_force = material.read_document(document, time.time(), None).configuration
    assert in_force is not None
    read = material.read_unless_in_force(in_force)
    assert read(document, time.time(), None).configuration is in_force
    assert read(document, time.time(), trust_fingerprint(in_force)).configuration is in_force
    assert read(document, time.time(), "sha256:0").reason == "fingerprint"
    assert read(document, in_force.expiration, None).reason == "expired"
    assert read(document.replace(b"<initial-ttl>", b"<initial-ttl>x"), time.time(), None).reason == "form"


def test_phone_certificate(overlay: Path) -> None:
    """The certificate for phones must have its key."""
    text = MINIMAL.replace('["peer"]', '["peer", "sip"]') + '[sip]\ntls = ["127.0.0.1:5061"]\n'
    assert "p2psipd.toml:11: sip.tls: expected sip.certificate and sip.key beside it" in faults_of(text, overlay)
    text += 'certificate = "node.pem"\nkey = "plain/node.key"\n'
    (line,) = faults_of(text, overlay)
    assert line.startswith("p2psipd.toml:13: sip.key: ")


def test_users_file(overlay: Path) -> None:
    """The users of a file are read with everything else; a line that is none of a user is told with its number."""
    sip = '[sip]\nudp = ["127.0.0.1:5060"]\nusers_file = "users"\n'
    text = MINIMAL.replace('["peer"]', '["peer", "sip"]') + sip
    assert any("sip.users_file: expected a file" in line for line in faults_of(text, overlay))
    users = overlay / "users"
    users.write_text("alice:overlay.example:secret\n")
    (line,) = faults_of(text, overlay)
    assert line == "users:1: expected 32 hexadecimal digits for MD5"
    users.write_text(f"alice:overlay.example:{'ab' * 16}\n")
    (overlay / "p2psipd.toml").write_text(text)
    material = config.load_material(config.load(overlay / "p2psipd.toml"))
    assert material.users == {("alice", "overlay.example"): {"MD5": b"\xab" * 16}}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('service_route = ["sip:proxy.example"]', "sip.service_route: expected values such as"),
        ('digest_algorithms = ["MD5", "MD5"]', "sip.digest_algorithms: expected each algorithm once"),
        ('digest_algorithms = ["SHA-1"]', "sip.digest_algorithms[0]: expected"),
        ("digest_algorithms = []", "sip.digest_algorithms: expected at least one element"),
        ('service_route = ["<sip:a>\\r\\nX: y"]', r"not '<sip:a>\r\nX: y'"),
        ("min_expires_seconds = 7200", "sip.max_expires_seconds: expected a time that is not below the shortest"),
        ("default_expires_seconds = 30", "p2psipd.toml:12: sip.default_expires_seconds: expected a time between"),
        ('redirect_domains = ["elsewhere.example"]', "p2psipd.toml:12: sip.redirect_domains: expected domains of the"),
        ('web_origins = ["phone.example"]', "p2psipd.toml:12: sip.web_origins[0]: expected an origin such as"),
        ('client_authorities = "node.key"', "p2psipd.toml:12: sip.client_authorities: "),
        ('[limits]\nscanners = [""]', "p2psipd.toml:13: limits.scanners[0]: expected a string that is not empty"),
    ],
)
def test_faults_of_the_registrar(overlay: Path, line: str, fault: str) -> None:
    """What phones are told must be something that they can use."""
    text = MINIMAL.replace('["peer"]', '["peer", "sip"]') + f'[sip]\nudp = ["127.0.0.1:5060"]\n{line}\n'
    assert any(fault in each for each in faults_of(text, overlay)), faults_of(text, overlay)


def test_usual_lifetime_keeps_to_the_bounds(overlay: Path) -> None:
    """Who changes one bound need not change what phones get that ask for nothing."""
    for bound, lifetime in (("max_expires_seconds = 600", 600), ("max_expires_seconds = 7200", 3600)):
        text = MINIMAL.replace('["peer"]', '["peer", "sip"]') + f'[sip]\nudp = ["127.0.0.1:5060"]\n{bound}\n'
        (overlay / "p2psipd.toml").write_text(text)
        sip = config.load(overlay / "p2psipd.toml").sip
        assert sip is not None and sip.default_expires_seconds == lifetime


def test_served_domains(overlay: Path) -> None:
    """A domain that the overlay does not serve cannot be served here."""
    sip = '[sip]\nudp = ["127.0.0.1:5060"]\ndomains = ["overlay.example", "elsewhere.example"]\n'
    text = MINIMAL.replace('["peer"]', '["peer", "sip"]') + sip
    (line,) = faults_of(text, overlay)
    assert line.startswith("p2psipd.toml:12: sip.domains: ") and "elsewhere.example" in line


def test_not_a_file(tmp_path: Path) -> None:
    """A file that cannot be read, or is no text, is one fault."""
    with pytest.raises(config.ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"[a]\n\xff")
    with pytest.raises(config.ConfigError, match=r"x\.toml:2: expected UTF-8"):
        config.load(tmp_path / "x.toml")


def test_keylog_from_environment(overlay: Path) -> None:
    """P2PSIPD_KEYLOG does the same as node.keylog."""
    (overlay / "p2psipd.toml").write_text(MINIMAL)
    checked = config.load(overlay / "p2psipd.toml", {config.KEYLOG_VARIABLE: "/tmp/keys"})
    assert checked.node.keylog == "/tmp/keys"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_octets(content: bytes) -> None:
    """Whatever the file holds, ConfigError is all that comes of it."""
    with pytest.raises(config.ConfigError):
        config.parse(content, "any.toml")


_SECTION_VALUES = st.recursive(
    st.integers() | st.text(max_size=8) | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


KEYS = {
    name: tables.keys_of(section)
    for name, annotation in tables.keys_of(config.NodeConfig).items()
    if (section := tables.table_of(annotation)) is not None
}


@given(
    st.dictionaries(
        st.sampled_from([(s, k) for s in ("node", "peer", "sip") for k in KEYS[s]]),
        _SECTION_VALUES,
        min_size=1,
        max_size=3,
    )
)
def test_any_values(values: dict[tuple[str, str], Any]) -> None:
    """Whatever stands at a known key, each fault has the line of that key and says what was expected."""
    sections: dict[str, dict[str, Any]] = {"node": {}, "peer": {}, "sip": {}}
    for (section, key), value in values.items():
        sections[section][key] = value
    writer = Writer(lambda: False)
    for name, section in sections.items():
        writer.put(f"[{name}]\n")
        writer.table((name,), section)
    text = "\n".join(writer.lines)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    with pytest.raises(config.ConfigError) as raised:
        config.parse(text.encode(), "any.toml")
    for fault in raised.value.faults:
        assert "expected" in fault.message or "unknown key" in fault.message, fault


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:6084", ("192.0.2.1", 6084)),
        ("[2001:db8::1]:6084", ("2001:db8::1", 6084)),
        ("host.example:1", ("host.example", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """Addresses are read and written in one form."""
    parsed = config.parse_address(text)
    assert parsed == address
    assert str(parsed) == text


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:65536", "2001:db8::1:6084", "[host]:1", "a b:1"])
def test_no_addresses(text: str) -> None:
    """What is no address is refused."""
    with pytest.raises(ValueError):
        config.parse_address(text)
