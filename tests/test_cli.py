"""The command line: what goes to stdout, what to stderr, and how a user's mistake ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from edgegemma import __version__, models
from edgegemma.cli import app as application
from edgegemma.cli import running, transcribing
from edgegemma.errors import InputError, PackageError
from edgegemma.listen.events import Commit, Event, Final, Word
from edgegemma.listen.stats import Stats

COMMANDS = (
    *("listen", "transcribe", "translate"),
    "run",
    "export",
    "inspect",
    "models",
    "warmup",
    "doctor",
)

Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run a command as `main` would, in a folder and a model folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEGEMMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(application.app, list(map(str, arguments)), input=stdin)

    return run


def finals(*texts: str, stop: str = "stop") -> list[Event]:
    """One utterance of a second and a half every two seconds for each text."""
    events: list[Event] = []
    for i, text in enumerate(texts):
        start, end = 2.0 * i, 2.0 * i + 1.5
        if text:
            events.append(Commit(text, start, end, (Word(text, start, end),)))
        events.append(Final(text, start, end, "silence", stop, 3, 0.1))
    return events


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model: what each source is heard as; an exception is raised instead."""
    said: dict[str, Any] = {}

    class Heard:
        def __init__(self, _model: object, source: Any, _task: object, **options: Any) -> None:
            self._name, self._done = source.name, options["done"] / 16_000
            self.heard_s, self.stats = 5.5, Stats()

        def __iter__(self) -> Iterator[Event]:
            for event in said.get(self._name, [InputError(f"{self._name}: cannot be read")]):
                if isinstance(event, BaseException):
                    raise event
                if event.start_s >= self._done:
                    yield event

    class Sound:
        live, backlog_s, overflows, lost, seconds = False, 0.0, 0, None, 5.5

        def __init__(self, source: Any) -> None:
            self.name = source if isinstance(source, str) else source.read().decode()

        def close(self) -> None:
            pass

    package = SimpleNamespace(prompts={})
    monkeypatch.setattr(transcribing, "load", lambda *_: SimpleNamespace(package=package))
    monkeypatch.setattr("edgegemma.transcribe.recording", Sound)
    monkeypatch.setattr("edgegemma.listen.listener.Listener", Heard)
    return said


def one_line(result: Result) -> str:
    """The single line a failed command leaves on stderr."""
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return line


def test_help_shows_every_command_and_an_example_of_each(call: Call) -> None:
    overview = call("--help").stdout
    for name in COMMANDS:
        assert name in overview
        assert re.search(rf"(^|\W)edgegemma {name}", call(name, "--help").stdout), name


def test_readme_shows_commands_and_options_that_exist() -> None:
    commands = get_command(application.app).commands  # type: ignore[attr-defined]
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    shown = re.findall(r"^(?:\$ )?edgegemma (\w+)(.*)$", text, re.MULTILINE)
    assert {name for name, _ in shown} >= {"transcribe", "run", "export"}
    for name, rest in shown:
        known = {opt for parameter in commands[name].params for opt in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][\w-]*", rest.partition("#")[0])) <= known, name


def test_version_is_the_packages(call: Call) -> None:
    assert call("--version").stdout == f"edgegemma {__version__}\n"


def test_unknown_model_is_one_line_that_says_where_it_looked(call: Call) -> None:
    line = one_line(call("inspect", "nothing"))
    assert line.startswith("edgegemma: model 'nothing': no such package")


def test_a_folder_without_manifest_is_no_package(call: Call, tmp_path: Path) -> None:
    assert "without manifest.json" in one_line(call("inspect", tmp_path))


def test_transcript_is_a_line_an_utterance_and_alone_on_stdout(
    call: Call, heard: dict[str, Any]
) -> None:
    heard["a.wav"] = finals("one two", "", "three")
    result = call("transcribe", "a.wav", "--stats")
    assert result.exit_code == 0
    assert result.stdout == "one two\nthree\n"
    assert "a.wav: 5.5 s of sound" in result.stderr
    assert "peak memory" in result.stderr


