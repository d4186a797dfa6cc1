"""The receiving side of Identity: what is verified, and the answers to what is not valid."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psipd.proto.identity import passport
from p2psipd.proto.identity.sip_date import write_sip_date
from p2psipd.proto.peering.identity import claims_of
from p2psipd.proto.peering.own_certificates import OwnCertificates
from p2psipd.proto.peering.peers import IdentityKind, PeerSettings
from p2psipd.proto.peering.replay import ReplayCache
from p2psipd.proto.peering.verification import IdentityVerifier
from tests.proto.identity.domain_certificates import DAY, WALL, TestAuthority, dns, self_signed
from tests.proto.peering.peering_world import (
    CA,
    FINGERPRINT,
    KINDS,
    OTHER_CA,
    SDP,
    World,
    own_certificate,
    request,
    resent,
    url_of,
)

OLD, NEW = KINDS


def answer(world: World, message: Any, **more: Any) -> tuple[int, str]:
    found = world.verify(message, **more)
    return found.status, found.reason


def test_peering_076_identity_is_required() -> None:
    """None: 428; RFC 4474 without Identity-Info and RFC 8224 without info: 436; not required: it passes."""
    world = World(OLD)
    assert answer(world, request()) == (428, "Use Identity Header")
    signed = world.sign(request())
    signed.remove("Identity-Info")
    assert answer(world, signed) == (436, "Bad Identity Info")
    assert answer(world, request(Identity="..c2ln;alg=ES256")) == (436, "Bad Identity Info")
    found = world.verify(request(), required=False)
    assert (found.status, found.verstat) == (0, "No-TN-Validation")


@pytest.mark.parametrize("kind", KINDS)
def test_peering_077_certificates_that_cannot_be_used(kind: IdentityKind) -> None:
    """Not to be had: 436; of a foreign authority, expired, self-signed, of an unknown algorithm: 437."""
    world = World(kind)
    signed = world.sign(request())
    owner = world.own
    world.own = OwnCertificates([])
    assert answer(world, signed) == (436, "Bad Identity Info")
    url = world.fetched[-1]
    key = owner.for_identity("a.test", kind).key  # type: ignore[union-attr]
    for der in (
        OTHER_CA.issue(dns("a.test"), key),
        CA.issue(dns("a.test"), key, not_after=WALL - 1),
        self_signed(dns("a.test"), key),
        b"nonsense",
    ):
        world.served[url] = [der]
        found = world.verify(signed)
        assert (found.status, found.reason) == (437, "Unsupported Credential")
        assert found.step and found.verstat == "TN-Validation-Failed"
    scheme = resent(signed, (b"https://", b"ftp://"))
    assert answer(world, scheme)[0] in (436, 438)
    algorithm = (b"alg=rsa-sha1", b"alg=rsa-md5") if kind is OLD else (b"alg=ES256", b"alg=RS256")
    assert answer(world, resent(signed, algorithm)) == (437, "Unsupported Credential")


ALTERED = {
    "from": (b"<sip:alice@a.test>", b"<sip:mallory@a.test>"),
    "to": (b"To: <sip:bob@b.test>", b"To: <sip:eve@b.test>"),
    "call-id": (b"Call-ID: abc@a.test", b"Call-ID: abd@a.test"),
    "cseq": (b"CSeq: 7 ", b"CSeq: 8 "),
    "date": (b":00 GMT", b":01 GMT"),
    "contact": (b"Contact: <sip:alice@192.0.2.1>", b"Contact: <sip:alice@192.0.2.2>"),
    "body": (b"m=audio 9", b"m=audio 8"),
}
NOT_IN_TOKENS = {"call-id", "cseq", "contact", "body"}


@pytest.mark.parametrize("part", ALTERED)
@pytest.mark.parametrize("form", ["rfc4474", "compact", "full"])
def test_peering_078_altered_parts_are_found(part: str, form: str) -> None:
    """Each signed part altered on the way: 438. RFC 8224 signs From, To and Date; its full form survives a
    changed Date as long as that is fresh.
    """
    world = World(OLD if form == "rfc4474" else NEW)
    signed = resent(world.sign(request(), full_form=form == "full"), ALTERED[part])
    covered = form == "rfc4474" or part not in NOT_IN_TOKENS and not (form == "full" and part == "date")
    assert answer(world, signed) == ((438, "Invalid Identity Header") if covered else (0, ""))


@pytest.mark.parametrize("kind", KINDS)
def test_peering_078_unsigned_parts_may_change(kind: IdentityKind) -> None:
    """Via, Route, Record-Route and the Request-URI are not signed."""
    world = World(kind)
    edits = [(b"INVITE sip:bob@b.test", b"INVITE sip:1@192.0.2.9"), (b"edge.a.test;branch", b"other.a.test;branch")]
    signed = world.sign(request(Route="<sip:edge.b.test;lr>", Record_Route="<sip:edge.a.test;lr>"))
    assert answer(world, resent(signed, *edits)) == (0, "")


def test_peering_078_media_keys_are_signed() -> None:
    """Fingerprints in the SDP are part of the token: another one is found, in both forms."""
    world = World(NEW)
    for full in (False, True):
        signed = world.sign(request(body=SDP + FINGERPRINT), full_form=full)
        assert answer(world, signed) == (0, "")
        assert answer(world, resent(signed, (b"AA:BB:CC", b"AA:BB:CD"))) == (438, "Invalid Identity Header")
    plain = world.sign(request(body=SDP + b"a=information:x AA\r\n"))
    added = resent(plain, (b"a=information:x", b"a=fingerprint:x"))
    assert answer(world, added) == (438, "Invalid Identity Header")


def test_peering_079_other_spellings_verify() -> None:
    """CSeq with zeros and white space, folded Identity, compact names, capitals in the Date."""
    world = World(OLD)
    octets = world.sign(request()).encode()
    identity = octets.split(b"Identity: ")[1].split(b"\r\n")[0]
    folded = b"\r\n  ".join((identity[:40], identity[40:]))
    edits = [
        (b"CSeq: 7 INVITE", b"CSeq:  0007 \t INVITE"),
        (identity, folded),
        (b"\r\nIdentity: ", b"\r\ny: "),
        (b"\r\nIdentity-Info: ", b"\r\nn: "),
        (b"\r\nFrom: ", b"\r\nf: "),
        (b"\r\nTo: ", b"\r\nt: "),
        (b"\r\nCall-ID: ", b"\r\ni: "),
        (b"\r\nContact: ", b"\r\nm: "),
        (b"\r\nDate: Fri, 15 Jan", b"\r\nDate: fri,  15 JAN"),
    ]
    assert answer(world, resent(world.sign(request()), *edits)) == (0, "")


@pytest.mark.parametrize(("kind", "window"), [(OLD, 3600), (NEW, 60)])
@pytest.mark.parametrize("full", [False, True])
def test_peering_080_date_windows(kind: IdentityKind, window: int, full: bool) -> None:
    """Older or newer than the window: 403 Stale Date; missing: 403; no date: 400; outside the certificate: 437."""
    world = World(kind)
    signed = world.sign(request(), full_form=full)
    for off in (-window, window):
        world.wall = WALL + off
        assert answer(world, signed) == (0, "")
        world.wall += off // window
        assert answer(world, signed) == (403, "Stale Date")
    assert not world.replays
    world.wall = WALL
    signed.remove("Date")
    # A full token says itself when it was signed, and signers are known that write no Date.
    assert answer(world, signed) == ((0, "") if full and kind is NEW else (403, "Stale Date"))
    signed.set("Date", "yesterday")
    assert answer(world, signed) == (400, "Bad Date")


@pytest.mark.parametrize("kind", KINDS)
def test_peering_080_the_date_lies_within_the_certificate(kind: IdentityKind) -> None:
    """A Date from before the certificate was valid is refused though the certificate is valid now: 437."""
    world = World(kind)
    world.wall = WALL - 30
    signed = world.sign(request())
    world.wall = WALL + 1
    key = world.own.for_identity("a.test", kind).key  # type: ignore[union-attr]
    der = CA.issue(dns("a.test"), key, not_before=WALL)
    world.own = OwnCertificates([])
    world.verify(signed)
    world.served[world.fetched[-1]] = [der]
    assert answer(world, signed) == (437, "Unsupported Credential")


@pytest.mark.parametrize("kind", KINDS)
def test_peering_081_replay(kind: IdentityKind) -> None:
    """An accepted request is a replay from then on, with whatever branch; the next CSeq and what we ourselves
    failed are not.
    """
    world = World(kind)
    signed = world.sign(request())
    found = world.verify(signed)
    assert found.status == 0 and answer(world, signed) == (0, "")
    world.verifier.accepted(found, world.wall)
    assert answer(world, resent(signed, (b"z9hG4bK1", b"z9hG4bK2"))) == (403, "Replayed Request")
    assert answer(world, world.sign(request(CSeq="8 INVITE"))) == (0, "")
    assert answer(world, world.sign(request(From="<sip:alice@a.test>;tag=2"))) == (0, "")
    world.verifier.forget(signed)
    assert answer(world, signed) == (0, "")


def test_peering_081_a_second_mechanism_is_no_second_chance() -> None:
    """A request with both kinds stays a replay for as long as either would let it in."""
    world = World(OLD, NEW)
    both = world.sign(request())
    world.verifier.accepted(world.verify(both), world.wall)
    world.wall += 3599
    assert answer(world, both) == (403, "Replayed Request")


def test_peering_081_two_copies_at_once() -> None:
    """Of two copies that wait for the same certificate only one comes in."""
    world = World(NEW)
    signed = world.sign(request())

    class Turn:
        def __await__(self) -> Any:
            yield

    async def slow(url: str) -> Any:
        await Turn()
        return await world.fetch(url)

    world.verifier = IdentityVerifier(slow, world.replays)
    works = [world.verifier.verify(copy, world.policy, world.wall) for copy in (signed, resent(signed))]
    for work in works:
        work.send(None)
    found = []
    for work in works:
        with pytest.raises(StopIteration) as stop:
            work.send(None)
        found.append(stop.value.value)
        world.verifier.accepted(found[-1], world.wall)
    assert [one.reason for one in found] == ["", "Replayed Request"]


def test_nothing_is_required_where_nothing_is_accepted() -> None:
    """A peer whose entry accepts no kind of Identity is not asked for one."""
    world = World(settings=PeerSettings(accept=frozenset()))
    assert answer(world, request()) == (0, "") and answer(world, world.sign(request())) == (0, "")


def test_the_replay_cache_is_bounded() -> None:
    """It forgets what is over, and what ends first when it is full; entries that were removed count until their end."""
    cache = ReplayCache(limit=3)
    for number in range(5):
        cache.add(b"%d" % number, WALL + 10 + number, WALL)
    assert len(cache) == 3 and cache.evicted == 2 and not cache.holds(b"1", WALL) and cache.holds(b"2", WALL)
    cache.add(b"x", WALL + 100, WALL + 20)
    assert len(cache) == 2 and not cache.holds(b"4", WALL + 20)
    for _ in range(10):
        cache.add(b"again", WALL + 30, WALL + 20)
        cache.remove(b"again")
    assert len(cache._ends) == 3


def test_a_long_window_does_not_keep_the_short_ones() -> None:
    """One entry of RFC 4474, good for an hour, in front of many that last a minute: they end, and it stays."""
    cache = ReplayCache(limit=200)
    cache.add(b"long", WALL + 3600, WALL)
    for second in range(1000):
        cache.add(b"%d" % second, WALL + second + 60, WALL + second)
    assert cache.holds(b"long", WALL + 1000) and cache.holds(b"999", WALL + 1000)
    assert cache.evicted == 0 and len(cache) < 70


def test_what_is_accepted_again_is_a_replay_until_its_new_end() -> None:
    """After a 503 of ours the same request came with a later Date: its first end does not let it in again."""
    cache = ReplayCache()
    cache.add(b"key", WALL + 10, WALL)
    cache.remove(b"key")
    cache.add(b"key", WALL + 20, WALL)
    cache.add(b"other", WALL + 60, WALL + 15)
    assert cache.holds(b"key", WALL + 15)


@pytest.mark.parametrize("kind", KINDS)
def test_peering_082_the_certificate_is_served_by_the_peer(kind: IdentityKind) -> None:
    """The URL's host must be a domain of the TLS connection, else 437 before anything is fetched."""
    world = World(kind)
    signed = world.sign(request())
    assert answer(world, signed, hosts=frozenset({"c.test"})) == (437, "Unsupported Credential")
    assert not world.fetched
    assert answer(world, signed, hosts=frozenset({"a.test"})) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_peering_084_a_cached_certificate_is_compared_every_time(kind: IdentityKind) -> None:
    """After a good request from a.test, one From victim.test with the signature of a.test's key is refused."""
    world = World(kind)
    assert answer(world, world.sign(request())) == (0, "")
    forger = World(kind)
    real = world.own.for_identity("a.test", kind)
    assert real is not None
    wide = real._replace(certificate=own_certificate(kind, ("a.test", "victim.test")).certificate)
    forger.own = OwnCertificates([wide])
    forged = forger.sign(request(From="<sip:eve@victim.test>;tag=1"))
    world.served[f"https://victim.test/{wide.certificate.fingerprint[:8]}"] = real.chain
    found = world.verify(forged)
    assert (found.status, found.step) == (437, "domain")


