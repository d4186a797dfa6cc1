"""Protocol cores: values and time in, outputs back; no I/O, clock, randomness, logging or threads."""
