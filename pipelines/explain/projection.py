"""Embeddings as places on a flat map, and how far such a map may be believed.

Flows in: rows of a joint space. Flows out: two coordinates a row, the share of neighbourhoods that
the map keeps, and the accuracy of neighbours in the joint space itself.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from trainables.config import check
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.neighbours import nearest_images

Floats: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]
Method: TypeAlias = Literal["umap", "tsne"]
FEWEST = 5  # rows of which a map says something


def project(embeds: Floats, method: Method, seed: int) -> Floats:
    """Places on a map of the rows of `embeds` by cosine: (N, e) -> (N, 2) float32.

    `tsne`: van der Maaten & Hinton 2008, perplexity 30. `umap`: McInnes et al. 2018, 15 neighbours.
    Both are smaller for few rows. Distances between groups, their sizes, and the axes mean nothing;
    neighbourhoods do, as far as `trustworthiness` says. CLIP's images and texts lie in two separate
    cones, so on one map they form two islands.

    Equal rows and seeds give equal places, on one machine. For that one core is used: several
    threads would add up in another order at each call. UMAP compiles itself for ten seconds in each
    process.
    """
    check_method(method)
    rows = _unit(embeds)
    return _umap(rows, seed) if method == "umap" else _tsne(rows, seed)


def check_method(method: str) -> None:
    """Raise `ConfigError` where `method` is not a method, or is not installed."""
    if method not in get_args(Method):
        raise ConfigError(unknown("method", method, get_args(Method)))
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError(
            "`umap` needs the package umap-learn, which is not installed: "
            "`pip install cliptune[umap]` (210 MB), or take `tsne`."
        )


def _tsne(rows: Floats, seed: int) -> Floats:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(rows) - 1) / 3)  # a third of the others at most, or all look near
    with threadpool_limits(limits=1):
        made = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    return np.asarray(made, np.float32)


def _umap(rows: Floats, seed: int) -> Floats:
    with warnings.catch_warnings():
        # Its own advertisement of a part that needs TensorFlow, which is not wanted here.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP
    neighbours = min(15, len(rows) - 1)
    made = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(rows)
    return np.asarray(made, np.float32)


def align(places: Floats, onto: Floats) -> Floats:
    """`places` shifted and turned, mirrored if need be, to lie as near to `onto` as possible.

    Both methods leave a map's turn and mirror to chance; without them, two maps of the same rows
    can be compared by eye. No distance within the map changes. Orthogonal Procrustes, Schoenemann
    1966: (N, 2), (N, 2) -> (N, 2).
    """
    centre = onto.mean(0)
    ours = places - places.mean(0)
    left, _, right = np.linalg.svd(ours.T @ (onto - centre))
    return np.asarray(ours @ (left @ right) + centre, np.float32)


def trustworthiness(embeds: Floats, places: Floats, k: int = 15) -> float:
    """How far neighbours on the map are neighbours in the joint space (Venna & Kaski 2001).

    1: each of a row's `k` nearest on the map is among its `k` nearest by cosine. Those that are not
    cost by how far down they stand. A map drawn at random has about 0.5. Few rows get a smaller k.
    """
    from sklearn.manifold import trustworthiness as of

    k = min(k, (len(embeds) - 1) // 2)
    check(k >= 1, "k", "at least 1", k)
    return float(of(_unit(embeds), places, n_neighbors=k))


def neighbour_hits(embeds: Floats, labels: Ints, k: int = 10) -> Floats:
    """Whether the `k` nearest others by cosine vote for each row's own label: (N,), 1 or 0.

    The mean is the leave-one-out accuracy of k nearest neighbours, in the joint space itself:
    where it and a map disagree, believe it. Each vote weighs its cosine plus 1, which also breaks
    ties. Hits before and after an adaptation are paired by row, as `Bootstrap` wants them. A class
    of one row is always missed.
    """
    rows = torch.from_numpy(_unit(embeds))
    known = torch.from_numpy(np.asarray(labels, np.int64))
    check(k >= 1, "k", "at least 1", k)
    if len(known) != len(rows):
        raise DataError(f"`labels` must be one a row, {len(rows)}, got {len(known)}.")
    near = nearest_images(rows, k, torch.arange(len(rows)))  # (N, k)
    votes = torch.zeros(len(rows), int(known.max()) + 1)
    for column in near.T:
        weight = F.cosine_similarity(rows, rows[column]) + 1
        votes.scatter_add_(1, known[column, None], weight[:, None])
    return (votes.argmax(1) == known).double().numpy()


def _unit(embeds: Floats) -> Floats:
    """The rows at length 1 in fp32. Raises where they make no map."""
    if embeds.ndim != 2 or embeds.shape[1] < 2:
        raise DataError(f"`embeds` must be (N, e) with e of at least 2, got {embeds.shape}.")
    rows = np.ascontiguousarray(embeds, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(wrong):
        raise DataError(f"`embeds[{wrong[0]}]` must have a direction, got NaN, infinity or zeros.")
    different = len(np.unique(rows, axis=0))
    if different < FEWEST:
        raise DataError(
            f"`embeds` must have at least {FEWEST} different rows for a map, got {different}."
        )
    return np.asarray(rows / norms, np.float32)
