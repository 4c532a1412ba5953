"""Inputs of models and reference images: prompts, sentences, captions, photographs, rendered scenes.

Input: files of resources/ and data/. Output: lists of texts, labels and images. Read first: prompts.py, datasets.py.
"""
