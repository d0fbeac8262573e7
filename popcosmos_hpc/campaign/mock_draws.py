"""Detected galaxies of a mock survey by rejection: each is drawn from random numbers of its own.

Galaxy number i tries candidates 0, 1, 2, ... of its own stream, which is folded from the seed, i and the
number of the candidate, and keeps the first that is detected. Draws of the population that are detected
follow the population given detection, whatever the noise, so nothing has to be weighted or bounded. And
a galaxy depends on seed and index alone: not on its batch, chunk, worker or partition.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.inference.batch import galaxy_keys
from popcosmos_hpc.model.mock import Candidate, MockModel

BATCH = 8192
"""Candidates in one device call. Other shapes may round differently, so there is only this one."""
_PILOT = np.array([-1])  # index of the stream that the pilot uses; galaxies count from zero
_ENOUGH = 100


class DetectedGalaxies(NamedTuple):
    """Galaxies of a mock catalog.

    Attributes:
        theta: (galaxy, param) float32 physical parameters.
        derived: (galaxy, quantity) float32 quantities that follow from them.
        true_flux: (galaxy, band) float32 noiseless fluxes [nanomaggies].
        flux: (galaxy, band) float32 noisy fluxes [nanomaggies].
        flux_err: (galaxy, band) float32 1-sigma errors [nanomaggies].
        state: (galaxy, band) int8 `BandState`.
        n_candidates: (galaxy,) int64 candidates tried, the detected one included.
    """

    theta: np.ndarray
    derived: np.ndarray
    true_flux: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    state: np.ndarray
    n_candidates: np.ndarray


def draw_galaxies(
    model: MockModel, seed: int, index: np.ndarray, most_draws: int = 2**30
) -> DetectedGalaxies:
    """Draw detected galaxies.

    Args:
        model: population, photometry, noise and selection.
        seed: of all random numbers.
        index: (galaxy,) int64 numbers of the galaxies, from zero; any set in any order.
        most_draws: candidates that one galaxy may try.

    Raises:
        ConfigurationError: a galaxy was not detected within `most_draws`.
    """
    n_galaxies = len(index)
    keys, tried = galaxy_keys(seed, index), np.zeros(n_galaxies, np.int64)
    found: Candidate | None = None
    active, next_row = np.empty(0, np.int64), 0
    while next_row < n_galaxies or len(active):
        stop = min(n_galaxies, next_row + BATCH - len(active))
        active, next_row = np.concatenate([active, np.arange(next_row, stop)]), stop
        each = BATCH // len(active)
        attempt = (tried[active][:, None] + np.arange(each)).ravel()
        batch = _candidates(model, *_padded(keys[np.repeat(active, each)], attempt))
        selected = np.asarray(batch.selected)[: len(attempt)].reshape(len(active), each)
        hit, first = selected.any(axis=1), selected.argmax(axis=1)
        tried[active] += np.where(hit, first + 1, each)
        if found is None:
            found = Candidate(*(np.empty((n_galaxies, *x.shape[1:]), x.dtype) for x in batch))
        slot = (np.arange(len(active)) * each + first)[hit]
        for target, values in zip(found, batch, strict=True):
            target[active[hit]] = np.asarray(values)[slot]
        active = active[~hit]
        _refuse_endless(tried[active], most_draws)
    if found is None:
        raise ConfigurationError("at least one galaxy", "none", "mock catalog", "Ask for one or more.")
    photometry = (found.true_flux, found.flux, found.flux_err, found.state)
    return DetectedGalaxies(found.theta, _derived(model, found.theta), *photometry, tried)


def detection_rate(model: MockModel, seed: int, most_draws: int) -> float:
    """Share of the population that is detected, from as many draws as it takes to know it to ten percent.

    Args:
        model: population, photometry, noise and selection.
        seed: of all random numbers.
        most_draws: bound on the draws; rounded up to whole batches.

    Raises:
        ConfigurationError: none is detected within the bound.
    """
    keys = np.repeat(galaxy_keys(seed, _PILOT), BATCH, axis=0)
    n_found = n_drawn = 0
    while n_found < _ENOUGH and n_drawn < most_draws:
        batch = _candidates(model, jnp.asarray(keys), jnp.asarray(n_drawn + np.arange(BATCH), jnp.int32))
        n_found, n_drawn = n_found + int(np.sum(batch.selected)), n_drawn + BATCH
    _refuse_endless(np.array([0 if n_found else n_drawn]), n_drawn)
    return n_found / n_drawn


def _padded(keys: np.ndarray, attempt: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A whole batch: candidates beyond the given ones repeat them, and are not looked at."""
    row = np.arange(BATCH) % len(attempt)
    return jnp.asarray(keys[row]), jnp.asarray(attempt[row].astype(np.int32))


def _refuse_endless(tried: np.ndarray, most_draws: int) -> None:
    if tried.max(initial=0) >= most_draws:
        raise ConfigurationError(
            f"a galaxy that passes the selection among {most_draws} draws of the population",
            "none",
            "selection",
            "Relax it, or correct the depths.",
        )


def _derived(model: MockModel, theta: np.ndarray) -> np.ndarray:
    pieces = []
    for start in range(0, len(theta), BATCH):
        piece = theta[start : start + BATCH]
        padded = piece[np.arange(BATCH) % len(piece)]
        pieces.append(np.asarray(_derived_batch(model, jnp.asarray(padded)))[: len(piece)])
    return np.concatenate(pieces)


@eqx.filter_jit
def _candidates(model: MockModel, keys: jax.Array, attempt: jax.Array) -> Candidate:
    def one(key, number):
        return model.candidate(jax.random.fold_in(key, number))

    return jax.vmap(one)(keys, attempt)


@eqx.filter_jit
def _derived_batch(model: MockModel, theta: jax.Array) -> jax.Array:
    return jax.vmap(model.galaxy.emulator.derived)(theta)
