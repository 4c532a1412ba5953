"""Which layer gets which format.

Enters: a model's layers, a method, what trying each layer alone has cost in quality and in time. Leaves: formats of
every layer. Read first: allocation.py, sensitivity.py (what is tried), programs.py (what is chosen under budgets).
"""
