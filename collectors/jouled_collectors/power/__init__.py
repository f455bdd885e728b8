"""Power sources: one file a source; helpers of a source carry its name as prefix."""
