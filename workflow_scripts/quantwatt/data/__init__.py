"""What models are given and held against: prompts, sentences, captions, photographs, rendered scenes.

Enters: files of resources/ and data/. Leaves: lists of texts, labels and images. Read first: prompts.py, datasets.py.
"""
