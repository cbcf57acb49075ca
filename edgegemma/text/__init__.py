"""Tokens: tokenizer, chat template, sampler."""
