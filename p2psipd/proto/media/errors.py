"""The one error that decoding media may raise."""

from __future__ import annotations


class MediaError(ValueError):
    """Octets from the network are not what they claim to be (a packet to be dropped, never to be
    answered)."""
