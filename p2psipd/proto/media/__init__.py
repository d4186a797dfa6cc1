"""Pure media: the RTP packet codec, G.711, and tones made and recognised; no I/O and no clock."""
