"""Several outputs that share x: each slice as a product of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bdc.errors import InputError
from bdc.ops import (
    apply_rankwise_lora,
    cuda,
    extension,
    matmul,
    quantize_experts,
    rank_weights,
    rankwise_lora,
    rankwise_lora_,
    rankwise_lora_slices,
    rankwise_lora_slices_,
    reference,
    triton_layer,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Tokens, d_in, ranks of a slice, ends.
SHAPES = [
    (1, 64, 8, (64, 96, 128)),
    (1, 37, 13, (5, 29)),
    (2, 640, 41, (33, 34, 70)),
    (3, 96, 48, (16, 80)),
    (4, 50, 300, (31, 62, 93, 100)),
    (8, 128, 32, (128, 192, 256)),
    (33, 129, 20, (65, 66)),
    (300, 96, 24, (200, 264, 300)),
    (7, 37, 13, (29,)),
]


def make(problems: SimpleNamespace, shape: tuple[int, int, int, tuple[int, ...]], **options: object) -> SimpleNamespace:
    """A problem whose experts and rank weights are those of the slices."""
    tokens, d_in, ranks, ends = shape
    problem = problems.make(tokens, d_in, ends[-1], ranks * len(ends), **options)
    return SimpleNamespace(
        y=problem.y,
        arguments=(
            problem.x,
            problem.a,
            problem.b[:, :ranks].contiguous(),
            problem.g,
            ends,
            problem.rows,
            problem.scaling,
        ),
    )


def parts(arguments: tuple) -> list[tuple[slice, tuple]]:  # type: ignore[type-arg]
    x, a, b, g, ends, rows, s = arguments
    ranks = b.shape[1]
    own = [slice(i * ranks, (i + 1) * ranks) for i in range(len(ends))]
    columns = [slice(first, end) for first, end in zip((0, *ends), ends, strict=False)]
    return [(c, (x, a[o], b[c], g[:, o], rows, s)) for c, o in zip(columns, own, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_within_the_bound(problems: SimpleNamespace, backend: str, dtype: torch.dtype, shape) -> None:  # type: ignore[no-untyped-def]
    for seed in range(2):
        problem = make(problems, shape, dtype=dtype, seed=seed)
        got = rankwise_lora_slices_(problem.y.clone(), *problem.arguments)
        fresh = rankwise_lora_slices(*problem.arguments)
        for columns, (x, a, b, g, rows, s) in parts(problem.arguments):
            own = SimpleNamespace(y=problem.y[:, columns], x=x, a=a, b=b, g=g, rows=rows, scaling=s)
            own.arguments = (x, a, b, g, rows, s)
            problems.assert_within_bounds(got[:, columns], own, product_is_rounded=got.is_cuda)
            own.y = torch.zeros_like(own.y)
            problems.assert_within_bounds(fresh[:, columns], own)


@pytest.mark.parametrize("tokens", [1, 9, 64])
def test_outputs_are_added_at_once(
    problems: SimpleNamespace, backend: str, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """One launch, or one product with all of A: a backend is not asked for the outputs one by one."""
    module = {"torch": matmul, "cpp": extension, "triton": triton_layer, "cuda": cuda}[backend]
    dtype = torch.float16 if backend == "cuda" else torch.float32
    problem = make(problems, (tokens, 64, 16, (64, 192, 256)), dtype=dtype)
    x, a, b, g, ends, rows, s = problem.arguments
    given = (x.T.contiguous().T, a, b, g, ends, rows, s)  # the direct call of the CPU kernel does not take it so
    expected = rankwise_lora_slices(*given)
    monkeypatch.setattr(module, "add", None)
    assert torch.equal(rankwise_lora_slices(*given), expected)
    for columns, own in parts(problem.arguments):
        whole = SimpleNamespace(y=torch.zeros_like(problem.y[:, columns]), x=x, a=own[1], b=own[2], g=own[3], rows=rows)
        whole.scaling, whole.arguments = s, own
        problems.assert_within_bounds(expected[:, columns], whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_one_slice_is_the_plain_product(problems: SimpleNamespace, tokens: int, dtype: torch.dtype) -> None:
    problem = make(problems, (tokens, 70, 24, (50,)), dtype=dtype)
    ((_, plain),) = parts(problem.arguments)
    assert torch.equal(rankwise_lora_slices(*problem.arguments), rankwise_lora(*plain))
    got = rankwise_lora_slices_(problem.y.clone(), *problem.arguments)
    assert torch.equal(got, rankwise_lora_(problem.y.clone(), *plain))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 5, 40, 300])
def test_slices_are_products_of_their_own_to_the_bit(problems: SimpleNamespace, tokens: int, threads: int) -> None:
    """Ranks in whole vectors are summed alike, however they are stacked."""
    problem = make(problems, (tokens, 576, 32, (576, 768, 960)), dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = rankwise_lora_slices_(problem.y.clone(), *problem.arguments)
        expected = problem.y.clone()
        for columns, own in parts(problem.arguments):
            rankwise_lora_(expected[:, columns], *own)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_a_slice_with_zero_weights_keeps_its_bits(problems: SimpleNamespace, backend: str, tokens: int) -> None:
    problem = make(problems, (tokens, 64, 16, (32, 48, 80)))
    x, _, _, g, _, rows, _ = problem.arguments
    rows.fill_(1)
    rows[0] = 0
    g[0, 16:32] = 0
    x[0, 3] = float("nan")
    problem.y[0] = -0.0
    got = rankwise_lora_slices_(problem.y.clone(), *problem.arguments)
    assert got[0, :32].isnan().all() and got[0, 48:].isnan().all()
    if backend == "cpp":  # the others multiply the zeros
        assert torch.equal(got[0, 32:48].view(torch.int32), problem.y[0, 32:48].view(torch.int32))
        assert not rankwise_lora_slices(*problem.arguments)[0, 32:48].any()
    assert got[1:].isfinite().all()
    rows[:] = -1
    assert torch.equal(rankwise_lora_slices_(problem.y.clone(), *problem.arguments), problem.y)


def test_strided_tensors_and_integers(problems: SimpleNamespace, backend: str) -> None:
    x, a, b, g, ends, rows, s = make(problems, (8, 64, 16, (32, 48, 80))).arguments
    expected = rankwise_lora_slices(x, a, b, g, ends, rows, s)
    wide = torch.zeros(8, 200)[:, 7:87]
    got = rankwise_lora_slices_(wide, x.T.contiguous().T, a, b, g, list(ends), rows.long(), s)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    experts = quantize_experts(a, torch.cat([b] * 3, 1))
    b8, scales = experts.lora_b[:, :16].contiguous(), experts.scales
    got = rankwise_lora_slices(x, experts.lora_a, b8, g * scales, ends, rows, s)
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.02 * float(expected.abs().max()))


def test_gradients_and_compilation(problems: SimpleNamespace) -> None:
    problem = make(problems, (6, 20, 4, (8, 13)))
    x, a, b, g, ends, rows, s = problem.arguments
    inputs = [t.clone().requires_grad_() for t in (x, a, b, g)]
    rankwise_lora_slices(*inputs, ends, rows, s).square().sum().backward()
    leaves = [t.clone().requires_grad_() for t in (x, a, b, g)]
    total = sum(rankwise_lora(*own).square().sum() for _, own in parts((*leaves, ends, rows, s)))
    total.backward()
    for got, expected in zip(inputs, leaves, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    expected = rankwise_lora_slices(*problem.arguments)
    compiled = torch.compile(rankwise_lora_slices, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*problem.arguments), expected)
    in_place = torch.compile(rankwise_lora_slices_, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(in_place(problem.y.clone(), *problem.arguments), problem.y + expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert rankwise_lora_slices(*problem.arguments).dtype == torch.bfloat16
        added = rankwise_lora_slices_(problem.y.bfloat16(), *problem.arguments)
    torch.testing.assert_close(added.float(), problem.y + rankwise_lora_slices(*problem.arguments), rtol=0.05, atol=0.3)


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ((), "ends must be rising columns up to 80"),
        ((32, 48), "ends must be rising columns up to 80"),
        ((32, 32, 80), "ends must be rising"),
        ((-1, 48, 80), "ends must be rising"),
        ((32, 80), "lora_a must have 2 slices of 16 ranks, the columns of lora_b, got 48 ranks"),
    ],
)
def test_what_is_refused(problems: SimpleNamespace, ends: tuple[int, ...], says: str) -> None:
    problem = make(problems, (8, 64, 16, (32, 48, 80)))
    x, a, b, g, _, rows, s = problem.arguments
    y = problem.y.clone()
    with pytest.raises(InputError, match=says):
        rankwise_lora_slices(x, a, b, g, ends, rows, s)
    with pytest.raises(InputError, match=says):
        rankwise_lora_slices_(y, x, a, b, g, ends, rows, s)
    assert torch.equal(y, problem.y)


def test_nothing_is_written_where_something_is_refused(problems: SimpleNamespace) -> None:
    problem = make(problems, (8, 64, 16, (32, 48, 80)))
    x, a, b, g, ends, rows, s = problem.arguments
    for given, says in (
        ((x, a, b, g[:, :32], ends, rows, s), "rank_weights must have 3 slices"),
        ((x, a, b, g, ends, rows + 9, s), "token_to_row must be in"),
        ((x, a, b, g, ends, rows, float("nan")), "scaling must be finite"),
        ((x[:4], a, b, g, ends, rows, s), "token_to_row must be"),
    ):
        y = problem.y.clone()
        with pytest.raises(InputError, match=says):
            rankwise_lora_slices_(y, *given)
        assert torch.equal(y, problem.y)
    shared = torch.zeros(8, 80)
    with pytest.raises(InputError, match="must not share memory with x"):
        rankwise_lora_slices_(shared, shared[:, :64], a, b, g, ends, rows, s)
    with pytest.raises(InputError, match="has no gradient"):
        rankwise_lora_slices_(problem.y.clone(), x, a.requires_grad_(), b, g, ends, rows, s)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("integers", [False, True])
def test_merged_layers(training: bool, integers: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 28)).requires_grad_(False)
    stacks = [(torch.randn(6, 20), torch.randn(width, 6)) for width in (16, 8, 4)]
    x, rows = torch.randn(5, 20), torch.tensor([0, 1, -1, 1, 0])
    g = torch.randn(2, 18, requires_grad=training)
    plain = model(x)
    outputs = [quantize_experts(*stack) for stack in stacks] if integers else stacks
    apply_rankwise_lora(model, {"0": outputs}, 0.5)
    assert torch.equal(model(x), plain)
    with rank_weights(model, g, rows):
        got = model(x)
    expected = torch.cat(
        [reference.rankwise_lora(x, *stack, g[:, 6 * i : 6 * i + 6], rows, 0.5) for i, stack in enumerate(stacks)], 1
    )
    tolerance = 0.03 * float(expected.detach().abs().max()) if integers else 1e-4
    torch.testing.assert_close(got, plain + expected, rtol=1e-4, atol=tolerance)
    if training and not integers:
        found = torch.autograd.grad(got.square().sum(), g)
        torch.testing.assert_close(
            found, torch.autograd.grad((plain + expected).square().sum(), g), rtol=1e-3, atol=1e-2
        )


def test_merged_layers_that_do_not_fit() -> None:
    model = nn.Sequential(nn.Linear(20, 28))
    pair = (torch.randn(6, 20), torch.randn(16, 6))
    for outputs, says in (
        ([], "got an empty list"),
        ([pair, (torch.randn(4, 20), torch.randn(12, 4))], r"equally many ranks, got \[6, 4\]"),
        ([pair, pair], r"must have the layer's 28 output features"),
        ([pair, quantize_experts(torch.randn(6, 20), torch.randn(12, 6))], "experts of one kind"),
        ([pair, (torch.randn(6, 21), torch.randn(12, 6))], r"lora_a must be \[R, 20\]"),
    ):
        with pytest.raises(InputError, match=says):
            apply_rankwise_lora(model, {"0": outputs})
    assert type(model[0]) is nn.Linear


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "slices", "ranks"), [(131, 3, 57), (67, 2, 256), (1029, 2, 64)])
def test_cpp_bits_depend_neither_on_threads_nor_on_how_a_call_is_cut_up(
    problems: SimpleNamespace,
    dtype: torch.dtype,
    tokens: int,
    slices: int,
    ranks: int,
) -> None:
    ends = tuple(40 * (i + 1) for i in range(slices))
    x, a, b, g, ends, rows, s = make(problems, (tokens, 300, ranks, ends), dtype=dtype).arguments
    rows.clamp_min_(0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = rankwise_lora_slices(x, a, b, g, ends, rows, s)
        # Below 64 tokens and from there on sums may be made in two orders.
        few = rankwise_lora_slices(x[-60:], a, b, g, ends, rows[-60:], s)
        last = rankwise_lora_slices(x[-10:], a, b, g, ends, rows[-10:], s)
        most = max(66, tokens * 2 // 3)
        assert torch.equal(last, few[-10:])
        assert torch.equal(rankwise_lora_slices(x[-most:], a, b, g, ends, rows[-most:], s), whole[-most:])
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(rankwise_lora_slices(x, a, b, g, ends, rows, s), whole)
    finally:
        torch.set_num_threads(before)


def test_the_operator_is_one_node_of_a_graph(problems: SimpleNamespace) -> None:
    problem = make(problems, (6, 20, 4, (8, 13)))
    x, a, b, g, ends, rows, s = problem.arguments
    torch.library.opcheck(
        torch.ops.bdc.rankwise_lora_slices_.default,
        (problem.y, x, a, b, g, rows, list(ends), s),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    seen: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if "bdc" in str(node.target))
        return graph

    with torch.no_grad():
        torch.compile(rankwise_lora_slices_, fullgraph=True, backend=record)(problem.y.clone(), *problem.arguments)
        torch.compile(rankwise_lora_slices, fullgraph=True, backend=record)(*problem.arguments)
    assert seen == ["bdc.rankwise_lora_slices_"] * 2
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="lora_a must have 3 slices"):
        torch.compile(rankwise_lora_slices, fullgraph=True, backend="eager")(x, a, b, g, (4, 8, 13), rows, s)


@pytest.mark.parametrize("views", [False, True], ids=["as vLLM does", "as torch does"])
def test_inductor_adds_to_what_it_computes(problems: SimpleNamespace, views: bool) -> None:
    """vLLM takes torch's older form of in-place operators, for which views of the output would be copied wrongly."""
    problem = make(problems, (3, 20, 4, (8, 16)))
    x, *others = problem.arguments

    def layer(x: torch.Tensor, weight: torch.Tensor, *others: object) -> torch.Tensor:
        y = rankwise_lora_slices_(x @ weight, x, *others)  # type: ignore[arg-type]
        return torch.nn.functional.silu(y[:, :8]) * y[:, 8:]

    weight = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, options={"enable_auto_functionalized_v2": views})
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x, weight, *others), layer(x, weight, *others))
