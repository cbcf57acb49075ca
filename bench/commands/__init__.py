"""The commands of ``edgegemma bench``, each in a file of its own; what they need is imported when they run."""
