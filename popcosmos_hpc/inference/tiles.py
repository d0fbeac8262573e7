"""Tiles of a pool of prior draws: the leaves of a balanced kd-tree over colours and magnitudes.

Draws of one tile look alike, so one evaluation of the likelihood at a tile's mean tells how much its draws
are worth. The tree is grown on part of the pool; the rest is sorted into it.
"""

from typing import NamedTuple

import numpy as np

_SMALLEST_LEAF = 8
_CHUNK = 1 << 20


class Tree(NamedTuple):
    """A balanced kd-tree of `depth` levels, 2^depth leaves; node i of a level has children 2 i and 2 i + 1.

    Attributes:
        centre: (band,) subtracted from asinh magnitudes.
        rotation: (band, axis) principal axes.
        axis: (node,) uint8 splitting axis, level by level.
        threshold: (node,) float32; larger values go to the second child.
        softening: (band,) fluxes below which asinh magnitudes are linear [nanomaggies].
    """

    centre: np.ndarray
    rotation: np.ndarray
    axis: np.ndarray
    threshold: np.ndarray
    softening: np.ndarray

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.axis) + 1


def grow_tree(flux: np.ndarray, softening: np.ndarray, n_leaves: int) -> Tree:
    """Split draws in halves along the axis in which each part is widest.

    Args:
        flux: (draw, band) [nanomaggies].
        softening: (band,) of the asinh magnitudes, near the survey's flux errors [nanomaggies].
        n_leaves: leaves wanted; reduced to the power of two that leaves eight draws in each.

    Returns:
        the tree; with too few draws, one of a single leaf.
    """
    softening = np.asarray(softening, np.float32)
    feasible = min(n_leaves, max(len(flux) // _SMALLEST_LEAF, 1))
    depth = int(np.log2(feasible))
    n_used = (len(flux) >> depth) << depth
    luptitude = np.arcsinh(flux[:n_used] / (2 * softening)).astype(np.float32)
    centre = luptitude.mean(0)
    _, rotation = np.linalg.eigh(np.cov((luptitude - centre).T).reshape(flux.shape[1], -1))
    rotation = rotation.astype(np.float32)
    point = (luptitude - centre) @ rotation
    order, axes, thresholds = np.arange(n_used)[None], [np.empty(0, np.uint8)], [np.empty(0, np.float32)]
    for _ in range(depth):
        order, axis, threshold = _halve(point, order)
        axes.append(axis)
        thresholds.append(threshold)
    return Tree(centre, rotation, np.concatenate(axes), np.concatenate(thresholds), softening)


def _halve(point: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (node, size) to (2 node, size / 2); splitting axis and threshold (node,) of each."""
    half = order.shape[1] // 2
    axis = np.array([point[rows].var(0).argmax() for rows in order], np.uint8)
    value = point[order, axis[:, None]]
    rank = np.argpartition(value, half, axis=1)
    threshold = np.take_along_axis(value, rank[:, half : half + 1], 1)[:, 0]
    return np.take_along_axis(order, rank, 1).reshape(-1, half), axis, threshold


def assign(tree: Tree, flux: np.ndarray) -> np.ndarray:
    """Leaf of each draw, (draw,) uint32.

    Args:
        tree: from `grow_tree`.
        flux: (draw, band) [nanomaggies].
    """
    depth = tree.n_leaves.bit_length() - 1
    leaf = np.zeros(len(flux), np.uint32)
    for start in range(0, len(flux), _CHUNK):
        rows = slice(start, start + _CHUNK)
        luptitude = np.arcsinh(flux[rows] / (2 * tree.softening)).astype(np.float32)
        point, node = (luptitude - tree.centre) @ tree.rotation, np.zeros(len(luptitude), np.uint32)
        row = np.arange(len(point))
        for level in range(depth):
            split = (1 << level) - 1 + node
            node = 2 * node + (point[row, tree.axis[split]] >= tree.threshold[split])
        leaf[rows] = node
    return leaf


def grouped_sums(leaf: np.ndarray, values: np.ndarray, n_leaves: int) -> np.ndarray:
    """Sums over each leaf of values (draw, column) and of their squares, (2, leaf, column) float64."""
    columns = values.T.astype(np.float64)
    sums = [[np.bincount(leaf, column**power, n_leaves) for column in columns] for power in (1, 2)]
    return np.moveaxis(np.array(sums), 1, 2)
