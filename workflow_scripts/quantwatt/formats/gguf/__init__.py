"""GGUF's block types (q8_0, q4_k, ...): ggml's searches for scales, its grids, and its layout of bytes.

Input: weights. Output: blocks as ggml stores them, which an export copies.
Read first: block_format.py, then search.py (how ggml chooses scales) and layout.py (where the bits lie).
"""
