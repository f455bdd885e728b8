"""Units of the house: integer nanoseconds for time stamps, integer microjoules in the books."""

NANOSECONDS_PER_SECOND = 1_000_000_000
NANOSECONDS_PER_MILLISECOND = 1_000_000
MICROJOULES_PER_JOULE = 1_000_000
JOULES_PER_KILOWATT_HOUR = 3_600_000.0


def microjoules(joules: float) -> int:
    """Joules as whole microjoules, rounded to the nearest."""
    return round(joules * MICROJOULES_PER_JOULE)


def joules(microjoules: int) -> float:
    """Whole microjoules as joules."""
    return microjoules / MICROJOULES_PER_JOULE


def seconds(nanoseconds: int) -> float:
    """Nanoseconds (a span, not a Unix time stamp) as seconds."""
    return nanoseconds / NANOSECONDS_PER_SECOND


def nanoseconds(seconds: float) -> int:
    """Seconds (a span) as whole nanoseconds, rounded to the nearest."""
    return round(seconds * NANOSECONDS_PER_SECOND)
