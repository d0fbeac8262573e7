"""How students of a population are trained, whatever their kind."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.model.students import FlowShape
from popcosmos_hpc.training.fit import Schedule

Kind = Literal["flow", "map", "amplitude"]


class StudentRecipe(BaseModel):
    """How a student is trained, whatever its kind.

    Attributes:
        name: of the bundle.
        description: for people.
        width: units per hidden layer.
        n_rounds: rounds of fresh draws.
        n_draws: draws of the teacher per round.
        batch_size: draws per gradient step.
        learning_rate: peak of the cosine.
        average: decay per step of the averaged weights.
        n_test: draws by which the student is measured.
        seed: of weights and draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    width: int = Field(128, ge=1)
    n_rounds: int = Field(60, ge=1)
    n_draws: int = Field(100_000, ge=1000)
    batch_size: int = Field(1024, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.999, ge=0, lt=1)
    n_test: int = Field(4096, ge=1000)
    seed: int = 1

    def pace(self) -> Schedule:
        """For the training loop."""
        size = min(self.batch_size, self.n_draws)
        return Schedule(self.n_rounds, size, self.learning_rate, self.seed, self.average, clip=1.0)


class FlowRecipe(StudentRecipe):
    """How a flow is trained.

    Attributes:
        n_layers: coupling layers.
        depth: hidden layers of each one's network.
        n_knots: inner knots of each spline.
        interval: where the splines act, in standard deviations.
    """

    n_layers: int = Field(8, ge=1)
    depth: int = Field(2, ge=1)
    n_knots: int = Field(8, ge=1)
    interval: float = Field(6.0, gt=0)

    def shape(self) -> FlowShape:
        """Of the flow."""
        return FlowShape(self.n_layers, self.width, self.depth, self.n_knots, self.interval)


class MapRecipe(StudentRecipe):
    """How a one-step map is trained.

    Attributes:
        depth: hidden layers.
    """

    width: int = Field(256, ge=1)
    depth: int = Field(4, ge=1)
    n_test: int = Field(20_000, ge=1000)


class AmplitudeRecipe(StudentRecipe):
    """How the density of one parameter given the others is trained.

    Attributes:
        parameter: the one; without bounds.
        n_components: of the mixture.
        depth: hidden layers.
        n_passes: how often each round's draws are gone through; draws cost more than steps.
        n_pit: draws by which the distribution function is measured.
    """

    parameter: str = "N"
    n_components: int = Field(8, ge=1)
    depth: int = Field(3, ge=1)
    n_passes: int = Field(4, ge=1)
    n_test: int = Field(256, ge=10)
    n_pit: int = Field(50_000, ge=1000)


AnyRecipe = FlowRecipe | MapRecipe | AmplitudeRecipe
RECIPES: dict[str, type[FlowRecipe] | type[MapRecipe] | type[AmplitudeRecipe]] = {
    "flow": FlowRecipe,
    "map": MapRecipe,
    "amplitude": AmplitudeRecipe,
}


def load_student_recipe(path: Path | str, kind: Kind) -> AnyRecipe:
    """Read a recipe.

    Raises:
        ConfigurationError: the file is missing or says something unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError("a training configuration", f"no file {path}", "train student")
    try:
        return RECIPES[kind](**yaml.safe_load(path.read_text()))
    except (ValidationError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"a recipe of a {kind} student", str(error), str(path)) from error
