"""Session descriptions, and the offer and answer of one audio stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psipd.proto.media.g711 import PCMA, PCMU
from p2psipd.proto.sip.sdp import (
    SdpError,
    SessionDescription,
    agreed_audio,
    make_answer,
    make_offer,
    parse_sdp,
)

PHONE = b"""v=0
o=- 1 1 IN IP4 192.0.2.9
s=call
c=IN IP4 192.0.2.9
t=0 0
a=tool:baresip
m=video 4002 RTP/AVP 99
a=rtpmap:99 H264/90000
m=audio 4000 RTP/AVP 96 8 0 101
c=IN IP4 192.0.2.10
a=rtpmap:96 opus/48000/2
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
a=sendonly
"""


def phone(audio: str = "", old: str = "a=sendonly\n") -> SessionDescription:
    """The phone's offer, with a line replaced."""
    return parse_sdp(PHONE.replace(old.encode(), audio.encode()))


def test_offer_round_trip() -> None:
    """Our offer reads back as it was made, CRLF at each line's end."""
    offer = make_offer("127.0.0.1", 4000, 77)
    assert parse_sdp(offer.encode()) == offer
    assert b"m=audio 4000 RTP/AVP 0 8 101\r\n" in offer.encode()


def test_answer_takes_the_first_codec_of_the_offer_and_refuses_the_rest() -> None:
    """Each stream is answered in its place, unwanted ones with port 0 (RFC 3264 section 6)."""
    offer = parse_sdp(PHONE)
    answer = make_answer(offer, "127.0.0.1", 5000, 3)
    assert [(media.kind, media.port, media.formats) for media in answer.media] == [
        ("video", 0, ("99",)),
        ("audio", 5000, ("8", "101")),
    ]
    agreed = agreed_audio(answer, offer)
    assert (agreed.host, agreed.port, agreed.payload_type, agreed.codec) == ("192.0.2.10", 4000, 8, PCMA)


@pytest.mark.parametrize(
    ("direction", "answered", "sending", "receiving"),
    [
        ("sendrecv", "sendrecv", True, True),
        ("sendonly", "recvonly", False, True),
        ("recvonly", "sendonly", True, False),
        ("inactive", "inactive", False, False),
    ],
)
def test_directions(direction: str, answered: str, sending: bool, receiving: bool) -> None:
    """The answer mirrors the offer's direction (RFC 3264 section 6.1)."""
    offer = phone(f"a={direction}\n")
    answer = make_answer(offer, "127.0.0.1", 5000, 3)
    assert answer.media[1].direction == answered
    agreed = agreed_audio(answer, offer)
    assert (agreed.sending, agreed.receiving) == (sending, receiving)


def test_session_direction_counts_where_the_media_has_none() -> None:
    """A direction of the session holds for media without their own (RFC 8866 section 6.7)."""
    offer = parse_sdp(PHONE.replace(b"a=sendonly\n", b"").replace(b"a=tool:baresip", b"a=inactive"))
    assert make_answer(offer, "127.0.0.1", 5000, 3).media[1].direction == "inactive"


def test_hold_by_address() -> None:
    """The address 0.0.0.0 stops our sending (RFC 3264 section 8.4)."""
    offer = phone("c=IN IP4 0.0.0.0\n", "c=IN IP4 192.0.2.10\n")
    assert agreed_audio(make_answer(offer, "127.0.0.1", 5000, 3), offer).host == ""


def test_static_payloads_need_no_map() -> None:
    """Payload types 0 and 8 are known by number (RFC 3551 section 6); an rtpmap overrides them."""
    plain = parse_sdp(b"v=0\no=- 1 1 IN IP4 h\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 4 RTP/AVP 0\n")
    assert plain.media[0].codec_of("0") == PCMU
    other = parse_sdp(b"v=0\no=- 1 1 IN IP4 h\ns=-\nm=audio 4 RTP/AVP 0\na=rtpmap:0 GSM/8000\n")
    assert other.media[0].codec_of("0") is None


def test_nothing_in_common() -> None:
    """An offer without G.711 can't be answered: 488 (RFC 3261 section 13.3.1.3)."""
    offer = parse_sdp(b"v=0\no=- 1 1 IN IP4 h\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 4 RTP/AVP 96\n")
    with pytest.raises(SdpError) as caught:
        make_answer(offer, "127.0.0.1", 5000, 3)
    assert caught.value.status == 488


def test_an_answer_that_dropped_streams_is_refused() -> None:
    """Offer and answer have as many media (RFC 3264 section 6)."""
    with pytest.raises(SdpError):
        agreed_audio(make_offer("127.0.0.1", 4, 1), parse_sdp(PHONE))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"v=1\n",
        b"v=0\ns=-\n",
        b"v=0\no=- x 1 IN IP4 h\n",
        b"v=0\no=- 1 1 IN IP4\n",
        b"v=0\no=- 1 1 IN IP4 h\nm=audio\n",
        b"v=0\no=- 1 1 IN IP4 h\nm=audio 70000 RTP/AVP 0\n",
        b"v=0\no=- 1 1 IN IP4 h\nm=audio -1 RTP/AVP 0\n",
        b"v=0\no=- 1 1 IN IP4 h\nc=IN IP4\n",
        b"v=0\no=- 1 1 IN IP4 h\nnonsense\n",
        b"v=0\no=- 1 1 IN IP4 h\n" + b"m=audio 4 RTP/AVP 0\n" * 65,
        b"v=0\n" + b"a" * 70000,
    ],
)
def test_refused(body: bytes) -> None:
    """What is no session description, or too large, raises SdpError."""
    with pytest.raises(SdpError):
        parse_sdp(body)


@given(
    st.binary(max_size=300) | st.text(alphabet="voscma=: \n019INP4RT/AVudi-", max_size=300).map(str.encode)
)
def test_any_octets(body: bytes) -> None:
    """Arbitrary octets give a description or SdpError, and a description can be answered or refused."""
    try:
        offer = parse_sdp(b"v=0\no=- 1 1 IN IP4 h\n" + body)
        answer = make_answer(offer, "127.0.0.1", 5000, 3)
        parse_sdp(answer.encode())
        agreed_audio(answer, offer)
    except SdpError:
        return
