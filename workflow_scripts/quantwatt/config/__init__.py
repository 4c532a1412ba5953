"""An experiment's YAML file, completed and checked; and which part of it each rule reads.

Enters: config.yaml, an experiment, JSON schemas of resources/schemas/. Leaves: completed entries, or one sentence that
names file, entry and key. Read first: experiment.py, schemas.py.
"""
