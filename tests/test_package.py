"""Opening a package: what is refused, by name, and what is never read into memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgegemma.engine import memory
from edgegemma.engine.dimensions import check_config
from edgegemma.errors import PackageError, UnsupportedError
from edgegemma.manifest import MANIFEST_LIMIT_BYTES
from edgegemma.package import Package
from tests import packages
from tests.fake_source import CONFIG

DIGEST = "0" * 64


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.small(tmp_path_factory.mktemp("packages") / "small")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "package"))


def change(folder: Path, *keys: str, value: Any) -> None:
    def edit(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    packages.edit_manifest(folder, edit)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_package_gives_its_config_prompts_and_files(original: Path) -> None:
    package = Package.open(original)
    assert package.config == CONFIG
    assert package.prompts == {"transcribe": "Transcribe."}
    assert package.file("decoder.onnx") == original / "decoder.onnx"
    assert package.read("decoder.onnx", 1 << 20) == (original / "decoder.onnx").read_bytes()


def test_a_map_is_the_file_and_cannot_be_written(original: Path) -> None:
    mapped = Package.open(original).map("decoder.bin")
    assert mapped.tobytes() == (original / "decoder.bin").read_bytes()
    assert not mapped.flags.writeable


def test_a_file_is_mapped_once_and_counted(original: Path) -> None:
    package = Package.open(original)
    assert package.map("decoder.bin") is package.map("decoder.bin")
    assert package.mapped_bytes == package.members["decoder.bin"].size


def test_an_empty_file_maps_to_nothing(folder: Path) -> None:
    (folder / "empty.bin").touch()
    packages.sign(folder)
    assert Package.open(folder).map("empty.bin").size == 0


def test_files_close_with_the_package(original: Path) -> None:
    before = open_files()
    package = Package.open(original)
    package.read_rows("decoder.bin", 0, 16, [0])
    package.close()
    assert open_files() == before


def test_rows_are_the_bytes_of_the_file(original: Path) -> None:
    package = Package.open(original)
    indices = [5, 0, 5, 2]
    rows = package.read_rows("embed_tokens.bin", 4096, 24, indices)
    data = np.frombuffer((original / "embed_tokens.bin").read_bytes(), np.uint8)
    want = np.stack([data[4096 + 24 * i : 4096 + 24 * (i + 1)] for i in indices])
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(package.read_rows("embed_tokens.bin", 4096, 24, indices), want)


def test_no_rows_are_no_rows(original: Path) -> None:
    rows = Package.open(original).read_rows("decoder.bin", 0, 8, [])
    assert rows.shape == (0, 8)


@pytest.mark.parametrize(
    ("offset", "row_bytes", "index"),
    [(0, 64, 1 << 40), (0, 64, -1), (-64, 64, 1), (0, 0, 0), (0, -64, 0)],
)
def test_rows_outside_the_file_are_refused(
    original: Path, offset: int, row_bytes: int, index: int
) -> None:
    with pytest.raises(PackageError, match=r"^decoder\.bin: got .*row.*; want"):
        Package.open(original).read_rows("decoder.bin", offset, row_bytes, [index])


def test_rows_of_a_large_table_do_not_become_resident(tmp_path: Path, original: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "package"))
    size = 512 << 20
    with (folder / "table.bin").open("wb") as file:
        file.truncate(size)  # a hole: no disk either
    change(folder, "files", "table.bin", value={"size": size, "sha256": DIGEST})
    package = Package.open(folder)
    indices = np.random.default_rng(0).integers(0, size // 2240, 4096)
    before = memory.resident_bytes()
    for part in np.split(indices, 16):
        package.read_rows("table.bin", 0, 2240, part.tolist())
    assert memory.resident_bytes() - before < 12 << 20  # the cache of rows holds 4 MiB


def test_verify_reads_everything_and_says_how_far_it_is(original: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    package = Package.open(original, verify=True, progress=lambda *step: seen.append(step))
    total = sum(member.size for member in package.members.values())
    assert seen[-1][1:] == (total, total)
    assert {name for name, _, _ in seen} == set(package.members)


def test_verify_finds_one_wrong_bit(folder: Path) -> None:
    data = bytearray((folder / "decoder.bin").read_bytes())
    data[1234] ^= 1
    (folder / "decoder.bin").write_bytes(data)
    Package.open(folder)
    with pytest.raises(PackageError, match=r"^decoder\.bin: got sha256 .*; want .*; copy"):
        Package.open(folder, verify=True)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "",
        ".",
        "a//b",
        "a\\b",
        "a\0b",
        "a\nb",
        "~",
        "ü",
        "/",
        "a/",
    ],
)
def test_unsafe_names_are_refused(folder: Path, name: str) -> None:
    change(folder, "files", name, value={"size": 0, "sha256": DIGEST})
    with pytest.raises(PackageError, match="not a safe relative path"):
        Package.open(folder)


def test_a_link_out_of_the_package_is_refused(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    (folder / "link").symlink_to("../secret")
    change(folder, "files", "link", value={"size": 1, "sha256": DIGEST})
    with pytest.raises(PackageError, match=r"^link: a link out of the package"):
        Package.open(folder)


def test_a_link_inside_the_package_is_followed(folder: Path) -> None:
    (folder / "link").symlink_to("decoder.bin")
    packages.sign(folder)
    package = Package.open(folder)
    assert package.map("link").size == package.map("decoder.bin").size


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "nothing"])
def test_only_regular_files_are_members(folder: Path, kind: str) -> None:
    path = folder / "odd"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to("odd")
    change(folder, "files", "odd", value={"size": 0, "sha256": DIGEST})
    with pytest.raises(PackageError, match=r"^odd: (not a regular file|cannot be opened)"):
        Package.open(folder)


def test_a_file_of_another_size_is_refused(folder: Path) -> None:
    with (folder / "decoder.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(PackageError, match=r"^decoder\.bin: got \d+ bytes; want \d+; copy"):
        Package.open(folder)


def test_a_file_that_shrinks_later_is_noticed(folder: Path) -> None:
    package = Package.open(folder)
    os.truncate(folder / "decoder.bin", 100)
    with pytest.raises(PackageError, match=r"^decoder\.bin: got 100 bytes"):
        package.map("decoder.bin")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("format_version", 2),
        ("format_version", True),
        ("function_version", "1"),
    ],
)
def test_other_formats_are_unsupported(folder: Path, key: str, value: object) -> None:
    change(folder, key, value=value)
    with pytest.raises(UnsupportedError, match=rf"^manifest\.json: {key}: got .*; want"):
        Package.open(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", -1), ("size", 1.5), ("size", True), ("sha256", "x"), ("sha256", None)],
)
def test_entries_of_files_have_types(folder: Path, field: str, value: object) -> None:
    change(folder, "files", "decoder.bin", field, value=value)
    with pytest.raises(
        PackageError, match=rf"^manifest\.json: files: 'decoder\.bin': {field}: got"
    ):
        Package.open(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "NaN", '{"a": 1e999, "b": Infinity}', "[" * 100_000, "\ud800", "1" * 5000],
)
def test_a_manifest_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PackageError, match=r"^manifest\.json: "):
        Package.open(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(MANIFEST_LIMIT_BYTES + 1)
    with pytest.raises(PackageError, match=r"^manifest\.json: got \d+ bytes; want at most"):
        Package.open(folder)


@pytest.mark.parametrize("path", ["/nowhere", "a\0b", "/dev/null"])
def test_a_place_that_is_no_package_is_refused(path: str) -> None:
    with pytest.raises(PackageError):
        Package.open(path)


def test_prompts_are_text(folder: Path) -> None:
    change(folder, "prompts", value={"a": 1})
    with pytest.raises(PackageError, match="prompts"):
        Package.open(folder)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text", "hidden_size", 0),
        ("text", "hidden_size", 1 << 30),
        ("text", "rms_norm_eps", 10**400),
        ("text", "num_hidden_layers", 8),
        ("text", "layer_types", ["other"] * 7),
        ("text", "num_kv_shared_layers", 7),
        ("text", "num_kv_shared_layers", 6),
        ("text", "num_key_value_heads", 3),
        ("text", "rms_norm_eps", -1.0),
        ("audio", "window", 0),
        ("audio", "num_attention_heads", 3),
        ("audio", "subsampling_conv_channels", [8]),
        ("tokens", "eos", [1, 1 << 20]),
        ("tokens", "audio", -1),
    ],
)
def test_dimensions_that_make_no_sense_are_refused(
    folder: Path, section: str, field: str, value: object
) -> None:
    change(folder, "config", section, field, value=value)
    with pytest.raises(PackageError, match=r"^manifest\.json: config"):
        check_config(Package.open(folder).config)


def test_an_unlisted_file_is_not_a_member(original: Path) -> None:
    with pytest.raises(PackageError, match=r"'manifest\.json' is not among its files"):
        Package.open(original).file("manifest.json")


def test_a_member_larger_than_the_reader_wants_is_not_read(original: Path) -> None:
    with pytest.raises(PackageError, match=r"^decoder\.onnx: got \d+ bytes; want at most 10"):
        Package.open(original).read("decoder.onnx", 10)


def test_the_manifest_is_plain_json(original: Path) -> None:
    assert Package.open(original).manifest == json.loads((original / "manifest.json").read_text())
