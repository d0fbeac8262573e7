r"""How large the errors of a survey's fluxes are: the interface, constant depths, and a learned model.

The learned model is that of pop-cosmos (Alsing et al. 2024, arXiv:2402.00935): the logarithms of the flux
errors of all bands are drawn together, by a diffusion conditioned on the asinh magnitudes of the fluxes,

.. math:: \ln\sigma_b = c_b(m_b) + w_b(m_b) \sum_k L_{bk} x_k , \qquad x \sim diffusion(\cdot \mid m) .

The centre c and the width w are straight lines between knots in magnitude, so that the network has to learn
only what departs from each band's own trend: the shape, and how bands and magnitudes hang together. The
published model has the same form with constant c and w and no L.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import log

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from popcosmos_hpc.errors import BundleError, ConfigurationError
from popcosmos_hpc.model.diffusion import Diffusion

LN_NANOMAGGIES = 9.0 * log(10.0)
"""Ln of the number of nanomaggies in a maggy."""
_POGSON = 2.5 / log(10.0)
REFERENCE_CLIP = (-28.0, -19.5)
"""Range of ln error [ln maggies] to which pop-cosmos holds its draws."""


def asinh_magnitude(flux, softening):
    """Asinh magnitudes (Lupton, Gunn & Szalay 1999, AJ 118, 1406), which exist for any flux.

    Args:
        flux: (band,) nanomaggies.
        softening: (band,) flux [nanomaggies] well above which they are AB magnitudes.

    Returns:
        (band,) magnitudes.
    """
    return -_POGSON * (jnp.arcsinh(flux / (2.0 * softening)) + jnp.log(softening) - LN_NANOMAGGIES)


def _no_such_bands(bands: Sequence[str], strange: Sequence[str]) -> BundleError:
    return BundleError(
        f"bands among {', '.join(bands)}", ", ".join(strange), "uncertainty model",
        "Name bands of the model, or train one that has them.",
    )  # fmt: skip


class AbstractUncertainty(eqx.Module):
    """Distribution of the flux errors that a survey states for a galaxy of given fluxes.

    Attributes:
        bands: band names, in the order of the errors.
    """

    bands: eqx.AbstractVar[tuple[str, ...]]

    @abstractmethod
    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """A draw of the 1-sigma errors (band,) [nanomaggies] at noiseless fluxes (band,) [nanomaggies]."""

    def select(self, bands: Sequence[str], given: Sequence[str] | None = None) -> "AbstractUncertainty":
        """The errors of some bands, or of all in another order.

        The bands are drawn together, each from the fluxes of all: some of them alone are had by drawing
        all and dropping the rest, for which the fluxes of all must be known.

        Args:
            bands: wanted bands, in order.
            given: bands of the fluxes that `sample` will be handed, in order; the wanted ones if None.

        Raises:
            BundleError: a wanted band is not of this model, or one of its bands is not given.
        """
        given = tuple(bands if given is None else given)
        if strange := [band for band in bands if band not in self.bands]:
            raise _no_such_bands(self.bands, strange)
        if missing := [band for band in self.bands if band not in given]:
            raise BundleError(
                f"fluxes in all bands of the uncertainty model: {', '.join(self.bands)}",
                f"none in {', '.join(missing)}",
                "uncertainty model",
                "Give the fluxes of all its bands, or train a model for fewer.",
            )
        return SelectedUncertainty(model=self, bands=tuple(bands), given=given)


class SelectedUncertainty(AbstractUncertainty):
    """Some bands of a model, or all in another order; see `AbstractUncertainty.select`.

    Args:
        model: draws all its bands.
        bands: wanted ones, in order.
        given: bands of the fluxes that `sample` takes, in order.
    """

    model: AbstractUncertainty
    bands: tuple[str, ...] = eqx.field(static=True)
    given: tuple[str, ...] = eqx.field(static=True)

    def sample(self, key: Array, flux: Float[Array, " given"]) -> Float[Array, " band"]:
        """A draw of the errors (band,) at the fluxes (given,) [nanomaggies]."""
        of_model = [self.given.index(band) for band in self.model.bands]
        wanted = [self.model.bands.index(band) for band in self.bands]
        return self.model.sample(key, flux[np.array(of_model)])[np.array(wanted)]


class ConstantUncertainty(AbstractUncertainty):
    """The same error for every galaxy: a survey of uniform depth, limited by the sky.

    Args:
        bands: band names.
        flux_err: (band,) 1-sigma errors [nanomaggies].

    Raises:
        ConfigurationError: an error is not positive, or there is not one per band.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    flux_err: Float[Array, " band"]

    def __init__(self, bands: Sequence[str], flux_err):
        errors = np.asarray(flux_err, np.float32)
        if errors.shape != (len(bands),) or not np.all(np.isfinite(errors) & (errors > 0)):
            raise ConfigurationError(
                f"a positive error for each of the bands {', '.join(bands)}",
                str(errors.tolist()),
                "flux errors",
                "Correct the depths.",
            )
        self.bands, self.flux_err = tuple(bands), jnp.asarray(errors)

    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """The errors themselves; neither key nor fluxes matter."""
        return self.flux_err

    def select(self, bands: Sequence[str], given: Sequence[str] | None = None) -> "AbstractUncertainty":
        """Any of the bands, since none depends on another; arguments and errors as for the base class."""
        if given is not None and tuple(given) != tuple(bands):
            return super().select(bands, given)
        if strange := [band for band in bands if band not in self.bands]:
            raise _no_such_bands(self.bands, strange)
        rows = np.array([self.bands.index(band) for band in bands])
        return ConstantUncertainty(tuple(bands), np.asarray(self.flux_err)[rows])


