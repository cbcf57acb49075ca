"""Measures, and keeps what it measured."""
