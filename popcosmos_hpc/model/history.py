"""Masses, star formation and ages: what follows from the parameters without any spectrum."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.cosmology import CosmologyTable, age_at, distance_modulus_at
from popcosmos_hpc.sps.star_formation import bin_edges, bin_masses, derived_history

HISTORY = {
    "log10_mass_formed": "log10(Msun)",
    "log10_mass": "log10(Msun)",
    "log10_sfr_100myr": "log10(Msun/yr)",
    "log10_ssfr_100myr": "log10(1/yr)",
    "age_mass_weighted": "Gyr",
}
"""Names and units of `history_quantities`, in order."""


def history_quantities(
    space: ParameterSpace, cosmology: CosmologyTable, theta: Float[Array, " param"], surviving: Scalar
) -> Float[Array, " quantity"]:
    """Masses formed and surviving, star-formation rates and mean age, in the units of `HISTORY`.

    log10 mass formed is -0.4 (N - distance modulus); star-formation rates are means over the last
    100 Myr; specific rates are per surviving mass (Planck 2018 cosmology).

    Args:
        space: the parameters.
        cosmology: ages and distances.
        theta: (param,).
        surviving: log10 of the fraction of the mass formed that is still in stars and remnants.
    """
    redshift = theta[space.index("redshift")]
    names = [name for name in space.names if name.startswith("logsfr_ratio")]
    ratios = jnp.stack([theta[space.index(name)] for name in names])
    edges = bin_edges(age_at(cosmology, redshift), len(ratios) + 1)
    specific, age = derived_history(bin_masses(ratios, edges), edges)
    formed = -0.4 * (theta[space.index("N")] - distance_modulus_at(cosmology, redshift))
    return jnp.stack([formed, formed + surviving, specific + formed, specific - surviving, age])
