"""Cost of a mock galaxy, from the population's draw to noisy photometry, against its bare emulator.

Times are seconds of processor per galaxy, so that threads and other work on the machine do not count.
As tests few batches are timed; `POPCOSMOS_BENCHMARK=full pytest benchmarks/test_mock_speed.py` takes more.
"""

import os
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popcosmos_hpc.campaign.mock_config import load_mock_config
from popcosmos_hpc.campaign.mock_draws import BATCH, draw_galaxies
from popcosmos_hpc.campaign.mock_task import build_survey

ROUNDS = 30 if os.environ.get("POPCOSMOS_BENCHMARK") == "full" else 3


@pytest.fixture(scope="module", params=["analytic", "reference_bright"])
def mock(request):
    config = load_mock_config("kids")
    model = config.model.model_copy(update={"prior": request.param})
    return request.param, build_survey(config.model_copy(update={"model": model}).model_dump_json()).model


def processor_seconds(function: Callable, *arguments) -> float:
    """Least time of a batch, divided by its size; compilation is not counted."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return min(times) / BATCH


def test_from_draw_to_noisy_photometry(benchmark, mock):
    """The ratio is told with the benchmark; what the diffusion adds to it is a cost of the population."""
    prior, model = mock
    keys = jax.random.split(jax.random.PRNGKey(0), BATCH)
    candidates = eqx.filter_jit(lambda model, keys: jax.vmap(model.candidate)(keys))
    emulator = eqx.filter_jit(lambda model, theta: jax.vmap(model.galaxy.emulator)(theta))
    found = jax.block_until_ready(candidates(model, keys))
    assert np.isfinite(found.flux).all() and found.flux.shape == (BATCH, 9)
    theta = jnp.asarray(found.theta)
    bare, whole = processor_seconds(emulator, model, theta), processor_seconds(candidates, model, keys)
    benchmark.pedantic(lambda: jax.block_until_ready(candidates(model, keys)), rounds=ROUNDS)
    benchmark.extra_info |= {
        "prior": prior,
        "candidates per second and core": round(1 / whole),
        "ratio to the bare emulator": round(whole / bare, 2),
        "detected": round(float(np.mean(found.selected)), 4),
    }
    # The analytic prior costs as much as the emulator; a diffusion takes a network twelve times.
    assert whole < (4 if prior == "analytic" else 25) * bare


def test_detected_galaxies(benchmark, mock):
    prior, model = mock
    if prior == "analytic":
        pytest.skip("one in a few hundred is detected, so that a batch of galaxies takes too long for a test")
    draw_galaxies(model, 1, np.arange(10))  # compiles
    start = time.process_time()
    drawn = benchmark.pedantic(lambda: draw_galaxies(model, 1, np.arange(2 * BATCH)), rounds=2)
    spent = (time.process_time() - start) / 2 / len(drawn.theta)
    assert len(drawn.theta) == 2 * BATCH
    benchmark.extra_info |= {"galaxies per second and core": round(1 / spent)}
