"""What tells of single requests: every way in, from a socket or a file to the core."""
