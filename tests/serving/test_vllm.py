"""The solver in vLLM: a real engine and a real server, whose answers are the solver's own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bdc import Solver
from bdc.customize.storage import SolverParts
from bdc.errors import InputError
from bdc.llm.base import storable
from bdc.serving import Gate
from bdc.serving.wire import KEY

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed: `make test-vllm` installs it beside"
    ),
    pytest.mark.usefixtures("vllm_on_a_cpu"),
]
QUESTIONS = ["sort numbers", "count letters", "add two numbers", "reverse a word", "is it even?", "find the largest"]
# Prompts longer than a block of the cache that all share, so that vLLM reuses what others have computed.
PREFIX = "Answer in one line, and think before you do. " * 5
WEIGHTS = ["hypernetwork", 0, 1, 2, "none", "uniform", "nearest"]


@contextlib.contextmanager
def engine(base: Path, solver: Path, **options: Any) -> Iterator[Any]:
    import vllm

    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4}
    settings["gpu_memory_utilization"] = 0.3  # also of a machine's memory, of which others use some
    llm = vllm.LLM(
        model=str(base),
        worker_cls="bdc.serving.worker.Worker",
        **settings | {"additional_config": {"bdc_solver": str(solver), "bdc_cache_salts": True}} | options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def ask(llm: Any, gate: Gate, asked: list[tuple[str, Any]], tokens: int = 12) -> list[str]:
    """vLLM's answers to questions under weights."""
    import vllm

    tickets = gate.tickets([question for question, _ in asked], [weights for _, weights in asked])
    prompts, settings = [], []
    tokenizer = llm.get_tokenizer()
    for (question, _), ticket in zip(asked, tickets, strict=True):
        messages = [{"role": "user", "content": PREFIX + question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        salt = {"cache_salt": ticket.cache_salt} if ticket.cache_salt else {}
        prompts.append({"prompt_token_ids": ids, **salt})
        settings.append(vllm.SamplingParams(temperature=0, max_tokens=tokens, extra_args=ticket.extra_args or None))
    outputs = [output.outputs[0] for output in llm.generate(prompts, settings, use_tqdm=False)]
    # Not vLLM's text, which leaves out the last tokens' part of a character.
    return [storable(tokenizer.decode(output.token_ids, skip_special_tokens=True)) for output in outputs]


def solvers(folder: Path, asked: list[tuple[str, Any]], tokens: int = 12) -> list[str]:
    """The same answers by the solver itself."""
    answers = Solver.from_pretrained(folder, dtype="float32").generate(
        [PREFIX + question for question, _ in asked],
        statements=[question for question, _ in asked],
        weights=[weights for _, weights in asked],
        max_new_tokens=tokens,
    )
    return [answer.text for answer in answers]


def test_each_request_has_its_own_solver(base: Path, everywhere: Path) -> None:
    """More requests than run at once, in pieces, with a cache so small that some must wait; twice, from the cache as well."""
    asked = [(question, weights) for question in QUESTIONS for weights in WEIGHTS]
    expected = solvers(everywhere, asked, 24)
    assert len(set(expected)) > len(asked) / 2
    gate = Gate.from_pretrained(everywhere)
    small = {"max_num_batched_tokens": 64, "block_size": 128, "num_gpu_blocks_override": 9, "disable_log_stats": False}
    with engine(base, everywhere, **small) as llm:
        assert ask(llm, gate, asked, 24) == expected
        assert ask(llm, gate, asked[::-1], 24) == expected[::-1]
        counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    assert counts["vllm:num_preemptions"] > 0 and counts["vllm:prefix_cache_hits"] > 0


def test_compiled(base: Path, everywhere: Path) -> None:
    asked = [(question, weights) for question in QUESTIONS[:3] for weights in WEIGHTS]
    gate = Gate.from_pretrained(everywhere)
    with engine(base, everywhere, enforce_eager=False) as llm:
        assert ask(llm, gate, asked) == solvers(everywhere, asked)


def test_shards_of_some_layers(base: Path, make_parts: Callable[..., SolverParts], tmp_path: Path) -> None:
    """Two processes; q, v and gate have experts, but not what vLLM merges with them; keys and values are on one each."""
    folder = tmp_path / "solver"
    make_parts("q_proj", "v_proj", "gate_proj", "down_proj").save(folder)
    asked: list[tuple[str, Any]] = [(question, "hypernetwork") for question in QUESTIONS] + [("sort", "none")]
    with engine(base, folder, tensor_parallel_size=2) as llm:
        assert ask(llm, Gate.from_pretrained(folder), asked) == solvers(folder, asked)


def test_the_second_runner_says_which_tokens_are_whose() -> None:
    """vLLM takes it on GPUs; it needs Triton to run, so this stands in for it with what its batches have."""
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from bdc.serving.rows import Rows
    from bdc.serving.worker import _place_after_inputs

    assert {"req_ids", "query_start_loc_np"} <= {field.name for field in dataclasses.fields(InputBatch)}
    batch = SimpleNamespace(req_ids=["b", "a"], query_start_loc_np=np.array([0, 1, 4, 4]))
    runner = SimpleNamespace(prepare_inputs=lambda *arguments: batch)
    rows = Rows([[0]], 2, 3, 8, torch.device("cpu"))
    rows.add("a", torch.tensor([1.0, 2.0]))
    _place_after_inputs(runner, rows)
    assert runner.prepare_inputs("scheduler's", "others") is batch
    row = int(rows.token_to_row[1])
    assert rows.token_to_row.tolist() == [-1, row, row, row, -1, -1, -1, -1]
    assert rows.weights[0][row].tolist() == [1.0, 2.0]


def test_what_others_put_into_a_request_is_not_used(base: Path, everywhere: Path) -> None:
    import vllm

    with engine(base, everywhere) as llm:
        settings = [
            vllm.SamplingParams(temperature=0, max_tokens=8, extra_args=extra)
            for extra in (None, {KEY: "AAAA"}, {KEY: 3})
        ]
        texts = [output.outputs[0].text for output in llm.generate(["hello there"] * 3, settings, use_tqdm=False)]
    assert len(set(texts)) == 1


def test_what_would_be_wrong_is_refused(
    base: Path, everywhere: Path, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    without_salts = {"additional_config": {"bdc_solver": str(everywhere)}}
    for model, options, says in (
        (tiny, {}, "serve the model that the solver was trained on"),
        (base, without_salts, "give each prompt the cache_salt of its ticket"),
        (base, {"enable_lora": True}, "leave enable_lora out"),
    ):
        with pytest.raises(RuntimeError), engine(model, everywhere, **options):
            pass
        out, err = capfd.readouterr()
        assert says in out + err
    with engine(base, everywhere, enable_prefix_caching=False, **without_salts):
        pass


@pytest.fixture(scope="module")
def server(everywhere: Path, vllm_on_a_cpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``bdc serve``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bdc.cli", "serve", str(everywhere.parent), "--port", str(port)]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4"]
    options += ["--gpu-memory-utilization", "0.3", "--api-key", "secret", "--allowed-origins", '["*"]']
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # `-m` would find the sources here
    process = subprocess.Popen([*command, *options], cwd=elsewhere)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


KEY_HEADER = {"authorization": "Bearer secret"}


def _post(url: str, **body: Any) -> tuple[int, Any]:
    headers = {"content-type": "application/json", **KEY_HEADER}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_as_the_solver_does(server: str, everywhere: Path) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{server}/v1/models", None, KEY_HEADER), timeout=30) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == [everywhere.parent.name, "base"]
    tokenizer = Solver.from_pretrained(everywhere).tokenizer
    chat = f"{server}/v1/chat/completions"
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "return_token_ids": True}

    def decode(answer: Any) -> str:
        return storable(tokenizer.decode(answer["choices"][0]["token_ids"], skip_special_tokens=True))

    asked: list[tuple[str, Any]] = [(question, "hypernetwork") for question in QUESTIONS] + [
        ("sort", 2),
        ("sort", "none"),
    ]
    for (question, weights), expected in zip(asked, solvers(everywhere, asked), strict=True):
        fields = {} if weights == "hypernetwork" else {"bdc_weights": weights}
        body = {"model": everywhere.parent.name, "messages": [{"role": "user", "content": PREFIX + question}]}
        code, answer = _post(chat, **body, **options, **fields, bdc_statement=question)
        assert (code, decode(answer)) == (200, expected)
    code, answer = _post(chat, **body | {"model": "base"}, **options)
    assert (code, decode(answer)) == (200, expected)
    code, answer = _post(chat, **body, bdc_weights="best")
    assert code == 400 and "no weights 'best'" in answer["error"]["message"]
    question = body["messages"][0]["content"]
    limits = {"temperature": 0, "bdc_statement": "sort", "bdc_weights": 2}
    said = _post(chat, **body, **limits, max_tokens=12)[1]["choices"][0]["message"]["content"]
    code, answer = _post(f"{server}/v1/messages", **body, **limits, max_tokens=12)
    assert (code, answer["content"][0]["text"]) == (200, said)
    code, answer = _post(f"{server}/v1/responses", model=body["model"], input=question, **limits, max_output_tokens=12)
    assert (code, answer["output"][0]["content"][0]["text"]) == (200, said)


def test_vllm_sees_a_request_first(server: str) -> None:
    """Its key is asked for before the encoder is, and browsers may read what bdc refuses."""
    data = json.dumps({"prompt": "x", "bdc_weights": "best"}).encode()
    for key, code in (({}, 401), (KEY_HEADER, 400)):
        headers = {"content-type": "application/json", "origin": "http://a.page", **key}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{server}/v1/completions", data, headers), timeout=30)
        assert refused.value.code == code
    assert refused.value.headers["access-control-allow-origin"] == "*"


def test_layers_that_need_not_ask_their_method_are_refused(vllm_on_a_cpu: None) -> None:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    from bdc.serving.layers import find

    class Own(ReplicatedLinear):
        def forward(self, x: Any) -> Any:
            return x

    def layer(kind: type[Any]) -> Any:
        made = kind.__new__(kind)
        torch.nn.Module.__init__(made)
        made.output_partition_sizes, made.tp_size = [8], 1
        return made

    model = torch.nn.ModuleDict({"a": layer(ReplicatedLinear), "b": layer(Own)})
    assert [target.name for target in find(model, ["a"])] == ["a"]
    with pytest.raises(InputError, match="adapts b, which vLLM's Own computes by a way of its own"):
        find(model, ["a", "b"])
