"""Assign a format to every layer.

Input: a model's layers, a method, and for mixed allocations the quality loss and the cost of each layer in each
candidate format. Output: the formats of every layer. Read first: allocation.py, sensitivity.py (measures the quality
loss), programs.py (chooses candidates within budgets).
"""
