"""Direct peering of our domains with others, as one service."""

from typing import Final

#: Targets of this instance are alternatives: never rung in parallel.
INSTANCE: Final = "peering"
