"""An experiment's YAML file, completed and checked; and which part of it each rule reads.

Input: config.yaml, an experiment, JSON schemas of resources/schemas/. Output: completed entries, or one sentence that
names file, entry and key. Read first: experiment.py, schemas.py.
"""
