"""Measure the fake AMD GPU through the real package amdsmi: prints one JSON line with the trace and the meter's words.

A process of its own, because one loads libamd_smi.so once. Arguments: Metering's settings as JSON, and seconds.
"""

import contextlib
import json
import sys
import time

from quantwatt.measuring.meters import Metering, MeterUnavailable, amdsmi


def main(settings, seconds):
    try:
        meter = amdsmi.open_meter(Metering.from_json(settings))
    except MeterUnavailable as unavailable:
        print(json.dumps({"unavailable": str(unavailable)}))
        return
    with contextlib.closing(meter):
        meter.start()
        time.sleep(seconds)
        trace = meter.stop()
        found = {"energy_j": trace.energy_j, "watts": float(trace.watts.mean()), "fault": trace.fault,
                 "seconds": float(trace.timestamps_s[-1] - trace.timestamps_s[0]), "source": trace.source,
                 "provenance": meter.provenance(), "processes": meter.processes()}  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
