"""Reads the power sources of /sys as it finds it; one line of JSON for each line on standard input, then the end.

Runs in a mount namespace where /sys is a fake tree: `rapl_child.py NAME`.
"""

import json
import sys
import time

from jouled.api import PowerCollector
from jouled.model.errors import SourceError
from jouled_collectors.power.cray import CrayCollector
from jouled_collectors.power.hwmon import HwmonCollector
from jouled_collectors.power.rapl import RaplCollector

COLLECTORS: dict[str, type[PowerCollector]] = {"rapl": RaplCollector, "hwmon": HwmonCollector, "cray": CrayCollector}


class BootClock:
    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def told(error: SourceError) -> dict[str, str]:
    return {"state": error.state.value, "reason": error.reason, "message": error.message, "mend": error.mend}


def main() -> None:
    collector, source = COLLECTORS[sys.argv[1]](), None
    for _ in sys.stdin:
        try:
            source = source or collector.open(collector.settings_type(), BootClock())
            values = {one.device: getattr(one, "microjoules", None) or one.watts for one in source.read()}
            answer = {"values": values, "kinds": {each.name: each.kind.value for each in source.devices}}
        except SourceError as error:
            answer = told(error)
            if source is not None:
                source.close()
                source = None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main()
