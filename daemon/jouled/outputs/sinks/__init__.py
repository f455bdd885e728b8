"""Push sinks: a runner for every stream of every sink, and one file a wire."""
