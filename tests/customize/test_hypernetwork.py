from __future__ import annotations

from typing import Any

import pytest
import torch

from bdc.customize.hypernetwork import Hypernetwork, HypernetworkConfig, cosines

FORMS = [(w, s) for w in ("rank", "release", "expert") for s in ("layer", "shared")]


def network(weighting: Any = "rank", sharing: Any = "layer", **fields: Any) -> Hypernetwork:
    return Hypernetwork(HypernetworkConfig(6, 5, 3, 4, weighting=weighting, sharing=sharing, **fields), seed=2)


def inputs(n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.randn(3, 6, generator=generator)


def shaken(found: Hypernetwork) -> Hypernetwork:
    with torch.no_grad():
        found.weight_out.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    return found


@pytest.mark.parametrize(("weighting", "sharing"), FORMS)
def test_untrained_weights_are_exactly_uniform(weighting: str, sharing: str) -> None:
    weights = network(weighting, sharing)(*inputs())
    share = 1 / 12 if weighting == "release" else 1 / 3
    assert weights.shape == (7, 5, 3, 4)
    assert torch.equal(weights, torch.full_like(weights, share))


@pytest.mark.parametrize(("weighting", "sharing"), FORMS)
def test_weights_sum_to_one_where_the_softmax_runs(weighting: str, sharing: str) -> None:
    weights = shaken(network(weighting, sharing))(*inputs())
    over = weights.sum(dim=(2, 3)) if weighting == "release" else weights.sum(dim=2)
    torch.testing.assert_close(over, torch.ones_like(over))
    assert weights.std(dim=0).min() > 1e-4  # they differ between inputs
    across_ranks = weights.std(dim=3).max()
    assert across_ranks == 0 if weighting == "expert" else across_ranks > 1e-3


@pytest.mark.parametrize("sharing", ["layer", "shared"])
def test_layers_are_two_layer_mlps(sharing: str) -> None:
    found = shaken(network(sharing=sharing))
    embeddings, centroids = inputs(1)
    features = torch.cat([embeddings, cosines(embeddings, centroids)], dim=1)[0]
    for layer, expected in enumerate(found(embeddings, centroids)[0]):
        if sharing == "layer":
            hidden = torch.relu(found.weight_in[layer] @ features + found.bias_in[layer])
            logits = found.weight_out[layer] @ hidden + found.bias_out[layer]
        else:
            wide = torch.cat([features, found.layer_embedding[layer]])
            hidden = torch.relu(torch.cat([found.weight_in, found.weight_layer], dim=1) @ wide + found.bias_in)
            logits = found.weight_out @ hidden + found.bias_out
        torch.testing.assert_close(logits.view(3, 4).softmax(0), expected)


def test_cosines() -> None:
    embeddings, centroids = inputs()
    expected = torch.nn.functional.cosine_similarity(embeddings[:, None], centroids[None], dim=2)
    torch.testing.assert_close(cosines(embeddings, centroids), expected)


def test_without_centroid_features_centroids_do_not_matter() -> None:
    found = shaken(network(centroid_features=False))
    embeddings, centroids = inputs()
    assert torch.equal(found(embeddings, centroids), found(embeddings, -centroids))
    with_them = shaken(network())
    assert not torch.equal(with_them(embeddings, centroids), with_them(embeddings, -centroids))


def test_the_seed_decides_the_start_and_the_surroundings_do_not() -> None:
    torch.manual_seed(1)
    one = network().state_dict()
    torch.manual_seed(2)
    two = network().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = Hypernetwork(HypernetworkConfig(6, 5, 3, 4), seed=3).state_dict()
    assert not torch.equal(one["weight_in"], other["weight_in"])
