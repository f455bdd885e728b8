"""`jouled` with a closing wait of one second instead of fifteen, so that receipts become final within a test."""

import sys

from msgspec.structs import replace

from jouled.app.cli import main
from jouled.app.config import Config
from jouled.model.parameters import Parameters

_parameters = Config.parameters


def _quick(config: Config) -> Parameters:
    return replace(_parameters(config), wait_seconds=1.0)


Config.parameters = _quick  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
