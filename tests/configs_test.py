"""Every file in configs/ says what to expect, is read by its command, and describes something that can be built."""

import pathlib

import pytest

from jaxsae.cli.main import parse

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.yaml"))
COMMANDS = {"train": "train", "harvest": "harvest"}


def command_of(path: pathlib.Path) -> str:
    return next(line.split(":")[1].strip() for line in path.read_text().splitlines() if line.startswith("type:"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_header_names_claim_hardware_expectation_and_command(path):
    head = path.read_text().split("type:")[0]
    assert all(word in head for word in ("# Claim:", "# Hardware:", "# Expect:", "# Command:"))
    assert f"--config configs/{path.name}" in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_its_command_takes_it_and_it_can_be_built(path):
    command = parse(COMMANDS[command_of(path)], ["--config", str(path)])
    if command_of(path) == "train":
        recipe = command.recipe.build(d_in=command.recipe.d_in or 576, training_steps=command.steps)
        assert recipe.d_sae in (8192, command.recipe.d_sae)
    else:
        assert command.sites


def test_options_on_the_command_line_win():
    path = str(next(p for p in CONFIGS if p.stem == "smollm2_topk"))
    command = parse("train", ["--config", path, "--seed", "7", "recipe:topk", "--recipe.k", "16"])
    assert (command.seed, command.recipe.k, command.recipe.d_sae) == (7, 16, 8192)
