"""Every recipe is read in one way, and every mistake in its file is refused in words."""

import pytest
from pydantic import BaseModel, ConfigDict

from popcosmos_hpc.errors import ConfigurationError
from popcosmos_hpc.training.recipe_file import read_recipe, software


class Little(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


def test_a_recipe_is_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: größe", encoding="utf-8")
    assert read_recipe(str(path), Little, "train this").name == "größe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"", "NoneType"),
        (b"- name", "list"),
        (b"name: [", "r.yaml"),
        (b"name: \xff", "utf-8"),
        (b"name: a\nnmae: b", "nmae"),
        (b"1: a", "r.yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message) as refused:
        read_recipe(path, Little, "train this")
    assert "train this" in str(refused.value) and str(path) in str(refused.value)


def test_versions_are_named():
    assert set(software()) == {"popcosmos_hpc", "jax", "python"}
