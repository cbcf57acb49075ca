"""Compiled kernels, and only here: each with a numpy twin of the same name in `reference`."""

from edgegemma.kernels import cache, threads

cache.install()
threads.calm()
