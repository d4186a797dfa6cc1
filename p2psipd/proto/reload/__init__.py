"""RELOAD (RFC 6940): identifiers, wire format, storage, topology and the peer core."""
