"""The overlay configuration document: grammar, values, signatures, trust, sequence (RFC 6940 section 11.1)."""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity.certificate import Role, create_authority
from p2psipd.proto.reload.ids import overlay_hash
from p2psipd.proto.reload.kinds import SIP_REGISTRATION, STANDARD_KINDS, Kind
from p2psipd.proto.reload.messages import DataModel
from p2psipd.proto.reload.overlay_config import (
    EXTENSION_NAMESPACE,
    ConfigurationError,
    OverlayConfiguration,
    build_configuration,
    check_supported,
    domain_pattern,
    newer,
    next_sequence,
    parse_configuration,
    parse_kind_block,
    render_configuration,
    sign_configuration,
    trust_fingerprint,
)
from p2psipd.proto.reload.overlay_model import literal_domain, pattern_fault
from p2psipd.proto.reload.overlay_xml import grammar_faults, locate, parse_tree
from tests.proto.identity.certificates import AUTHORITY, NODE, OTHER_NODE, OVERLAY, WALL, credential
from tests.proto.reload.rfc6940_example import EXAMPLE

SIGNER = credential(Role.SIGNER)
OTHER_SIGNER = credential(Role.SIGNER, OTHER_NODE)
CONFIGURATION = OverlayConfiguration(
    overlay_name=OVERLAY,
    sequence=7,
    expiration=WALL + 86_400,
    root_certs=(AUTHORITY.certificate,),
    bootstrap_nodes=(("127.0.1.1", 6084), ("2001:db8::1", 7000)),
    configuration_signers=frozenset({NODE}),
    kind_signers=frozenset({NODE}),
    bad_nodes=frozenset({b"\x77" * 16}),
    mandatory_extensions=(EXTENSION_NAMESPACE,),
    domain_patterns=(domain_pattern(OVERLAY), r".*\.my\.example"),
    users_provide_services=True,
)
DOCUMENT = build_configuration(CONFIGURATION, SIGNER)


def edited(old: str, new: str, *, document: bytes = DOCUMENT) -> bytes:
    """The document with one thing changed and signed again."""
    assert old.encode() in document, old
    return sign_configuration(document.replace(old.encode(), new.encode(), 1), SIGNER)


def error_of(document: bytes, **arguments: object) -> ConfigurationError:
    """Why a document is refused."""
    with pytest.raises(ConfigurationError) as caught:
        parse_configuration(document, **{"wall": WALL, **arguments})  # type: ignore[arg-type]
    return caught.value


def fault_of(document: bytes, **arguments: object) -> str:
    """The faults as text."""
    return str(error_of(document, **arguments))


# ---- what it says ----


def test_round_trip() -> None:
    """What build_configuration writes parse_configuration reads, every parameter of it."""
    parsed = parse_configuration(DOCUMENT, wall=WALL)
    assert attrs.evolve(parsed, document=b"", kind_blocks=()) == CONFIGURATION
    assert parsed.document == DOCUMENT and len(parsed.kind_blocks) == len(STANDARD_KINDS)
    assert parsed.overlay_hash == overlay_hash(OVERLAY)


def test_written_document_agrees_with_the_grammar() -> None:
    """What is written satisfies the RFC's grammar as mended, and fits in a message."""
    assert grammar_faults(parse_tree(DOCUMENT)) == []
    assert len(DOCUMENT) < CONFIGURATION.max_message_size - 3000


def test_defaults_are_the_rfc_s() -> None:
    """Elements that are left out have the defaults of RFC 6940 section 11.1, not those of our own overlays."""
    kept = ("<root-cert>", "<configuration-signer>", "<kind-signer>", "<required-kinds>", "<kind", "</", "<data", "<?")
    lines = render_configuration(CONFIGURATION).decode().splitlines()
    short = [line for line in lines if line.startswith((*kept, "<overlay xmlns", "<configuration "))]
    document = sign_configuration("\n".join(short).encode(), SIGNER)
    parsed = parse_configuration(document, wall=WALL, supported=False)
    assert (parsed.topology_plugin, parsed.node_id_length, parsed.turn_density) == ("CHORD-RELOAD", 16, 1)
    assert (parsed.clients_permitted, parsed.no_ice, parsed.shared_secret) == (True, False, None)
    assert (parsed.max_message_size, parsed.initial_ttl, parsed.reliability_timer_ms) == (5000, 100, 3000)
    assert (parsed.overlay_link_protocols, parsed.bootstrap_nodes, parsed.bad_nodes) == (("TLS",), (), frozenset())
    assert (parsed.redir_branching_factor, parsed.users_provide_services) == (10, False)


