"""Time, memory and energy of anything that runs: a protocol of warm-up, latency runs and energy blocks over meters.

Enters: a callable or a checkpoint, settings of a measurement. Leaves: runs, blocks, a power trace, and summaries with
intervals. Read first: protocol.py, fresh_process.py, meters/__init__.py. (The package is not called `measure`: that is
the function which notebooks import from quantwatt.)
"""
