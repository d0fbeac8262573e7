"""A small grid of made-up stars, nebulae, dust and torus: the synthesis without data files."""

import numpy as np

from popcosmos_hpc.sps.grid import (
    AGE_EDGES,
    LYMAN_LIMIT,
    N_NEBULAR,
    GridSet,
    NebularGrid,
    SSPGrid,
    rebin,
    wavelength_grid,
)


def synthetic_grids(lower=600.0, upper=3.0e4, resolution=150.0, torus=True) -> GridSet:
    """Black bodies that cool and fade with age, seven lines, a dust and a torus bump."""
    wave = wavelength_grid(lower, upper, resolution)
    ages = 0.5 * (AGE_EDGES[1:] + AGE_EDGES[:-1])
    metals = np.array([-2.0, -1.0, 0.0, 0.3])
    temperature = 3500 + 25000 * np.exp(-((ages / 3e7) ** 0.4))[None, :] * (1 - 0.1 * metals[:, None])
    x = 1.4388e8 / (wave * temperature[..., None])
    body = wave**-5.0 / np.expm1(np.clip(x, 1e-3, 80.0))
    total = np.sum(body * wave, axis=-1) * np.log(wave[1] / wave[0])
    light = 300.0 / (1 + ages / 3e6) ** 1.2 + 0.05
    luminosity = body / total[..., None] * light[None, :, None]
    luminosity[:, :N_NEBULAR, wave < LYMAN_LIMIT] = 0.0
    photons = np.where(ages < 2e7, 10 ** (46.7 - ages / 6e6), 1e35)
    surviving = 1 - 0.4 * (1 - np.exp(-ages / 1e9))
    full = lambda values: np.broadcast_to(values, (len(metals), len(ages))).copy()  # noqa: E731
    ssp = SSPGrid(wave, metals, luminosity, full(photons), full(light), full(surviving))
    line_wave = np.array([1215.67, 3729.9, 4862.7, 4960.3, 5008.2, 6564.6, 12821.0])
    names = ("Lya", "OII", "Hb", "OIII4959", "OIII5007", "Ha", "Pab")
    strength = np.array([8.0, 3.0, 1.0, 1.0, 3.0, 2.86, 0.2]) * 4.9e-13 / 3.828e33
    gas, log_u = np.array([-2.0, -1.0, 0.0]), np.array([-4.0, -2.5, -1.0])
    scale = (1 + 0.3 * gas[:, None] - 0.05 * gas[:, None] ** 2) * (1 + 0.1 * log_u[None, :])
    shape = (len(gas), len(log_u), N_NEBULAR)
    lines = np.broadcast_to(scale[..., None, None] * strength, (*shape, len(strength))).copy()
    continuum = np.broadcast_to(
        1e-50 * (wave / 5000.0) ** -1.5 * (wave > LYMAN_LIMIT), (*shape, len(wave))
    ).copy()
    nebular = NebularGrid(gas, log_u, continuum, lines, line_wave, names)
    fine = np.geomspace(1e3, 1e7, 20000)
    bump = np.exp(-0.5 * (np.log(fine / 1e6) / 0.5) ** 2)
    dust = rebin(fine, bump / np.trapezoid(bump, fine), wave)
    tau = np.log([5.0, 150.0]) if torus else np.zeros(0)
    hot = np.exp(-0.5 * (np.log(fine / 5e4) / 1.0) ** 2)
    hot = rebin(fine, hot / np.trapezoid(hot, fine), wave)
    return GridSet(
        ssp, nebular, dust, tau, np.array([hot, 0.5 * hot])[: len(tau)], {"backend": "synthetic", "files": {}}
    )
