"""Piecewise-constant star-formation histories of seven bins (Leja et al. 2019; pop-cosmos)."""

import jax.numpy as jnp
from jax import Array


def bin_edges(age_universe: Array, n_bins: int = 7) -> Array:
    """Lookback-time edges (n_bins + 1,) [Gyr].

    0, 0.03, then n_bins - 2 edges from 0.1 to 0.85 of the age of the universe in equal
    logarithmic steps, then the age of the universe (Alsing et al. 2024, section 3).
    """
    low, high = jnp.log10(0.1), jnp.log10(0.85 * age_universe)
    middle = 10 ** (low + jnp.linspace(0.0, 1.0, n_bins - 2) * (high - low))
    return jnp.concatenate([jnp.array([0.0, 0.03]), middle, age_universe[None]])


def bin_masses(log_sfr_ratios: Array, edges: Array) -> Array:
    """Fraction of the mass formed in each bin (bin,), young to old.

    Args:
        log_sfr_ratios: (bin - 1,) log10 of SFR_i / SFR_(i+1).
        edges: (bin + 1,) lookback times [Gyr].
    """
    log_rate = -jnp.concatenate([jnp.zeros(1), jnp.cumsum(log_sfr_ratios)])
    mass = 10 ** (log_rate - jnp.max(log_rate)) * jnp.diff(edges)
    return mass / jnp.sum(mass)


def age_weights(masses: Array, edges: Array, age_edges: Array) -> Array:
    """Mass fraction in each age bin of an SSP grid (age,): exact overlap of two sets of intervals.

    Args:
        masses: (bin,) mass fractions of the history.
        edges: (bin + 1,) its edges [Gyr].
        age_edges: (age + 1,) edges of the grid [Gyr].
    """
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(masses)])
    at_edges = jnp.interp(age_edges, edges, cumulative)
    weights = jnp.diff(at_edges)
    # A universe older than the grid (at most 13.8 of 14 Gyr here) would lose mass without this.
    return weights / jnp.sum(weights)


def derived_history(masses: Array, edges: Array) -> tuple[Array, Array]:
    """log10 specific SFR over the last 100 Myr [1/yr], per mass formed, and mean stellar age [Gyr].

    Source: pop-cosmos; the first two bins end at 0.1 Gyr. Clipped to [-18, 0] like the reference.
    """
    specific = jnp.log10((masses[0] + masses[1] + 1e-20) / 0.1) - 9.0
    age = jnp.sum(masses * 0.5 * (edges[1:] + edges[:-1]))
    return jnp.clip(specific, -18.0, 0.0), age
