"""The quality of images and predictions: feature extractors, and metrics with confidence intervals.

Input: sets of images or predictions, and their references. Output: values with intervals.
Read first: metrics/__init__.py, metrics/fid.py, extractors/__init__.py.
"""
