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
        ("x = " + "[" * 5000 + "]" * 5000, "not valid TOML"),
        ("x = " + "{a = " * 3000 + "1" + "}" * 3000, "not valid TOML"),
        ("[boost]\nrollouts = " + "9" * 5000, "not valid TOML"),
        ("[boost]\nrollouts = 99999999999999999999", "boost.rollouts is a whole number of more than 64 bits"),
        ("[boost]\nrolouts = 3\n", "boost.rolouts is not a known field"),
        ("[boost]\nrollouts = 'many'\n", "boost.rollouts"),
        ("[boost]\nrollouts = '3'\n", "boost.rollouts"),
        ("[boost]\nrollouts = true\n", "boost.rollouts"),
        ("boost = 3", "boost is 3; it must be a table"),
        ("seed = 1\nboost = 3", "boost is 3; it must be a table"),
        ("seed = 1\nproblems = []", "problems is of type list; it must be a table"),
        ("[[boost]]\nrollouts = 3", "boost is of type list; it must be a table"),
        ("boost.budget = 3", "boost.budget is 3; it must be a table"),
        ("agents = 'x'", "agents is 'x'; write one [[agents]] table per agent"),
        ("agents = ['x']", "agents is 'x'; it must be a table"),
        ("[problems]\nsources = 'mini'", "problems.sources"),
        ("[problems]\nsources = []", "problems.sources is empty"),
        ("seed = -1", "c.toml: seed is -1; it must be at least 0"),
        ("boost.seed = -1", "boost.seed is -1; it must be at least 0"),
        ("problems.sources = [2020-01-01]", "2020-01-01 is a date or a time"),
        ("[[agents]]\nname = 12:00:00\nmodel = 'm'", "12:00:00 is a date or a time"),
        ("seed = 4294967296", "seed is 4294967296; it must be at most 4294967295"),
        ("[evaluate]\nsystems = ['best']", "evaluate.systems names 'best'"),
        ("[sandbox]\nwall_seconds = nan", "wall_seconds is nan"),
        ("[sandbox]\ncpu_seconds = 1e300", "cpu_seconds is 1e+300"),
        ("[sandbox]\ncpu_seconds = 20.0", "wall_seconds (10.0) is below cpu_seconds (20.0)"),
        ("[sandbox]\nmemory_mb = 0", "memory_mb is 0"),
        ("[sandbox]\nworkers = -1", "sandbox.workers is -1"),
        ("[[agents]]\nmodel = 'm'\n", "agents.0.name"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\ntemp = 1\n", "agents.temp is not a known field"),
        ("[[agents]]\nname = ''\nmodel = 'm'", "name is ''"),
        ("[[agents]]\nname = 'a'\nmodel = ' '", "agent a: model is ' '"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\n" * 2, "agent names must differ"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\ntemperature = inf", "agent a: temperature is inf"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\ntop_p = nan", "agent a: top_p is nan"),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\nbackend = 'openai'", "agent a: base_url is ''"),
        (
            "[[agents]]\nname = 'a'\nmodel = 'm'\nbackend = 'openai'\nbase_url = 'http://h:99999999/v1'",
            "Port out of range",
        ),
        ("[[agents]]\nname = 'a'\nmodel = 'm'\nbase_url = 'http://h/v1'", 'add backend = "openai"'),
    ],
)
def test_bad_files_are_refused_by_name_and_field(text: str, words: str) -> None:
    with pytest.raises(InputError, match=r"c\.toml") as caught:
        parse_config(text, "c.toml")
    assert words in str(caught.value)


_TRAINING = "lr epochs batch_size micro_tokens max_length max_grad_norm weight_decay warmup seed"
_WRONG = {
    "boost": "rollouts width programs_per_agent max_depth gamma c_base c max_failures proposal_tokens seed",
    "disentangle": f"k min_cluster_size rank alpha dropout {_TRAINING}",
    "customize": f"hidden layer_dim {_TRAINING}",
    "evaluate": "program_tokens thought_tokens temperature batch_size bootstrap max_problems seed",
    "sandbox": "workers cpu_seconds wall_seconds memory_mb output_kb",
    "problems": "train validation test seed",
    "boost.budget": "max_calls max_tokens max_usd max_seconds",
}


@pytest.mark.parametrize("value", ["nan", "-inf", "-1", "true", "'1'", "[]", "99999999999999999999999"])
@pytest.mark.parametrize(("section", "names"), _WRONG.items())
def test_wrong_numbers_are_found_before_anything_runs(section: str, names: str, value: str) -> None:
    for name in names.split():
        with pytest.raises(InputError, match=rf"c\.toml: .*{name}"):
            parse_config(f"[{section}]\n{name} = {value}\n", "c.toml")


def test_a_byte_order_mark_is_no_error() -> None:
    assert parse_config("\ufeffseed = 7\n", "c.toml").boost.seed == 7


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        load_config(tmp_path / "nothing.toml")
