"""Draws of galaxies, from a prior or a table, with their photometry and derived quantities."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import Bundle
from popcosmos_hpc.model.emulator import AbstractEmulator
from popcosmos_hpc.model.prior import AbstractPrior
from popcosmos_hpc.model.transforms import to_physical
from popcosmos_hpc.photometry import AB_ZERO_POINT

_CHUNK = 8192


class PopulationSample(NamedTuple):
    """Galaxies of a population.

    Attributes:
        columns: name -> (n,) values: the parameters, then the derived quantities of the emulator.
        magnitudes: band -> (n,) AB magnitudes without noise; inf where no light is left.
    """

    columns: dict[str, np.ndarray]
    magnitudes: dict[str, np.ndarray]


def sample_prior(prior: AbstractPrior, n: int, seed: int) -> np.ndarray:
    """Draw physical parameters (n, param) from a prior."""
    parts = []
    for index in range(-(-n // _CHUNK)):
        keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), index), _CHUNK)
        parts.append(np.asarray(_draw(prior, keys)))
    return np.concatenate(parts)[:n]


@eqx.filter_jit
def _draw(prior: AbstractPrior, keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: to_physical(prior.space, prior.transport(prior.sample_base(key))))(keys)


@eqx.filter_jit
def _evaluate(emulator: AbstractEmulator, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda one: (emulator(one), emulator.derived(one)))(theta)


def evaluate(
    theta: np.ndarray, names: tuple[str, ...], bundle: Bundle, bands: tuple[str, ...]
) -> PopulationSample:
    """Compute magnitudes and derived quantities of draws.

    Args:
        theta: (n, param) physical parameters.
        names: their names, in any order.
        bundle: a photometry bundle over the same parameters.
        bands: bands of the bundle.

    Raises:
        ConfigurationError: the draws lack a parameter of the bundle.
        BundleError: a band is unknown.
    """
    missing = [name for name in bundle.space.names if name not in names]
    if missing:
        raise ConfigurationError(
            f"draws of the parameters {', '.join(bundle.space.names)}",
            f"no {', '.join(missing)}",
            "population",
            "Choose a bundle over the parameters of the draws.",
        )
    theta = np.asarray(theta, np.float32)[:, [names.index(name) for name in bundle.space.names]]
    emulator = bundle.emulator(bands)
    padded = np.concatenate([theta, np.repeat(theta[-1:], -len(theta) % _CHUNK, axis=0)])
    parts = [_evaluate(emulator, jnp.asarray(padded[i : i + _CHUNK])) for i in range(0, len(padded), _CHUNK)]
    flux, derived = (
        np.concatenate([np.asarray(part[k], float) for part in parts])[: len(theta)] for k in (0, 1)
    )
    columns = dict(zip(bundle.space.names, theta.T.astype(float), strict=True))
    columns |= dict(zip(emulator.derived_names, derived.T, strict=True))
    with np.errstate(divide="ignore"):
        magnitudes = AB_ZERO_POINT - 2.5 * np.log10(np.maximum(flux, 0.0))
    return PopulationSample(columns, dict(zip(bands, magnitudes.T, strict=True)))
