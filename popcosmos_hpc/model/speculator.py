"""The trained emulator: continuum magnitudes, lines, surviving mass and rest-frame quantities."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from popcosmos_hpc.model.emulator import AbstractEmulator, band_indices
from popcosmos_hpc.model.features import continuum_features, galaxy_features
from popcosmos_hpc.model.history import HISTORY, history_quantities
from popcosmos_hpc.model.lines import LineEmulator
from popcosmos_hpc.model.network import Network
from popcosmos_hpc.model.reference import ReferencePhotometry
from popcosmos_hpc.parameters import ParameterSpace
from popcosmos_hpc.sps.cosmology import CosmologyTable, cosmology_table

_LN10 = 2.302585


class SpeculatorEmulator(AbstractEmulator):
    """Photometry of the 16-parameter synthesis by neural networks.

    Attributes:
        continuum: features to AB magnitudes of the bands for N = 0, without the listed lines; with a
            reference, to what the magnitudes are beyond it.
        rest: features to rest-frame absolute magnitudes, log10 of the surviving mass fraction and
            log10 continuum densities at the lines with equivalent widths.
        pivots: (pivot,) wavelengths of the features [Angstrom]; all bands of the bundle, also after
            `select`.
        error_redshift: (node,) and `error`: (node, band) fractional emulator error.
        reference: photometry that the network corrects, of all bands of the bundle, or None.
        kept: positions of the bands among those of the reference.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    redshift_range: tuple[float, float] = eqx.field(static=True)
    derived_names: tuple[str, ...] = eqx.field(static=True)
    derived_units: tuple[str, ...] = eqx.field(static=True)
    space: ParameterSpace = eqx.field(static=True)
    rest_names: tuple[str, ...] = eqx.field(static=True)
    width_lines: tuple[int, ...] = eqx.field(static=True)
    continuum: Network
    rest: Network
    lines: LineEmulator
    pivots: Array
    error_redshift: Array
    error: Array
    cosmology: CosmologyTable
    reference: ReferencePhotometry | None = None
    kept: tuple[int, ...] = eqx.field(static=True, default=())

    def __call__(self, theta: Float[Array, " param"]) -> Float[Array, " band"]:
        """Noiseless fluxes in nanomaggies, emission lines included."""
        redshift = theta[self.space.index("redshift")]
        features = continuum_features(self.space, self.cosmology, self.pivots, self.reference, theta)
        magnitudes = self.continuum(features)
        if self.reference is not None:
            magnitudes += features[-len(self.pivots) :][jnp.asarray(self.kept)]
        at_ten_parsec = jnp.exp(-0.4 * _LN10 * (magnitudes - 22.5))
        luminosity = self.lines.luminosity(self.space, self.cosmology, theta)
        at_ten_parsec += self.lines.flux(luminosity, redshift)
        return at_ten_parsec * jnp.exp(-0.4 * _LN10 * theta[self.space.index("N")])

    def sigma(self, redshift: Float[Array, ""]) -> Float[Array, " band"]:
        """Fractional 1-sigma error: the measured 68 % half-width at a redshift."""
        return jnp.stack([jnp.interp(redshift, self.error_redshift, column) for column in self.error.T])

    def select(self, bands: tuple[str, ...]) -> "SpeculatorEmulator":
        """The same emulator for some of its bands; the networks' last layer shrinks."""
        index = list(band_indices(self.bands, tuple(bands)))
        lines = eqx.tree_at(
            lambda lines: lines.transmission, self.lines, self.lines.transmission[:, jnp.asarray(index)]
        )
        return SpeculatorEmulator(
            tuple(bands),
            self.redshift_range,
            self.derived_names,
            self.derived_units,
            self.space,
            self.rest_names,
            self.width_lines,
            self.continuum.select(index),
            self.rest,
            lines,
            self.pivots,
            self.error_redshift,
            self.error[:, jnp.asarray(index)],
            self.cosmology,
            self.reference,
            tuple(self.kept[i] for i in index) if self.reference is not None else (),
        )

    def derived(self, theta: Float[Array, " param"]) -> Float[Array, " derived"]:
        """Masses, star formation, age, rest-frame magnitudes, and lines, in `derived_units`.

        The first are those of `history_quantities`.
        """
        rest = self.rest(galaxy_features(self.space, self.cosmology, theta))
        n_magnitudes = len(self.rest_names)
        surviving = jnp.minimum(rest[n_magnitudes], 0.0)
        history = history_quantities(self.space, self.cosmology, theta, surviving)
        formed = history[0]
        magnitudes = rest[:n_magnitudes] - 2.5 * formed
        luminosity = self.lines.luminosity(self.space, self.cosmology, theta)[jnp.asarray(self.width_lines)]
        logarithm = jnp.log10(jnp.maximum(luminosity, 1e-20))
        widths = 10 ** jnp.clip(logarithm - rest[n_magnitudes + 1 :], -6.0, 5.0)
        return jnp.concatenate([history, magnitudes, logarithm + formed, widths])

    def to_bundle(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Manifest entries and arrays from which `from_bundle` restores the emulator."""
        facts = {
            "emulator": "speculator",
            "bands": list(self.bands),
            "space": self.space.to_list(),
            "redshift_range": list(self.redshift_range),
            "rest_bands": list(self.rest_names),
            "lines": list(self.lines.names),
            "width_lines": list(self.width_lines),
            "derived": dict(zip(self.derived_names, self.derived_units, strict=True)),
        }
        arrays = {
            **self.continuum.to_arrays("continuum"),
            **self.rest.to_arrays("rest"),
            **self.lines.to_arrays(),
            **(self.reference.to_arrays() if self.reference is not None else {}),
            "pivots": self.pivots,
            "error.redshift": self.error_redshift,
            "error.fraction": self.error,
        }
        return facts, {name: np.asarray(value) for name, value in arrays.items()}

    @classmethod
    def from_bundle(
        cls, facts: dict, space: ParameterSpace, arrays: dict[str, np.ndarray]
    ) -> "SpeculatorEmulator":
        """Inverse of `to_bundle`."""
        low, high = facts["redshift_range"]
        return cls(
            tuple(facts["bands"]),
            (float(low), float(high)),
            tuple(facts["derived"]),
            tuple(facts["derived"].values()),
            space,
            tuple(facts["rest_bands"]),
            tuple(facts["width_lines"]),
            Network.from_arrays("continuum", arrays),
            Network.from_arrays("rest", arrays),
            LineEmulator.from_arrays(tuple(facts["lines"]), arrays),
            jnp.asarray(arrays["pivots"]),
            jnp.asarray(arrays["error.redshift"]),
            jnp.asarray(arrays["error.fraction"]),
            cosmology_table(n_nodes=1024),
            ReferencePhotometry.from_arrays(arrays),
            tuple(range(len(facts["bands"]))),
        )


def derived_quantities(rest_names: tuple[str, ...], width_names: tuple[str, ...]) -> dict[str, str]:
    """Names and units of `SpeculatorEmulator.derived`, in order."""
    return {
        **HISTORY,
        **{f"absolute_magnitude_{name}": "mag" for name in rest_names},
        **{f"log10_luminosity_{name}": "log10(Lsun)" for name in width_names},
        **{f"equivalent_width_{name}": "Angstrom" for name in width_names},
    }
