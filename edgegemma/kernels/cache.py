"""Where compiled kernels are kept, and when a kept one may be used.

Numba by itself looks at the one file a function is in. A kernel here is made of several files and of
the vector path chosen in `cpu`, so its stamp is the content of every kernel file it imports, and each
path has a folder of its own. ``NUMBA_CACHE_DIR`` moves the root.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from numba.core import caching, config
from numba.core.runtime.nrt import rtsys

from edgegemma.kernels import cpu

HERE = Path(__file__).resolve().parent
_IMPORT = re.compile(r"^\s*(?:from|import) edgegemma\.kernels(?:\.(\w+)| import ([\w, ]+))", re.M)
log = logging.getLogger(__name__)


class KernelLocator(caching._CacheLocator):
    """Tells Numba's cache about functions defined in this package; leaves others to Numba."""

    def __init__(self, py_func: Any, file: Path) -> None:
        self._file = file
        self._folder = root() / cpu.target().path
        self._line = py_func.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Self | None:
        """Give a locator for a function of this package."""
        file = Path(py_file).resolve()
        return cls(py_func, file) if file.parent == HERE else None

    def get_cache_path(self) -> str:
        """Give the folder of the chosen vector path."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """Give the content hash a kept kernel must have been made from."""
        return stamp(self._file.stem)

    def get_disambiguator(self) -> str:
        """Tell functions of one name apart."""
        return str(self._line)


def install() -> None:
    """Have Numba ask `KernelLocator` first, and load what it keeps without preparing to compile."""
    ours = f"{__name__}.{KernelLocator.__name__}"
    others = [c.__name__ for c in caching.CacheImpl._locator_classes]
    settings = vars(config)
    wanted = [name for name in settings["CACHE_LOCATOR_CLASSES"].split(",") if name.strip()]
    if ours not in wanted:
        settings["CACHE_LOCATOR_CLASSES"] = ",".join([ours, *(wanted or others)])
        _load_at_once()


def _load_at_once() -> None:
    """Load kept kernels without the registries of everything Numba can compile, and one process at a time save them.

    Numba fills the registries before it looks into its cache, which takes 0.4 s and 40 MB; loading machine code needs
    only its runtime. Where nothing is kept, the compiler fills them itself. Two processes that save kernels of one
    function at once would overwrite each other's.
    """
    numbas: Any = caching.Cache
    load, save = numbas.load_overload, numbas.save_overload

    def load_overload(cache: Any, signature: Any, context: Any) -> Any:
        if not isinstance(cache._impl.locator, KernelLocator):
            return load(cache, signature, context)
        rtsys.initialize(context)
        with _locked(fcntl.LOCK_SH), cache._guard_against_spurious_io_errors():
            return cache._load_overload(signature, context)

    def save_overload(cache: Any, signature: Any, result: Any) -> None:
        try:
            with _locked(fcntl.LOCK_EX):
                save(cache, signature, result)
        except OSError as error:  # it works, and is compiled again the next time
            log.warning("%s: a compiled kernel cannot be kept: %s", root(), error.strerror)

    numbas.load_overload, numbas.save_overload = load_overload, save_overload


@contextmanager
def _locked(how: int) -> Iterator[None]:
    """Hold the root's lock. Where there can be none, as on a disk that is only read, nobody saves either."""
    with ExitStack() as stack:
        with suppress(OSError):
            root().mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((root() / "lock").open("a")), how)
        yield


@functools.cache
def root() -> Path:
    """Give the folder of all kept kernels; a temporary one when none can be written."""
    chosen = vars(config)["CACHE_DIR"] or os.environ.get("XDG_CACHE_HOME")
    base = Path(chosen or Path.home() / ".cache")
    folder = base / "edgegemma-kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning("%s: %s; kernels are compiled for this process only", folder, error.strerror)
        folder = Path(tempfile.mkdtemp(prefix="edgegemma-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def stamp(module: str) -> str:
    """Hash the sources of a kernel module and of all kernel modules it imports."""
    sources: dict[str, bytes] = {}
    waiting = [module, "cpu"]
    while waiting:
        name = waiting.pop()
        file = HERE / f"{name}.py"
        if name in sources or not file.exists():
            continue
        sources[name] = file.read_bytes()
        for one, several in _IMPORT.findall(sources[name].decode()):
            waiting += [one] if one else re.findall(r"\w+", several)
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name])
    return digest.hexdigest()