def test_bootstrap_port_defaults_to_6084() -> None:
    """A bootstrap node without a port has 6084."""
    document = edited('address="127.0.1.1" port="6084"', 'address="127.0.1.9"')
    assert parse_configuration(document, wall=WALL).bootstrap_nodes[0] == ("127.0.1.9", 6084)


def test_white_space_comments_and_other_prefixes_are_no_matter() -> None:
    """White space around values, comments within them and a prefix for the base namespace change nothing."""
    plain = parse_configuration(DOCUMENT, wall=WALL)
    spaced = edited("<initial-ttl>20</initial-ttl>", "<initial-ttl>\n 2<!-- twenty -->0 </initial-ttl>")
    assert parse_configuration(spaced, wall=WALL).initial_ttl == 20
    text = render_configuration(CONFIGURATION).decode().replace("<", "<x:").replace("<x:/", "</x:")
    for name in ("?xml", "redir:", "/redir:", "p2psipd:", "sip:"):
        text = text.replace(f"<x:{name}", f"<{name}")
    for name in ("redir:", "p2psipd:", "sip:"):
        text = text.replace(f"</x:{name}", f"</{name}")
    text = text.replace('xmlns="', 'xmlns:x="')
    prefixed = sign_configuration(text.encode(), SIGNER)
    assert b"</x:signature>" in prefixed and b"</x:kind-signature>" in prefixed
    assert attrs.evolve(parse_configuration(prefixed, wall=WALL), document=b"", kind_blocks=()) == attrs.evolve(
        plain, document=b"", kind_blocks=()
    )


# ---- served domains (RFC 7904 section 3.4) ----


@pytest.mark.parametrize(
    ("patterns", "domain", "served"),
    [
        ((r"dht\.example\.com",), "dht.example.com", True),
        ((r"dht\.example\.com",), "DHT.Example.Com", True),
        ((r"dht\.example\.com",), "dht-example.com", False),
        ((r"dht\.example\.com",), "x.dht.example.com", False),
        ((r"dht\.example\.com",), "dht.example.com\n", False),
        ((r".*\.my\.example",), "a.b.my.example", True),
        ((r".*\.my\.example",), "my.example", False),
        ((r"(a|b)\.example",), "b.example", True),
        ((), "overlay.example", False),
        (None, "any.example", True),
        (None, "", False),
        (None, "x" * 300, False),
    ],
)
def test_served_domains(patterns: tuple[str, ...] | None, domain: str, served: bool) -> None:
    """A domain is served if a pattern matches the whole of it; without a restriction every domain is."""
    assert OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=patterns).serves(domain) is served


def test_literal_domains_are_listed() -> None:
    """The domains that patterns name literally are listed; without any, the overlay's own name."""
    assert OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=(r"a\.b", ".*", "C")).domains == ("a.b", "c")
    assert OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=(".*",)).domains == (OVERLAY,)
    assert literal_domain(domain_pattern("X-1.example")) == "x-1.example"


def test_disabled_restriction_means_the_overlay_s_own_domain() -> None:
    """With the element present but not enabled only AORs of the overlay's own domain are accepted."""
    for enable in (' enable="false"', ""):
        parsed = parse_configuration(edited(' enable="true"', enable), wall=WALL)
        assert parsed.serves(OVERLAY) and not parsed.serves("x.my.example") and not parsed.serves("overlayxexample")


@pytest.mark.parametrize(
    "pattern",
    ["", "(", "(a*)*", "(a|b)+x", "a*b*c*", "a{1,200}b{1,200}c+", "(?:a)", r"\d", r"(a)\1", "[[:alpha:]]", "*a", "a**",
     "a++", "a*?", "ü", "a b", "x" * 300, "a{1000000}{1000000}"],
)  # fmt: skip
def test_dangerous_patterns_are_refused(pattern: str) -> None:
    """A pattern that could take long, or that Python and POSIX read differently, is a fault."""
    assert pattern_fault(pattern) is not None


