"""K-means over sentence embeddings of problem statements (arXiv 2502.12492, section on disentangling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_RESTARTS = 10


@dataclass(frozen=True, slots=True)
class Clustering:
    """``assignment`` int [n], ``centroids`` float32 [K, d], and SSE and silhouette for every K tried.

    ``silhouette`` is that of the assignment, which may differ from that of the ``chosen_k`` once small clusters were merged;
    None where it is not defined.
    """

    assignment: np.ndarray
    centroids: np.ndarray
    scores: dict[int, dict[str, float | None]]
    chosen_k: int
    silhouette: float | None

    @property
    def k(self) -> int:
        """Clusters left after small ones were merged."""
        return len(self.centroids)


def nearest(embeddings: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid (Euclidean, as in K-means; the lower at a tie): [n, d], [K, d] -> int64 [n]."""
    points, centres = (np.asarray(rows, dtype=np.float64) for rows in (embeddings, centroids))
    distances = (centres**2).sum(1)[None] - 2.0 * points @ centres.T
    return np.asarray(distances.argmin(1), dtype=np.int64)


def cluster(
    embeddings: np.ndarray,
    k: int | Literal["auto"],
    *,
    k_range: tuple[int, int] = (2, 8),
    min_size: int = 1,
    seed: int = 0,
) -> Clustering:
    """Cluster rows of L2 norm 1.

    Every K of ``k_range`` that the data allow is tried and scored; "auto" takes the one with the best silhouette (the
    smaller at a tie). Clusters with fewer than ``min_size`` rows are then dissolved, smallest first: K-means goes on
    from the other centroids, so the result is a fixed point of K-means again.

    Args:
        embeddings: float32 [n, d].
    """
    points = np.ascontiguousarray(embeddings, dtype=np.float64)
    distinct = len(np.unique(points, axis=0))
    fits: dict[int, Any] = {}
    scores: dict[int, dict[str, float | None]] = {}
    for candidate in range(k_range[0], min(k_range[1], distinct) + 1):
        fits[candidate] = fit = _k_means(points, candidate, seed)
        scores[candidate] = {"sse": float(fit.inertia_), "silhouette": _silhouette(points, fit.labels_)}
    if k == "auto":
        rated = [(score["silhouette"], -c) for c, score in scores.items() if score["silhouette"] is not None]
        chosen = -max(rated)[1] if rated else 1
    else:
        chosen = min(k, distinct)
    fit = fits.get(chosen) or _k_means(points, chosen, seed)
    centroids = _dissolve(points, fit.cluster_centers_, min_size)
    assignment = nearest(embeddings, centroids)
    return Clustering(assignment, centroids, scores, chosen, _silhouette(points, assignment))


def _silhouette(points: np.ndarray, assignment: np.ndarray) -> float | None:
    from sklearn.metrics import silhouette_score

    k = len(np.unique(assignment))
    return float(silhouette_score(points, assignment)) if 2 <= k <= len(points) - 1 else None


def _k_means(points: np.ndarray, k: int, seed: int, init: Any = "k-means++") -> Any:
    from sklearn.cluster import KMeans

    restarts = _RESTARTS if isinstance(init, str) else 1
    return KMeans(k, init=init, n_init=restarts, random_state=seed, tol=0.0).fit(points)


def _dissolve(points: np.ndarray, centroids: np.ndarray, min_size: int) -> np.ndarray:
    """Centroids float32 [K, d], each the nearest of at least ``min_size`` points, as they are once rounded."""
    while True:
        order = np.lexsort(centroids.T[::-1])  # one that no seed or restart changes
        centroids = centroids[order].astype(np.float32)
        sizes = np.bincount(nearest(points, centroids), minlength=len(centroids))
        smallest = int(sizes.argmin())
        if len(centroids) == 1 or sizes[smallest] >= max(min_size, 1):  # rounding may leave one without a point
            return centroids
        rest = np.delete(centroids, smallest, axis=0)
        centroids = _k_means(points, len(rest), 0, init=rest.astype(np.float64)).cluster_centers_


def project(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE coordinates float32 [n, 2] for a picture; fewer than four points, or all the same, lie on a line."""
    n = len(embeddings)
    if n < 4 or (embeddings == embeddings[0]).all():
        return np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.float32)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (n - 1) / 3)
    picture = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings.astype(np.float64))
    return np.asarray(picture, dtype=np.float32)


def terms(statements: Sequence[str], assignment: np.ndarray, k: int, count: int = 6) -> list[list[str]]:
    """Per cluster, the words whose mean TF-IDF stands out most from the other clusters' (for a person to name it)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b[a-zA-Z]{3,}\b")
    try:
        weights = vectorizer.fit_transform(statements).toarray()
    except ValueError:  # no words at all
        return [[] for _ in range(k)]
    words = vectorizer.get_feature_names_out()
    overall = weights.mean(0)
    out = []
    for index in range(k):
        inside = weights[assignment == index]
        order: Any = np.argsort(overall - inside.mean(0), kind="stable")[:count] if len(inside) else []
        out.append([str(words[i]) for i in order if inside[:, i].any()])
    return out
