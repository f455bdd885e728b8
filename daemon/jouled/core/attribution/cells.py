"""The time grid: cells of 0.1 s, aligned to the epoch, in integers."""

CELL_NS = 100_000_000
CELL_SECONDS = 0.1


def cell_of(t_ns: int) -> int:
    """The cell that contains `t_ns`."""
    return t_ns // CELL_NS


def start_of(cell: int) -> int:
    """Core time at which a cell begins, nanoseconds."""
    return cell * CELL_NS
