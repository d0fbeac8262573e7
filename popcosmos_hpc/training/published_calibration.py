"""Constants that pop-cosmos published beside its models.

Per band: the factor on the model flux (zero point) and the fractional error floor of Leistedt et al. 2023
(arXiv:2207.07673), as pop-cosmos applies them. Per emission line: the fractional offset of its strength,
from the same work. Their source is `pop_cosmos/constants.py` of the release, MIT licence.
"""

from typing import NamedTuple

import numpy as np


class BandCalibration(NamedTuple):
    """Published constants of one band.

    Attributes:
        zero_point: factor on the model flux.
        error_floor: fraction of the model flux.
        label: common name, for people.
    """

    zero_point: float
    error_floor: float
    label: str


class LineOffset(NamedTuple):
    """Correction of one line.

    Attributes:
        name: species and wavelength.
        wave: rest-frame vacuum wavelength [Angstrom].
        offset: fraction of the emulated flux to add.
    """

    name: str
    wave: float
    offset: float


COSMOS_BANDS = {
    "u_megaprime_sagem": BandCalibration(1.0068392, 0.1, "CFHT u"),
    "hsc_g": BandCalibration(1.0830942, 0.0022452, "HSC g"),
    "hsc_r": BandCalibration(1.063653, 0.01825048, "HSC r"),
    "hsc_i": BandCalibration(1.0, 0.00614847, "HSC i"),
    "hsc_z": BandCalibration(1.0044228, 0.00856215, "HSC z"),
    "hsc_y": BandCalibration(1.0459933, 0.00819892, "HSC y"),
    "uvista_y_cosmos": BandCalibration(1.0172132, 0.01924733, "UltraVISTA Y"),
    "uvista_j_cosmos": BandCalibration(0.98858535, 0.02077879, "UltraVISTA J"),
    "uvista_h_cosmos": BandCalibration(0.96549976, 0.02989466, "UltraVISTA H"),
    "uvista_ks_cosmos": BandCalibration(1.0593857, 0.00777809, "UltraVISTA Ks"),
    "ia427_cosmos": BandCalibration(0.9618197, 0.0437037, "Subaru IA427"),
    "ia464_cosmos": BandCalibration(0.99145955, 0.04945194, "Subaru IA464"),
    "ia484_cosmos": BandCalibration(1.0053478, 0.02857511, "Subaru IA484"),
    "ia505_cosmos": BandCalibration(1.0056049, 0.02843877, "Subaru IA505"),
    "ia527_cosmos": BandCalibration(0.9771116, 0.03176803, "Subaru IA527"),
    "ia574_cosmos": BandCalibration(0.93141526, 0.03493299, "Subaru IA574"),
    "ia624_cosmos": BandCalibration(0.99394125, 0.0199778, "Subaru IA624"),
    "ia679_cosmos": BandCalibration(1.1472832, 0.02429752, "Subaru IA679"),
    "ia709_cosmos": BandCalibration(0.96423334, 0.02285645, "Subaru IA709"),
    "ia738_cosmos": BandCalibration(0.95098406, 0.01740251, "Subaru IA738"),
    "ia767_cosmos": BandCalibration(0.95391566, 0.03913081, "Subaru IA767"),
    "ia827_cosmos": BandCalibration(0.9248251, 0.03608742, "Subaru IA827"),
    "NB711.SuprimeCam": BandCalibration(0.98027456, 0.02332224, "Subaru NB711"),
    "NB816.SuprimeCam": BandCalibration(0.929084, 0.02462296, "Subaru NB816"),
    "irac1_cosmos": BandCalibration(0.9520671, 0.1, "IRAC 1"),
    "irac2_cosmos": BandCalibration(0.92414236, 0.1, "IRAC 2"),
}
"""The 26 bands of COSMOS2020, in the order of the models."""

LINE_OFFSETS = (
    LineOffset("[N II] 6549", 6549.86, 0.0012457371),
    LineOffset("[S II] 6732", 6732.673, 0.0025112629),
    LineOffset("[S II] 6717", 6718.294, 0.0015876293),
    LineOffset("[N II] 6585", 6585.27, -0.60174286),
    LineOffset("[S III] 9071", 9071.1, -1.0),
    LineOffset("He I 5877", 5877.249, 0.32419527),
    LineOffset("[S III] 9533", 9533.2, -1.0),
    LineOffset("H-5 3970", 3971.198, -0.14094931),
    LineOffset("[O II] 3726", 3727.1, 0.0025132895),
    LineOffset("H-delta 4102", 4102.892, -0.51485682),
    LineOffset("[O II] 3729", 3729.86, 0.2619133),
    LineOffset("[Ne III] 3870", 3869.86, -0.080184281),
    LineOffset("H-gamma 4340", 4341.692, -0.33122957),
    LineOffset("[O III] 4960", 4960.295, -0.00215137),
    LineOffset("H-beta 4861", 4862.71, -0.56559724),
    LineOffset("H-alpha 6563", 6564.6, -0.34093344),
    LineOffset("[O III] 5007", 5008.24, 0.11364901),
)
"""Lines with an offset; those of the other 27 lines are zero, or residues below 1e-5 of the fit."""

NEGLIGIBLE_OFFSET = 1e-4


def offsets_of(wave: np.ndarray, offset: np.ndarray) -> tuple[LineOffset, ...]:
    """Offsets that a model brings along, without those that are zero or residues of a fit.

    Args:
        wave: (line,) rest-frame vacuum wavelengths [Angstrom].
        offset: (line,) fractional offsets.
    """
    known = {round(line.wave, 1): line.name for line in LINE_OFFSETS}
    return tuple(
        LineOffset(known.get(round(float(at), 1), f"line at {at:.1f} A"), float(at), float(value))
        for at, value in zip(wave, offset, strict=True)
        if abs(value) > NEGLIGIBLE_OFFSET
    )
