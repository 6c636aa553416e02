from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bdc.customize.customizer import Weights
from bdc.customize.solver import Solver
from bdc.customize.stacks import stack_adapters
from bdc.customize.storage import SolverParts
from bdc.errors import InputError
from bdc.llm import load_model
from bdc.llm.packing import PackedLinear, using_packed

PROMPTS = ["sort arrays of words", "count letters", "add numbers up to a much longer bound than that"]
IDS = torch.tensor([[5, 60, 7, 81, 9, 100, 11], [12, 30, 44, 15, 6, 70, 8]])
RESPONSES = ["fine", "a longer answer", "x"]


def logits(solver: Solver, statement: str, weights: Weights | None = None) -> Tensor:
    """Logits of two fixed rows under one statement's weights."""
    table, rows = solver._rows([statement], None, weights)
    with torch.no_grad(), solver._mixture.weighted(table, rows.repeat_interleave(IDS.numel())):
        return solver.model(input_ids=IDS, use_cache=False).logits


def peft_logits(tiny: Path, folder: Path) -> Tensor:
    from peft import PeftModel

    model, _ = load_model(tiny, "float32")
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits


def base_logits(tiny: Path) -> Tensor:
    with torch.no_grad():
        return load_model(tiny, "float32")[0](input_ids=IDS).logits


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_one_hot_weights_are_that_expert_in_peft(solver: Solver, tiny: Path, adapters: list[Path], index: int) -> None:
    found = logits(solver, "anything", index)
    close(found, peft_logits(tiny, adapters[index]))
    assert (found - base_logits(tiny)).abs().max() > 0.1


def test_no_weights_are_the_base_model_to_the_bit(solver: Solver, tiny: Path) -> None:
    assert torch.equal(logits(solver, "anything", "none"), base_logits(tiny))
    with torch.no_grad():
        assert torch.equal(solver.model(input_ids=IDS).logits, base_logits(tiny))


def test_an_untrained_hypernetwork_is_the_mean_of_the_experts(
    tiny: Path, adapters: list[Path], tmp_path: Path, helpers: Any
) -> None:
    solver = helpers.make_solver(helpers.make_parts(tiny, adapters, trained=False))
    model, _ = load_model(tiny, "float32")
    stack = stack_adapters(adapters)
    with torch.no_grad():
        for name in stack.modules:
            a, b = stack.lora_a[name].double(), stack.lora_b[name].double()
            deltas = [2.0 * b[:, rows] @ a[rows] for rows in (slice(4 * i, 4 * i + 4) for i in range(3))]
            weight = model.get_submodule(name).weight
            weight.copy_(weight.double() + sum(deltas) / 3)
        expected = model(input_ids=IDS).logits
    close(logits(solver, "anything"), expected)
    assert torch.equal(logits(solver, "anything"), logits(solver, "anything", "uniform"))


@pytest.mark.parametrize("weighting", ["rank", "expert", "release"])
@pytest.mark.parametrize("weights", [None, "uniform", "nearest", 1])
def test_to_peft_has_the_logits_of_the_solver(
    tiny: Path, adapters: list[Path], tmp_path: Path, weighting: Any, weights: Any, helpers: Any
) -> None:
    solver = helpers.make_solver(helpers.make_parts(tiny, adapters, weighting))
    folder = solver.to_peft(PROMPTS[0], tmp_path / "plain", weights=weights)
    close(logits(solver, PROMPTS[0], weights), peft_logits(tiny, folder))


