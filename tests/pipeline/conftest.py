"""A whole pipeline that takes seconds: agents behind a real HTTP server, a tiny model, a tiny encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chat_server import ChatServer

from bdc.llm import Completion, Request

WORDS = ("sort", "count", "reverse", "join")
TRAIN, VALIDATION, TEST = 8, 2, 3


class Textbook:
    """Agents that know the answers: of three programs one is wrong, and which is a function of the request's seed."""

    name, batch_size = "textbook", None

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        question = request.messages[-1]["content"]
        number = re.search(r"plus (\d+)", question)
        assert number is not None
        if "Suggest" in question:
            text = f"1. Add {number.group(1)} to the number. (8)\n2. Count up from the number. (3)"
        elif "Rewrite" in question:
            text = "Add the two numbers with the plus operator."
        else:
            offset = int(number.group(1)) + (request.seed % 3 == 0)
            text = f"```python\ndef f(x):\n    return x + {offset}\n```"
        return Completion(text, len(question) // 4, len(text) // 4, "stop", 0.0)

    async def close(self) -> None:
        return None


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """The agents' server; ``bodies`` are the requests it got."""
    with ChatServer(Textbook()) as running:
        yield running


def write_problems(path: Path, count: int = TRAIN + VALIDATION + TEST) -> Path:
    """``count`` problems as plain JSONL."""
    lines = []
    for index in range(count):
        tests = [{"kind": "call", "entry_point": "f", "args": f"({x},)", "expected": str(x + index)} for x in range(4)]
        problem = {
            "id": f"p/{index}",
            "statement": f"def f(x):\n    {WORDS[index % 4]} {WORDS[index % 3]}: x plus {index}",
            "entry_point": "f",
            "public_tests": tests[:2],
            "private_tests": tests[2:],
            "solution": f"def f(x):\n    return x + {index}\n",
        }
        lines.append(json.dumps(problem))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, server: ChatServer, tiny: Path, tiny_encoder: Path) -> Path:
    """A configuration of all five stages."""
    problems = write_problems(tmp_path / "problems.jsonl")
    path = tmp_path / "small.toml"
    agents = "".join(
        f'[[agents]]\nname = "{name}"\nmodel = "{name}"\nbackend = "openai"\nbase_url = "{server.url}"\nconcurrency = 4\n'
        for name in ("left", "right")
    )
    path.write_text(
        f"""seed = 0
[problems]
sources = ["jsonl:{problems}"]
train = {TRAIN}
validation = {VALIDATION}
test = {TEST}
{agents}
[boost]
rollouts = 3
width = 2
programs_per_agent = 1
[sandbox]
workers = 1
[disentangle]
base_model = "{tiny}"
encoder = "{tiny_encoder}"
dtype = "float32"
k = 2
min_cluster_size = 2
rank = 2
epochs = 2
batch_size = 2
lr = 1e-2
dropout = 0.1
[customize]
epochs = 2
batch_size = 2
hidden = 8
[evaluate]
systems = ["zero-shot", "single-lora", "nearest", "uniform", "bdc", "experts", "search"]
program_tokens = 12
bootstrap = 100
""",
        encoding="utf-8",
    )
    return path
