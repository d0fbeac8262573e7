"""Compare tempered SMC with long runs of the reference method on galaxies of a run.

    python -m benchmarks.compare_samplers RUN --galaxies 20

For every parameter and galaxy: the shift of the mean in units of the reference's standard deviation, and
the ratios of standard deviations and of half-widths between the 16th and 84th percentiles; a walker that is
lost in a distant mode changes the first of these and not the second. Shifts are expected at
sqrt(1 / ESS_smc + 1 / ESS_reference).
"""

import time
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option("--galaxies", default=20, help="Galaxies, drawn at random from the run.")
@click.option("--warmup", default=3000, help="Iterations of the reference that are thrown away.")
@click.option("--samples", default=6000, help="Iterations of the reference that count.")
@click.option("--seed", default=1)
def main(run: Path, galaxies: int, warmup: int, samples: int, seed: int) -> None:
    """Print the comparison."""
    import os

    from popcosmos_hpc.campaign.worker import PLAN_FILE, build_worker, worker_environment

    os.environ.update(worker_environment(1))  # before JAX starts its device
    import numpy as np

    from popcosmos_hpc.inference.batch import fit_galaxies
    from popcosmos_hpc.inference.sampler import build_sampler
    from popcosmos_hpc.photometry import Photometry
    from popcosmos_hpc.survey.photometry_store import read_block
    from popcosmos_hpc.survey.plan import Plan

    worker = build_worker(run)
    blocks = list(Plan.read(run / PLAN_FILE).blocks())
    block = blocks[np.random.default_rng(seed).integers(len(blocks))]
    object_id, _, _, photometry = read_block(run, block, worker.model.bands)
    rows = np.random.default_rng(seed).permutation(len(object_id))[:galaxies]
    object_id, photometry = object_id[rows], Photometry(*(values[rows] for values in photometry))
    results, n_draws = {}, 400
    reference = build_sampler(
        "ensemble", n_warmup=warmup, n_samples=samples, n_kept=50, n_pool=worker.sampler.n_pool
    )
    for name, sampler in (("smc", worker.sampler), ("ensemble", reference)):
        start = time.process_time()
        results[name] = fit_galaxies(sampler, worker.model, photometry, object_id, seed, 16, draws=n_draws)
        spent = (time.process_time() - start) / len(rows)
        fit = results[name]
        click.echo(
            f"{name}: {spent:.2f} CPU s per galaxy with compilation; median ESS {np.median(fit.ess):.0f}, "
            f"R-hat {np.median(fit.rhat):.3f}, evaluations {np.median(fit.n_evaluations):.3g}"
        )
    smc, ensemble = results["smc"], results["ensemble"]
    shift = (smc.theta.mean(1) - ensemble.theta.mean(1)) / ensemble.theta.std(1)
    ratio = smc.theta.std(1) / ensemble.theta.std(1)
    half = lambda fit: 0.5 * np.subtract(*np.percentile(fit.theta, [84, 16], axis=1))  # noqa: E731
    narrow = half(smc) / half(ensemble)
    middle = np.median(ensemble.theta, axis=1)
    expected = np.sqrt(1 / smc.ess + 1 / ensemble.ess)
    stray = {
        name: np.mean(np.abs(fit.theta - middle[:, None]) > 5 * half(ensemble)[:, None], axis=1)
        for name, fit in results.items()
    }
    click.echo(
        f"{'parameter':>16} {'rms shift':>10} {'ratio of sd':>12} {'of 68 % width':>14} "
        f"{'beyond 5 widths, smc':>21} {'ensemble':>9}"
    )
    for index, name in enumerate(worker.model.space.names):
        rms = np.sqrt(np.mean(shift[:, index] ** 2))
        click.echo(
            f"{name:>16} {rms:10.3f} {np.median(ratio[:, index]):12.3f} {np.median(narrow[:, index]):14.3f} "
            f"{np.mean(stray['smc'][:, index]):21.4f} {np.mean(stray['ensemble'][:, index]):9.4f}"
        )
    total = np.sqrt(np.mean(shift**2))
    click.echo(f"all: rms shift {total:.3f}, expected from ESS {np.sqrt(np.mean(expected**2)):.3f}")


if __name__ == "__main__":
    main()
