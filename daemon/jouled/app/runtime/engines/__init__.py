"""The engines of the node: found, recognised, asked, and known by what they were started with."""
