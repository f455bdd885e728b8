"""Effects: what the daemon shows, keeps and sends."""
