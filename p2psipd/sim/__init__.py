"""A whole overlay on virtual time: the real protocol cores, a simulated network, and scenarios that measure
them."""
