"""Runs a package's graphs; knows functions and ops, not Gemma."""
