"""edgegemma: Gemma 4 on a phone or a Raspberry Pi 5."""

__version__ = "0.1.0"
