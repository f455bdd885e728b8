"""The pure core: ledger, attribution, accounting. No I/O, no clock, no logging."""
