"""Protocols that cross address translators."""
