from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from bdc.disentangle.clustering import cluster, nearest, project, terms


def blobs(sizes: list[int], spread: float = 0.05, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Unit vectors around orthogonal directions."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([np.eye(dim)[i] + spread * rng.standard_normal((n, dim)) for i, n in enumerate(sizes)])
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def same_partition(found: np.ndarray, sizes: list[int]) -> bool:
    true = np.repeat(np.arange(len(sizes)), sizes)
    return len(set(zip(found.tolist(), true.tolist(), strict=True))) == len(sizes)


def test_finds_well_separated_groups() -> None:
    fit = cluster(blobs([10, 7, 5]), 3)
    assert fit.k == 3
    assert same_partition(fit.assignment, [10, 7, 5])


def test_auto_takes_the_best_silhouette() -> None:
    fit = cluster(blobs([8, 8, 8, 8]), "auto")
    assert fit.chosen_k == fit.k == 4
    silhouettes = {k: score["silhouette"] for k, score in fit.scores.items()}
    assert set(silhouettes) == set(range(2, 9))
    assert max(silhouettes, key=lambda k: silhouettes[k] or -1) == 4


def test_sse_is_the_sum_of_squared_distances_and_falls_with_k() -> None:
    points = blobs([6, 6, 6])
    fit = cluster(points, 3, k_range=(2, 5))
    distances = ((points[:, None] - fit.centroids[None]) ** 2).sum(-1).min(1)
    assert fit.scores[3]["sse"] == pytest.approx(distances.sum(), rel=1e-4)
    errors = [fit.scores[k]["sse"] or 0.0 for k in (2, 3, 4, 5)]
    assert errors == sorted(errors, reverse=True)


def test_small_clusters_are_merged_and_the_rest_is_a_fixed_point() -> None:
    points = blobs([12, 12, 2], seed=1)
    assert cluster(points, 3, min_size=1).k == 3
    fit = cluster(points, 3, min_size=4)
    assert (fit.chosen_k, fit.k) == (3, 2)
    assert np.bincount(fit.assignment).min() >= 4
    means = np.stack([points[fit.assignment == i].mean(0) for i in range(fit.k)])
    np.testing.assert_allclose(means, fit.centroids, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_close_points_keep_the_promises(seed: int) -> None:
    """Unit vectors 1e-4 apart: their distances are lost in float32."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((1, 16)) + 1e-4 * rng.standard_normal((int(rng.integers(6, 40)), 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    fit = cluster(points, int(rng.integers(2, 7)), min_size=4)
    assert fit.k == 1 or np.bincount(fit.assignment, minlength=fit.k).min() >= 4
    exact = ((points[:, None].astype(np.float64) - fit.centroids[None].astype(np.float64)) ** 2).sum(-1)
    np.testing.assert_array_equal(fit.assignment, exact.argmin(1))


def test_silhouette_is_that_of_the_clusters_after_merging() -> None:
    merged = [cluster(blobs([30], spread=1.0, seed=seed), 6, min_size=4) for seed in range(8)]
    assert any(fit.k < fit.chosen_k and fit.silhouette != fit.scores[fit.k]["silhouette"] for fit in merged)
    for seed, fit in enumerate(merged):
        points = blobs([30], spread=1.0, seed=seed).astype(np.float64)
        assert fit.silhouette == silhouette_score(points, fit.assignment)


def test_no_cluster_is_empty_where_points_differ_by_rounding() -> None:
    points = np.repeat(blobs([1]), 12, axis=0)
    points[::2, 0] *= np.float32(1) + np.finfo(np.float32).eps
    fit = cluster(points, 2, min_size=2)
    assert np.bincount(fit.assignment, minlength=fit.k).min() > 0


def test_same_seed_same_bits_and_fewer_points_than_k() -> None:
    points = blobs([4, 4])
    one, two = cluster(points, 2, seed=3), cluster(points, 2, seed=3)
    assert one.centroids.tobytes() == two.centroids.tobytes()
    assert cluster(points[:2], 5).k == 2
    assert cluster(points[:1], 3).k == 1
    assert cluster(np.repeat(points[:1], 4, axis=0), "auto").k == 1


def test_nearest_is_euclidean() -> None:
    centroids = np.array([[1.0, 0.0], [0.0, 0.2]], dtype=np.float32)
    points = np.array([[0.9, 0.1], [0.2, 0.9], [0.6, 0.8]], dtype=np.float32)
    brute = ((points[:, None] - centroids[None]) ** 2).sum(-1).argmin(1)
    assert nearest(points, centroids).tolist() == brute.tolist()


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_projection_has_two_coordinates_and_repeats(n: int) -> None:
    points = blobs([n])
    picture = project(points, seed=0)
    assert picture.shape == (n, 2)
    assert np.isfinite(picture).all()
    np.testing.assert_array_equal(picture, project(points, seed=0))


def test_points_that_are_all_the_same_can_be_shown() -> None:
    picture = project(np.repeat(blobs([1]), 9, axis=0))
    assert np.isfinite(picture).all() and len(np.unique(picture, axis=0)) == 9


def test_terms_name_what_sets_a_cluster_apart() -> None:
    texts = ["sort the array", "sort numbers in an array", "count vowels in text", "vowels of the text"]
    found = terms(texts, np.array([0, 0, 1, 1]), 2, count=2)
    assert set(found[0]) == {"sort", "array"}
    assert set(found[1]) == {"vowels", "text"}
