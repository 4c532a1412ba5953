"""Measure the fake GPU through the real pynvml: one JSON line in, one out, until the input ends.

test_nvml.py runs it once for each variant of the library, whose folder is in LD_LIBRARY_PATH from the start,
because a process loads NVML once. A line is [function, its arguments, environment]: `virtual` and `window` sample on a
virtual clock, `real` and `windows` use the sampling process and the real clock.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from quantwatt.measuring import fresh_process, instruments, pairs, protocol
from quantwatt.measuring.meters import Metering, MeterUnavailable, nvml
from quantwatt.measuring.meters.sampler import Sampling
from quantwatt.measuring.settings import Measuring

IMAGES_PER_SECOND = 4


class VirtualClock:
    """Seconds in a file that the library reads; it moves by 100 ms, and the sampler reads after each step."""

    def __init__(self, start_s):
        self.sampler, self.tenths = None, round(start_s * 10)
        self.advance(0)

    def __call__(self):
        return self.tenths / 10

    def advance(self, tenths):
        for _ in range(tenths or 1):
            self.tenths += 1 if tenths else 0
            Path(os.environ["FAKE_NVML_NOW_FILE"]).write_text(str(self()))
            if self.sampler is not None:
                self.sampler.sampling.take()


class DrivenSampler:
    """The sampler's interface in this process, for a clock that moves only when told."""

    def __init__(self, clock, arguments):
        self.clock, self.read, self.interval_s = clock, nvml.reader(**arguments), 0.1

    def start(self):
        self.sampling = Sampling(self.read, lambda: round(self.clock() * 1e9))
        self.sampling.take()
        self.clock.sampler = self

    def stop(self):
        self.clock.sampler = None
        self.sampling.take()
        return {"samples": self.sampling.samples, "n_late": 0, "fault": self.sampling.fault}

    def close(self):
        pass


def virtual(start_s, block_s, blocks):
    clock = VirtualClock(start_s)
    meter = nvml.open_meter(Metering(), None, lambda name, arguments, interval_s: DrivenSampler(clock, arguments))
    measured = protocol.measure_energy(
        lambda: clock.advance(min(10, round(block_s * 10))),
        meter,
        block_s,
        blocks,
        images_per_run=IMAGES_PER_SECOND,
        clock=clock,
    )
    energy, reason = protocol.summarize_energy([measured])
    return {
        "energy": energy,
        "reason": reason,
        "blocks": [block_row(block) for block in measured],
        "crosscheck": protocol.crosscheck(*(block.trace for block in measured)),
        "n_zero": sum(block.trace.n_zero for block in measured),
        "n_missed": sum(block.trace.n_missed for block in measured),
        "device": meter.provenance(),
    }


def block_row(block):
    return fresh_process.block_row(pairs.Placed(block.block, pairs.WHOLE, pairs.METHOD, block))


def real(**settings):
    settings = Measuring.from_settings(
        {
            "meter": "nvml",
            "processes": 1,
            "images_per_batch": 1,
            "prompts": 1,
            "steady_s": 0,
            "phases_s": 0,
            "precision": 0,
        }
        | settings
    )
    meter, _ = instruments.choose_meter(settings.metering, settings.block_s, "cpu")
    result, placed, traces = fresh_process.measure_process(
        {"method": [lambda: time.sleep(0.05)]}, {}, meter, settings, protocol.nothing, first=True, last=True
    )
    meter.close()
    steps = [trace.timestamps_s[1:] - trace.timestamps_s[:-1] for *_, trace in traces]
    return {
        **result,
        "blocks": [fresh_process.block_row(block) for block in placed],
        "names": [name for name, *_ in traces],
        "rising": bool(all((step > 0).all() for step in steps)),
        "covers": [float(trace.timestamps_s[-1] - trace.timestamps_s[0]) for *_, trace in traces],
        "closed": meter._sampler._process.returncode,
    }


def window(seconds=0.1, start_s=8, settings=None, torch_uuids=None, device=None):
    """One window of the meter alone; `torch_uuids` stand for what torch says of the GPUs it sees."""
    clock = VirtualClock(start_s)
    if torch_uuids is not None:
        properties = [SimpleNamespace(uuid=uuid) for uuid in torch_uuids]
        cuda = SimpleNamespace(device_count=lambda: len(properties), get_device_properties=properties.__getitem__)
        sys.modules["torch"] = SimpleNamespace(cuda=cuda)
    try:
        meter = nvml.open_meter(
            Metering(**settings or {}), device, lambda name, arguments, interval_s: DrivenSampler(clock, arguments)
        )
    finally:
        sys.modules.pop("torch", None)
    meter.start()
    clock.advance(round(seconds * 10))
    return {**summary(meter.stop()), "device": meter.provenance(), "processes": meter.processes()}


def summary(trace):
    return {
        "energy_j": trace.energy_j,
        "fault": trace.fault,
        "n_missed": trace.n_missed,
        "times": list(trace.timestamps_s),
        "sensor": list(trace.sensor_s),
        "watts": list(trace.watts),
        "sampler": trace.sampler,
    }


def windows(seconds, faults, blow=None):
    """Windows of one meter on the real clock, each of a process that begins with the fault of its turn.

    Args:
        faults: for each window None, or [FAKE_NVML_FAULT, seconds into the window].
        blow: a signal's name, sent to the sampling process within the first window.
    """
    meter, results = nvml.open_meter(Metering(interval_ms=10)), []
    for index, fault in enumerate(faults):
        for name in ("FAKE_NVML_FAULT", "FAKE_NVML_FAULT_AT"):
            os.environ.pop(name, None)
        if fault:
            os.environ |= {"FAKE_NVML_FAULT": fault[0], "FAKE_NVML_FAULT_AT": str(time.monotonic() + fault[1])}
            meter._sampler.close()  # the next process inherits it
        meter.start()
        time.sleep(seconds)
        if blow and index == 0:
            os.kill(meter._sampler._process.pid, getattr(signal, blow))
        results.append({**summary(meter.stop()), "pid": meter._sampler._process.pid})
    device = meter.provenance()
    meter.close()
    return {"windows": results, "device": device}


if __name__ == "__main__":
    inherited = dict(os.environ)
    fresh_process.tell = lambda **what: None  # stdout is this program's own
    for line in sys.stdin:
        function, arguments, environment = json.loads(line)
        os.environ.update(environment)
        try:
            result = {"virtual": virtual, "real": real, "window": window, "windows": windows}[function](**arguments)
        except MeterUnavailable as unavailable:
            result = {"unavailable": str(unavailable)}
        for name in os.environ.keys() - inherited.keys():
            del os.environ[name]
        print(json.dumps(result), flush=True)
