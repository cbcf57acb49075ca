"""A microphone on a machine without sound hardware: a sound server whose outputs are recorded.

PulseAudio plays into null sinks; their monitors are sources, which ALSA's pulse plugin and hence PortAudio can open
under the names given here. Two devices: ``vmic`` at 16 kHz mono, the default, and ``cd`` at 44.1 kHz stereo. PortAudio
looks for devices once in a process, so what records runs in one of its own, with `VirtualMicrophone.environment`.

Play only after the first block has been recorded: what is played while a stream opens is lost.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import time
from pathlib import Path

SINKS = {"vmic": "rate=16000 channels=1", "cd": "rate=44100 channels=2"}
PLUGIN = "libasound_module_pcm_pulse.so"
ALSA = Path("/usr/share/alsa/alsa.conf")
INSTALL = "apt install pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"


def missing() -> str | None:
    """Say what this machine lacks, if anything."""
    wanted = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
    if ctypes.util.find_library("portaudio") is None:
        wanted.append("PortAudio")
    if not ALSA.exists() or not any(Path("/usr/lib").glob(f"*/alsa-lib/{PLUGIN}")):
        wanted.append("ALSA's pulse plugin")
    return f"no {', '.join(wanted)}; {INSTALL}" if wanted else None


class VirtualMicrophone:
    """See the module. A context manager.

    Attributes
    ----------
    environment : dict
        for processes that record
    """

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self._folder = folder
        conf = folder / "asound.conf"
        conf.write_text(
            "".join(
                f'pcm.{name} {{ type pulse device "{name}.monitor" '
                f'hint {{ show on description "virtual {name}" }} }}\n'
                for name in SINKS
            )
        )
        self.environment = os.environ | {
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder / "pulse"),
            "PULSE_SERVER": f"unix:{folder / 'pulse' / 'native'}",
            "ALSA_CONFIG_PATH": f"{ALSA}:{conf}",
        }
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VirtualMicrophone:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server with all devices."""
        shutil.rmtree(self._folder / "pulse", ignore_errors=True)
        options = "-n --daemonize=no --exit-idle-time=-1 --use-pid-file=no --log-target=stderr"
        with (self._folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                ["pulseaudio", *options.split(), "-L", "module-native-protocol-unix"],
                env=self.environment,
                stderr=log,
            )
        until = time.monotonic() + 10
        while self._control("info", check=False).returncode:
            if time.monotonic() > until or self._server.poll() is not None:
                raise RuntimeError((self._folder / "server.log").read_text())
            time.sleep(0.05)
        for name in SINKS:
            self.plug(name)
        self._control("set-default-source", "vmic.monitor")

    def kill(self) -> None:
        """End the server at once: every device is gone."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def plug(self, name: str) -> None:
        """Plug a device in."""
        sink = f"sink_name={name} format=s16le norewinds=1 {SINKS[name]}"
        self._control("load-module", "module-null-sink", *sink.split())

    def unplug(self, name: str) -> None:
        """Unplug a device."""
        modules = self._control("list", "short", "modules").stdout.splitlines()
        (number,) = (line.split()[0] for line in modules if f"sink_name={name} " in line)
        self._control("unload-module", number)

    def say(self, sound: Path, device: str = "vmic") -> subprocess.Popen[bytes]:
        """Begin to play a sound file into a device's microphone."""
        return subprocess.Popen(["paplay", f"--device={device}", sound], env=self.environment)

    def _control(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["pactl", *command], env=self.environment, check=check, capture_output=True, text=True
        )