def test_peering_089_a_bad_number_is_no_validated_number() -> None:
    """user=phone with what is no number: accepted, but nothing is said to be validated."""
    world = World(OLD)
    assert world.verify(world.sign(request(From="<sip:alice@a.test;user=phone>;tag=1"))).verstat == "No-TN-Validation"
    good = world.sign(request(From="<sip:+12125551212@a.test;user=phone>;tag=1"))
    assert world.verify(good).verstat == "TN-Validation-Passed"


def test_peering_090_unknown_ppt_is_ignored() -> None:
    """Only an unknown ppt: 428 that says so, or a pass where nothing is required; beside a good one: ok."""
    world = World(NEW)
    unknown = "e30.e30.c2ln;info=<https://a.test/x>;ppt=div"
    only = request(Identity=unknown)
    assert answer(world, only) == (428, "Use Supported PASSporT Format")
    assert answer(world, only, required=False) == (0, "")
    signed = world.sign(request())
    signed.prepend("Identity", unknown)
    signed.prepend("Identity", "..AAAA;info=<https://a.test/dead>")
    assert answer(world, signed) == (0, "")


def test_peering_090_of_several_headers_the_bad_ones_are_named() -> None:
    """RFC 9410: each bad header beside others has a Reason of its own, with its signature; a single one needs none,
    and what is to be ignored is no error.
    """
    world = World(NEW)
    dead, ignored = "..AAAA;info=<https://a.test/dead>", "e30.e30.c2ln;info=<https://a.test/x>;ppt=div"
    signed = world.sign(request())
    assert world.verify(signed).reasons == ()
    signed.prepend("Identity", dead)
    signed.prepend("Identity", ignored)
    found = world.verify(signed)
    reason = 'STIR;cause=436;text="Bad Identity Info";ppi="..AAAA"'
    assert (found.status, found.reasons) == (0, (reason,))
    assert world.verify(request(Identity=dead, Date=write_sip_date(WALL))).reasons == ()
    both = world.sign(request())
    mine = passport.parse_identity_header(both.get("Identity") or "").signature
    both.set("To", "<sip:carol@b.test>")
    both.prepend("Identity", dead)
    found = world.verify(both)
    assert (found.status, found.reasons) == (
        438,
        (reason, f'STIR;cause=438;text="Invalid Identity Header";ppi="..{mine}"'),
    )


