"""Twisted services: each owns a core or a socket and one paragraph of policy; they meet only in ``app.py``."""
