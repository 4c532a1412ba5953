"""The wall clock jumps by days during a measurement: no duration, trace or energy may depend on it."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt.measuring import protocol

SCRIPTS = Path(protocol.__file__).parents[2]
JUMPING = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
// Every reading of the wall clock is a day behind or ahead of the one before; other clocks are left alone.
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int n = 0;
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += n++ % 2 ? 86400 : -86400;
    return failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec, out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
MEASURE = """
import json, time
from quantwatt import measure
jumps = [abs(time.time() - time.time()) for _ in range(3)]
short = {"warmup_s": 0.1, "limit_s": 1, "block_s": 0.5, "blocks": 2, "interval_ms": 20}
found = measure(lambda: time.sleep(0.05), meter="estimate", **short)
rising = [bool((block.trace.timestamps_s[1:] > block.trace.timestamps_s[:-1]).all()) for block in found.blocks]
print(json.dumps([jumps, found.latency_s, found.energy_j, [block.seconds for block in found.blocks], rising]))
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the jumping clock")
def test_a_measurement_under_a_clock_that_jumps(tmp_path):
    (tmp_path / "jumping.c").write_text(JUMPING)
    library = tmp_path / "jumping.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "jumping.c"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=environment, capture_output=True, text=True, check=True)
    jumps, latency, energy, seconds, rising = json.loads(done.stdout)
    assert min(jumps) > 86_000
    assert latency["min"] >= 0.05 and latency["max"] < 10
    assert all(0.5 <= s < 10 for s in seconds) and all(rising)
    assert 0 < energy["value"] < 65 * 10  # W of the loaded processor, for longer than any block took


# The first reads files' dates, too; of the second, `this_minute` tells readers when a measurement was made.
DATED = {SCRIPTS / "quantwatt/artifacts" / name for name in ("file_hashes.py", "provenance.py")}
SOURCES = sorted(set(SCRIPTS.rglob("*.py")) - DATED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_no_source_reads_the_wall_clock(path):
    names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}


def test_only_measurements_are_dated():
    named = [path.name for path in SCRIPTS.rglob("*.py") if "this_minute" in path.read_text()]
    assert sorted(named) == ["measure.py", "provenance.py"]