class Trend(eqx.Module):
    """Centre and width of ln error as functions of a band's own magnitude: straight lines between knots.

    Args:
        knots: (band, knot) asinh magnitudes, rising; beyond the outermost, their values hold.
        centre: (band, knot) of ln error [ln maggies].
        width: (band, knot) of ln error, positive.
    """

    knots: Float[Array, "band knot"]
    centre: Float[Array, "band knot"]
    width: Float[Array, "band knot"]

    def __call__(self, magnitude: Float[Array, " band"]) -> tuple[Array, Array]:
        """Centre and width, (band,) each, at asinh magnitudes (band,)."""
        line = jax.vmap(jnp.interp)
        return line(magnitude, self.knots, self.centre), line(magnitude, self.knots, self.width)

    @classmethod
    def constant(cls, centre, width) -> "Trend":
        """The same centre (band,) and width (band,) at every magnitude."""
        pair = lambda values: jnp.stack([jnp.asarray(values, jnp.float32)] * 2, axis=1)  # noqa: E731
        knots = jnp.broadcast_to(jnp.array([0.0, 1.0], jnp.float32), (len(centre), 2))
        return cls(knots, pair(centre), pair(width))


class DiffusionUncertainty(AbstractUncertainty):
    """Errors of all bands drawn together, given the fluxes of all.

    Args:
        bands: band names.
        diffusion: over x, conditioned on the standardised asinh magnitudes.
        trend: centre and width of ln error in each band.
        mixing: (band, band) L of the module's formula.
        softening: (band,) of the asinh magnitudes [nanomaggies].
        condition_shift: (band,) mean of the asinh magnitudes.
        condition_scale: (band,) their standard deviation.
        condition_range: (2, band) asinh magnitudes to which fluxes are held: outside of them nothing was
            learned.
        clip: range of ln error [ln maggies] to which draws are held.
    """

    bands: tuple[str, ...] = eqx.field(static=True)
    diffusion: Diffusion
    trend: Trend
    mixing: Float[Array, "band band"]
    softening: Float[Array, " band"]
    condition_shift: Float[Array, " band"]
    condition_scale: Float[Array, " band"]
    condition_range: Float[Array, "end band"]
    clip: tuple[float, float] = eqx.field(static=True, default=REFERENCE_CLIP)

    @classmethod
    def standardised(
        cls,
        bands: Sequence[str],
        diffusion: Diffusion,
        shift,
        scale,
        softening,
        condition_shift,
        condition_scale,
        clip: tuple[float, float] = REFERENCE_CLIP,
    ) -> "DiffusionUncertainty":
        """The form of the published model: ln error = shift + scale x, at any flux.

        Args:
            bands: band names.
            diffusion: over the standardised ln errors; a published network in t itself needs
                `ScoreNetwork.time_power` 1 and many steps.
            shift: (band,) of ln error [ln maggies].
            scale: (band,) of ln error.
            softening: (band,) of the asinh magnitudes [nanomaggies].
            condition_shift: (band,) of the asinh magnitudes.
            condition_scale: (band,) of the asinh magnitudes.
            clip: range of ln error [ln maggies].
        """
        real = lambda values: jnp.asarray(values, jnp.float32)  # noqa: E731
        everywhere = jnp.array([[-jnp.inf], [jnp.inf]]) * jnp.ones((1, len(bands)))
        return cls(
            tuple(bands),
            diffusion,
            Trend.constant(shift, scale),
            jnp.eye(len(bands)),
            real(softening),
            real(condition_shift),
            real(condition_scale),
            everywhere,
            clip,
        )

    def sample(self, key: Array, flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """A draw of the 1-sigma errors (band,) [nanomaggies] at noiseless fluxes (band,) [nanomaggies]."""
        return self.transport(jax.random.normal(key, flux.shape, flux.dtype), flux)

    def transport(self, u: Float[Array, " band"], flux: Float[Array, " band"]) -> Float[Array, " band"]:
        """Errors (band,) of a standard normal base point u (band,) at fluxes (band,) [nanomaggies]."""
        magnitude = asinh_magnitude(flux, self.softening)
        low, high = self.condition_range
        magnitude = jnp.clip(magnitude, low, high)
        x = self.diffusion.transport(u, (magnitude - self.condition_shift) / self.condition_scale)
        centre, width = self.trend(magnitude)
        return jnp.exp(jnp.clip(centre + width * (self.mixing @ x), *self.clip) + LN_NANOMAGGIES)