@pytest.mark.parametrize("pattern", [r"a\.b", r".*\.my\.example", "(a|b)?c", "[a-z*]+x", "[^.]+[.]example", "a{3}"])
def test_ordinary_patterns_are_accepted(pattern: str) -> None:
    """Patterns as operators write them are accepted."""
    assert pattern_fault(pattern) is None


@given(st.text(alphabet="ab.*+?(){}[]|\\^$,09-", max_size=14), st.text(alphabet="ab.", max_size=253))
def test_any_accepted_pattern_is_quick(pattern: str, domain: str) -> None:
    """Every pattern that is not refused judges the longest domain at once."""
    if pattern_fault(pattern) is not None:
        return
    configuration = OverlayConfiguration(overlay_name=OVERLAY, domain_patterns=(pattern,))
    before = time.process_time()
    for name in (domain, "a" * 253, "ab" * 126):
        configuration.serves(name)
    assert time.process_time() - before < 0.5


# ---- faults ----


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<initial-ttl>20<", "<initial-ttl>0<", "initial-ttl: an integer from 1 to 255 expected, got '0'"),
        ("<initial-ttl>20<", "<initial-ttl>many<", "initial-ttl: an integer from 1 to 255"),
        ("<no-ice>true<", "<no-ice>yes<", "no-ice: true or false expected, got 'yes'"),
        ("<overlay-reliability-timer>1000<", "<overlay-reliability-timer>199<", "an integer from 200"),
        ("<node-id-length>16<", "<node-id-length>21<", "an integer from 16 to 20"),
        ("<topology-plugin>P2PSIPD-KADEMLIA<", "<topology-plugin> <", "topology-plugin: text expected"),
        ("<bad-node>7777", "<bad-node>77", "bad-node: a Node-ID of 32 hexadecimal digits"),
        ('address="127.0.1.1"', 'address="localhost"', "bootstrap-node: an IP address and port expected"),
        ('port="6084"', 'port="0"', "bootstrap-node"),
        ('sequence="7"', 'sequence="65535"', "sequence: an integer from 0 to 65534"),
        (' sequence="7"', "", "attribute sequence expected"),
        ("T08:00:00Z", "T08:00:00+01:00", "expiration: a time in UTC"),
        ("<max-count>32<", "<max-count>0<", "max-count: an integer"),
        ("<data-model>DICTIONARY<", "<data-model>LIST<", "data-model: SINGLE, ARRAY or DICTIONARY"),
        ("<data-model>DICTIONARY</data-model>", "", "kind: element data-model expected"),
        ('<kind name="TURN-SERVICE">', '<kind name="TURN">', "name of a registered kind expected, got 'TURN'"),
        ('<kind name="TURN-SERVICE">', "<kind>", "either a name or an id expected"),
        ('<kind name="TURN-SERVICE">', '<kind name="REDIR">', "defined twice"),
        ('<kind id="4026531841">', '<kind id="0">', "kind id: an integer"),
        ("P2PSIPD-REGISTRAR", "USER-MATCH", "DICTIONARY under P2PSIPD-REGISTRAR expected"),
        ("<max-node-multiple>20</max-node-multiple>", "", "max-node-multiple expected with NODE-MULTIPLE"),
        ("<sip:pattern>overlay", "<sip:pattern>(overlay", "pattern: not a regular expression"),
        ("<turn-density>1<", "<turn-density>1</turn-density><turn-density>2<", "turn-density: only one expected"),
        ("<turn-density>1</turn-density>", "<turn-densitie>1</turn-densitie>", "unknown element turn-densitie"),
        ("<turn-density>1</turn-density>", "words", "grammar:"),
        ("<p2psipd:users-provide-services>", "<p2psipd:typo/><p2psipd:users-provide-services>", "grammar:"),
        ("<root-cert>", "<root-cert>AAAA</root-cert><root-cert>", "root-cert: not a readable root certificate"),
        ("<root-cert>", "<root-cert>*</root-cert><root-cert>", "root-cert: base64 expected"),
        ("<turn-density>", "<enrollment-server>http://x</enrollment-server><turn-density>", "an https URL expected"),
        ("<turn-density>", '<self-signed-permitted digest="md5">true</self-signed-permitted><turn-density>',
         "digest sha1 or sha256 expected"),
    ],
)  # fmt: skip
def test_wrong_value(old: str, new: str, expected: str) -> None:
    """A document with one wrong value is refused, with the line of it and what was expected."""
    document = edited(old, new)
    error = error_of(document)
    assert expected in str(error) and error.reason == "form"
    if expected not in ("defined twice", "grammar:"):  # these are told where the second one or the parent stands
        line = DOCUMENT[: DOCUMENT.index(old.encode())].count(b"\n") + 1
        assert any(fault_line == line for fault_line, _ in error.faults)


