"""No meter: time and memory are measured; energy stays empty, with a reason."""

from typing import Any

from quantwatt.measuring.meters import Meter, Metering
from quantwatt.measuring.meters.trace import Trace, empty_trace


class NoMeter(Meter):
    name = "none"
    reads = None
    least_s = 0.0
    whole = False

    def start(self) -> None:
        pass

    def stop(self) -> Trace:
        return empty_trace("none", "no meter is configured (meter: none)")

    def close(self) -> None:
        pass

    def provenance(self) -> dict[str, Any]:
        return {"meter": "none", "source": "none", "interval_ms": None, "fake": False}


def open_meter(settings: Metering, device: str | None = None) -> NoMeter:
    return NoMeter()
