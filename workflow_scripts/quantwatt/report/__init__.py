"""Tables, figures and the page that answers.

Enters: the JSON files of all cells. Leaves: CSV files, figures, report.html. Read first: cells.py, tables.py,
page/__init__.py.
"""