def test_all_faults_at_once() -> None:
    """All faults of a document are told together, each with its line."""
    document = DOCUMENT.replace(b">20</initial-ttl>", b">x</initial-ttl>").replace(b">true</no-ice>", b">x</no-ice>")
    document = document.replace(b"<max-count>32<", b"<max-count>x<").replace(b"<bad-node>", b"<bad-node>x")
    faults = error_of(document).faults
    assert len(faults) == 5 and all(line > 0 for line, _ in faults) and len({line for line, _ in faults}) == 5


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b"", "no element found"),
        (b"<overlay/>", "no configuration"),
        (b"hello", "not well-formed"),
        (b"\xff\xfe<\x00", "not UTF-8"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><a/>', "UTF-8 expected"),
        (b'<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>', "DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "DOCTYPE"),
        (b"<a>" * 100, "nested"),
        (b"<a>&undefined;</a>", "not well-formed"),
        (b" " * 300_000, "at most"),
        (b'<overlay xmlns="urn:ietf:params:xml:ns:p2p:config-base"><signature/></overlay>', "before the configuration"),
    ],
)
def test_not_a_document(document: bytes, expected: str) -> None:
    """What is no such document at all is refused before anything in it is believed or fetched."""
    assert expected in fault_of(document)


@given(st.binary(max_size=200))
def test_any_octets(data: bytes) -> None:
    """Any octets raise ConfigurationError and nothing else, as a document and as a kind block."""
    with pytest.raises(ConfigurationError):
        parse_configuration(data, wall=WALL)
    with pytest.raises(ConfigurationError):
        parse_kind_block(data, CONFIGURATION, WALL)


@given(st.data())
def test_damaged_document(data: st.DataObject) -> None:
    """A signed document with some octets of its configuration replaced is always refused."""
    whole = locate(DOCUMENT)[0].whole
    at = data.draw(st.integers(whole.start, whole.end - 1))
    patch = data.draw(st.binary(min_size=1, max_size=3))
    damaged = DOCUMENT[:at] + patch + DOCUMENT[at + len(patch) :]
    if damaged == DOCUMENT:
        return
    with pytest.raises(ConfigurationError):
        parse_configuration(damaged, wall=WALL)


