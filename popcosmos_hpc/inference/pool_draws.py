"""Draws of a prior by number: draw i depends on the seed and i alone, so nothing of it has to be kept."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.inference.batch import emulate, transport_draws
from popcosmos_hpc.model.prior import AbstractPrior


def draw_batch(prior: AbstractPrior, seed: int, start: int, count: int) -> np.ndarray:
    """Parameters (count, param) float32 of the draws from `start` on, before rounding."""
    number = jnp.uint32(start) + jnp.arange(count, dtype=jnp.uint32)
    return np.asarray(transport_draws(prior, jax.random.PRNGKey(seed), number))


def photometry_batch(
    model: Any, seed: int, start: int, count: int, encode: Callable, decode: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (count, param) uint16 and fluxes (count, band) float32 [nanomaggies] of a range of draws.

    A pool's draw is the rounded one: its fluxes are those of the parameters that its codes stand for.

    Args:
        model: with `prior`, `emulator`, `low` and `high`.
        seed: of the pool.
        start: first draw.
        count: number of draws.
        encode: parameters, low, high -> codes.
        decode: codes, low, high -> parameters.
    """
    code = encode(draw_batch(model.prior, seed, start, count), model.low, model.high)
    theta = decode(code, model.low, model.high)
    return code, np.asarray(emulate(model.emulator, jnp.asarray(theta)))
