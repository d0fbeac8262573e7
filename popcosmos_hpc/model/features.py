"""Inputs of the photometry networks: parameters, and what physics makes of them cheaply.

Networks learn smooth, near-linear relations fastest. The mass fractions of the history and the
optical depths at the bands' rest wavelengths cost a few operations and take the strongest
non-linearities out of what has to be learned.
"""

import jax.numpy as jnp
from jax import Array

from popcosmos_hpc.model.reference import ReferencePhotometry
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.attenuation import birth_cloud_curve, diffuse_curve
from popcosmos_hpc.sps.cosmology import CosmologyTable, age_at
from popcosmos_hpc.sps.star_formation import bin_edges, bin_masses

_MASS_FLOOR = 1e-5  # mass fractions below this change no observable


def galaxy_features(space: ParameterSpace, cosmology: CosmologyTable, theta: Array) -> Array:
    """Features (feature,) of one galaxy that do not depend on the bands.

    The parameters but N, with sqrt(dust2) in place of dust2 as in the reference emulators; log10
    mass fractions of the history's bins; both V-band optical depths; ln(1 + redshift).
    """
    value = dict(zip(space.names, theta, strict=True))
    ratios = jnp.stack([value[name] for name in space.names if name.startswith("logsfr_ratio")])
    edges = bin_edges(age_at(cosmology, value["redshift"]), len(ratios) + 1)
    masses = bin_masses(ratios, edges)
    plain = [jnp.sqrt(value[name]) if name == "dust2" else value[name] for name in space.names if name != "N"]
    extra = [value["dust2"], value["dust2"] * value["dust1_fraction"], jnp.log1p(value["redshift"])]
    return jnp.concatenate([jnp.stack(plain), jnp.log10(masses + _MASS_FLOOR), jnp.stack(extra)])


def continuum_features(
    space: ParameterSpace,
    cosmology: CosmologyTable,
    pivots: Array,
    reference: ReferencePhotometry | None,
    theta: Array,
) -> Array:
    """Features (feature,) of the continuum's network; the last are the reference magnitudes, if any."""
    parts = [galaxy_features(space, cosmology, theta), band_features(space, pivots, theta)]
    if reference is not None:
        parts.append(reference(space, cosmology, theta))
    return jnp.concatenate(parts)


def band_features(space: ParameterSpace, pivots: Array, theta: Array) -> Array:
    """Logarithms of the diffuse and the total optical depth at the bands' rest wavelengths (2 band,).

    Args:
        space: the parameters.
        pivots: (band,) pivot wavelengths of the bands [Angstrom].
        theta: (param,).
    """
    value = dict(zip(space.names, theta, strict=True))
    wave = pivots / (1 + value["redshift"])
    diffuse = value["dust2"] * diffuse_curve(wave, value["dust_index"])
    total = diffuse + value["dust2"] * value["dust1_fraction"] * birth_cloud_curve(wave)
    return jnp.concatenate([jnp.log1p(diffuse), jnp.log1p(total)])
