"""Node certificates: form, chain, roles, requests (RFC 6940 section 11.3)."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.identity import certificate as module
from p2psipd.proto.identity.certificate import (
    DAY,
    MAXIMUM_LIFETIME,
    Authority,
    CertificateError,
    Role,
    Trust,
    create_authority,
    create_request,
    generate_private_key,
    parse_certificate,
    parse_reload_uri,
    read_request,
    reload_uri,
    role_name,
    role_of,
    self_signed_certificate,
    self_signed_node_ids,
)
from tests.proto.identity.certificates import (
    AUTHORITY,
    KEY,
    NODE,
    OTHER_NODE,
    OVERLAY,
    WALL,
    email,
    odd_certificate,
    uri,
)

RSA_KEY = rsa.generate_private_key(65537, 2048)
GOOD = AUTHORITY.issue(KEY.public_key(), NODE, "alice@overlay.example", WALL)


def trust(**changes: object) -> Trust:
    """The trust of the test overlay."""
    return Trust([AUTHORITY.certificate], OVERLAY, **changes)  # type: ignore[arg-type]


def refusal(der: bytes, judge: Trust | None = None, wall: float = WALL) -> CertificateError:
    """Why a certificate is refused."""
    with pytest.raises(CertificateError) as caught:
        (judge or trust()).check(der, wall)
    return caught.value


def test_issued_certificate_is_accepted() -> None:
    """What the authority issues has the form of section 11.3 and is trusted."""
    user = role_name(Role.PEER, NODE, OVERLAY)
    certificate = trust().check(AUTHORITY.issue(KEY.public_key(), NODE, user, WALL), WALL)
    assert certificate.node_ids == (NODE,) and certificate.node_id == NODE
    assert (certificate.user, certificate.overlay, certificate.role) == (user, OVERLAY, Role.PEER)
    assert certificate.not_before <= WALL and certificate.not_after == WALL + MAXIMUM_LIFETIME
    assert certificate.public_key == KEY.public_key()


def test_several_node_ids_are_read_in_order() -> None:
    """A user's certificate may hold several Node-IDs, each in its own URI."""
    der = odd_certificate(names=[uri(OTHER_NODE), email("alice@overlay.example"), uri(NODE)])
    assert trust().check(der, WALL).node_ids == (OTHER_NODE, NODE)


def test_rsa_certificate_is_accepted() -> None:
    """RSA with SHA-256, the RFC's mandatory algorithm, is understood in nodes' certificates."""
    assert trust().check(odd_certificate(public_key=RSA_KEY.public_key()), WALL).public_key == RSA_KEY.public_key()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"critical": False}, "form"),
        ({"subject": "alice"}, "form"),
        ({"names": []}, "form"),
        ({"names": [uri()]}, "form"),
        ({"names": [email("alice@overlay.example")]}, "form"),
        ({"names": [uri(), email("a@overlay.example"), email("b@overlay.example")]}, "form"),
        ({"names": [uri(), uri(), email("a@overlay.example")]}, "form"),
        ({"names": [uri(), uri(OTHER_NODE, "other.example"), email("a@overlay.example")]}, "form"),
        ({"names": [uri(), email("a@overlay.example"), x509.DNSName("overlay.example")]}, "form"),
        ({"names": [uri(), email("no-domain")]}, "form"),
        ({"names": [uri(), email("two@at@overlay.example")]}, "form"),
        ({"names": [uri(), email("nul\x00@overlay.example")]}, "form"),
        ({"names": [uri(bytes(16)), email("a@overlay.example")]}, "form"),
        ({"names": [uri(b"\xff" * 16), email("a@overlay.example")]}, "form"),
        ({"names": [uri(NODE + NODE[:4]), email("a@overlay.example")]}, "form"),
        ({"names": [x509.UniformResourceIdentifier("reload://0110@overlay.example/"), email("a@b.example")]}, "form"),
        ({"names": [x509.UniformResourceIdentifier("sip:a@overlay.example"), email("a@b.example")]}, "form"),
        ({"names": [uri(overlay="other.example"), email("a@overlay.example")]}, "overlay"),
        ({"ca": True}, "chain"),
        ({"digital_signature": False}, "form"),
        ({"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)]}, "form"),
        ({"not_after": WALL - 1}, "date"),
        ({"not_before": WALL + 1}, "date"),
        ({"public_key": ec.generate_private_key(ec.SECP384R1()).public_key()}, "key"),
        ({"public_key": ed25519.Ed25519PrivateKey.generate().public_key()}, "key"),
        ({"names": [uri(), email(role_name(Role.REGISTRAR, OTHER_NODE, OVERLAY))]}, "role"),
        ({"names": [uri(), email(f"anybody@registrar.{OVERLAY}")]}, "role"),
        ({"names": [uri(), uri(OTHER_NODE), email(role_name(Role.PEER, NODE, OVERLAY))]}, "role"),
    ],
)  # fmt: skip
def test_wrong_certificate_is_refused(changes: dict[str, object], reason: str) -> None:
    """A certificate that is wrong in one way, though signed by the right authority, is refused for that reason."""
    assert refusal(odd_certificate(**changes)).reason == reason  # type: ignore[arg-type]


