"""Receivers of single requests: one file a receiver, each turning a body into events; none owns a socket."""
