"""Devices are found and opened, or the message says what is wrong; on an invented sound card."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgegemma.audio import mic
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.mic import Microphone, find_device
from edgegemma.errors import DeviceError, InputError


class PortAudioError(Exception):
    pass


class Card:
    """The part of sounddevice that is used; devices are (name, channels, rate)."""

    PortAudioError = PortAudioError

    def __init__(self, *devices: tuple[str, int, float], default: int = 0) -> None:
        self.devices, self.default = devices, SimpleNamespace(device=(default, default))
        self.takes = [SAMPLE_RATE, 44_100, 48_000]
        self.refusal: tuple[Any, ...] = ("Invalid sample rate", -9997)
        self.fails: tuple[Any, ...] = ()
        self.mute = False  # streams can be opened and not started
        self.streams: queue.SimpleQueue[Stream] = queue.SimpleQueue()

    def query_devices(self) -> list[dict[str, Any]]:
        keys = ("name", "max_input_channels", "default_samplerate")
        return [dict(zip(keys, device, strict=True)) for device in self.devices]

    def check_input_settings(self, *, samplerate: int, **_: Any) -> None:
        if samplerate not in self.takes:
            raise PortAudioError(*self.refusal)

    def InputStream(self, **options: Any) -> Stream:  # noqa: N802
        if self.fails:
            raise PortAudioError(*self.fails)
        stream = Stream(mute=self.mute, **options)
        self.streams.put(stream)
        return stream


class Stream:
    """An opened stream; `hear` is what its driver does."""

    def __init__(
        self, callback: Any, finished_callback: Any, mute: bool = False, **options: Any
    ) -> None:
        self.options, self._callback, self._finished = options, callback, finished_callback
        self.mute, self.closed = mute, 0

    def hear(self, frames: int, overflow: bool = False) -> None:
        sound = np.full((frames, self.options["channels"]), 0.5, np.float32)
        self._callback(sound, frames, None, SimpleNamespace(input_overflow=overflow))

    def vanish(self) -> None:
        self._finished()

    def start(self) -> None:
        if self.mute:
            raise PortAudioError("Unanticipated host error", -9999)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card(("HDA Intel: ALC257", 2, 48_000), ("speaker", 0, 48_000), ("USB PnP: Audio", 1, 44_100),
                ("USB Camera", 2, 48_000), default=2)  # fmt: skip
    monkeypatch.setattr(mic, "_sounddevice", lambda: card)
    return card


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 2), (0, 0), ("3", 3), ("alc257", 0), ("usb camera", 3), ("PnP", 2)],
)
def test_a_device_is_found_by_number_name_or_part_of_its_name(
    wanted: int | str | None, index: int
) -> None:
    assert find_device(wanted).index == index


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("USB", r"'USB' fits 2 devices: 2 \(USB PnP: Audio\), 3 \(USB Camera\); give its number"),
        ("usb cammera", "no device that records is named 'usb cammera'; the nearest: 'USB Camera'"),
        ("speaker", "no device that records is named 'speaker'; the nearest: "),
        (1, r"no device 1 records; there are 0 \(HDA Intel: ALC257\), 2 \("),
    ],
)
def test_what_is_not_one_device_is_told_with_the_nearest(wanted: int | str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        find_device(wanted)


def test_a_machine_without_a_microphone_is_told_what_to_do(card: Card) -> None:
    card.devices = (("speaker", 0, 48_000),)
    with pytest.raises(DeviceError, match="no device that records was found; plug one in"):
        find_device()


def test_a_busy_device_is_told(card: Card) -> None:
    card.fails = ("Device unavailable", -9985)
    with pytest.raises(DeviceError, match="USB PnP: Audio is in use; close the program that"):
        Microphone()


def test_a_device_that_takes_no_rate_is_told(card: Card) -> None:
    card.takes = [8_000]
    with pytest.raises(
        DeviceError, match=r"takes none of 16000, 44100, 48000 Hz: .*Invalid sample rate"
    ):
        Microphone()


@pytest.mark.usefixtures("card")
def test_an_impossible_block_is_refused() -> None:
    with pytest.raises(InputError, match=r"got blocks of 0 s; want 0.01 to 60 s"):
        Microphone(block_s=0)


def test_the_device_s_own_rate_is_used_where_16_khz_is_refused(card: Card) -> None:
    card.takes = [44_100]
    microphone = Microphone(on_lost="stop")
    stream = card.streams.get()
    assert (microphone.rate, microphone.channels) == (44_100, 1)
    assert stream.options["blocksize"] == 3_528
    for _ in range(25):
        stream.hear(3_528)
    stream.vanish()
    blocks = list(microphone)
    assert blocks[-1].stop == 2 * SAMPLE_RATE
    assert blocks[-1].cut
    assert np.abs(blocks[9].samples - 0.5).max() < 1e-3


def test_channels_are_mixed(card: Card) -> None:
    microphone = Microphone(0, on_lost="stop")
    stream = card.streams.get()
    stream.hear(1_280)
    stream.vanish()
    first, *_ = microphone
    assert np.array_equal(first.samples, np.full(1_280, 0.5, np.float32))


def test_a_full_queue_is_counted_and_leaves_a_gap(card: Card) -> None:
    microphone = Microphone(block_s=0.08, queue_s=0.24, on_lost="stop")
    stream, blocks = card.streams.get(), iter(microphone)
    for _ in range(5):
        stream.hear(1_280)
    assert microphone.backlog_s == pytest.approx(0.24)
    found = [next(blocks), next(blocks), next(blocks)]
    stream.hear(1_280, overflow=True)
    found.append(next(blocks))
    assert [block.start // 1_280 for block in found] == [0, 1, 2, 5]
    assert microphone.overflows == 3  # two that did not fit, one of the driver's


def test_a_lost_device_is_opened_again(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mic, "RETRY_SECONDS", 0.01)
    microphone = Microphone()
    stream, blocks = card.streams.get(), iter(microphone)
    stream.hear(1_280)
    assert next(blocks).stop == 1_280
    card.fails = ("Unanticipated host error", -9999)
    stream.vanish()
    cut = next(blocks)
    assert (cut.start, cut.cut) == (1_280, True)
    assert microphone.lost is not None
    assert stream.closed == 1
    card.fails = ()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(lambda: next(blocks))
        card.streams.get().hear(1_280)
        back = coming.result(10)
    assert back.start >= 1_280
    assert microphone.lost is None


def test_a_device_that_is_back_and_does_not_start_is_given_back(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mic, "RETRY_SECONDS", 0.01)
    blocks = iter(Microphone())
    stream = card.streams.get()
    stream.hear(1_280)
    next(blocks)
    card.mute = True
    stream.vanish()
    assert next(blocks).cut

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(lambda: next(blocks))
        deaf = back = card.streams.get(timeout=10)
        card.mute = False
        while back.mute:
            back = card.streams.get(timeout=10)
        back.hear(1_280)
        coming.result(10)
    assert deaf.closed == 1


def test_a_device_that_gives_nothing_is_lost(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mic, "DEAF_SECONDS", 0.01)
    microphone = Microphone(on_lost="stop")
    assert [block.cut for block in microphone] == [True]
    assert str(microphone.lost).endswith("it gave no sound for 0.01 s")
    assert card.streams.get().closed == 1


def test_closing_ends_the_iteration_and_gives_the_device_back_once(card: Card) -> None:
    microphone = Microphone()
    stream, blocks = card.streams.get(), iter(microphone)
    stream.hear(1_280)
    next(blocks)
    microphone.close()
    microphone.close()
    assert list(blocks) == []
    assert stream.closed == 1


def test_closing_again_while_it_is_being_closed_does_not_wait_for_itself(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    microphone = Microphone()
    stream = card.streams.get()
    close = stream.close

    def interrupted() -> None:
        microphone.close()  # as the handler of Ctrl-C does, in this very thread
        close()

    monkeypatch.setattr(stream, "close", interrupted)
    closing = threading.Thread(target=microphone.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert stream.closed == 1