def test_openssl_accepts_what_we_refuse(tmp_path: Path) -> None:
    """OpenSSL lets an empty subject with a non-critical subjectAltName pass, so the check must be our own."""
    der = odd_certificate(critical=False, not_before=0.0, not_after=4e9)
    if not _openssl_verifies(tmp_path, der):
        pytest.skip("this OpenSSL has learned to refuse it")
    assert refusal(der).reason == "form"


def test_other_authority_is_refused() -> None:
    """A certificate whose issuer has the right name but another key does not chain to the root."""
    impostor = create_authority(OVERLAY, WALL)
    der = impostor.issue(KEY.public_key(), NODE, role_name(Role.PEER, NODE, OVERLAY), WALL)
    assert refusal(der).reason == "chain"


def test_altered_certificate_is_refused() -> None:
    """One changed octet in the signed part breaks the chain, wherever it is."""
    der = AUTHORITY.issue(KEY.public_key(), NODE, role_name(Role.PEER, NODE, OVERLAY), WALL)
    judge = trust()
    judge.check(der, WALL)
    at = der.index(NODE.hex().encode())
    altered = der.replace(NODE.hex().encode(), OTHER_NODE.hex().encode())
    assert altered != der and at
    assert refusal(altered, judge).reason == "chain"


def test_revoked_node_id_is_refused() -> None:
    """bad-node revokes every certificate that holds the Node-ID, also one among several."""
    judge = trust(revoked=frozenset({OTHER_NODE}))
    both = odd_certificate(names=[uri(NODE), uri(OTHER_NODE), email("alice@overlay.example")])
    assert refusal(both, judge).reason == "revoked"
    assert judge.check(odd_certificate(), WALL).node_id == NODE


def test_end_entity_cannot_issue() -> None:
    """A node's certificate is no authority: what its key signs does not chain, even with it as intermediate."""
    leaf = AUTHORITY.issue(KEY.public_key(), NODE, "mallory@overlay.example", WALL)
    below = _signed_below(leaf, KEY)
    with pytest.raises(CertificateError) as caught:
        trust().check(below, WALL, [leaf])
    assert caught.value.reason == "chain"


def test_path_length_is_respected() -> None:
    """The root has path length 0, so an authority below it may not issue."""
    key = generate_private_key()
    below_root = _authority_below(AUTHORITY, key)
    der = _signed_below(below_root, key)
    with pytest.raises(CertificateError) as caught:
        trust().check(der, WALL, [below_root])
    assert caught.value.reason == "chain"


def test_intermediate_is_accepted_below_a_root_that_allows_it() -> None:
    """A chain over an intermediate authority is verified where the root's path length allows it."""
    root_key, key = generate_private_key(), generate_private_key()
    root = _root(root_key, path_length=1)
    between = _authority_below(Authority(root, root_key, OVERLAY), key)
    der = _signed_below(between, key)
    judge = Trust([root], OVERLAY)
    assert refusal(der, judge).reason == "chain"
    assert judge.check(der, WALL, [between]).user == "alice@overlay.example"


def test_good_results_are_kept_only_while_the_chain_is_valid() -> None:
    """A certificate that was found good is refused as soon as the clock leaves its dates, either way."""
    judge = trust()
    der = odd_certificate()
    assert judge.check(der, WALL) is judge.check(der, WALL)
    assert refusal(der, judge, WALL + 2 * DAY).reason == "date"
    assert refusal(der, judge, WALL - 2 * DAY).reason == "date"
    assert judge.check(der, WALL).node_id == NODE


