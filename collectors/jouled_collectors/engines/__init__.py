"""Inference engines: one file an engine, each turning that engine's page into neutral counters."""
