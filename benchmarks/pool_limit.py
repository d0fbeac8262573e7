"""What a pool may leave out: the posterior weight of draws fainter than a limit, over mocks of a survey.

    popcosmos-hpc pool build kids --out pool_kids
    python -m benchmarks.pool_limit pool_kids --band r --magnitude 24.5

For limits ever fainter than the survey's, prints the share of the pool that they leave out and how much of
the posterior of a galaxy lies there: its median, its 99th percentile and its largest value over the mocks.
"""

from pathlib import Path

import click
import numpy as np

STEP, N_STEPS = 0.5, 9


@click.command()
@click.argument("pool", type=click.Path(path_type=Path, exists=True))
@click.option("--band", default="r", help="Band of the selection and of the limits.")
@click.option("--magnitude", default=24.5, help="Limit of the selection.")
@click.option("--galaxies", default=300)
@click.option("--seed", default=11)
def main(pool: Path, band: str, magnitude: float, galaxies: int, seed: int) -> None:
    """Print the table."""
    from benchmarks.ladder_accuracy import mocks
    from popcosmos_hpc.campaign.worker import set_up_device

    set_up_device()
    setting = mocks(pool, band, magnitude, galaxies, seed)
    limits = magnitude + STEP * np.arange(N_STEPS)
    left_out, fraction = shares(pool, setting, band, limits)
    click.echo("limit   left out of the pool   of a posterior: median   99 %   largest")
    for limit, share, beyond in zip(limits, fraction, left_out.T, strict=True):
        low, high = np.percentile(beyond, [50, 99])
        click.echo(
            f"{limit:5.1f}   {100 * share:6.1f} %               {low:.1e}   {high:.1e}   {beyond.max():.1e}"
        )


def shares(pool: Path, setting, band: str, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior weight beyond each limit (galaxy, limit), and the pool's share of draws there (limit,)."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from popcosmos_hpc.inference.exhaustive import ExhaustivePool
    from popcosmos_hpc.inference.pool import pool_on_device
    from popcosmos_hpc.photometry import AB_ZERO_POINT, Photometry
    from popcosmos_hpc.survey.pool_store import open_pool

    store = open_pool(pool)
    device = pool_on_device(store)
    rows = np.concatenate([shard[:, store.bands.index(band)] for shard in store.shards("rows")])
    magnitude = AB_ZERO_POINT - 2.5 * np.log10(np.maximum(rows.view(np.float16).astype(np.float32), 1e-6))
    sampler = ExhaustivePool(device)

    @eqx.filter_jit
    def log_likelihoods(sampler, model, shared, photometry):
        state = sampler.init(jax.random.PRNGKey(0), photometry, model, shared)
        return sampler.step(state, photometry, model, shared).log_likelihood

    shared = eqx.filter_jit(sampler.prepare)(setting.model, jax.random.PRNGKey(1))
    bins, beyond = np.searchsorted(limits, magnitude, side="right"), []
    for i in range(len(setting.ids)):
        photometry = Photometry(*(jnp.asarray(values[i]) for values in setting.photometry))
        found = np.asarray(log_likelihoods(sampler, setting.model, shared, photometry))[: len(magnitude)]
        weight = np.bincount(bins, np.exp(found - found.max()), len(limits) + 1)
        beyond.append(1.0 - np.cumsum(weight)[:-1] / weight.sum())
    return np.maximum(beyond, 0.0), np.array([np.mean(magnitude > limit) for limit in limits])


if __name__ == "__main__":
    main()