def test_expired_root_ends_the_overlay() -> None:
    """When the root is past its date nothing below it is valid, whatever its own dates."""
    authority = create_authority(OVERLAY, WALL, KEY, lifetime_seconds=DAY)
    der = odd_certificate(authority=authority, not_after=WALL + 10 * DAY)
    judge = Trust([authority.certificate], OVERLAY)
    judge.check(der, WALL)
    assert refusal(der, judge, WALL + 2 * DAY).reason == "chain"


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many certificates are shown, only so many are remembered, and the oldest go first."""
    cache: dict[int, int] = {}
    for number in range(100):
        module.remember(cache, number, number, 8)
    assert list(cache) == list(range(92, 100))


def test_self_signed_only_where_permitted() -> None:
    """A self-signed certificate is accepted only if the configuration permits it, and with the right digest."""
    der = self_signed_certificate(KEY, "bob@overlay.example", OVERLAY, WALL)
    assert refusal(der).reason == "chain"
    permitting = Trust([], OVERLAY, self_signed_digest="sha256")
    assert permitting.check(der, WALL).node_ids == self_signed_node_ids(KEY.public_key(), 1, "sha256")
    assert refusal(der, Trust([], OVERLAY, self_signed_digest="sha1")).reason == "key"
    both = trust(self_signed_digest="sha256")
    assert both.check(der, WALL) and both.check(odd_certificate(), WALL)


def test_self_signed_with_several_node_ids() -> None:
    """Of several Node-IDs each is the digest of its 4-octet index and the public key (section 11.3.1)."""
    ids = self_signed_node_ids(KEY.public_key(), 3, "sha1")
    assert len(set(ids)) == 3 and self_signed_node_ids(KEY.public_key(), 1, "sha1")[0] not in ids
    names = [*[uri(node_id) for node_id in ids], email("bob@overlay.example")]
    der = _self_signed(names, KEY)
    judge = Trust([], OVERLAY, self_signed_digest="sha1")
    assert judge.check(der, WALL).node_ids == ids
    assert refusal(_self_signed([uri(ids[1]), uri(ids[0]), names[-1]], KEY), judge).reason == "key"


def test_self_signed_cannot_claim_a_role() -> None:
    """Whoever makes their own certificate may be a peer or a user, never a registrar."""
    (node_id,) = self_signed_node_ids(KEY.public_key(), 1, "sha256")
    judge = Trust([], OVERLAY, self_signed_digest="sha256")
    for role, accepted in ((Role.PEER, True), (Role.REGISTRAR, False), (Role.PROVISIONING, False)):
        der = self_signed_certificate(KEY, role_name(role, node_id, OVERLAY), OVERLAY, WALL)
        if accepted:
            assert judge.check(der, WALL).role is role
        else:
            assert refusal(der, judge).reason == "role"


def test_self_signature_must_be_right() -> None:
    """A self-made certificate with somebody else's key and Node-ID, but signed with one's own, is refused."""
    thief = generate_private_key()
    (node_id,) = self_signed_node_ids(KEY.public_key(), 1, "sha256")
    der = _self_signed([uri(node_id), email("bob@overlay.example")], thief, public_key=KEY.public_key())
    assert refusal(der, Trust([], OVERLAY, self_signed_digest="sha256")).reason == "chain"


@pytest.mark.parametrize(
    ("user", "role"),
    [
        (f"{NODE.hex()}@peer.overlay.example", Role.PEER),
        (f"{NODE.hex()}@REGISTRAR.Overlay.Example", Role.REGISTRAR),
        (f"{NODE.hex()}@provisioning.overlay.example", Role.PROVISIONING),
        (f"{NODE.hex()}@configuration.overlay.example", Role.SIGNER),
        ("alice@overlay.example", Role.USER),
        ("alice@user.overlay.example", Role.USER),
        ("alice@registrar.other.example", Role.USER),
        ("alice@registrar.sub.overlay.example", Role.USER),
        ("registrar.overlay.example", Role.REGISTRAR),
    ],
)
def test_role_of(user: str, role: Role) -> None:
    """The role follows from the first label under the overlay's name, and from nothing else."""
    assert role_of(user, "overlay.example") is role


