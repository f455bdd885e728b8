"""Composition: configuration, the running daemon, the commands."""