def test_transcript_as_json_is_one_object_a_file(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two", "Größe")}
    result = call("transcribe", "a.wav", "b.wav", "--format", "json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["file"], first["text"]) == ("a.wav", "one")
    assert second["passages"][1] == {"start": 2.0, "end": 3.5, "text": "Größe", "stop": "stop"}


def test_transcript_as_json_lines_is_an_event_a_line(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two", "Größe")}
    result = call("transcribe", "a.wav", "b.wav", "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    texts = [(row["file"], row["text"]) for row in rows if row["type"] == "final"]
    assert texts == [("a.wav", "one"), ("b.wav", "two"), ("b.wav", "Größe")]


def test_transcript_as_subtitles(call: Call, heard: dict[str, Any]) -> None:
    heard["a.wav"] = finals("one")
    assert call("transcribe", "a.wav", "-f", "srt").stdout == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n\n"
    )
    assert call("transcribe", "a.wav", "-f", "vtt").stdout.startswith("WEBVTT\n\n00:00:00.000 -->")


def test_sound_comes_from_stdin(call: Call, heard: dict[str, Any]) -> None:
    heard["RIFF"] = finals("from a pipe")
    assert call("transcribe", "-", stdin=b"RIFF").stdout == "from a pipe\n"


def test_several_files_are_named_and_a_bad_one_does_not_stop_them(
    call: Call, heard: dict[str, Any]
) -> None:
    heard |= {"a.wav": finals("one"), "c.wav": finals("three")}
    result = call("transcribe", "a.wav", "b.wav", "c.wav")
    assert result.stdout.splitlines() == ["a.wav:", "one", "b.wav:", "c.wav:", "three"]
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "edgegemma: b.wav: cannot be read",
        "edgegemma: 1 of 3 files could not be transcribed",
    ]


def test_output_file_appears_when_it_is_complete(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard["a.wav"] = finals("one")
    assert call("transcribe", "a.wav", "-o", "a.txt").stdout == ""
    assert (tmp_path / "a.txt").read_text() == "one\n"
    heard["b.wav"] = [InputError("b.wav: is damaged after 2.0 s")]
    assert one_line(call("transcribe", "b.wav", "-o", "b.srt", "-f", "srt")).endswith("2.0 s")
    heard["c.wav"] = [*finals("half"), KeyboardInterrupt()]
    assert one_line(call("transcribe", "c.wav", "-o", "a.txt")) == "edgegemma: interrupted"
    assert (tmp_path / "a.txt").read_text() == "one\n"


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "json", "jsonl"])
def test_an_interrupted_run_goes_on_and_gives_what_a_whole_one_gives(
    call: Call, heard: dict[str, Any], tmp_path: Path, form: str
) -> None:
    heard["a.wav"] = finals("one", "two", "three")
    call("transcribe", "a.wav", "-f", form, "-o", "whole")
    heard["a.wav"] = [*finals("one", "two", "three")[:4], InputError("a.wav: the disk is gone")]
    call("transcribe", "a.wav", "-f", form, "-o", "out")
    assert not (tmp_path / "out").exists()
    heard["a.wav"] = finals("ONE", "two", "three")  # what is done is not heard again
    assert call("transcribe", "a.wav", "-f", form, "-o", "out", "--resume").exit_code == 0
    assert (tmp_path / "out").read_text() == (tmp_path / "whole").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_run_goes_on_only_with_the_same_recording_and_task(
    call: Call, heard: dict[str, Any]
) -> None:
    heard["a.wav"] = [*finals("one", "two")[:3], InputError("a.wav: the disk is gone")]
    call("transcribe", "a.wav", "-o", "out")
    line = one_line(call("transcribe", "a.wav", "-o", "out", "--resume", "-l", "fr"))
    assert "of another recording, model or task" in line
    assert "wants --output" in one_line(call("transcribe", "a.wav", "--resume"))


def test_a_translation_to_an_unknown_language_is_one_line(call: Call) -> None:
    assert "did you mean Spanish" in one_line(call("translate", "a.wav", "--to", "spannish"))


def test_several_subtitles_want_a_folder(call: Call, heard: dict[str, Any], tmp_path: Path) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two")}
    assert "--output FOLDER" in one_line(call("transcribe", "a.wav", "b.wav", "-f", "srt"))
    assert call("transcribe", "a.wav", "b.wav", "-f", "srt", "-o", "subs").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "subs").iterdir()) == ["a.srt", "b.srt"]


def test_names_that_would_meet_in_the_folder_are_refused(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"x/a.wav": finals("one"), "y/a.mp3": finals("two")}
    line = one_line(call("transcribe", "x/a.wav", "y/a.mp3", "-o", "subs"))
    assert "a.txt" in line


def test_a_runaway_text_is_reported(call: Call, heard: dict[str, Any]) -> None:
    heard["a.wav"] = finals("so so so so", stop="loop")
    result = call("transcribe", "a.wav")
    assert result.stdout == "so so so so\n"
    assert "0.0 to 1.5 s: the model repeated itself" in result.stderr