def test_authority_refuses_what_it_must_not_issue() -> None:
    """The authority issues no long-lived node certificate, no foreign role name, no bad name and no bad Node-ID."""
    key = KEY.public_key()
    for node_id, user, lifetime in (
        (NODE, "alice@overlay.example", MAXIMUM_LIFETIME + 1),
        (NODE, "alice@overlay.example", 0),
        (NODE, f"alice@registrar.{OVERLAY}", DAY),
        (NODE, "alice smith@overlay.example", DAY),
        (bytes(16), "alice@overlay.example", DAY),
        (NODE[:8], "alice@overlay.example", DAY),
    ):
        with pytest.raises(CertificateError):
            AUTHORITY.issue(key, node_id, user, WALL, lifetime)
    signer = role_name(Role.SIGNER, NODE, OVERLAY)
    assert AUTHORITY.issue(key, NODE, signer, WALL, 3650 * DAY)


def test_the_same_keys_and_times_give_the_same_certificates() -> None:
    """Authority, certificate and request are signed deterministically, so that a simulation replays from its seed."""
    made = []
    for _ in range(2):
        authority = create_authority(OVERLAY, WALL, KEY)
        issued = authority.issue(KEY.public_key(), NODE, "alice@overlay.example", WALL)
        own = self_signed_certificate(KEY, "bob@overlay.example", OVERLAY, WALL)
        made.append((authority.certificate, issued, own, create_request(KEY, "alice@overlay.example")))
    assert made[0] == made[1]


def test_authority_needs_its_own_key() -> None:
    """An authority whose key is another's is refused at once, not at the first certificate."""
    with pytest.raises(CertificateError):
        Authority(AUTHORITY.certificate, KEY, OVERLAY)
    with pytest.raises(CertificateError):
        Authority(odd_certificate(), KEY, OVERLAY)
    with pytest.raises(CertificateError):
        create_authority("not a name", WALL)


@given(st.binary(min_size=16, max_size=20).filter(lambda value: len(set(value)) > 1))
def test_reload_uri_round_trip(node_id: bytes) -> None:
    """A Node-ID survives its URI, whatever the case of the overlay's name."""
    assert parse_reload_uri(reload_uri(node_id, "Overlay.Example")) == (node_id, "overlay.example")


@given(st.text(max_size=80) | st.from_regex(r"reload://[0-9a-f]{0,44}@[a-z.]{0,9}/?[0-9a-f]?", fullmatch=True))
def test_any_text_as_uri(text: str) -> None:
    """Any text is a RELOAD URI of one node or a CertificateError."""
    try:
        node_id, _ = parse_reload_uri(text)
    except CertificateError:
        return
    assert 16 <= len(node_id) <= 20


@given(st.binary(max_size=600))
def test_any_octets_as_certificate(data: bytes) -> None:
    """Any octets shown as certificate, request or root raise CertificateError and nothing else."""
    for reader in (parse_certificate, read_request, module.load_root):
        with pytest.raises(CertificateError):
            reader(data)


@given(st.data())
def test_damaged_certificate(data: st.DataObject) -> None:
    """A real certificate with some octets overwritten is never trusted, and only CertificateError escapes."""
    good = GOOD
    at = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=4))
    bad = good[:at] + patch + good[at + len(patch) :]
    if bad == good:
        return
    with pytest.raises(CertificateError):
        trust().check(bad, WALL)


def test_huge_certificate_is_refused_unread() -> None:
    """A certificate beyond the size limit is refused before anything in it is looked at."""
    assert "octets" in refusal(odd_certificate() + bytes(20_000)).detail


def test_request_round_trip() -> None:
    """What create_request asks for is what read_request reads."""
    request = read_request(create_request(KEY, "alice@overlay.example"))
    assert (request.user, request.public_key) == ("alice@overlay.example", KEY.public_key())


