"""The ladder: the cheapest sampler first; each galaxy climbs until its accuracy is certified.

A rung is a sampler. Galaxies that a rung does not certify go on to the next, in full batches again. Each
leaves with the certificate of the rung that it stopped at and with the cost of all that it tried.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from popcosmos_hpc.errors import ConfigurationError, Status
from popcosmos_hpc.inference.batch import fit_galaxies
from popcosmos_hpc.inference.sampler import AbstractSampler, Posterior
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry

_CLIMBING = frozenset(map(int, (Status.POOR_FIT, Status.NOT_CONVERGED, Status.NUMERICAL_FAILURE)))
_RANK = {Status.OK: 3, Status.POOR_FIT: 2, Status.NOT_CONVERGED: 1, Status.NUMERICAL_FAILURE: 0}
_RUNG_STREAM = 0x72756E67


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: its name and its sampler."""

    name: str
    sampler: AbstractSampler


@dataclass(frozen=True)
class Ladder:
    """Samplers in the order in which a galaxy tries them.

    Args:
        rungs: at least one; cheapest first.

    Raises:
        ConfigurationError: there is none.
    """

    rungs: tuple[Rung, ...]

    def __post_init__(self):
        if not self.rungs:
            raise ConfigurationError("at least one rung", "none", "sampler ladder")

    @property
    def max_draws(self) -> int:
        """Most draws that every rung can return."""
        return min(rung.sampler.max_draws for rung in self.rungs)


def climb(
    ladder: Ladder,
    model: GalaxyModel,
    photometry: Photometry,
    object_id: np.ndarray,
    seed: int,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    draws: int = 200,
) -> Posterior:
    """Fit many galaxies with a ladder; arguments and result as for `batch.fit_galaxies`.

    A galaxy that no rung certifies keeps the best that it had: a certified poor fit before one that did not
    converge, and of those the one with the largest effective size.
    """
    result: Posterior | None = None
    rows = np.arange(len(object_id))
    for index, rung in enumerate(ladder.rungs):
        part = Photometry(*(np.asarray(values)[rows] for values in photometry))
        climbing = frozenset() if index == len(ladder.rungs) - 1 else _CLIMBING
        fitted = fit_galaxies(
            rung.sampler,
            model,
            part,
            object_id[rows],
            _seed(seed, index),
            batch_size,
            progress,
            draws,
            climbing,
        )
        result = fitted if result is None else _keep_better(result, fitted, rows)
        rows = rows[np.isin(fitted.status, list(climbing))]
        if len(rows) == 0:
            return result
    return result  # pyright: ignore[reportReturnType]


def _seed(seed: int, index: int) -> int:
    """Seed of a rung: the run's own on the first, others that follow from it on the next."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, _RUNG_STREAM, index]).generate_state(1)[0])


def _keep_better(result: Posterior, fitted: Posterior, rows: np.ndarray) -> Posterior:
    """Replace rows where the new fit is better; costs add up either way."""
    spent = result.n_evaluations[rows] + fitted.n_evaluations
    better = rows[_quality(fitted) >= _quality(result, rows)]
    chosen = np.isin(rows, better)
    for target, values in zip(result, fitted, strict=True):
        target[better] = values[chosen]
    result.n_evaluations[rows] = spent
    return result


def _quality(posterior: Posterior, rows: np.ndarray | None = None) -> np.ndarray:
    """Rank of the status, then effective size, as one number per galaxy."""
    pick = slice(None) if rows is None else rows
    rank = np.array([_RANK.get(Status(int(status)), 0) for status in posterior.status[pick]], float)
    ess = np.nan_to_num(np.asarray(posterior.ess, float)[pick])
    return rank + ess / (1.0 + ess)
