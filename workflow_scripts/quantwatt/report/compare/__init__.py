"""Compare two results, or two methods of one.

Input: the folders of finished results. Output: every figure that changed, with its interval and a verdict, and what
else differs between the two.
"""
