"""How good images and predictions are: features that networks extract, and metrics over them with intervals.

Enters: sets of images or predictions, and what they are compared with. Leaves: values with intervals.
Read first: metrics/__init__.py, metrics/fid.py, extractors/__init__.py.
"""
