"""Synthesis to emulator: train the networks of bundles, measure them, and write them."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import popcosmos_hpc
from popcosmos_hpc.model.bundle import load_bundle, save_bundle
from popcosmos_hpc.model.features import continuum_features, galaxy_features
from popcosmos_hpc.model.lines import LineEmulator
from popcosmos_hpc.model.network import Network, initial_network
from popcosmos_hpc.model.reference import LineTable, ReferencePhotometry
from popcosmos_hpc.model.speculator import SpeculatorEmulator, derived_quantities
from popcosmos_hpc.photometry import AB_ZERO_POINT
from popcosmos_hpc.sps.spectrum import line_transmission
from popcosmos_hpc.training.accuracy import accuracy_table, redshift_edges, write_report
from popcosmos_hpc.training.fit import Schedule, train
from popcosmos_hpc.training.recipe import EmulatorRecipe, NetworkSize, load_recipe, united
from popcosmos_hpc.training.recipe_file import software
from popcosmos_hpc.training.reference import build_line_table, build_reference
from popcosmos_hpc.training.simulation import (
    Examples,
    Simulator,
    Source,
    build_simulator,
    draw_parameters,
    restricted,
    target_flux,
)

logger = logging.getLogger(__name__)

_TEST_STREAM = 1_000_000
_SOFT = 0.01  # mag: errors below this are punished quadratically
_SOFT_REFERENCE = 0.005  # mag: the same beyond a reference, which leaves less to learn
_UNSEEN = 18.0  # mag per Msun: photometry from here on hardly counts
_USUAL = 0.3  # mag: what is beyond a reference is scaled by its usual size, not by its extremes
_PIECE = 8192  # galaxies whose features are computed at a time


def train_from_config(config: Path | str, out: Path | str, checkpoint_dir: Path | str | None = None) -> Path:
    """Train the emulator of a training configuration and write its bundle.

    Args:
        config: YAML file of an `EmulatorRecipe`.
        out: folder of the bundle.
        checkpoint_dir: where training states are kept; a killed training resumes from them.

    Returns:
        The folder of the bundle.

    Raises:
        ConfigurationError: the configuration or a file that it names is wrong.
    """
    return train_together([config], [out], checkpoint_dir)[0]


def train_together(
    configs: Sequence[Path | str], outs: Sequence[Path | str], checkpoint_dir: Path | str | None = None
) -> list[Path]:
    """Train the emulators of several configurations on the same draws.

    Spectra, line luminosities and rest-frame quantities do not depend on the bands, so they are made and
    learned once. Each network of the continuum learns the bands of its own configuration.

    Args:
        configs: YAML files of `EmulatorRecipe`s that agree in all but name, bands and continuum.
        outs: folders of the bundles.
        checkpoint_dir: where training states and draws are kept; a killed training resumes from them. The
            draws are deleted when all bundles are written.

    Returns:
        The folders of the bundles.

    Raises:
        ConfigurationError: a configuration or a file that it names is wrong, or they do not agree.
    """
    recipes = [load_recipe(config) for config in configs]
    whole = build_simulator(united(recipes))
    logger.info("%d bands, %d lines apart", len(whole.filters), int(whole.strong.sum()))
    checkpoints = None if checkpoint_dir is None else Path(checkpoint_dir)
    draws = None if checkpoints is None else checkpoints / f"draws-{_digest(whole)}"
    source = Source(whole, whole.recipe.seed, draws)
    tabulated = all(recipe.reference_parts > 0 for recipe in recipes)
    sizes = (
        {"rest": whole.recipe.rest} if tabulated else {"lines": whole.recipe.lines, "rest": whole.recipe.rest}
    )
    shared = {name: _train_network(name, whole, source, size, checkpoints) for name, size in sizes.items()}
    folders = []
    for recipe, out in zip(recipes, outs, strict=True):
        simulator = restricted(whole, recipe)
        emulator = _train_bands(simulator, source, shared, checkpoints)
        folders.append(_write(simulator, emulator, Path(out)))
    if draws is not None:
        shutil.rmtree(draws, ignore_errors=True)
    return folders


def _train_bands(
    simulator: Simulator, source: Source, shared: dict[str, Network], checkpoints: Path | None
) -> SpeculatorEmulator:
    recipe = simulator.recipe
    reference = None
    if recipe.reference_parts:
        reference = build_reference(
            simulator.sps, simulator.filters, recipe.redshift[1], recipe.reference_parts
        )
    continuum = _train_network("continuum", simulator, source, recipe.continuum, checkpoints, reference)
    lines = shared.get("lines", build_line_table(simulator.sps, np.flatnonzero(simulator.strong)))
    return _assemble(simulator, lines, shared["rest"], continuum, reference)


def _features(
    simulator: Simulator, name: str, reference: ReferencePhotometry | None
) -> Callable[[np.ndarray], np.ndarray]:
    sps = simulator.sps
    pivots = jnp.asarray([f.pivot for f in simulator.filters], jnp.float32)

    def of(reference: ReferencePhotometry | None, theta: Array) -> Array:
        if name != "continuum":
            return galaxy_features(sps.space, sps.cosmology, theta)
        return continuum_features(sps.space, sps.cosmology, pivots, reference, theta)

    many = eqx.filter_jit(jax.vmap(of, in_axes=(None, 0)))
    return lambda theta: np.concatenate(
        [
            np.asarray(many(reference, jnp.asarray(theta[start : start + _PIECE])))
            for start in range(0, len(theta), _PIECE)
        ]
    )


def _absolute(network: Network, features: Array, target: Array) -> Array:
    """Smooth absolute error in physical units; a robust loss, since tails are few and hard."""
    residual = network(features) - target
    return jnp.mean(jnp.sqrt(residual**2 + _SOFT**2))


def _beyond_reference(network: Network, features: Array, target: Array) -> Array:
    """Like `_absolute`, with little weight on what no survey can see."""
    residual = network(features) - target
    magnitude = target + features[-len(target) :]
    weight = jnp.clip((_UNSEEN - magnitude) / (_UNSEEN - 15.0), 0.05, 1.0)
    return jnp.mean(weight * jnp.sqrt(residual**2 + _SOFT_REFERENCE**2))


def _examples(
    name: str, simulator: Simulator, source: Source, reference: ReferencePhotometry | None
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Round -> inputs and targets of a network; only what a round replaces is computed anew."""
    of = _features(simulator, name, reference)
    inputs = targets = np.zeros(0)

    def examples(index: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal inputs, targets
        held = source.round(index)
        values = getattr(held, name)
        values = values[:, source.columns(simulator)] if name == "continuum" else values
        rows = source.replaced(index) if len(inputs) else slice(0, len(values))
        inputs = inputs if len(inputs) else np.zeros((len(values), of(held.theta[:1]).shape[1]), np.float32)
        targets = targets if len(targets) else np.zeros(values.shape, np.float32)
        inputs[rows] = of(held.theta[rows])
        targets[rows] = values[rows]
        if reference is not None:
            targets[rows] -= inputs[rows, -values.shape[1] :]
        return inputs, targets

    return examples


def _train_network(
    name: str,
    simulator: Simulator,
    source: Source,
    size: NetworkSize,
    checkpoints: Path | None,
    reference: ReferencePhotometry | None = None,
) -> Network:
    recipe = simulator.recipe
    examples = _examples(name, simulator, source, reference)
    inputs, targets = examples(0)
    sizes = (inputs.shape[1], *[size.width] * size.depth, targets.shape[1])
    moments = lambda values: (values.mean(0), values.std(0) + 1e-6)  # noqa: E731
    key = jax.random.fold_in(jax.random.PRNGKey(recipe.seed), len(name))
    outputs = targets if reference is None else np.clip(targets, -_USUAL, _USUAL)
    network = initial_network(key, sizes, moments(inputs), moments(outputs))
    schedule = Schedule(size.n_rounds, recipe.batch_size, size.learning_rate, recipe.seed)
    checkpoint = (
        None if checkpoints is None else checkpoints / f"{recipe.name}-{name}-{_digest(simulator)}.eqx"
    )
    loss = _absolute if reference is None else _beyond_reference
    return train(network, loss, examples, schedule, checkpoint, f"{recipe.name} {name}")


def _digest(simulator: Simulator) -> str:
    """Short hash of all that a training depends on, so that no other training's state is resumed."""
    facts = {
        "recipe": simulator.recipe.model_dump(mode="json"),
        "filters": [f.sha256 for f in (*simulator.filters, *simulator.rest_filters)],
        "grids": simulator.provenance["files"],
        "package": popcosmos_hpc.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _assemble(
    simulator: Simulator,
    line_source: Network | LineTable,
    rest: Network,
    continuum: Network,
    reference: ReferencePhotometry | None,
) -> SpeculatorEmulator:
    sps, recipe = simulator.sps, simulator.recipe
    strong = np.flatnonzero(simulator.strong)
    derived = derived_quantities(tuple(recipe.rest_bands), tuple(recipe.width_lines))
    width = tuple(int(np.flatnonzero(strong == index)[0]) for index in simulator.width_lines)
    pivots = jnp.asarray([f.pivot for f in simulator.filters], jnp.float32)
    n_bands = len(simulator.filters)
    return SpeculatorEmulator(
        tuple(recipe.bands),
        recipe.redshift,
        tuple(derived),
        tuple(derived.values()),
        sps.space,
        tuple(recipe.rest_bands),
        width,
        continuum,
        rest,
        _line_emulator(simulator, strong, line_source),
        pivots,
        jnp.asarray(recipe.redshift, jnp.float32),
        jnp.zeros((2, n_bands)),
        sps.cosmology,
        reference,
        tuple(range(n_bands)),
    )


def _line_emulator(
    simulator: Simulator, strong: np.ndarray, line_source: Network | LineTable
) -> LineEmulator:
    """Lines (line,) given by their indices among those of the synthesis."""
    sps = simulator.sps
    redshifts = jnp.linspace(0.0, simulator.recipe.redshift[1], 121)
    return LineEmulator(
        tuple(sps.line_names[i] for i in strong),
        line_source,
        sps.line_wave[strong],
        jax.vmap(lambda z: line_transmission(sps, z)[strong])(redshifts),
        redshifts,
        simulator.bands.line_table,
        simulator.bands.line_axis,
    )


def measure(simulator: Simulator, emulator: SpeculatorEmulator, theta: np.ndarray) -> dict:
    """Accuracy of total magnitudes, lines included, against the synthesis on held-out draws."""
    exact = eqx.filter_jit(jax.vmap(lambda t: target_flux(simulator, t)))
    fast = eqx.filter_jit(jax.vmap(lambda t: emulator(t)))
    magnitude = lambda flux: AB_ZERO_POINT - 2.5 * np.log10(np.maximum(np.asarray(flux), 1e-12))  # noqa: E731
    pieces = [theta[i : i + 128] for i in range(0, len(theta), 128)]
    expected = np.concatenate([magnitude(exact(piece)) for piece in pieces])
    predicted = np.concatenate([magnitude(fast(piece)) for piece in pieces])
    redshift = theta[:, simulator.sps.space.index("redshift")]
    return accuracy_table(predicted, expected, redshift, redshift_edges(*simulator.recipe.redshift))


def _write(simulator: Simulator, emulator: SpeculatorEmulator, out: Path) -> Path:
    recipe = simulator.recipe
    rng = np.random.default_rng([recipe.seed, _TEST_STREAM])
    n_test = -(-recipe.n_test // 128) * 128
    theta = draw_parameters(rng, simulator.sps.space, n_test, *recipe.redshift)
    table = measure(simulator, emulator, theta)
    logger.info("held-out error [mag]: median %(median).4f, p95 %(p95).4f, p99 %(p99).4f", table["overall"])
    edges = np.array(table["redshift_edges"])
    fraction = 0.4 * np.log(10) * np.array(table["half_width"])
    nodes = jnp.asarray(0.5 * (edges[1:] + edges[:-1]), jnp.float32)
    emulator = eqx.tree_at(
        lambda e: (e.error_redshift, e.error), emulator, (nodes, jnp.asarray(fraction, jnp.float32))
    )
    facts, arrays = emulator.to_bundle()
    manifest = {
        "name": recipe.name,
        "description": recipe.description,
        **facts,
        **_provenance(simulator),
        "accuracy": table,
    }
    save_bundle(out, manifest, arrays)
    write_report(table, emulator.bands, out)
    load_bundle(out)
    return out


def _provenance(simulator: Simulator) -> dict:
    filters = {
        f.name: {"source": f.source, "sha256": f.sha256, "pivot": round(f.pivot, 2)}
        for f in simulator.filters
    }
    return {
        "filters": filters,
        "training_box": {p.name: [p.lower, p.upper] for p in simulator.sps.space.parameters if p.name != "N"},
        "synthesis": {
            **simulator.provenance,
            "resolution": simulator.recipe.synthesis.resolution,
            "agn": simulator.recipe.synthesis.agn,
            "cosmology": "Planck18",
            "igm": "Madau 1995",
            "solar_metallicity": 0.0142,
            "n_lines_in_continuum": int((~simulator.strong).sum()),
        },
        "recipe": simulator.recipe.model_dump(mode="json"),
        "software": software(),
        "licence_note": "Weights fitted to published grids, which are not included; cite their sources.",
    }


__all__ = ["EmulatorRecipe", "Examples", "measure", "train_from_config"]
