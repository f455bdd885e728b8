"""What the daemon publishes: one catalogue, its exposition and its reference."""
