"""Zeus and this project's meter over the same seconds of the fake GPU, as one JSON line.

A process of its own: both load the library of LD_LIBRARY_PATH, and Zeus's polling processes import this file again.
"""

import json
import sys
import time


def main(seconds):
    from zeus.monitor import ZeusMonitor

    from quantwatt.measuring.meters import Metering, open_meter

    zeus = started(ZeusMonitor)
    meter = open_meter(Metering("nvml", 10))
    meter.start()
    zeus.begin_window("window", sync_execution=False)
    time.sleep(seconds)
    measured = zeus.end_window("window", sync_execution=False)
    trace = meter.stop()
    meter.close()
    if zeus.power_monitor is not None:
        zeus.power_monitor.stop()
    result = {
        "zeus_j": measured.gpu_energy[0],
        "zeus_s": measured.time,
        "zeus_polls": zeus.power_monitor is not None,
        "energy_j": trace.energy_j,
        "seconds": float(trace.timestamps_s[-1] - trace.timestamps_s[0]),
        "source": trace.source,
    }
    print(json.dumps(result), flush=True)


def started(monitor):
    """A monitor; once more where its polling processes were not there within its ten seconds, on a busy machine."""
    for _ in range(4):
        try:
            return monitor(gpu_indices=[0], cpu_indices=[])
        except RuntimeError as error:
            if "failed to start" not in str(error):
                raise
            failure = error
    raise failure


if __name__ == "__main__":
    main(float(sys.argv[1]))
