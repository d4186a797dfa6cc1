"""Side-by-side measurements; each is one command (`make bench-overlay`)."""
