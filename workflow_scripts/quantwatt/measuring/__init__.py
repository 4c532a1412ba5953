"""Measure time, memory and energy of a callable, or of two in pairs of blocks that take turns.

Input: callables or checkpoints, and the settings of a measurement. Output: runs, blocks, a power trace, and summaries
with intervals. Read first: protocol.py, pairs.py, fresh_process.py, meters/__init__.py. (The package is not called
`measure`, because notebooks import the function `measure` from quantwatt.)
"""
