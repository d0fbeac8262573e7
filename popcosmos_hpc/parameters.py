"""Names, bounds and units of model parameters, as values that travel with a model."""

from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from typing import Any, Literal

from popcosmos_hpc.errors import ConfigurationError

Transform = Literal["identity", "probit"]


@dataclass(frozen=True)
class Parameter:
    """One physical parameter.

    Args:
        name: column name in tables.
        unit: astropy-style unit, "" if dimensionless.
        description: one line for people.
        transform: map from latent phi to physical theta: `identity`, or `probit`, that is
            theta = lower + (upper - lower) Phi(phi) with Phi the normal CDF.
        lower: lower bound of theta (-inf for the identity).
        upper: upper bound of theta (+inf for the identity).
    """

    name: str
    unit: str
    description: str
    transform: Transform = "probit"
    lower: float = float("-inf")
    upper: float = float("inf")


@dataclass(frozen=True)
class ParameterSpace:
    """An ordered set of parameters."""

    parameters: tuple[Parameter, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    def index(self, name: str) -> int:
        """Position of a parameter.

        Raises:
            ConfigurationError: no parameter has that name.
        """
        if name not in self.names:
            raise ConfigurationError(
                f"one of the parameters {', '.join(self.names)}", repr(name), "parameter space"
            )
        return self.names.index(name)

    def to_list(self) -> list[dict]:
        """The space as JSON-ready records; infinite bounds become None."""
        finite = lambda value: None if value in (float("inf"), float("-inf")) else value  # noqa: E731
        return [
            {key: finite(value) if key in ("lower", "upper") else value for key, value in record.items()}
            for record in (asdict(parameter) for parameter in self.parameters)
        ]

    @classmethod
    def from_list(cls, records: list[dict]) -> "ParameterSpace":
        """Inverse of `to_list`."""
        infinite = {"lower": float("-inf"), "upper": float("inf")}
        parameters = []
        for record in records:
            bounds: dict[str, Any] = {key: infinite[key] for key in infinite if record.get(key) is None}
            parameters.append(Parameter(**{**record, **bounds}))
        return cls(tuple(parameters))


def _ratio(index: int) -> Parameter:
    return Parameter(
        f"logsfr_ratio{index}",
        "",
        f"log10 SFR ratio of age bins {index} and {index + 1}",
        lower=-5.0,
        upper=5.0,
    )


def pop_cosmos(redshift_max: float = 6.0) -> ParameterSpace:
    """The 16 parameters of pop-cosmos (Thorp et al. 2025, arXiv:2506.12122, Table 1).

    Args:
        redshift_max: upper bound of the redshift parameter.
    """
    return ParameterSpace(
        (
            Parameter("N", "mag", "distance modulus - 2.5 log10(mass formed / Msun)", "identity"),
            Parameter("log10Z", "", "log10 stellar metallicity / solar", lower=-1.98, upper=0.19),
            *(_ratio(index) for index in range(1, 7)),
            Parameter("dust2", "", "V-band optical depth of the diffuse dust", lower=0.0, upper=4.0),
            Parameter("dust_index", "", "slope offset of the attenuation curve", lower=-1.0, upper=0.4),
            Parameter("dust1_fraction", "", "birth-cloud to diffuse optical depth", lower=0.0, upper=2.0),
            Parameter(
                "lnfagn", "", "ln of AGN to stellar bolometric luminosity", lower=log(1e-5), upper=log(3.0)
            ),
            Parameter("lnagntau", "", "ln optical depth of the AGN torus", lower=log(5.0), upper=log(150.0)),
            Parameter("gaslog10Z", "", "log10 gas metallicity / solar", lower=-2.0, upper=0.5),
            Parameter("gaslog10U", "", "log10 ionisation parameter", lower=-4.0, upper=-1.0),
            Parameter("redshift", "", "redshift", lower=0.0, upper=redshift_max),
        )
    )


POP_COSMOS = pop_cosmos()
