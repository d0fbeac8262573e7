"""What can go wrong: exceptions for runs, statuses for galaxies.

An exception stops a run before anything is queued; a `Status` marks one galaxy and never stops
anything. Every message says what was expected, what was got, where, and what to do.
"""

from enum import IntEnum


class PopCosmosError(Exception):
    """Base of all errors raised on purpose by this package.

    Args:
        expected: what the code needed to find.
        got: what it found instead.
        where: file, field, band or block at fault.
        action: what the user can do about it.
    """

    def __init__(self, expected: str, got: str, where: str = "", action: str = ""):
        self.expected, self.got, self.where, self.action = expected, got, where, action
        place = f"{where}: " if where else ""
        cure = f" {action}" if action else ""
        super().__init__(f"{place}expected {expected}; got {got}.{cure}")

    def __reduce__(self):
        # Dask pickles exceptions by `args`, which hold the joined sentence only.
        return type(self), (self.expected, self.got, self.where, self.action)


class ConfigurationError(PopCosmosError):
    """A setting is missing, unknown, or contradicts another."""


class SchemaError(PopCosmosError):
    """An input table or a store does not have the columns, units or types that were promised."""


class LedgerError(PopCosmosError):
    """A run directory does not match what is asked of it, or a record is damaged."""


class BundleError(PopCosmosError):
    """A model bundle is damaged, incomplete, or does not fit the survey."""


class TrainingError(PopCosmosError):
    """A training cannot go on: its loss or its data are not finite."""


class Status(IntEnum):
    """Outcome of one galaxy's fit; stored per galaxy, one sentence each in `Status.sentence`."""

    OK = 0
    BAD_PHOTOMETRY = 1
    NO_OBSERVED_BAND = 2
    OUTSIDE_EMULATOR_RANGE = 3
    NOT_CONVERGED = 4
    NUMERICAL_FAILURE = 5
    POOR_FIT = 6

    @property
    def sentence(self) -> str:
        """The status as a sentence with its cure."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.OK: "The posterior passed its checks.",
    Status.BAD_PHOTOMETRY: (
        "An observed band had a non-finite flux or a non-positive error: "
        "not fitted; check the preset's missing codes."
    ),
    Status.NO_OBSERVED_BAND: "No band was observed: not fitted.",
    Status.OUTSIDE_EMULATOR_RANGE: (
        "The known redshift lies outside the emulator's training range: "
        "not fitted; use a bundle that covers it."
    ),
    Status.NOT_CONVERGED: (
        "The certificate fell short of its thresholds: draws are stored; "
        "raise the sampler's limits, use a larger pool or another sampler."
    ),
    Status.NUMERICAL_FAILURE: "The sampler met non-finite numbers: draws are NaN; please report it.",
    Status.POOR_FIT: (
        "The posterior converged, but no draw reproduces the data: "
        "check zero points, error floors and the object's class."
    ),
}
