"""What every sampler looks like, what it returns, and how configuration names one."""

import difflib
import importlib
from abc import abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.galaxy import GalaxyModel
from popcosmos_hpc.photometry import Photometry

SAMPLERS: dict[str, tuple[str, str]] = {
    "smc": ("popcosmos_hpc.inference.smc", "SMC"),
    "ensemble": ("popcosmos_hpc.inference.ensemble", "StretchEnsemble"),
    "nuts": ("popcosmos_hpc.inference.nuts", "NUTS"),
}
"""Name in configuration -> module and class; imported on use, for the classes build on this module."""


class Posterior(NamedTuple):
    """Posterior draws of one galaxy and their certificate; arrays may have a leading galaxy axis.

    Attributes:
        theta: (draw, param) physical parameters, equal weights.
        log_prior: (draw,) ln base density of the draws.
        log_likelihood: (draw,) ln likelihood of the draws.
        ess: effective number of independent draws, from the scatter of independent ensembles.
        pareto_k: shape of the tail of importance weights; NaN where there are none.
        rhat: largest split between ensembles over the parameters, in base space.
        ppp: posterior-predictive p of a chi^2-like discrepancy; near 0, the model does not fit.
        log_evidence: ln p(photometry); NaN if the sampler has none.
        log_evidence_error: its Monte Carlo error, from independent parts; NaN if the sampler has none.
        max_weight: largest normalised importance weight; NaN where there are none.
        n_distinct: how many of the draws differ.
        pool_row: (draw,) row of the pool that a draw came from; -1 if from none.
        acceptance: mean acceptance of the last moves.
        n_evaluations: evaluations of the emulator spent on this galaxy.
        status: a `popcosmos_hpc.errors.Status`.
        sampler: the sampler's identifier; -1 if none ran.
    """

    theta: Any
    log_prior: Any
    log_likelihood: Any
    ess: Any
    pareto_k: Any
    rhat: Any
    ppp: Any
    log_evidence: Any
    log_evidence_error: Any
    max_weight: Any
    n_distinct: Any
    pool_row: Any
    acceptance: Any
    n_evaluations: Any
    status: Any
    sampler: Any


class AbstractSampler(eqx.Module):
    """Turns the photometry of one galaxy into its posterior.

    Fields are settings. Whatever does not depend on the galaxy is computed once by `prepare` and passed
    to every call as arrays. The state is a plain pytree of fixed shapes, so that slots of a batch can be
    refilled while others go on.
    """

    identifier: ClassVar[int]

    @abstractmethod
    def prepare(self, model: GalaxyModel, key) -> Any:
        """Arrays shared by all galaxies."""

    @abstractmethod
    def init(self, key, photometry: Photometry, model: GalaxyModel, shared: Any) -> Any:
        """State before the first step."""

    @abstractmethod
    def step(self, state: Any, photometry: Photometry, model: GalaxyModel, shared: Any) -> Any:
        """A bounded piece of work."""

    @abstractmethod
    def done(self, state: Any) -> Any:
        """Whether the state needs no further step, () bool."""

    @abstractmethod
    def finish(
        self, state: Any, photometry: Photometry, model: GalaxyModel, shared: Any, draws: int
    ) -> Posterior:
        """The posterior with `draws` draws, taken evenly from all ensembles."""

    @property
    @abstractmethod
    def max_draws(self) -> int:
        """Most draws `finish` can return without repeating one."""

    def __call__(self, key, photometry: Photometry, model: GalaxyModel, shared: Any, draws: int) -> Posterior:
        """The whole fit of one galaxy."""
        state = jax.lax.while_loop(
            lambda state: ~self.done(state),
            lambda state: self.step(state, photometry, model, shared),
            self.init(key, photometry, model, shared),
        )
        return self.finish(state, photometry, model, shared, draws)


def build_sampler(name: str, **settings) -> AbstractSampler:
    """A sampler by its name in configuration.

    Args:
        name: one of `SAMPLERS`.
        settings: the sampler's fields.

    Raises:
        ConfigurationError: name or setting is unknown, or a value is out of range.
    """
    if name not in SAMPLERS:
        raise ConfigurationError(
            f"one of ladder, {', '.join(SAMPLERS)}",
            repr(name),
            "sampler.name",
            _nearest(name, ("ladder", *SAMPLERS)),
        )
    module, attribute = SAMPLERS[name]
    kind = getattr(importlib.import_module(module), attribute)
    return kind(**checked_settings(kind, name, settings))


def checked_settings(kind: type[AbstractSampler], name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a sampler with the types that its fields have.

    Args:
        kind: class of the sampler.
        name: for the message.
        settings: by field.

    Raises:
        ConfigurationError: a setting is unknown, or not a number.
    """
    known = {field.name: field.type for field in fields(kind)}
    for key, value in settings.items():
        if key not in known:
            raise ConfigurationError(
                f"one of {', '.join(known)}", repr(key), f"sampler {name}", _nearest(key, tuple(known))
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError("a number", repr(value), f"sampler {name}: {key}")
    return {key: _number(value, known[key], f"sampler {name}: {key}") for key, value in settings.items()}


def _number(value, kind, where: str):
    if kind in (int, "int") and int(value) != value:
        raise ConfigurationError("a whole number", repr(value), where)
    return int(value) if kind in (int, "int") else float(value)


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"Did you mean {close[0]!r}?"
