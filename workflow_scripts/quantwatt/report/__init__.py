"""Tables, figures and the HTML report.

Input: the JSON files of all cells. Output: CSV files, figures, report.html. Read first: cells.py, tables.py,
page/__init__.py.
"""
