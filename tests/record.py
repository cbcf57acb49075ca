"""Record from a microphone in a process of its own: a line of JSON for each block, the samples into a file.

``python -m tests.record OUT.npy '{"device": "vmic", …}'``: the arguments of `Microphone`, and ``refuse`` (rates that the
device shall not take), ``wait_s`` (before the second block is taken) and ``seconds`` (of blocks to take).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from edgegemma.audio.mic import Microphone


def refuse(rates: list[int]) -> None:
    """Make every device refuse these rates, as many USB microphones do."""
    import sounddevice

    check = sounddevice.check_input_settings

    def checked(*, samplerate: int, **rest: Any) -> None:
        if samplerate in rates:
            raise sounddevice.PortAudioError("Invalid sample rate", -9997)
        check(samplerate=samplerate, **rest)

    sounddevice.check_input_settings = checked


def main(out: str, arguments: str) -> None:
    """Record until told to stop."""
    options = json.loads(arguments)
    refuse(options.pop("refuse", []))
    wait_s, seconds = options.pop("wait_s", 0.0), options.pop("seconds", 1e9)
    microphone = Microphone(**options)
    samples = [np.empty(0, np.float32)]
    for block in microphone:
        samples.append(block.samples)
        row = {"start": block.start, "stop": block.stop, "cut": block.cut, "lost": microphone.lost}
        print(json.dumps(row), flush=True)
        if sum(map(len, samples)) >= seconds * 16_000:
            break
        time.sleep(wait_s)
        wait_s = 0.0
    np.save(out, np.concatenate(samples))
    last = {"rate": microphone.rate, "channels": microphone.channels, "name": microphone.name}
    print(json.dumps(last | {"overflows": microphone.overflows, "lost": microphone.lost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
