"""Direct peering of our domains with others, as one service."""
