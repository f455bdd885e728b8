"""Recordings of raw readings and events: written, kept of the last minutes, and run again."""
