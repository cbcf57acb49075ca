"""Checkpoint in, package out."""
