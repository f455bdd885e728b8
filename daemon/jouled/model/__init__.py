"""The frozen types that flow through the daemon, and nothing that acts on them."""
