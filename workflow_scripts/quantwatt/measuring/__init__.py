"""Measure time, memory and energy of a callable: a protocol of warm-up, latency runs and energy blocks over meters.

Input: a callable or a checkpoint, and the settings of a measurement. Output: runs, blocks, a power trace, and summaries
with intervals. Read first: protocol.py, fresh_process.py, meters/__init__.py. (The package is not called `measure`,
because notebooks import the function `measure` from quantwatt.)
"""
