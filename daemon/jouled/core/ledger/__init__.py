"""Device counters to energy per cell: wrap, reset, gap, containment, residual."""
