"""Redshifts that a population predicts for a survey's selection, against spectroscopic ones.

    python -m benchmarks.population_redshifts configs/training/zcosmos_population.yaml --input catalog \
        --population my_population --out redshifts.png

The population saw no redshift. Before: the population that training started from.
"""

from pathlib import Path

import click


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True))
@click.option("--input", "catalog", required=True, help="Catalog of the recipe, with redshift_spec.")
@click.option("--population", required=True, help="The trained population.")
@click.option("--start", help="Population to start from, instead of the recipe's.")
@click.option("--draws", default=40_000, help="Mock galaxies before selection.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("redshifts.png"))
def main(recipe: Path, catalog: str, population: str, start: str | None, draws: int, out: Path) -> None:
    """Print means and widths, and draw the histograms."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from popcosmos_hpc.model.bundle import load_bundle
    from popcosmos_hpc.training import population_recipe as recipes

    settings = recipes.load_population_recipe(recipe)
    settings = settings.model_copy(update={"input": catalog, "start": start or settings.start})
    table, counts = recipes.select_galaxies(settings)
    flux, flux_err, _ = recipes.read_photometry(settings)
    truth = table["redshift_spec"].to_numpy()
    bundle = load_bundle(settings.bundle)
    click.echo(f"{counts}; spectroscopic: mean {truth.mean():.4f}, width {truth.std():.4f}")
    edges = np.linspace(0, 1.6, 41)
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axes.hist(truth, edges, density=True, color="0.8", label=f"{len(truth):,} spectroscopic")
    for label, name, colour in (("before", settings.start, "C1"), ("after", population, "C0")):
        chosen = settings.model_copy(update={"start": name})
        seen = _predicted(recipes.build_forward(chosen, bundle, flux, flux_err), name, draws)
        click.echo(
            f"{label}: {len(seen)} mock galaxies selected; mean {seen.mean():.4f} "
            f"({seen.mean() - truth.mean():+.4f}), width {seen.std():.4f} ({seen.std() / truth.std():.3f})"
        )
        axes.hist(seen, edges, density=True, histtype="step", color=colour, linewidth=1.6, label=label)
    axes.set(xlabel="redshift", ylabel="density", xlim=(0, 1.6))
    axes.legend(frameon=False)
    figure.savefig(out, dpi=130)


def _predicted(forward, name: str, draws: int):
    """Redshifts of selected mock galaxies, with the zero points that were found with the population."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from popcosmos_hpc.model.bundle import load_bundle
    from popcosmos_hpc.training.population import base_draws

    zero_points = load_bundle(name).manifest.get("zero_points")
    if zero_points:
        known = np.array([zero_points[band] for band in forward.galaxy.bands])
        change = np.log(known / np.asarray(forward.galaxy.likelihood.zero_points))
        forward = eqx.tree_at(lambda f: f.log_zero_points, forward, jnp.asarray(change, jnp.float32))
    index = forward.galaxy.space.index("redshift")

    def one(model, key, u):
        return model.calibrated().theta(u)[index], model.observe(key, u)[1]

    many = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(None, 0, 0)))
    base = base_draws(5, draws, forward.galaxy.space.size).reshape(-1, 4000, forward.galaxy.space.size)
    keys = jax.random.split(jax.random.PRNGKey(5), draws).reshape(-1, 4000, 2)
    found = [many(forward, *some) for some in zip(keys, base, strict=True)]
    redshift, weight = (np.concatenate(part) for part in zip(*found, strict=True))
    return redshift[weight > 0.5]


if __name__ == "__main__":
    main()
