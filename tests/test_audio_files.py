"""Sound files of any kind become mono at 16 kHz, or one clear line."""

from __future__ import annotations

import io
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgegemma.audio.files import AudioFile, Source, read_audio, stream_audio
from edgegemma.errors import InputError, MissingExtraError

F32 = NDArray[np.float32]


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> F32:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(
        np.float32
    )


def wav(samples: F32, rate: int = 16_000, subtype: str = "PCM_16", form: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=form)
    return buffer.getvalue()


def likeness(a: F32, b: F32) -> float:
    """Cosine of the middles, away from the codecs' edges."""
    middle = slice(len(a) // 4, 3 * len(a) // 4)
    return float(a[middle] @ b[middle] / np.linalg.norm(a[middle]) / np.linalg.norm(b[middle]))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_U8"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("FLAC", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_every_common_format_is_read(form: str, subtype: str) -> None:
    pcm = read_audio(wav(tone(16_000), subtype=subtype, form=form))
    assert pcm.samples.dtype == np.float32
    assert likeness(pcm.samples[:16_000], tone(16_000)) > 0.99
    assert pcm.seconds == pytest.approx(1.0, abs=0.15)


def test_sixteen_kilohertz_are_not_touched() -> None:
    samples = tone(16_000)
    assert np.array_equal(read_audio(wav(samples, subtype="FLOAT")).samples, samples)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_are_resampled_to_the_same_tone(rate: int) -> None:
    pcm = read_audio(wav(tone(rate), rate))
    assert len(pcm.samples) == 16_000
    assert (pcm.source_rate, pcm.source_channels) == (rate, 1)
    assert likeness(pcm.samples, tone(16_000)) > 0.9999


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_channels_are_averaged(channels: int) -> None:
    columns = np.zeros((16_000, channels), np.float32)
    columns[:, 0] = tone(16_000)
    pcm = read_audio(wav(columns, subtype="FLOAT"))
    np.testing.assert_allclose(pcm.samples, tone(16_000) / channels, atol=1e-7)
    assert pcm.source_channels == channels


def test_blocks_join_to_the_whole() -> None:
    data = wav(tone(44_100, 25.3, 3000.0), 44_100)
    blocks = list(stream_audio(data))
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate(blocks), read_audio(data).samples)


def test_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros(16_000 * 30, np.float32))
    tracemalloc.start()
    count = sum(map(len, stream_audio(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20 * 30 * 16_000
    assert peak < 8 << 20


def fill(pipe: int, data: bytes) -> None:
    with os.fdopen(pipe, "wb") as file:
        file.write(data)


def test_paths_file_objects_and_pipes_give_the_same(tmp_path: Path) -> None:
    data = wav(tone(16_000))
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    reader, writer = os.pipe()
    threading.Thread(target=fill, args=(writer, data)).start()
    with os.fdopen(reader, "rb") as pipe, path.open("rb") as file:
        sources: list[Source] = [str(path), path, data, file, io.BytesIO(data), pipe]
        for source in sources:
            assert np.array_equal(read_audio(source).samples, read_audio(data).samples)
        assert not file.closed


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    data, path = wav(tone(16_000)), tmp_path / "fifo"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,)).start()
    assert len(read_audio(path).samples) == 16_000


def test_the_length_is_known_before_reading() -> None:
    with AudioFile(wav(tone(8_000, 3.0), 8_000)) as file:
        assert (file.seconds, file.rate, file.channels) == (3.0, 8_000, 1)


def with_nan() -> bytes:
    samples = tone(16_000)
    samples[9_000] = np.nan
    return wav(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is text and no sound", "is not sound in a known format"),
        (wav(tone(16_000))[:30], "is not sound in a known format"),
        (wav(np.empty(0, np.float32)), "holds no samples"),
        (wav(tone(16_000))[:44], "holds no samples"),
        (with_nan(), "NaN or infinite samples"),
        (wav(np.full(100, np.inf, np.float32), subtype="FLOAT"), "NaN or infinite samples"),
        (wav(tone(16_000), 7), "got 7 Hz"),
        (wav(tone(16_000), 2_000_000), "got 2000000 Hz"),
    ],
)
def test_bad_sound_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_audio(data)
    assert "\n" not in str(caught.value)


def test_a_damaged_flac_is_refused() -> None:
    data = bytearray(
        wav(np.random.default_rng(1).normal(0, 0.1, 32_000).astype(np.float32), form="FLAC")
    )
    data[8_000:20_000] = bytes(12_000)
    with pytest.raises(InputError, match=r"is damaged|NaN|not sound"):
        read_audio(bytes(data))


def noise(seconds: float, form: str) -> bytes:
    samples = np.random.default_rng(2).normal(0, 0.1, int(16_000 * seconds))
    kinds = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS", "FLAC": "PCM_16"}
    return wav(samples.astype(np.float32), subtype=kinds[form], form=form)


@pytest.mark.parametrize("form", ["MP3", "OGG", "FLAC"])
def test_two_files_in_one_are_not_taken_for_the_first(form: str) -> None:
    with pytest.raises(
        InputError, match=r"bytes after 20\.\d s cannot be read: it is several files"
    ):
        read_audio(noise(20, form) * 2)


def test_an_mp3_cut_short_is_not_taken_for_whole() -> None:
    data = noise(20, "MP3")
    with pytest.raises(InputError, match=r"of 20\.\d s: it is cut short"):
        read_audio(data[: len(data) // 2])


@pytest.mark.parametrize("form", ["MP3", "OGG", "FLAC"])
def test_tags_behind_the_sound_are_left_alone(form: str) -> None:
    pcm = read_audio(noise(20, form) + b"TAG" + bytes(30_000))
    assert abs(len(pcm.samples) / 16_000 - 20) < 0.2


def test_the_ending_of_a_name_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "talk.raw"
    path.write_bytes(wav(tone(16_000)))
    assert len(read_audio(path).samples) == 16_000


def test_missing_files_folders_and_locked_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.wav: cannot be read: No such file"):
        read_audio(tmp_path / "missing.wav")
    with pytest.raises(InputError, match="is a folder"):
        read_audio(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_audio("a\0b.wav")


def test_a_closed_file_object_is_refused() -> None:
    file = io.BytesIO(b"x")
    file.close()
    with pytest.raises(InputError, match="cannot be read"):
        read_audio(file)


def test_a_video_container_asks_for_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[video\]'"):
        read_audio(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42isom")


def encoded(form: str, codec: str, samples: F32, rate: int) -> bytes:
    """A file written with PyAV."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        track = container.add_stream(codec, rate=rate, layout="stereo")
        assert isinstance(track, av.AudioStream)
        pair = np.repeat(samples, 2)[None]
        frame = av.AudioFrame.from_ndarray(
            (pair * 32767).astype(np.int16), format="s16", layout="stereo"
        )
        frame.sample_rate = rate
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(("form", "codec"), [("mp4", "aac"), ("adts", "aac"), ("matroska", "aac")])
def test_containers_are_read_with_pyav(form: str, codec: str) -> None:
    pcm = read_audio(encoded(form, codec, tone(48_000, 2.0), 48_000))
    assert pcm.seconds == pytest.approx(2.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(pcm.samples[8_000:24_000]))
    assert np.argmax(spectrum) == 440


def test_a_broken_container_is_refused() -> None:
    with pytest.raises(InputError, match="looks like MP4"):
        read_audio(b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42isom" + bytes(100))
