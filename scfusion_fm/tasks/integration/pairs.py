"""Which cells of different batches belong together: mutual nearest neighbours.

Letters: n cells, K coordinates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

NO_CODE = -1


@dataclass(frozen=True)
class Pairs:
    """
    Partners of cells in other batches, as one list with the beginning of each cell's part.

    Attributes
    ----------
    starts
        (n + 1,) where the partners of each cell begin.
    partners
        Rows of the partners.
    """

    starts: NDArray[np.int64]
    partners: NDArray[np.int64]

    def count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the number of partners of some cells."""
        return self.starts[rows + 1] - self.starts[rows]

    def draw(self, rows: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.int64]:
        """Draw a partner of each cell by a number in [0, 1); the cell itself where it has none."""
        number = self.count(rows)
        place = self.starts[rows] + np.minimum((chance * number).astype(np.int64), np.maximum(number - 1, 0))
        safe = np.minimum(place, max(len(self.partners) - 1, 0))
        return np.where(number > 0, self.partners[safe] if len(self.partners) else rows, rows)


def find_pairs(
    coordinates: NDArray[np.float64],
    batches: NDArray[np.int64],
    rows: NDArray[np.int64],
    types: NDArray[np.int64],
    num_neighbours: int,
) -> Pairs:
    """
    Pair cells of different batches that are among one another's nearest, by the angle of their coordinates.

    Parameters
    ----------
    coordinates
        (n, K).
    batches
        (n,) numbers of the batches.
    rows
        Cells that are paired; others have no partners.
    types
        (n,) numbers of the cell types, -1 where a cell has none; cells of two known types are no pair unless these are
        equal.
    num_neighbours
        How many of the nearest count.
    """
    size = np.linalg.norm(coordinates, axis=1, keepdims=True)
    unit = coordinates / np.where(size > 0, size, 1.0)
    found = [np.empty((0, 2), np.int64)]
    names = np.unique(batches[rows])
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            left, right = rows[batches[rows] == one], rows[batches[rows] == other]
            found.append(_pair(unit, left, right, num_neighbours))
    pairs = np.concatenate(found)
    known = (types[pairs] != NO_CODE).all(1)
    pairs = pairs[~known | (types[pairs[:, 0]] == types[pairs[:, 1]])]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return Pairs(np.searchsorted(both[:, 0], np.arange(len(coordinates) + 1)), both[:, 1])


def _pair(
    unit: NDArray[np.float64], left: NDArray[np.int64], right: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """Give the mutual nearest of two batches, (pairs, 2)."""
    ways = []
    for near, far in ((left, right), (right, left)):
        index = NearestNeighbors(n_neighbors=min(number, len(far))).fit(unit[far])
        nearest = far[index.kneighbors(unit[near], return_distance=False)]
        ways.append(np.stack([np.repeat(near, nearest.shape[1]), nearest.ravel()], 1))
    forth, back = ways[0], ways[1][:, ::-1]
    width = len(unit)
    mutual = np.isin(forth[:, 0] * width + forth[:, 1], back[:, 0] * width + back[:, 1])
    return forth[mutual]