def test_peering_090_dest_and_iat_are_compared() -> None:
    """A full token for another callee, or too old, is refused though its signature is right."""
    world = World(NEW)
    signed = world.sign(request(), full_form=True)
    token = signed.get("Identity")
    assert token is not None
    assert answer(world, request(Identity=token, To="<sip:eve@b.test>", Date=write_sip_date(WALL))) == (
        438,
        "Invalid Identity Header",
    )
    world.wall += 61
    assert answer(world, request(Identity=token, Date=write_sip_date(world.wall))) == (403, "Stale Date")
    broken = token.replace("info=<https://a.test/", "info=<https://a.test/x")
    assert answer(world, request(Identity=broken, Date=write_sip_date(WALL)), required=True)[0] in (403, 438)


def test_peering_090_tokens_need_not_be_written_our_way() -> None:
    """White space, other orders of keys and numbers with "+" are read; the time in the token counts without a Date."""
    world = World(NEW)
    own = world.own.for_identity("a.test", NEW)
    assert own is not None
    url = url_of(own, "a.test", NEW)

    def token(iat: float, orig: str = '{"uri": "sip:alice@a.test"}') -> str:
        header = f'{{"x5u": "{url}", "typ": "passport", "alg": "ES256"}}'
        payload = f'{{"orig": {orig}, "iat": {iat:.0f}, "dest": {{"uri": ["sip:bob@b.test"]}}}}'
        signed = ".".join(urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in (header, payload))
        r, s = decode_dss_signature(own.key.sign(signed.encode(), ECDSA(SHA256())))  # type: ignore[call-arg,arg-type]
        signature = urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=").decode()
        return f"{signed}.{signature};info=<{url}>"

    assert answer(world, request(Identity=token(WALL), Date=write_sip_date(WALL))) == (0, "")
    assert answer(world, request(Identity=token(WALL))) == (0, "")
    assert answer(world, request(Identity=token(0))) == (403, "Stale Date")
    assert answer(world, request(Identity=token(WALL, '{"uri": "sip:eve@a.test"}')))[0] == 438
    call = request(From="<sip:+12125551212@a.test>;tag=1", Identity=token(WALL, '{"tn": "+12125551212"}'))
    assert answer(world, call) == (0, "")
    ours = world.sign(request(), full_form=True)
    ours.remove("Date")
    world.wall += 61
    assert answer(world, ours) == (403, "Stale Date")
    world.wall = WALL
    made = passport.sign(own.key, url, claims_of(request(), 0))  # type: ignore[arg-type]
    assert answer(world, request(Identity=passport.write_identity_header(made))) == (403, "Stale Date")