@pytest.mark.parametrize(
    ("names", "subject", "reason"),
    [
        ([email("a@b.example"), email("c@b.example")], "", "form"),
        ([uri()], "", "form"),
        ([email("a@b.example"), x509.DNSName("b.example")], "", "form"),
        ([email("a@b.example")], "somebody", "form"),
        ([email("a b@b.example")], "", "user"),
        ([], "", "form"),
    ],
)
def test_bad_request_is_refused(names: list[x509.GeneralName], subject: str, reason: str) -> None:
    """A request must have an empty subject and name exactly one user, and may propose URIs only beside that."""
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    der = builder.sign(KEY, SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(CertificateError) as caught:
        read_request(der)
    assert caught.value.reason == reason


def test_request_with_wrong_signature_is_refused() -> None:
    """A request that was not signed with the key it names proves nothing and is refused."""
    der = create_request(KEY, "alice@overlay.example")
    altered = der.replace(b"alice@", b"allie@")
    with pytest.raises(CertificateError, match="signature"):
        read_request(altered)


@pytest.mark.foreign("openssl")
def test_openssl_reads_and_verifies_what_we_issue(tmp_path: Path) -> None:
    """OpenSSL verifies an issued certificate against the root and shows the names of section 11.3, critical."""
    now = datetime.now(UTC).timestamp()
    authority = create_authority(OVERLAY, now)
    der = authority.issue(KEY.public_key(), NODE, "alice@overlay.example", now)
    assert _openssl_verifies(tmp_path, der, authority.certificate)
    text = _openssl("x509", "-in", str(tmp_path / "leaf.pem"), "-noout", "-text", "-subject")
    assert "X509v3 Subject Alternative Name: critical" in text
    assert f"URI:reload://0110{NODE.hex()}@overlay.example/, email:alice@overlay.example" in text
    assert "Digital Signature, Key Agreement" in text and "CA:FALSE" in text and "NIST CURVE: P-256" in text
    assert text.rstrip().splitlines()[-1].strip() in ("subject=", "subject= ")


@pytest.mark.foreign("openssl")
def test_openssl_request_is_accepted(tmp_path: Path) -> None:
    """A request that OpenSSL made, with a proposed URI in it, is accepted and can be issued."""
    key = tmp_path / "alice.key"
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    names = f"subjectAltName=URI:{reload_uri(OTHER_NODE, OVERLAY)},email:alice@overlay.example"
    _openssl("req", "-new", "-key", str(key), "-subj", "/", "-addext", names, "-outform", "DER",
             "-out", str(tmp_path / "alice.csr"))  # fmt: skip
    request = read_request((tmp_path / "alice.csr").read_bytes())
    assert request.user == "alice@overlay.example"
    issued = AUTHORITY.issue(request.public_key, NODE, request.user, WALL)
    assert trust().check(issued, WALL).node_ids == (NODE,), "the server draws the Node-ID"


@pytest.mark.foreign("openssl")
def test_openssl_verifies_our_request(tmp_path: Path) -> None:
    """OpenSSL finds the signature of our own request right."""
    path = tmp_path / "bob.csr"
    path.write_bytes(create_request(KEY, "bob@overlay.example"))
    text = _openssl("req", "-in", str(path), "-inform", "DER", "-noout", "-verify", "-text")
    assert "email:bob@overlay.example" in text


# ---- making odd things ----


def _openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _openssl_verifies(directory: Path, der: bytes, root: bytes = AUTHORITY.certificate) -> bool:
    for name, certificate in (("leaf.pem", der), ("root.pem", root)):
        pem = x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM)
        (directory / name).write_bytes(pem)
    at = str(int(x509.load_der_x509_certificate(root).not_valid_before_utc.timestamp()) + 60)
    command = ["openssl", "verify", "-attime", at, "-CAfile", str(directory / "root.pem"), str(directory / "leaf.pem")]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def _builder(key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(78)
        .not_valid_before(datetime.fromtimestamp(WALL - DAY, UTC))
        .not_valid_after(datetime.fromtimestamp(WALL + DAY, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _root(key: ec.EllipticCurvePrivateKey, path_length: int) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = _builder(key.public_key(), name, name).add_extension(
        x509.BasicConstraints(True, path_length), critical=True
    )
    return _with_authority_usage(builder).sign(key, SHA256()).public_bytes(Encoding.DER)


def _authority_below(authority: Authority, key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "between")])
    issuer = x509.load_der_x509_certificate(authority.certificate).subject
    builder = _builder(key.public_key(), name, issuer).add_extension(x509.BasicConstraints(True, None), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private_key.public_key()), critical=False
    )
    return _with_authority_usage(builder).sign(authority.private_key, SHA256()).public_bytes(Encoding.DER)


def _with_authority_usage(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return builder.add_extension(usage, critical=True)


def _signed_below(issuer: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A node's certificate signed with ``key``, whose certificate is ``issuer``."""
    builder = (
        _builder(KEY.public_key(), x509.Name([]), x509.load_der_x509_certificate(issuer).subject)
        .add_extension(x509.SubjectAlternativeName([uri(), email("alice@overlay.example")]), critical=True)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _self_signed(
    names: list[x509.GeneralName],
    key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey | None = None,
) -> bytes:
    builder = _builder(public_key or key.public_key(), x509.Name([]), x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)
