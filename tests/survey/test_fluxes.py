import numpy as np
import pytest

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.survey.fluxes import flux_factor, magnitude_error_to_flux, magnitude_to_flux, same_unit


@pytest.mark.parametrize(
    ("unit", "zero_point", "magnitude_of_one"),
    [
        ("nanomaggies", None, 22.5),
        ("maggies", None, 0.0),
        ("nJy", None, 31.4),
        ("uJy", None, 23.9),
        ("Jy", None, 8.9),
        ("count", 25.0, 25.0),
    ],
)
def test_factors_agree_with_the_ab_magnitude_of_one_unit(unit, zero_point, magnitude_of_one):
    factor = flux_factor(unit, zero_point, "")
    assert 22.5 - 2.5 * np.log10(factor) == pytest.approx(magnitude_of_one, abs=2e-4)


@pytest.mark.parametrize(
    ("unit", "zero_point"), [("erg / (s cm2 Angstrom)", None), ("furlong", None), ("count", None)]
)
def test_units_that_are_no_flux_per_frequency_are_refused(unit, zero_point):
    with pytest.raises(ConfigurationError):
        flux_factor(unit, zero_point, "band g")


def test_magnitude_errors_are_the_derivative():
    magnitude, step = np.array([18.0, 22.5, 27.0]), 1e-5
    derivative = (magnitude_to_flux(magnitude - step) - magnitude_to_flux(magnitude + step)) / (2 * step)
    assert magnitude_error_to_flux(magnitude, np.full(3, 0.1)) == pytest.approx(0.1 * derivative, rel=1e-6)


def test_asinh_magnitudes_agree_with_pogson_when_bright_and_reach_negative_fluxes():
    softening = 0.9e-10
    assert magnitude_to_flux(np.array([18.0]), softening) == pytest.approx(
        magnitude_to_flux(np.array([18.0])), rel=1e-4
    )
    zero_flux = -2.5 / np.log(10) * np.log(softening)
    assert magnitude_to_flux(np.array([zero_flux]), softening) == pytest.approx([0.0], abs=1e-12)
    assert magnitude_to_flux(np.array([zero_flux + 0.5]), softening)[0] < 0


def test_units_written_in_files():
    assert (
        same_unit("nanomaggies", "nanomaggies") and same_unit("uJy", "1e-6 Jy") and same_unit("uJy", "blah")
    )
    assert not same_unit("uJy", "mag") and not same_unit("ABmag", "uJy") and not same_unit("uJy", "deg")