def test_peering_090_numbers_by_rfc8226() -> None:
    """A certificate of a number authority speaks for its numbers whatever the From domain is, and for no others."""
    world = World(NEW)
    one = bytes.fromhex("3010a20e160c") + b"442079460000"
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.26"), one)
    own = own_certificate(NEW, ("a.test",))
    signed = world.sign(request(From="<sip:+442079460000@a.test;user=phone>;tag=1"))
    other = world.sign(request(From="<sip:+442079460001@a.test;user=phone>;tag=1", CSeq="9 INVITE"))
    numbers = CA.issue(dns("numbers.test"), own.key, extra=[(extension, False)])
    world.own = OwnCertificates([])
    assert answer(world, signed)[0] == 436
    for url in list(world.fetched):
        world.served[url] = [numbers]
    assert answer(world, signed) == (0, "")
    assert answer(world, other) == (437, "Unsupported Credential")


def test_peering_091_cheap_checks_come_first() -> None:
    """Stale, replayed, claimed wrongly or from a foreign URL: nothing is fetched."""
    world = World(NEW)
    signed = world.sign(request(), full_form=True)
    world.wall += 61
    world.verify(signed)
    world.wall -= 61
    world.verify(resent(signed, ALTERED["to"]))
    world.verify(signed, frozenset({"c.test"}))
    assert world.fetched == []
    world.verify(signed)
    assert len(world.fetched) == 1


