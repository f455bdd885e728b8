"""The running daemon: samplers, pollers, receivers and the composition root."""
