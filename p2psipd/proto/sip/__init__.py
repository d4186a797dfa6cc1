"""SIP cores: message, URI, transactions, digest (RFC 3261 and its updates). Pure: no I/O, clock or randomness of their own."""
