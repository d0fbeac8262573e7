"""The ladder's cost per certified galaxy against the reference method's, in one run on one core.

    popcosmos-hpc pool build kids --out pool_kids
    python -m benchmarks.ladder_cost pool_kids --band r --magnitude 24.5

The reference is an affine-invariant ensemble of 512 walkers and 1,000 steps. In base space it is run on a
few galaxies; with the population's exact density instead, its cost follows from the rate of that density,
measured here too. Costs are compared as they are, and at equal effective size.
"""

import time
from pathlib import Path

import click
import numpy as np

WALKERS, STEPS = 512, 1000


@click.command()
@click.argument("pool", type=click.Path(path_type=Path, exists=True))
@click.option("--band", default="r", help="Band of the selection.")
@click.option("--magnitude", default=24.5, help="Its limit.")
@click.option("--galaxies", default=300, help="For the ladder.")
@click.option("--reference", default=3, help="Galaxies for the ensemble.")
@click.option("--amplitude", default="reference_amplitude", help="Student of the pool's population.")
@click.option("--seed", default=11)
def main(pool: Path, band: str, magnitude: float, galaxies: int, reference: int, amplitude: str, seed: int):
    """Print both costs and their ratios."""
    from benchmarks.ladder_accuracy import mocks
    from popcosmos_hpc.campaign.worker import set_up_device
    from popcosmos_hpc.errors import Status

    set_up_device()
    setting = mocks(pool, band, magnitude, galaxies, seed)
    fitted, seconds = climb_once(pool, setting, amplitude)
    passed = fitted.status == Status.OK
    mine = seconds * galaxies / passed.sum()
    size = float(np.mean(1.0 / (1.0 / fitted.ess[passed] + 1.0 / fitted.theta.shape[1])))
    click.echo(
        f"ladder     {passed.mean():.1%} certified, {1e3 * mine:.1f} ms each, {size:.0f} effective draws"
    )
    theirs, their_size = run_ensemble(setting, reference)
    click.echo(f"ensemble   {theirs:.0f} s per galaxy in base space, {their_size:.0f} effective draws")
    in_base, exact = rates(setting)
    click.echo(
        f"densities  {1e6 * in_base:.0f} us in base space, {1e6 * exact:.0f} us with the exact density"
    )
    with_exact = theirs * exact / in_base
    for name, cost in (("base space", theirs), ("exact density", with_exact)):
        equal = cost / mine * size / their_size
        click.echo(f"ratio      {name:<14} {cost / mine:9.0f}, at equal effective size {equal:9.0f}")


def climb_once(pool: Path, setting, amplitude: str):
    """Posteriors of all galaxies, and seconds per galaxy; programs are compiled before."""
    from popcosmos_hpc.inference.amplitude import AmplitudeSampler
    from popcosmos_hpc.inference.ladder import Ladder, Rung, climb
    from popcosmos_hpc.inference.marginal import MarginalSMC
    from popcosmos_hpc.inference.pool import PoolSampler, pool_on_device
    from popcosmos_hpc.model.student_bundle import load_amplitude
    from popcosmos_hpc.survey.pool_store import open_pool

    device = pool_on_device(open_pool(pool))
    student = load_amplitude(amplitude, "conditional")
    ladder = Ladder(
        (
            Rung("pool", PoolSampler(device)),
            Rung("amplitude", AmplitudeSampler(device, n_picks=32768, conditional=student)),
            Rung("smc", MarginalSMC(pool=device, conditional=student, n_moves=10, max_stages=12)),
        )
    )
    climb(ladder, setting.model, setting.photometry, setting.ids, 5)
    start = time.perf_counter()
    fitted = climb(ladder, setting.model, setting.photometry, setting.ids, 5)
    return fitted, (time.perf_counter() - start) / len(setting.ids)


def run_ensemble(setting, n_galaxies: int) -> tuple[float, float]:
    """Seconds per galaxy of the reference in base space, and its effective draws."""
    from popcosmos_hpc.inference.batch import fit_galaxies
    from popcosmos_hpc.inference.ensemble import StretchEnsemble
    from popcosmos_hpc.photometry import Photometry

    sampler = StretchEnsemble(
        n_walkers=WALKERS // 4, n_ensembles=4, n_warmup=STEPS // 2, n_samples=STEPS // 2
    )
    part = Photometry(*(values[:n_galaxies] for values in setting.photometry))
    one = Photometry(*(values[:1] for values in part))
    short = StretchEnsemble(n_walkers=8, n_warmup=10, n_samples=20)
    fit_galaxies(short, setting.model, one, setting.ids[:1], 5, 1)
    start = time.perf_counter()
    fitted = fit_galaxies(sampler, setting.model, part, setting.ids[:n_galaxies], 5, 1)
    return (time.perf_counter() - start) / n_galaxies, float(np.mean(fitted.ess))


def rates(setting, count: int = 512) -> tuple[float, float]:
    """Seconds per evaluation of the posterior in base space, and with the population's exact density."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from popcosmos_hpc.photometry import Photometry

    model = setting.model
    one = Photometry(*(jnp.asarray(values[0]) for values in setting.photometry))
    u = jax.random.normal(jax.random.PRNGKey(0), (count, model.space.size))
    phi = jax.vmap(model.prior.transport)(u)
    target = lambda u: model.log_target(u, one)  # noqa: E731
    density = lambda phi: model.prior.log_prob(phi)  # noqa: E731
    return _seconds(eqx.filter_jit(jax.vmap(target)), u), _seconds(eqx.filter_jit(jax.vmap(density)), phi)


def _seconds(function, points, times: int = 3) -> float:
    import jax

    jax.block_until_ready(function(points))
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(function(points))
        found.append((time.perf_counter() - start) / len(points))
    return min(found)


if __name__ == "__main__":
    main()
