"""Configuration files: what is read, and how bad ones are refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from bdc.config import load_config, parse_config
from bdc.errors import InputError


def test_the_quickstart_preset_is_valid() -> None:
    text = (resources.files("bdc") / "presets" / "quickstart.toml").read_text(encoding="utf-8")
    config = parse_config(text, "quickstart.toml")
    assert len(config.agents) == 2 and config.agents[0].model != config.agents[1].model
    assert config.problems.sources == ("mini",)


def test_one_seed_serves_every_stage() -> None:
    config = parse_config("seed = 7\n[boost]\nseed = 3\n", "c.toml")
    assert (config.boost.seed, config.customize.seed, config.problems.seed) == (3, 7, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[boost\n", "not valid TOML"),
        ("[boost]\nrolouts = 3\n", "boost.rolouts is not a known field"),
        ("[boost]\nrollouts = 'many'\n", "boost.rollouts"),
        ("[[agents]]\nmodel = 'm'\n", "agents.0.name"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\ntemp = 1\n", "agents.temp is not a known field"),
    ],
)
def test_bad_files_are_refused_by_name_and_field(text: str, words: str) -> None:
    with pytest.raises(InputError, match=r"c\.toml") as caught:
        parse_config(text, "c.toml")
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        load_config(tmp_path / "nothing.toml")