def test_to_peft_replaces_an_adapter_whole_and_spares_the_rest(
    solver: Solver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plain"
    solver.to_peft(PROMPTS[0], folder)
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("peft.LoraConfig.save_pretrained", full)
        with pytest.raises(InputError, match="plain cannot be written"):
            solver.to_peft(PROMPTS[1], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    solver.to_peft(PROMPTS[1], folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert after["notes.txt"] == b"mine" and after["adapter_model.safetensors"] != before["adapter_model.safetensors"]


def test_to_peft_names_a_known_base_model_by_its_hub_id(
    solver: Solver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "parts", replace(solver.parts, base_model="smollm2-135m-instruct"))
    folder = solver.to_peft(PROMPTS[0], tmp_path / "plain")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_to_peft_of_adapters_that_name_their_layers_by_a_pattern(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load_model(tiny, "float32")
    pattern = r".*layers\.1\..*\.(q|v)_proj"
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=pattern, init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    solver = Solver.from_adapters([tmp_path / "adapter"], tiny, dtype="float32")
    folder = solver.to_peft(PROMPTS[0], tmp_path / "plain")
    close(logits(solver, PROMPTS[0], "uniform"), peft_logits(tiny, folder))


def test_a_prompt_with_its_statement_is_weighted_by_the_statement(solver: Solver) -> None:
    messages = [{"role": "user", "content": f"Please solve: {PROMPTS[0]}"}]
    by_statement = solver.loss([messages], ["x"], statements=[PROMPTS[0]])[0]
    assert by_statement.nll != pytest.approx(solver.loss([messages], ["x"])[0].nll, abs=1e-6)


def test_a_batch_of_different_requests_is_each_alone(solver: Solver) -> None:
    prompts = [p for p in PROMPTS for _ in range(5)]
    responses = [r for r in RESPONSES for _ in range(5)]
    weights: list[Weights] = ["hypernetwork", "uniform", "nearest", "none", 2] * 3
    together = solver.loss(prompts, responses, weights=weights)
    alone = [solver.loss([p], [r], weights=[w])[0] for p, r, w in zip(prompts, responses, weights, strict=True)]
    for one, two in zip(together, alone, strict=True):
        assert one.tokens == two.tokens
        assert one.nll == pytest.approx(two.nll, rel=1e-4)
    assert len({round(loss.nll, 3) for loss in together}) > 10  # the weights do matter

    texts = solver.generate(prompts, weights=weights, max_new_tokens=12)
    for i in range(len(prompts)):
        (one,) = solver.generate([prompts[i]], weights=[weights[i]], max_new_tokens=12)
        assert one.tokens == texts[i].tokens
    assert len({tuple(text.tokens) for text in texts}) > 5


def test_generation_follows_the_logits_greedily(solver: Solver) -> None:
    """Without a cache, token by token, under the same weights."""
    from bdc.llm.chat import encode_chat

    prompt = PROMPTS[1]
    (found,) = solver.generate([prompt], max_new_tokens=8)
    ids = encode_chat(solver.tokenizer, [{"role": "user", "content": prompt}])
    table, rows = solver._rows([prompt], None, None)
    for token in found.tokens:
        with torch.no_grad(), solver._mixture.weighted(table, rows.repeat_interleave(len(ids))):
            step = solver.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert int(step.argmax()) == token
        ids.append(token)


def test_loss_is_on_the_response_only(solver: Solver) -> None:
    from bdc.llm.chat import encode_chat

    prompt = encode_chat(solver.tokenizer, [{"role": "user", "content": PROMPTS[0]}])
    response = [*solver.tokenizer.encode("fine", add_special_tokens=False), solver.tokenizer.eos_token_id]
    table, rows = solver._rows([PROMPTS[0]], None, None)
    ids = torch.tensor([prompt + response])
    with torch.no_grad(), solver._mixture.weighted(table, rows.repeat_interleave(ids.shape[1])):
        scores = solver.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    expected = -sum(float(scores[len(prompt) + i - 1, token]) for i, token in enumerate(response))
    (found,) = solver.loss([PROMPTS[0]], ["fine"])
    assert found.tokens == len(response)
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.per_token == found.nll / found.tokens


def test_one_adapter_as_a_solver_is_that_adapter(tiny: Path, adapters: list[Path]) -> None:
    single = Solver.from_adapters([adapters[1]], tiny, dtype="float32")
    close(logits(single, "anything"), peft_logits(tiny, adapters[1]))
    assert len(single.generate(PROMPTS, max_new_tokens=4)) == 3
    with pytest.raises(InputError, match="no weights 'hypernetwork'; use uniform"):
        single.loss(PROMPTS, RESPONSES, weights="hypernetwork")


def test_save_and_load_keep_every_bit(solver: Solver, tmp_path: Path, helpers: Any) -> None:
    solver.save_pretrained(tmp_path / "solver")
    again = helpers.make_solver(SolverParts.load(tmp_path / "solver"))
    assert again.parts.stack.modules == solver.parts.stack.modules
    for name, tensor in solver.parts.stack.tensors().items():
        assert torch.equal(again.parts.stack.tensors()[name], tensor)
    assert torch.equal(again.rank_weights(PROMPTS), solver.rank_weights(PROMPTS))
    assert torch.equal(logits(again, PROMPTS[0]), logits(solver, PROMPTS[0]))
    again.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "solver").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_experts_of_int8_are_close_and_stored_whole(solver: Solver, tiny: Path, tmp_path: Path) -> None:
    solver.save_pretrained(tmp_path / "whole")
    rounded = Solver.from_pretrained(tmp_path / "whole", dtype="float32", base_model=tiny, int8_experts=True)
    expected, got = (logits(one, PROMPTS[0], "uniform") for one in (solver, rounded))
    effect = float((expected - base_logits(tiny)).abs().max())
    assert 0 < float((got - expected).abs().max()) < 0.05 * effect
    rounded.save_pretrained(tmp_path / "again")
    names = [path.name for path in (tmp_path / "whole").glob("*.safetensors")]
    assert names and all(
        (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (3, "expert 3"),
        (-1, "expert -1"),
        ("nearst", "nearst"),
        (["none"], "1 weights for 3"),
        (np.int64(3), "expert 3"),
        (1.0, "not 1.0"),
        ([1.0] * 3, "not 1.0"),
        ([None] * 3, "not None"),
        ([True] * 3, "not True"),
        (torch.ones(3, dtype=torch.bool), "not tensor"),
        ({"none": 1}, "1 weights for 3"),
    ],
)
def test_bad_weights_are_input_errors(solver: Solver, weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solver.loss(PROMPTS, RESPONSES, weights=weights)


@pytest.mark.parametrize(
    "weights", [[np.int64(1)] * 3, np.ones(3, dtype=np.int32), torch.tensor([1, 1, 1]), np.int64(1), torch.tensor(1)]
)
def test_integers_of_numpy_and_torch_are_indices(solver: Solver, weights: Any) -> None:
    assert torch.equal(solver.rank_weights(PROMPTS, weights=weights), solver.rank_weights(PROMPTS, weights=1))
    expected = solver.generate(PROMPTS, weights=1, max_new_tokens=8)
    assert solver.generate(PROMPTS, weights=weights, max_new_tokens=8) == expected


def test_one_thing_where_a_list_belongs_is_refused(solver: Solver) -> None:
    message = {"role": "user", "content": "x"}
    for prompts in ("abc", message):
        with pytest.raises(InputError, match="prompts must be a list"):
            solver.generate(prompts, max_new_tokens=2)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="prompts must be a list"):
            solver.rank_weights(prompts)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="prompts must be a list"):
            solver.loss(prompts, ["x"] * len(prompts))  # type: ignore[arg-type]
    for prompt in (message, None, ["x"]):
        with pytest.raises(InputError, match="a prompt must be a string or a list of messages"):
            solver.generate([prompt], max_new_tokens=2)  # type: ignore[list-item]
    with pytest.raises(InputError, match="statements must be a list"):
        solver.generate(PROMPTS, statements="abc", max_new_tokens=2)
    with pytest.raises(InputError, match="responses must be a list"):
        solver.loss(PROMPTS, "abc")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"text": "x"}]},
    ],
)
def test_messages_without_text_are_refused(solver: Solver, message: Any) -> None:
    for call in (
        lambda: solver.generate([[message]], max_new_tokens=2),
        lambda: solver.loss([[message]], ["x"]),
        lambda: solver.rank_weights([[message]]),
    ):
        with pytest.raises(InputError, match="a message must have a role and a content"):
            call()


