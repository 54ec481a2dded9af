"""How strange a cell is beside reference cells: percentiles of a raw score, and fixed masks for reconstruction.

Letters: m cells, n reference cells, N tokens, K draws of masks.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_REFERENCE_CELLS = 20


def surprise_percentiles(
    scores: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike | None = None,
    reference_groups: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """
    Place scores among those of reference cells.

    Parameters
    ----------
    scores
        (m,) higher is stranger; NaN for a cell without a score.
    reference
        (n,) scores of cells of the kind that the model knows, that took no part in its training; NaN is left out.
    groups, reference_groups
        (m,) and (n,) what a score may only be compared within, such as the modalities that a cell has.

    Returns
    -------
    (m,) in [0, 100): 100 (1 - p) with p = (1 + number of reference scores that are not lower) / (n + 1). NaN without
    a score, or where the group has fewer than 20 reference cells.

    Raises
    ------
    ValueError
        If only one of the groups is given, or lengths differ.

    Notes
    -----
    p is a conformal p-value: a cell that is exchangeable with the reference cells gets a percentile above 95 with a
    probability of at most 5 %. Among many cells, 5 % of ordinary ones are above 95. Guarded by
    tests/evaluation/calibration/test_percentiles.py.
    """
    scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if (groups is None) != (reference_groups is None):
        raise ValueError("`groups` and `reference_groups` must both be given or both be None, got one of them.")
    groups = np.zeros(len(scores)) if groups is None else np.asarray(groups)
    reference_groups = np.zeros(len(reference)) if reference_groups is None else np.asarray(reference_groups)
    if groups.shape != scores.shape or reference_groups.shape != reference.shape:
        raise ValueError(
            "Groups must be one per score, got "
            f"{groups.shape} for {scores.shape} and {reference_groups.shape} for {reference.shape}."
        )
    percentiles = np.full(len(scores), np.nan)
    for group in np.unique(groups):
        known = np.sort(reference[(reference_groups == group) & np.isfinite(reference)])
        rows = np.flatnonzero((groups == group) & np.isfinite(scores))
        if len(known) >= MIN_REFERENCE_CELLS:
            not_lower = len(known) - np.searchsorted(known, scores[rows], side="left")
            percentiles[rows] = 100 * (1 - (1 + not_lower) / (len(known) + 1))
    return percentiles


def draw_masks(num_tokens: int, ratio: float, num_draws: int, seed: int = 0) -> NDArray[np.bool_]:
    """
    Draw masks that are the same for every cell, (K, N), so that the error of a cell does not depend on the others.

    Parameters
    ----------
    num_tokens
        Tokens of the modality (N).
    ratio
        Share of tokens that a draw hides, in (0, 1).
    num_draws
        How many (K). Token by token, the draws hide about equally often.
    seed
        Of the draws.

    Raises
    ------
    ValueError
        If the ratio is out of range or there is no draw.
    """
    if not 0 < ratio < 1 or num_draws < 1:
        raise ValueError(f"`ratio` must lie in (0, 1) and `num_draws` be at least 1, got {ratio} and {num_draws}.")
    rng = np.random.default_rng(seed)
    hidden = max(1, round(ratio * num_tokens))
    order = np.concatenate([rng.permutation(num_tokens) for _ in range(-(-hidden * num_draws // num_tokens))])
    masks = np.zeros((num_draws, num_tokens), dtype=bool)
    for k in range(num_draws):
        masks[k, order[k * hidden : (k + 1) * hidden]] = True
    return masks
