"""Ages and distances as interpolation tables (Planck 2018), so that JAX code needs no integrals."""

# astropy declares its cosmologies without their methods.
# pyright: reportAttributeAccessIssue=false

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from astropy.cosmology import FLRW, Planck18
from jax import Array


class CosmologyTable(NamedTuple):
    """Tables on a uniform grid in ln(1 + redshift).

    Attributes:
        log1pz: (node,) ln(1 + redshift).
        age: (node,) age of the universe [Gyr].
        distance_modulus: (node,) [mag].
    """

    log1pz: Array
    age: Array
    distance_modulus: Array


def cosmology_table(
    redshift_max: float = 20.0, n_nodes: int = 4096, cosmology: FLRW = Planck18
) -> CosmologyTable:
    """Tabulate ages and distance moduli; linear interpolation is good to 1e-5 in age above z = 1e-3."""
    log1pz = np.linspace(0.0, np.log1p(redshift_max), n_nodes)
    redshift = np.maximum(np.expm1(log1pz), 1e-5)
    return CosmologyTable(
        jnp.asarray(log1pz, jnp.float32),
        jnp.asarray(cosmology.age(redshift).value, jnp.float32),
        jnp.asarray(cosmology.distmod(redshift).value, jnp.float32),
    )


def age_at(table: CosmologyTable, redshift: Array) -> Array:
    """Age of the universe at `redshift` [Gyr]."""
    return jnp.interp(jnp.log1p(redshift), table.log1pz, table.age)


def distance_modulus_at(table: CosmologyTable, redshift: Array) -> Array:
    """Distance modulus at `redshift` [mag]; steep below redshift 0.01, where the table is coarse."""
    # mu - 5 log10(z) is smooth down to zero; mu itself is not.
    floor = jnp.maximum(jnp.expm1(table.log1pz), 1e-5)
    smooth = table.distance_modulus - 5 * jnp.log10(floor)
    redshift = jnp.maximum(redshift, 1e-5)
    return jnp.interp(jnp.log1p(redshift), table.log1pz, smooth) + 5 * jnp.log10(redshift)