def test_large_document_takes_bounded_time() -> None:
    """A document of the greatest size, full of one element, is refused or read within a second."""
    for filler in ("<bad-node>" + "77" * 16 + "</bad-node>", "<kind-block/>", "<ext:a xmlns:ext='x'/>"):
        text = DOCUMENT.decode().replace("<turn-density>", filler * (240_000 // len(filler)) + "<turn-density>", 1)
        before = time.process_time()
        with pytest.raises(ConfigurationError):
            parse_configuration(text.encode(), wall=WALL)
        assert time.process_time() - before < 1.5


# ---- signatures and trust ----


def test_signature_covers_exact_octets() -> None:
    """White space added inside the configuration breaks the signature, outside of it nothing happens."""
    assert error_of(DOCUMENT.replace(b"<no-ice>", b" <no-ice>")).reason == "signature"
    assert parse_configuration(DOCUMENT.replace(b"\n<signature>", b"\n\n <signature>"), wall=WALL).sequence == 7


def test_kind_signature_is_checked() -> None:
    """A kind that was changed after its signature is refused though the configuration is signed anew."""
    changed = DOCUMENT.replace(b"<max-size>2048<", b"<max-size>2049<")
    resigned = sign_configuration(changed, SIGNER)
    assert parse_configuration(resigned, wall=WALL).kinds[SIP_REGISTRATION].max_size == 2049
    old = locate(DOCUMENT)[0].kind_blocks[0].signature
    new = locate(resigned)[0].kind_blocks[0].signature
    assert old is not None and new is not None
    forged = resigned.replace(new.octets(resigned), old.octets(DOCUMENT))
    assert "kind-signature: does not verify" in fault_of(forged)


def test_signatures_are_required() -> None:
    """Without a signature, or with a kind unsigned, a document is refused though the grammar permits it."""
    signature = locate(DOCUMENT)[0].signatures[0].octets(DOCUMENT)
    assert "signature: an element signature" in fault_of(DOCUMENT.replace(signature, b""))
    kind_signature = locate(DOCUMENT)[0].kind_blocks[2].signature
    assert kind_signature is not None
    assert "missing" in fault_of(DOCUMENT.replace(kind_signature.octets(DOCUMENT), b""))


def test_signer_must_be_named() -> None:
    """A document signed by somebody with a certificate of the overlay who is not a named signer is refused."""
    document = sign_configuration(DOCUMENT, OTHER_SIGNER, SIGNER)
    assert f"signed by {OTHER_NODE.hex()}" in fault_of(document)
    document = sign_configuration(DOCUMENT, SIGNER, OTHER_SIGNER)
    assert "kind-signature: signed by" in fault_of(document)


@pytest.mark.parametrize("content", ["", "!", "AAAA", b64encode(bytes(40)).decode()])
def test_signature_that_is_none(content: str) -> None:
    """A signature element that holds no SecurityBlock is a fault, whatever is in it."""
    signature = locate(DOCUMENT)[0].signatures[0].octets(DOCUMENT)
    document = DOCUMENT.replace(signature, f"<signature>{content}</signature>".encode())
    assert error_of(document).reason == "signature"


def test_one_good_signature_is_enough() -> None:
    """Of several signatures one good one is enough, so that an old and a new signer can both sign."""
    other = sign_configuration(DOCUMENT, OTHER_SIGNER, SIGNER)
    extra = locate(other)[0].signatures[0].octets(other)
    document = DOCUMENT.replace(b"<signature>", extra + b"<signature>")
    assert parse_configuration(document, wall=WALL).sequence == 7


def test_signer_of_another_authority_is_refused() -> None:
    """A signer with the right Node-ID under another authority is refused."""
    other = create_authority(OVERLAY, WALL)
    document = DOCUMENT.replace(b64encode(AUTHORITY.certificate), b64encode(other.certificate))
    assert "the signer's certificate: no chain" in fault_of(sign_configuration(document, SIGNER))


def test_revoked_signer_is_refused() -> None:
    """A signer whose Node-ID is on the bad-node list of the configuration in force signs nothing any more."""
    current = parse_configuration(DOCUMENT, wall=WALL)
    after = attrs.evolve(CONFIGURATION, sequence=8)
    revoked = attrs.evolve(current, bad_nodes=current.bad_nodes | {NODE})
    document = build_configuration(after, SIGNER)
    assert parse_configuration(document, wall=WALL, previous=current).sequence == 8
    assert "revoked" in fault_of(document, previous=revoked)


def test_first_document_is_trusted_by_fingerprint() -> None:
    """The fingerprint covers roots and signers: it stays over an update, and a foreign signer changes it."""
    fingerprint = trust_fingerprint(CONFIGURATION)
    assert parse_configuration(DOCUMENT, wall=WALL, trusted_fingerprint=fingerprint).sequence == 7
    spelled = fingerprint.removeprefix("sha256:").upper()
    assert parse_configuration(DOCUMENT, wall=WALL, trusted_fingerprint=spelled).sequence == 7
    assert trust_fingerprint(attrs.evolve(CONFIGURATION, sequence=9, initial_ttl=9)) == fingerprint
    takeover = attrs.evolve(CONFIGURATION, configuration_signers=frozenset({OTHER_NODE}))
    stolen = build_configuration(takeover, OTHER_SIGNER, SIGNER)
    assert parse_configuration(stolen, wall=WALL), "in itself it is right"
    assert error_of(stolen, trusted_fingerprint=fingerprint).reason == "fingerprint"


def test_successor_must_be_signed_by_a_current_signer() -> None:
    """A newer document is accepted from a signer of the one in force, not from one that only itself names."""
    current = parse_configuration(DOCUMENT, wall=WALL)
    handover = attrs.evolve(CONFIGURATION, sequence=8, configuration_signers=frozenset({OTHER_NODE}))
    good = build_configuration(handover, SIGNER)
    following = parse_configuration(good, wall=WALL, previous=current)
    assert following.configuration_signers == {OTHER_NODE}
    bad = build_configuration(handover, OTHER_SIGNER, SIGNER)
    assert error_of(bad, previous=current).reason == "signature"
    assert error_of(build_configuration(attrs.evolve(handover, sequence=9), SIGNER), previous=following).reason


@pytest.mark.parametrize("sequence", [7, 6, 0, 7 + 32768])
def test_successor_must_be_newer(sequence: int) -> None:
    """A document that is not newer than the one in force is refused, and the reason is told apart."""
    current = parse_configuration(DOCUMENT, wall=WALL)
    document = build_configuration(attrs.evolve(CONFIGURATION, sequence=sequence), SIGNER)
    assert error_of(document, previous=current).reason == "sequence"


def test_expired_document_is_refused() -> None:
    """At its expiration a document is no longer valid, except for the tool that writes its successor."""
    after = CONFIGURATION.expiration
    assert error_of(DOCUMENT, wall=after).reason == "expired"
    assert parse_configuration(DOCUMENT, wall=after, allow_expired=True).sequence == 7


def test_several_overlays_in_one_document() -> None:
    """A document may hold several overlays' configurations; ours is chosen by name and only its signature counts."""
    other = b'<configuration instance-name="other.example"></configuration>\n<configuration instance'
    document = DOCUMENT.replace(b"<configuration instance", other, 1)
    assert "configurations of several overlays" in fault_of(document)
    assert parse_configuration(document, wall=WALL, overlay_name="Overlay.Example").sequence == 7
    assert "one configuration of overlay third.example" in fault_of(document, overlay_name="third.example")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: attrs.evolve(c, topology_plugin="CHORD-RELOAD"), "topology-plugin"),
        (lambda c: attrs.evolve(c, no_ice=False), "no-ice"),
        (lambda c: attrs.evolve(c, overlay_link_protocols=("DTLS",)), "overlay-link-protocol"),
        (lambda c: attrs.evolve(c, shared_secret="x"), "shared-secret"),
        (lambda c: attrs.evolve(c, mandatory_extensions=("urn:other",)), "mandatory-extension urn:other"),
    ],
)
def test_what_we_cannot_follow_is_refused(
    change: Callable[[OverlayConfiguration], OverlayConfiguration], expected: str
) -> None:
    """A valid document that asks for what this program does not do is refused politely, with what it has."""
    changed = change(CONFIGURATION)
    error = error_of(build_configuration(changed, SIGNER))
    assert expected in str(error) and error.reason == "unsupported"
    with pytest.raises(ConfigurationError):
        check_supported(changed)


