"""SIP cores: message, URI, transactions, digest (RFC 3261 and its updates).  No I/O, clock or randomness inside."""