class Answer:
    """Stands in for a generation."""

    summary = SimpleNamespace(
        prompt_tokens=5, new_tokens=2, prefill_s=0.5, decode_s=0.1, tokens_per_s=10.0,
        prefill_per_s=10.0, stop="stop",
    )  # fmt: skip

    def __init__(self, *tokens: Any) -> None:
        self._tokens = iter(tokens)
        self.text = "".join(t for t in tokens if isinstance(t, str))

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for token in self._tokens:
            if isinstance(token, BaseException):
                raise token
            yield SimpleNamespace(text=token)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the model of `run`: give ``answer``, keep what was asked."""
    spy = SimpleNamespace(answer=Answer("It", " is", " so."), asked=None, sampling=None)
    package = SimpleNamespace(members={}, prompts={"transcribe": "Transcribe."})
    monkeypatch.setattr(running, "load", lambda *_: SimpleNamespace(package=package))
    monkeypatch.setattr("edgegemma.text.tokenizer.Tokenizer", lambda _: None)

    def prompt(*arguments: Any) -> Any:
        spy.asked = arguments[2:]

    def generate(_model: Any, _tokenizer: Any, _prompt: Any, how: Any, **_: Any) -> Answer:
        spy.sampling = how
        answer: Answer = spy.answer
        return answer

    monkeypatch.setattr(running, "_prompt", prompt)
    monkeypatch.setattr("edgegemma.generate.generate", generate)
    return spy


def test_answer_streams_to_stdout_with_figures_on_stderr(
    call: Call, answered: SimpleNamespace
) -> None:
    result = call("run", "m", "Is it?", "--stats")
    assert result.stdout == "It is so.\n"
    assert "answer 2 tokens" in result.stderr
    assert answered.asked == ("Is it?", None, None, False)
    record = json.loads(call("run", "m", "Is it?", "--json").stdout)
    assert record["stop"] == "stop"


def test_prompt_comes_from_stdin(call: Call, answered: SimpleNamespace) -> None:
    call("run", "m", stdin="Größe?\n".encode())
    assert answered.asked[0] == "Größe?\n"
    assert "not UTF-8 at byte 1" in one_line(call("run", "m", "-", stdin=b"a\xff"))
    assert "got no text" in one_line(call("run", "m", stdin=b" \n"))


def test_interrupted_answer_keeps_its_text(call: Call, answered: SimpleNamespace) -> None:
    answered.answer = Answer("It", KeyboardInterrupt())
    result = call("run", "m", "Is it?")
    assert result.stdout == "It\n"
    assert one_line(result) == "edgegemma: interrupted"


def test_raw_prompt_has_no_place_for_sound(call: Call, answered: SimpleNamespace) -> None:
    assert "--raw" in one_line(call("run", "m", "x", "--raw", "--audio", "a.wav"))


@pytest.mark.parametrize(
    ("config", "asked", "want"),
    [
        (None, {}, {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, {}, {"temperature": 0.0}),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": 1}, {},
         {"temperature": 1.0, "top_k": 64, "top_p": 0.95}),
        ({"do_sample": True, "top_k": 64}, {"temperature": 0.0, "top_k": None},
         {"temperature": 0.0, "top_k": 64}),
    ],
)  # fmt: skip
def test_sampling_is_the_packages_unless_asked(
    config: dict[str, Any] | None, asked: dict[str, Any], want: dict[str, Any]
) -> None:
    data = json.dumps(config).encode()
    name = "generation_config.json"
    package: Any = SimpleNamespace(members={name} if config else {}, read=lambda *_: data)
    got = running.sampling(package, asked)
    assert {k: getattr(got, k) for k in want} == want


@pytest.mark.parametrize("content", [b"[]", b"{"])
def test_broken_generation_config_is_the_packages_fault(content: bytes) -> None:
    name = "generation_config.json"
    package: Any = SimpleNamespace(members={name}, read=lambda *_: content)
    with pytest.raises(PackageError, match=name):
        running.sampling(package, {})


def test_a_broken_package_is_listed_as_broken(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "odd"
    folder.mkdir(parents=True)
    (folder / models.MANIFEST).write_text('{"format": "other"}')
    rows = {row["name"]: row for row in json.loads(call("models", "--json").stdout)}
    assert "format" in rows["odd"]["error"]
    assert "broken" in call("models").stdout