def test_other_node_id_length_is_not_supported() -> None:
    """Overlays with Node-IDs of another length than 16 octets are refused as unsupported."""
    with pytest.raises(ConfigurationError, match="node-id-length"):
        check_supported(attrs.evolve(CONFIGURATION, node_id_length=20))


def test_foreign_elements_are_ignored_and_told() -> None:
    """Elements of unknown namespaces are permitted and listed, for a tool that rewrites would lose them."""
    document = edited("<turn-density>", '<e:x xmlns:e="urn:e" e:y="1"><e:z/>text</e:x><turn-density>')
    assert parse_configuration(document, wall=WALL).foreign == ("{urn:e}x",)


# ---- kinds ----


def test_private_kind() -> None:
    """A kind of the operator's own is read from the document with its policy and limits."""
    private = Kind(0xF0001234, "0xf0001234", DataModel.ARRAY, "NODE-MULTIPLE", 22, 4, 3)
    document = build_configuration(attrs.evolve(CONFIGURATION, kinds={private.id: private}), SIGNER)
    assert parse_configuration(document, wall=WALL).kinds == {private.id: private}


def test_registered_kind_s_definition_wins() -> None:
    """For a registered kind, data model and policy in the document are ignored, the limits are not (section 11.1)."""
    document = edited("<data-model>DICTIONARY</data-model><access-control>USER-NODE-MATCH<",
                      "<data-model>SINGLE</data-model><access-control>USER-MATCH<")  # fmt: skip
    kind = parse_configuration(document, wall=WALL).kinds[SIP_REGISTRATION]
    assert (kind.data_model, kind.access_control, kind.max_count) == (DataModel.DICTIONARY, "USER-NODE-MATCH", 32)


