"""For authors of power sources: try a collector as the daemon would, and hold it to what the daemon relies on.

docs/adding-a-power-source.md shows how. Nothing here needs pytest, and nothing of the daemon needs this.
"""

from jouled.testing.clock import ManualClock
from jouled.testing.contract import hold_to_contract
from jouled.testing.trial import Trial, outcome, trial

__all__ = ["ManualClock", "Trial", "hold_to_contract", "outcome", "trial"]
