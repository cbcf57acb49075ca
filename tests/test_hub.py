"""Downloading, against a hub of our own on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 64,
    "pytorch_model.bin": b"a pickle nobody wants",
    "README.md": b"# words",
}
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "norevision": (404, "RevisionNotFound"),
    "none": (401, "RepoNotFound"),
    "broken": (500, ""),
}
PROGRAM = """
import json, sys
from edgegemma.errors import InputError
from export.huggingface import fetch
for name in sys.argv[1:]:
    try:
        found = fetch(name)
        names = sorted(p.name for p in found.path.iterdir())
        print(json.dumps([found.id, found.revision, names]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


class Hub(BaseHTTPRequestHandler):
    """What `snapshot_download` asks of the hub."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        repository = path.removeprefix("/api/models").split("/")[2]
        headers = {"X-Repo-Commit": COMMIT}
        if repository in REFUSALS:
            code, reason = REFUSALS[repository]
            self.send(code, b"{}", {"X-Error-Code": reason, "X-Error-Message": reason}, body)
        elif path.startswith("/api/models/google/tiny/tree/"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                for name, data in FILES.items()
            ]
            self.send(200, json.dumps(files).encode(), headers, body)
        elif path.startswith("/api/models/google/tiny"):
            about: dict[str, Any] = {"id": "google/tiny", "sha": COMMIT}
            about["siblings"] = [{"rfilename": name} for name in FILES]
            self.send(200, json.dumps(about).encode(), headers, body)
        else:
            data = FILES[path.rpartition("/")[2]]
            self.send(200, data, headers | {"ETag": f'"{digest(data)}"'}, body)

    def send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(cache: Path, endpoint: str, *names: str, **extra: str) -> list[Any]:
    """Fetch in another process, as the hub's client reads its settings when it is imported."""
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = os.environ | settings | extra
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_download_takes_what_it_needs_and_is_pinned(tmp_path: Path, hub: str) -> None:
    want = ["google/tiny", COMMIT, ["config.json", "model.safetensors"]]
    assert fetch(tmp_path, hub, "google/tiny") == [want]
    # what was downloaded once is there without a network
    assert fetch(tmp_path, "http://127.0.0.1:1", "google/tiny", HF_HUB_OFFLINE="1") == [want]


def test_what_the_hub_refuses_is_said_in_one_line(tmp_path: Path, hub: str) -> None:
    said = fetch(tmp_path, hub, *(f"google/{name}" for name in REFUSALS))
    for message, part in zip(
        said,
        ("accept the licence", "no revision", "no such repository", "the hub cannot be reached"),
        strict=True,
    ):
        assert part in message
        assert "\n" not in message
