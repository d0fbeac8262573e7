"""Errors of a diffusion prior's fixed steps against an adaptive solver in double precision.

    python -m benchmarks.diffusion_accuracy reference --photometry kids9

Per number of steps: rms error of the transport in standardised units and in redshift, what it means in
magnitudes, evaluations of the network and time per draw; and the error of the density, in float32 and
float64.
"""

import time

import click

STEPS = (6, 8, 12, 20, 32, 40)


@click.command()
@click.argument("population")
@click.option("--photometry", default="kids9", help="Bundle whose magnitudes are compared.")
@click.option("--draws", default=256, help="Draws.")
def main(population: str, photometry: str, draws: int) -> None:
    """Print the tables."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from popcosmos_hpc.model.bundle import load_bundle, load_population
    from popcosmos_hpc.model.diffusion_audit import converged_log_prob, converged_transport
    from popcosmos_hpc.model.transforms import to_physical

    prior = load_population(population)
    emulator = load_bundle(photometry, "photometry").emulator()
    u = np.random.default_rng(0).standard_normal((draws, prior.space.size))
    double = lambda tree: jax.tree.map(  # noqa: E731
        lambda v: jnp.asarray(np.asarray(v), jnp.float64) if eqx.is_inexact_array(v) else v, tree
    )
    with jax.enable_x64(True):
        wide = double(prior.diffusion)
        exact = np.asarray(jax.jit(jax.vmap(lambda v: converged_transport(wide, v)))(jnp.asarray(u)))
        x = jnp.asarray(exact)
        density = np.asarray(jax.jit(jax.vmap(lambda v: converged_log_prob(wide, v)))(x))
    single = jnp.asarray(u, jnp.float32)

    @jax.jit
    def observables(standard):
        theta = jax.vmap(lambda s: to_physical(prior.space, prior.latent(s)))(standard)
        flux = jax.vmap(lambda t: emulator(t))(theta)
        return theta[:, prior.space.index("redshift")], 22.5 - 2.5 * jnp.log10(jnp.maximum(flux, 1e-12))

    redshift, magnitude = observables(jnp.asarray(exact, jnp.float32))
    click.echo(
        f"{'steps':>6} {'NFE':>4} {'rms x':>8} {'rms z':>8} {'rms mag':>8} {'q95 mag':>8} {'us/draw':>8}"
    )
    for steps in STEPS:
        coarse = _with_steps(prior.diffusion, steps)
        run = eqx.filter_jit(jax.vmap(coarse.transport))
        found = run(single)
        seconds = _time(lambda run=run: jax.block_until_ready(run(single)))
        z, mag = observables(found)
        error = np.abs(np.asarray(mag - magnitude))
        click.echo(
            f"{steps:6d} {steps + 1:4d} {np.sqrt(np.mean((np.asarray(found) - exact) ** 2)):8.4f} "
            f"{np.sqrt(np.mean(np.asarray(z - redshift) ** 2)):8.4f} {np.sqrt(np.mean(error**2)):8.4f} "
            f"{np.percentile(error, 95):8.4f} {1e6 * seconds / draws:8.1f}"
        )
    click.echo(f"\n{'steps':>6} {'rms ln p, float32':>18} {'float64':>9} {'us/evaluation':>14}")
    narrow = jnp.asarray(exact, jnp.float32)
    for steps in (12, 20, 40, 80):
        run = eqx.filter_jit(jax.vmap(lambda v, n=steps: prior.diffusion.log_prob(v, n_steps=n)))
        small = np.asarray(run(narrow))
        seconds = _time(lambda run=run: jax.block_until_ready(run(narrow)))
        with jax.enable_x64(True):
            large = np.asarray(jax.jit(jax.vmap(lambda v, n=steps: wide.log_prob(v, n_steps=n)))(x))
        errors = [np.sqrt(np.mean((values - density) ** 2)) for values in (small, large)]
        click.echo(f"{steps:6d} {errors[0]:18.4f} {errors[1]:9.4f} {1e6 * seconds / draws:14.1f}")


def _with_steps(diffusion, steps: int):
    from popcosmos_hpc.model.diffusion import Diffusion

    return Diffusion(diffusion.network, diffusion.schedule, diffusion.output, steps)


def _time(run, repeats: int = 5) -> float:
    """Least CPU seconds of a call."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


if __name__ == "__main__":
    main()
