"""What stages write and read: manifests, tensors, sets of images, tables and text files, and how each of them fails.

Enters: values and file names. Leaves: files that are whole or absent, checked when they are read. No model, no policy.
Read first: manifest.py, errors.py.
"""
