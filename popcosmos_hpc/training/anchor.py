"""Anchoring: synthetic photometry corrected to published emulators, for bands those do not have.

m_new(theta) = m_ours(theta) + interpolation in ln(wavelength) of [published_b - ours_b](theta) over
the bands b that both have. Carries one synthesis code's zero to another's filters.
"""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.sps.filters import load_filter
from popcosmos_hpc.sps.spectrum import SPS, Photometer, build_photometer, line_transmission
from popcosmos_hpc.training.published import PublishedPhotometry, published_magnitudes, read_published

_BLUEST = 1000.0  # Angstrom, rest frame; bluer published photometry is unconstrained
_FADE = 100.0  # Angstrom over which it fades, so that the target has no steps in redshift
_LARGEST = 1.0  # mag; beyond it one of the two left its range


class Anchor(NamedTuple):
    """Published emulators and our photometry in their bands, sorted by wavelength.

    Attributes:
        published: the emulators.
        order: (band,) their indices in order of wavelength.
        photometer: ours in the same bands, in that order.
        pivots: (band,) wavelengths [Angstrom].
    """

    published: PublishedPhotometry
    order: np.ndarray
    photometer: Photometer
    pivots: Array


def build_anchor(folder: Path, bands: dict[str, str], sps: SPS, redshift_max: float) -> Anchor:
    """Load an anchor.

    Args:
        folder: of the published files.
        bands: published band -> filter source of ours.
        sps: the synthesis.
        redshift_max: end of the redshift range.

    Raises:
        ConfigurationError: a band has no published emulator.
        BundleError: a file is damaged.
    """
    published = read_published(folder)
    unknown = [name for name in bands if name not in published.bands]
    if unknown:
        raise ConfigurationError(
            f"bands among {', '.join(published.bands)}",
            ", ".join(unknown),
            "anchor.bands",
            "Anchor the bands alone that have a published emulator.",
        )
    filters = sorted((load_filter(name, source) for name, source in bands.items()), key=lambda f: f.pivot)
    order = np.array([published.bands.index(f.name) for f in filters])
    pivots = jnp.asarray([f.pivot for f in filters], jnp.float32)
    return Anchor(published, order, build_photometer(sps, filters, redshift_max), pivots)


def anchor_offset(anchor: Anchor, sps: SPS, theta: Array, pivots: Array) -> Array:
    """Magnitudes (band,) to add to ours at `pivots` (band,) [Angstrom] for parameters theta."""
    redshift = theta[sps.space.index("redshift")]
    flux = anchor.photometer.continuum(sps, sps.luminosity(theta) * sps.transmission(redshift), redshift)
    lines = sps.line_luminosities(theta) * line_transmission(sps, redshift)
    flux += anchor.photometer.lines(sps.line_wave, lines, redshift)
    ours = AB_ZERO_POINT - 2.5 * jnp.log10(jnp.maximum(flux, 1e-12))
    theirs = published_magnitudes(anchor.published, sps.space, theta)[anchor.order]
    difference = jnp.clip(theirs - ours, -_LARGEST, _LARGEST)
    trust = jnp.clip((anchor.pivots / (1 + redshift) - _BLUEST) / _FADE, 0.0, 1.0)
    carried = _from_redder(difference, trust)
    return jnp.interp(jnp.log(pivots), jnp.log(anchor.pivots), carried)


def _from_redder(difference: Array, trust: Array) -> Array:
    """Differences (band,), those of little trust (band,) replaced by that of the next redder band."""

    def step(redder: Array, band: tuple[Array, Array]) -> tuple[Array, Array]:
        value = band[1] * band[0] + (1 - band[1]) * redder
        return value, value

    return lax.scan(step, difference[-1], (difference, trust), reverse=True)[1]
