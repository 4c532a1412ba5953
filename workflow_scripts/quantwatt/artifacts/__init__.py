"""Files that stages write and read: manifests, tensors, image sets, tables and text files; and the errors they raise.

Input: values and file names. Output: files that are complete or absent, and checked when read. Nothing here loads a
model or makes a decision. Read first: manifest.py, errors.py.
"""
