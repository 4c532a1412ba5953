"""Plan, start, show and end jobs: hashes of code and files, resources, GPUs, signals, progress bars.

Input: the machine and a job's command line. Output: parameters and resources for Snakemake. Nothing here changes a
result. Read first: dependencies.py (which code a result depends on), command.py (how every script runs and ends).
"""
