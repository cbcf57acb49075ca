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
from edgegemma.cli import running
from edgegemma.errors import PackageError
from edgegemma.text.sampler import Sampling

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


def caller(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Call:
    """Run a command as `main` would, in a folder and a model folder of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEGEMMA_MODELS", str(folder / "models"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(application.app, list(map(str, arguments)), input=stdin)

    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    return caller(monkeypatch, tmp_path)


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


def test_an_empty_answer_says_so(call: Call, answered: SimpleNamespace) -> None:
    answered.answer = Answer()
    result = call("run", "m", "Is it?")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr == "edgegemma: the model ended its answer at once, without text\n"


def test_an_answer_that_was_cut_says_so(call: Call, answered: SimpleNamespace) -> None:
    figures = {**vars(Answer.summary), "stop": "length"}
    answered.answer.summary = SimpleNamespace(**figures)
    result = call("run", "m", "Is it?")
    assert (result.exit_code, result.stdout) == (0, "It is so.\n")
    assert result.stderr.startswith("edgegemma: cut after 2 tokens: --max-tokens")


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


def test_what_is_no_default_of_sampling_is_left_alone() -> None:
    data = json.dumps({"do_sample": True, "forbidden": 5, "seed": 1.5, "logprobs": 3}).encode()
    package: Any = SimpleNamespace(members={"generation_config.json"}, read=lambda *_: data)
    assert running.sampling(package, {}) == Sampling(1.0)


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 100_000])
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
