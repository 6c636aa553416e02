"""bdc beside torch and numpy alone: what needs more names the extra to install."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from bdc.doctor import _EXTRAS
from bdc.errors import MissingExtraError, needs_extra

ABSENT = f"import sys; sys.modules.update(dict.fromkeys({(*_EXTRAS['run'], 'huggingface_hub', 'tokenizers')}))\n"
CALLS = """
import asyncio, pathlib, bdc, bdc.llm
from bdc.errors import MissingExtraError
folder = pathlib.Path(sys.argv[1])
(folder / "config.json").write_text('{"model_type": "llama"}')
(folder / "model.safetensors").touch()
for call in (
    lambda: bdc.Solver.from_pretrained(folder),
    lambda: bdc.Solver.from_adapters([folder], "smollm2-135m-instruct"),
    lambda: bdc.llm.load_model("smollm2-135m-instruct"),
    lambda: bdc.llm.SentenceEncoder(),
    lambda: bdc.llm.resolve(folder),
    lambda: bdc.llm.Generation,
    lambda: asyncio.run(bdc.llm.Local(folder).complete([bdc.llm.Request(({"role": "user", "content": "x"},))])),
):
    try:
        call()
    except MissingExtraError as error:
        assert str(error).endswith(" is not installed; run pip install 'bdc[run]'"), error
    else:
        raise AssertionError(call)
"""


def bare(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ABSENT + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_calls_name_the_extra(tmp_path: object) -> None:
    done = bare(CALLS, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_command_line_names_the_extra_and_shows_the_help_of_a_benchmark() -> None:
    done = bare("from bdc.cli import main; sys.exit(main(sys.argv[1:]))", "bench", "solver", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "--requests" in done.stdout
    done = bare("from bdc.cli import main; sys.exit(main(sys.argv[1:]))", "bench", "solver", "--quick")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(" is not installed; run pip install 'bdc[run]'\n")


def test_a_package_is_named_where_transformers_says_a_sentence() -> None:
    sentence = "The 'tokenizers>=0.22' distribution was not found and is required by this application. \nTry: `pip`"
    named = r"^tokenizers is not installed; run pip install 'bdc\[run\]'$"
    with pytest.raises(MissingExtraError, match=named), needs_extra("run"):
        raise importlib.metadata.PackageNotFoundError(sentence)
