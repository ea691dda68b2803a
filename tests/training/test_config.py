"""Files and options: every field is checked by its type, and nothing unknown passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vgs_rl.experiments.config import RunConfig, config_of, parse_run, run_parser
from vgs_rl.files.yaml_text import parse_yaml
from vgs_rl.training.config import BudgetConfig, ConfigError


def parsed(*arguments: str) -> RunConfig:
    return config_of(parse_run(list(arguments)))


def from_file(folder: Path, text: str, *arguments: str) -> RunConfig:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return parsed("--config", str(file), *arguments)


FILES = [
    ("mdp: 3", "mdp must be a mapping of chain, num_steps, .*, got 3"),
    ("mdp: []", r"mdp must be a mapping of .*, got \[\]"),
    ("mdp: null", "mdp must be a mapping of .*, got null"),
    ("mdp: other.yaml", "mdp must be a mapping of .*, got 'other.yaml'"),
    ("mdp: {num_step: 3}", r"mdp.num_step is no field of MDPConfig; did you mean num_steps\?"),
    ("mdp: {schedule: {knd: auto}}", r"mdp.schedule.knd is no field .* did you mean kind\?"),
    ("mdp: {num_steps: '20'}", "mdp.num_steps must be a whole number, got '20'"),
    ("mdp: {num_steps: true}", "mdp.num_steps must be a whole number, got True"),
    ("mdp: {num_steps: 2.5}", "mdp.num_steps must be a whole number, got 2.5"),
    ("mdp: {chain: vq}", "mdp.chain must be one of vp, ve, got 'vq'"),
    ("agent: vgs", "agent: no AgentConfig is called 'vgs'; there are DistilledConfig"),
    ("agent: 3", "agent must be class_path and init_args, or the name of a class, got 3"),
    ("agent: [ValueGradientConfig]", "agent must be class_path and init_args"),
    ("agent: {class_path: 3}", "agent.class_path must be the name of a class, got 3"),
    ("agent: {class_path: PISConfi}", r"no AgentConfig is called 'PISConfi'; did you mean PISC"),
    ("agent: {class_path: PISConfig, lr: 1}", "agent.lr belongs under agent.init_args"),
    ("agent: {class_path: PISConfig, init_args: null}", "agent.init_args must be a mapping"),
    ("agent: {init_args: {lrr: 3}}", r"agent.lrr is no field of .*; did you mean lr\?"),
    ("agent: {lr: on}", "agent.lr must be a number, got 'on'"),
    (
        "agent: {objective: {class_path: TD7}}",
        r"no ValueObjective is called 'TD7'; did you mean TD0\?",
    ),
    ("agent: {network: {class_path: MLPNetwork, init_args: {width: 9.6}}}", "network.width must"),
    ("agent: {class_path: SB3Config, init_args: {hidden: 64}}", "agent.hidden must be a list"),
    ("agent: {fit_noise_scale: on}", "agent.fit_noise_scale must be true or false, got 'on'"),
    ("budget: 5", "budget must be a mapping of updates, .*, got 5"),
    ("budget: {}\nbudget: {}", "line 3: 'budget' is given twice, first in line 2"),
    ("seed: 1.5", "seed must be a whole number, got 1.5"),
    ("seed: -1", "seed must be at least 0, got -1"),
    ("seed: 9223372036854775808", r"seed must be below 2\*\*63"),
    ("env_args: {code: '007'}", "env_args.code: text that reads as something else"),
    ("env_args: [1]", r"env_args must be a mapping, got \[1\]"),
    ("sheep: 3", r"sheep is no field of RunConfig; did you mean seed\?"),
    ("config: other.yaml", "config is no field of RunConfig"),
    ("overwrite: true", "overwrite is no field of RunConfig"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[text for text, _ in FILES])
def test_a_file_is_refused_by_field_value_and_what_was_expected(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_file(tmp_path, f"env: GMM9\n{text}\n")
    assert "\n" not in str(caught.value)


OPTIONS = [
    (["--conf", "x.yaml"], r"there is no option --conf; did you mean --config"),
    (["--budge.seconds", "3"], r"there is no option --budge.seconds; did you mean --budget"),
    (["--agent.lrr=3"], r"there is no option --agent.lrr; did you mean --agent.lr\?"),
    (["--agent.sheep.x=3"], "there is no option --agent.sheep.x"),
    (["--agent.learning_speed=3"], "no option --agent.learning_speed; there are --agent.drift, "),
    (["--agent.lr.x=3"], "--agent.lr.x: agent.lr has no fields"),
    (["--mdp", "other.yaml"], "mdp must be a mapping of .*, got 'other.yaml'"),
    (["--mdp.num_steps", "2.5"], "mdp.num_steps must be a whole number, got 2.5"),
    (["--mdp.num_steps"], "--mdp.num_steps: expected one argument"),
    (["--agent=vgs"], "agent: no AgentConfig is called 'vgs'"),
    (
        ["--agent.objective", "TD1"],
        r"agent.objective: no ValueObjective is called 'TD1'; did you mean TD0\?",
    ),
    (["--agent.network.width", "2.5"], "agent.network.width must be a whole number, got 2.5"),
    (["--agent.fit_noise_scale", "on"], "agent.fit_noise_scale must be true or false, got 'on'"),
    (["--agent={lr: {}}"], "agent.lr must be a number, got {}"),
    (["--seed", "1:30"], "seed must be a whole number, got '1:30'"),
    (["--seed=-1"], "seed must be at least 0, got -1"),
    (["--budget", "{a: 1, a: 2}"], "budget: line 1: 'a' is given twice"),
    (["--budget.updates", "null"], "budget needs at least one of updates"),
    (["stray"], "unrecognized arguments: stray"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), OPTIONS, ids=[" ".join(arguments) for arguments, _ in OPTIONS]
)
def test_an_option_is_refused_by_name_value_and_what_was_expected(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(*arguments)


def test_whole_numbers_may_be_written_as_floats_wherever_a_count_is_expected(
    tmp_path: Path,
) -> None:
    text = "budget: {updates: 4e1}\nevaluation: {n_samples: 1e4}\nmdp: {num_steps: 2.0e1}\n"
    text += "agent: {init_args: {network: {class_path: MLPNetwork, init_args: {width: 64.}}}}\n"
    options = ["--agent.objective.refresh_every=1e2", "--agent.warmup", "2e1", "--seed=1e1"]
    config: Any = from_file(tmp_path, text, *options)
    counts = [config.budget.updates, config.evaluation.n_samples, config.mdp.num_steps]
    counts += [
        config.agent.network.width,
        config.agent.objective.refresh_every,
        config.agent.warmup,
    ]
    counts += [config.seed]
    assert counts == [40, 10_000, 20, 64, 100, 20, 10]
    assert all(type(count) is int for count in counts)


def test_options_of_the_class_that_was_chosen_are_checked_by_its_fields() -> None:
    config: Any = parsed("--agent", "SB3Config", "--agent.batch_size", "1e3")
    assert (config.agent.name, config.agent.batch_size) == ("sb3-ppo", 1000)
    with pytest.raises(ConfigError, match=r"there is no option --agent.drift"):
        parsed("--agent", "SB3Config", "--agent.drift", "posterior")


def limits(budget: BudgetConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(budget).items() if value is not None}


@pytest.mark.parametrize(
    ("file", "options", "expected"),
    [
        ("", [], {"updates": 2000}),
        ("", ["--budget.seconds", "60"], {"seconds": 60.0}),
        ("", ["--budget={seconds: 60}"], {"seconds": 60.0}),
        ("budget: {seconds: 60}", [], {"seconds": 60.0}),
        ("budget: {updates: 7, seconds: 60}", [], {"updates": 7, "seconds": 60.0}),
        ("budget: {updates: 7}", ["--budget.seconds=60"], {"seconds": 60.0}),
        ("budget: {updates: 7}", ["--budget.updates=9"], {"updates": 9}),
        ("budget: {updates: 7, seconds: 6}", ["--budget.updates=null"], {"seconds": 6.0}),
        (
            "budget: {updates: 7}",
            ["--budget.seconds=60", "--budget.env_steps=2e6"],
            {"env_steps": 2_000_000, "seconds": 60.0},
        ),
    ],
)
def test_naming_a_limit_drops_the_limits_below_it(
    file: str, options: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = from_file(tmp_path, f"env: GMM9\n{file}\n", *options)
    assert limits(config.budget) == expected


def test_options_go_over_the_file_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("env: GMM25\nseed: 3\n", encoding="utf-8")
    config = parsed("--seed=4", "--env=GMM9", f"--config={file}")
    assert (config.seed, config.env) == (4, "GMM9")


def test_a_later_file_goes_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 3\nbudget: {updates: 7}\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("seed: 4\n", encoding="utf-8")
    files = [f"--config={tmp_path / name}.yaml" for name in ("a", "b")]
    config = parsed(*files)
    assert (config.seed, limits(config.budget)) == (4, {"updates": 7})


def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    options = ["--env_args.label=on", "--budget.seconds=6e1", "--agent.lr", "1e-3"]
    text = parsed(*options).to_yaml()
    again = from_file(tmp_path, text)
    assert again == parsed(*options)
    assert parse_yaml(text)["budget"] == {
        "updates": None,
        "env_steps": None,
        "energy_evaluations": None,
        "seconds": 60.0,
    }


def test_the_environment_names_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "7")
    assert config_of(parse_run(["--seed=1"], run_parser())).seed == 1
