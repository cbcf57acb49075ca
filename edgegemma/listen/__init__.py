"""Sound to text while people speak: utterances, hypotheses, commits.

>>> from edgegemma.audio.mic import Microphone              # doctest: +SKIP
>>> from edgegemma.engine.model import open_model           # doctest: +SKIP
>>> from edgegemma.listen.listener import Listener          # doctest: +SKIP
>>> for event in Listener(open_model(…), Microphone()):     # doctest: +SKIP
...     print(event)
"""
