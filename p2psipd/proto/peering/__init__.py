"""Direct peering between domains: where a call goes that leaves the overlay, decided without any I/O."""
