"""What a student was measured to be, what each use of one needs, and the refusal of other uses."""

from typing import NamedTuple

from popcosmos_hpc.errors import BundleError, ConfigurationError


class Measure(NamedTuple):
    """A measured number and its standard error."""

    name: str
    value: float
    error: float


class Limit(NamedTuple):
    """What a use needs: a measure of at most (or at least) a bound."""

    measure: str
    bound: float
    at_least: bool = False

    def admits(self, value: float) -> bool:
        """Whether a value is good enough; one that is not a number never is."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{self.measure} {'>=' if self.at_least else '<='} {self.bound:g}"


USES: dict[str, dict[str, tuple[Limit, ...]]] = {
    "flow": {
        # In place of the teacher's density, uncorrected.
        "density": (
            Limit("efficiency", 0.85, at_least=True),
            Limit("kl_teacher_to_flow", 0.05),
            Limit("kl_flow_to_teacher", 0.05),
        ),
        # Draws that are weighted by teacher / flow afterwards: a loss of efficiency costs time only.
        "proposal": (Limit("efficiency", 0.5, at_least=True),),
    },
    "map": {
        # In place of the teacher; 12 steps of the reference population are 0.004 from its exact flow.
        "prior": (Limit("rms", 0.01),),
        # Draws of a pool.
        "pool": (Limit("rms", 0.02),),
        # Exact targets follow: an error costs acceptance only.
        "preconditioner": (Limit("rms", 0.1),),
    },
    "amplitude": {
        # In place of the teacher's conditional, uncorrected: a tenth of a nat would show in stacks,
        # a few hundredths are below what twelve steps of the teacher itself leave open.
        "conditional": (Limit("kl", 0.03), Limit("pit_decile", 0.01)),
        # Draws that are weighted by teacher / conditional afterwards.
        "proposal": (Limit("kl", 0.2),),
    },
}
"""Uses of each kind of student, with what each use needs."""


def uses_of(kind: str, accuracy: tuple[Measure, ...]) -> tuple[str, ...]:
    """The uses for which a student of a kind is accurate enough."""
    return tuple(use for use in USES[kind] if not _shortcomings(kind, accuracy, use))


def require_use(kind: str, accuracy: tuple[Measure, ...], use: str) -> None:
    """Refuse a use for which a student is not accurate enough.

    Raises:
        ConfigurationError: there is no such use of this kind of student.
        BundleError: the measured error is larger than the use allows, or was never measured.
    """
    if use not in USES[kind]:
        raise ConfigurationError(f"a use among {', '.join(USES[kind])}", repr(use), f"{kind} student")
    if short := _shortcomings(kind, accuracy, use):
        cure = uses_of(kind, accuracy)
        raise BundleError(
            f"{', '.join(str(limit) for limit in USES[kind][use])} for the use {use}",
            "; ".join(short),
            f"{kind} student",
            "Use the teacher, or train the student longer."
            + (f" It may serve as {' or '.join(cure)}." if cure else ""),
        )


def _shortcomings(kind: str, accuracy: tuple[Measure, ...], use: str) -> list[str]:
    """What was measured where it is not good enough."""
    measured = {measure.name: measure for measure in accuracy}
    short = []
    for limit in USES[kind][use]:
        found = measured.get(limit.measure)
        if found is None:
            short.append(f"no measured {limit.measure}")
        elif not limit.admits(found.value):
            short.append(f"a measured {found.name} of {found.value:.4g} +- {found.error:.2g}")
    return short