def test_kind_block_by_itself() -> None:
    """A kind block that came by ConfigUpdate is accepted if a kind-signer of the configuration signed it."""
    current = parse_configuration(DOCUMENT, wall=WALL)
    for block, kind in zip(current.kind_blocks, STANDARD_KINDS.values(), strict=True):
        assert parse_kind_block(block, current, WALL) == kind
    block = current.kind_blocks[0]
    without = attrs.evolve(current, kind_signers=frozenset({OTHER_NODE}))
    for bad, configuration in (
        (block.replace(b"2048", b"2049"), current),
        (block, without),
        (block + block, current),
        (b"</required-kinds>" + block, current),
    ):
        with pytest.raises(ConfigurationError):
            parse_kind_block(bad, configuration, WALL)


# ---- writing ----


def test_signing_changes_nothing_else() -> None:
    """Signing anew replaces the signatures and leaves every other octet as it was."""
    again = sign_configuration(DOCUMENT, SIGNER)
    signature = re.compile(rb"<((?:kind-)?signature)>.*?</\1>", re.DOTALL)
    assert signature.sub(b"", again) == signature.sub(b"", DOCUMENT)
    assert len(signature.findall(again)) == len(signature.findall(DOCUMENT)) > 0
    by_hand = DOCUMENT.replace(b"<no-ice>true", b"<!-- by hand -->\n   <no-ice>true")
    assert b"<!-- by hand -->\n   <no-ice>" in sign_configuration(by_hand, SIGNER)


def test_text_is_escaped() -> None:
    """A value with markup in it is written as text."""
    changed = attrs.evolve(CONFIGURATION, mandatory_extensions=("urn:a<b>&'\"",))
    document = build_configuration(changed, SIGNER)
    assert parse_configuration(document, wall=WALL, supported=False).mandatory_extensions == ("urn:a<b>&'\"",)


def test_what_cannot_be_written() -> None:
    """A document that would not fit in a message, has no end or another overlay's signer is not built."""
    many = frozenset(bytes([1 + number // 256, number % 256]) * 8 for number in range(2000))
    for changed in (
        attrs.evolve(CONFIGURATION, bad_nodes=many),
        attrs.evolve(CONFIGURATION, expiration=float("inf")),
        attrs.evolve(CONFIGURATION, overlay_name="other.example"),
    ):
        with pytest.raises(ConfigurationError):
            build_configuration(changed, SIGNER)


# ---- sequence ----


@given(st.integers(0, 65534), st.integers(1, 32767))
def test_sequence_arithmetic(sequence: int, step: int) -> None:
    """Modulo 65535 each of the next 32767 numbers is newer, and the order is antisymmetric."""
    later = (sequence + step) % 65535
    assert newer(later, sequence) and not newer(sequence, later) and not newer(sequence, sequence)
    assert newer(next_sequence(sequence), sequence) and next_sequence(65534) == 0


# ---- the RFC's own example ----


def test_the_rfc_s_example_agrees_with_the_mended_grammar() -> None:
    """RFC 6940's own example, which its own grammar rejects, satisfies the shipped one."""
    assert grammar_faults(parse_tree(EXAMPLE)) == []


# Its first certificate has the serial number 0, which a later version of the library will refuse.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_what_is_wrong_in_the_rfc_s_example_is_told() -> None:
    """The example's values are refused one by one: its Node-IDs have 8 octets, its second certificate is none."""
    faults = error_of(EXAMPLE, overlay_name="overlay.example.org").faults
    assert [text.partition(":")[0] for _, text in faults] == [
        "root-cert", "configuration-signer", "kind-signer", "kind-signer", "bad-node", "bad-node",
    ]  # fmt: skip
