"""Final request energies to receipts, goodput, cost and counters."""
