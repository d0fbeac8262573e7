"""Attenuation by diffuse dust and birth clouds (FSPS dust_type 4)."""

import jax.numpy as jnp
from jax import Array

V_BAND = 5500.0  # Angstrom


def calzetti_curve(wave: Array) -> Array:
    """k(wave) / R_V of Calzetti et al. (2000), eq. 4, extrapolated and never negative (wave,)."""
    inverse = 1e4 / wave
    blue = 2.659 * (-2.156 + 1.509 * inverse - 0.198 * inverse**2 + 0.011 * inverse**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 * inverse) + 4.05
    return jnp.maximum(jnp.where(wave <= 6300.0, blue, red), 0.0) / 4.05


def diffuse_curve(wave: Array, dust_index: Array) -> Array:
    """Optical depth of the diffuse dust over that in V (wave,).

    Calzetti law with a UV bump whose strength follows the slope, E_b = 0.85 - 1.9 n, times
    (wave / 5500)^n: Kriek & Conroy (2013), eqs. 1-3; Noll et al. (2009).

    Args:
        wave: (wave,) rest frame [Angstrom].
        dust_index: slope offset n.
    """
    bump = (350.0 * wave) ** 2 / ((wave**2 - 2175.0**2) ** 2 + (350.0 * wave) ** 2)
    strength = 0.85 - 1.9 * dust_index
    return (calzetti_curve(wave) + strength * bump / 4.05) * (wave / V_BAND) ** dust_index


def birth_cloud_curve(wave: Array) -> Array:
    """Optical depth of birth clouds over that in V, (wave / 5500)^-1 (Charlot & Fall 2000) (wave,)."""
    return V_BAND / wave
