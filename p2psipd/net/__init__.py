"""Twisted adapters: sockets, TLS and timers for the protocol cores; no policy."""