def test_only_the_accepted_kinds_count() -> None:
    """A peer whose entry accepts RFC 8224 alone has not signed with an RFC 4474 header."""
    only_new = PeerSettings(accept=frozenset({NEW}))
    world = World(OLD, settings=only_new)
    assert answer(world, world.sign(request())) == (428, "Use Identity Header")


def test_intermediates_come_from_the_url() -> None:
    """A chain at the URL is followed to the authority."""
    world = World(NEW)
    between = TestAuthority("Intermediate", parent=CA)
    own = own_certificate(NEW, ca=between)
    world.own = OwnCertificates([own._replace(chain=(*own.chain, between.der))])
    assert answer(world, world.sign(request())) == (0, "")
    assert own.certificate.not_after == WALL + 30 * DAY


@given(st.text(max_size=200), st.text(max_size=100), st.text(max_size=40))
@settings(max_examples=60)
def test_whatever_stands_in_the_headers_is_answered(identity: str, info: str, date: str) -> None:
    """No value of Identity, Identity-Info or Date raises anything."""
    message = request()
    for name, value in (("Identity", identity), ("Identity-Info", info), ("Date", date)):
        message._names.append(name.lower())
        message._lines.append(f"{name}: {value}".encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b""))
    assert World().verify(message).status in (400, 403, 428, 436, 437, 438)
