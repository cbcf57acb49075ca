"""Build the wheel, look at what is in it, and run its entry point where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"edgegemma", "quant", "export", "bench"}
DEMO = "edgegemma/data/demo/manifest.json"


def build(folder: Path) -> Path:
    """Build the wheel from the checkout with the environment's own hatchling."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def faults(names: list[str]) -> list[str]:
    """Say what is in the wheel and should not be, or should be and is not."""
    found = []
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != PACKAGES:
        found.append(f"top-level names: got {sorted(tops)}; want {sorted(PACKAGES)}")
    tests = [n for n in names if "tests/" in n or Path(n).name.startswith(("test_", "conftest"))]
    if tests:
        found.append(f"test files: {tests}")
    data = [p for p in (ROOT / "edgegemma/data").rglob("*") if p.is_file()]
    wanted = {DEMO} | {str(p.relative_to(ROOT)) for p in data if "__pycache__" not in p.parts}
    if missing := sorted(wanted - set(names)):
        found.append(f"package data that is missing: {missing}")
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    if not {"LICENSE", "NOTICE"} <= licences:
        found.append(f"licence files: got {sorted(licences)}; want LICENSE and NOTICE")
    return found


def run_outside(wheel: Path, folder: Path) -> None:
    """Install the wheel into a fresh environment and run its commands in an empty folder."""
    venv.create(folder / "env", with_pip=True)
    bin_ = folder / "env" / "bin"
    pip = [str(bin_ / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    empty = folder / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def answer(*arguments: str) -> str:
        command = [str(bin_ / "edgegemma"), *arguments]
        done = subprocess.run(
            command, cwd=empty, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    assert "transcribe" in answer("--help")
    names = [model["name"] for model in json.loads(answer("models", "--json"))]
    assert "demo" in names, f"the installed wheel finds no demo model, only {names}"
    json.loads(answer("inspect", "demo", "--json"))


def main() -> None:
    """Fail with a list of what is wrong."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = build(folder / "dist")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        if found := faults(names):
            sys.exit(f"{wheel.name}: " + "; ".join(found))
        run_outside(wheel, folder)
        sys.stdout.write(f"{wheel.name}: {len(names)} files, in order\n")


if __name__ == "__main__":
    main()
