"""Quantization-aware training, and the checkpoint it ends in.

Nothing else of `quant` imports this package: it needs torch, which only training has.
"""