def test_statements_and_responses_that_are_no_text_are_refused(solver: Solver, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="statements must be text, not None"):
        solver.generate(PROMPTS, statements=[None] * len(PROMPTS), max_new_tokens=2)  # type: ignore[list-item]
    with pytest.raises(InputError, match="responses must be text, not 5"):
        solver.loss(PROMPTS, [5] * len(PROMPTS))  # type: ignore[list-item]
    with pytest.raises(InputError, match="statement must be text"):
        solver.to_peft(PROMPTS[0], tmp_path / "plain", statement=["x"])  # type: ignore[arg-type]


def test_saving_spares_what_is_no_solver(solver: Solver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt", "/"):
        with pytest.raises(
            InputError, match=r"which is no part of a solver; name another folder|is a file; name a folder"
        ):
            solver.save_pretrained(place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    solver.save_pretrained(".")
    assert SolverParts.load(tmp_path / "empty").base_model == solver.parts.base_model
    solver.save_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "adapter").mkdir()
    with pytest.raises(InputError, match="empty holds adapter, which is no part"):
        solver.save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter").is_dir()


def test_arguments_of_the_wrong_kind_are_input_errors(solver: Solver) -> None:
    for prompts in (None, 5, (prompt for prompt in PROMPTS)):
        for call in (solver.generate, solver.rank_weights):
            with pytest.raises(InputError, match="prompts must be a list"):
                call(prompts)  # type: ignore[operator]
    with pytest.raises(InputError, match="statements must be a list"):
        solver.generate(PROMPTS, statements=(prompt for prompt in PROMPTS))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_new_tokens must be whole numbers"):
        solver.generate(PROMPTS, max_new_tokens=[[1], [2, 3], [3]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="adapters must be a list"):
        Solver.from_adapters("a/b", "c")
    free = solver.generate(PROMPTS[:1], max_new_tokens=9)[0].text
    stop = free[2:4]
    expected = solver.generate(PROMPTS[:1], max_new_tokens=9, stop=[stop])
    assert solver.generate(PROMPTS[:1], max_new_tokens=9, stop=(text for text in [stop])) == expected  # type: ignore[arg-type]


def test_a_model_that_gives_nan_is_an_input_error(solver: Solver) -> None:
    solver = copy.deepcopy(solver)
    with torch.no_grad():
        solver.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(InputError, match=r"the model gives NaN for prompt 0: its weights or its dtype, torch.float32"):
        solver.generate(PROMPTS, weights="none")


def test_a_solver_that_does_not_fit_names_itself_and_the_base(
    solver: Solver, tiny_encoder: Path, tmp_path: Path, helpers: Any
) -> None:
    solver.save_pretrained(tmp_path / "solver")
    config = json.loads((tmp_path / "solver" / "bdc_config.json").read_text())
    (tmp_path / "solver" / "bdc_config.json").write_text(json.dumps(config | {"encoder": "/gone/encoder"}))
    base = Path(solver.parts.base_model)
    with pytest.raises(InputError, match="/gone/encoder"):
        Solver.from_pretrained(tmp_path / "solver")
    loaded = Solver.from_pretrained(tmp_path / "solver", encoder=tiny_encoder)
    assert loaded.parts.encoder == str(tiny_encoder)
    shutil.copytree(base, tmp_path / "wider")
    from transformers import AutoConfig, AutoModelForCausalLM

    wider = AutoConfig.from_pretrained(base)
    wider.intermediate_size = 64
    AutoModelForCausalLM.from_config(wider).save_pretrained(tmp_path / "wider")
    with pytest.raises(InputError, match=r"solver does not fit the base model .*wider: model\.layers\.0\."):
        Solver.from_pretrained(tmp_path / "solver", base_model=tmp_path / "wider", encoder=tiny_encoder)


def test_another_encoder_is_refused(solver: Solver) -> None:
    class Narrow:
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.ones((len(texts), 7), dtype=np.float32)

    other = Solver(load_model(solver.parts.base_model, "float32")[0], solver.tokenizer, solver.parts, encoder=Narrow())
    for weights in ("hypernetwork", "nearest"):
        with pytest.raises(InputError, match="gives 7 numbers per text and the centroids have 12"):
            other.rank_weights(PROMPTS, weights=weights)


def test_threads_share_a_solver(solver: Solver) -> None:
    choices: list[Weights] = [0, 1, 2, "none", "hypernetwork"]
    expected = {choice: solver.generate(PROMPTS[:1], max_new_tokens=24, weights=choice) for choice in choices}
    found: dict[Weights, Any] = {}

    def ask(choice: Weights) -> None:
        found[choice] = [solver.generate(PROMPTS[:1], max_new_tokens=24, weights=choice) for _ in range(4)]

    threads = [threading.Thread(target=ask, args=(choice,)) for choice in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {choice: [answer] * 4 for choice, answer in expected.items()}


def test_a_copy_of_a_solver_answers_alike(solver: Solver) -> None:
    again = copy.deepcopy(solver)
    assert again.generate(PROMPTS, max_new_tokens=8) == solver.generate(PROMPTS, max_new_tokens=8)


def test_the_loss_of_what_the_context_does_not_hold_is_refused(solver: Solver) -> None:
    assert solver.fits("a" * 505, "bcd") and not solver.fits("a" * 506, "bcd")
    assert len(solver.loss(["a" * 505], ["bcd"])) == 1
    with pytest.raises(InputError, match="prompt 1 and its response have 513 tokens, but the model's context is 512"):
        solver.loss(["a", "a" * 506], ["b", "bcd"])


def test_the_loss_after_an_empty_prompt_is_refused(tiny: Path, adapters: list[Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    plain = Solver.from_adapters(adapters, base, dtype="float32")
    assert plain.loss(["abc"], ["hello"])[0].nll > 0
    for prompt in ("", "\n"):
        with pytest.raises(InputError, match="prompt is empty"):
            plain.loss(["abc", prompt], ["hello"] * 2)


def test_layers_are_packed_again_after_a_merge(solver: Solver) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    layers = [layer for layer in solver.model.modules() if isinstance(layer, PackedLinear)]

    def serving() -> list[bool]:
        with using_packed(solver.model):
            return [layer.packed is not None and layer.packed.is_of(layer.weight) for layer in layers]

    before = solver.generate(PROMPTS, max_new_tokens=8, weights="none")
    with solver.merged("ties"):
        assert layers and all(serving())
        assert solver.generate(PROMPTS, max_new_tokens=8, weights="none") != before
    assert all(serving())
    assert solver.generate(PROMPTS, max_new_tokens=8, weights="none") == before


@pytest.mark.parametrize(
    ("method", "density", "words"),
    [
        ("tiez", 0.3, "no merge 'tiez'"),
        ("dare", 0, "density"),
        ("ties", 2.0, "density"),
        ("ties", float("nan"), "density"),
    ],
)
def test_bad_merges_are_refused(solver: Solver, method: Any, density: float, words: str) -> None:
    with pytest.raises(InputError, match=words), solver.merged(method, density=density):
        pass


def test_adapters_of_the_output_head_are_refused(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    base = tmp_path / "untied"
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny, tie_word_embeddings=False)).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(base)
    model, _ = load_model(base, "float32")
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(InputError, match="adapt lm_head, the model's output head"):
        Solver.from_adapters([tmp_path / "adapter"], base, dtype="float32")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_change_the_base_are_refused(tiny: Path, tmp_path: Path, start: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load_model(tiny, "float32")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"init_lora_weights={start}"):
        stack_adapters([tmp_path])


def test_the_base_model_is_stored_where_it_is(
    tiny: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(tiny, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    named = Solver.from_adapters(adapters, "moved", dtype="float32")
    named.save_pretrained("solver")
    monkeypatch.chdir("/")
    assert SolverParts.load(tmp_path / "solver").base_model == str(moved)
    again = Solver.from_pretrained(tmp_path / "solver", dtype="float32", base_model=tiny)
    again.save_pretrained(tmp_path / "again")
    assert SolverParts.load(tmp_path / "again").base_model == str(tiny)
    folder = again.to_peft(PROMPTS[0], tmp_path / "plain")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)


def test_experts_of_another_model_are_refused(tmp_path: Path, parts: SolverParts, helpers: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="no layer"):
        Solver(other, None, parts)
