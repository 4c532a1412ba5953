"""How a job is planned, started, shown and ended: fingerprints of code and files, resources, GPUs, signals, progress.

Input: the machine and a job's command line. Output: what Snakemake asks for. Nothing here changes a result.
Read first: dependencies.py (which code a result depends on), command.py (how every script runs and ends).
"""
