"""What stages write and read: manifests, tensors, sets of images, tables and text files, and how each of them fails.

Input: values and file names. Output: files that are whole or absent, checked when they are read. No model, no policy.
Read first: manifest.py, errors.py.
"""
