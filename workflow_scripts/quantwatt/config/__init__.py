"""Read, complete and check an experiment's YAML file, and select the part of it that each rule reads.

Input: config.yaml, an experiment, the JSON schemas of resources/schemas/. Output: completed entries, or an error in one
sentence that names file, entry and key. Read first: experiment.py, schemas.py.
"""
