"""Every command: a user's mistake is one line and exit code 2, before anything is drawn."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, load

from vgs_rl.agents.base import Agent
from vgs_rl.experiments.cli import command as guarded
from vgs_rl.experiments.cli import command_named
from vgs_rl.experiments.config import RunConfig, config_of, named_config, parse_run
from vgs_rl.experiments.detectors.config import named_detector, saved_config
from vgs_rl.experiments.pretrained import shipped_samplers
from vgs_rl.experiments.run import build
from vgs_rl.files.shipped import CONFIGS, shipped_configs
from vgs_rl.files.yaml_text import dump_yaml, parse_yaml
from vgs_rl.registry import registered
from vgs_rl.samplers.base import Samples
from vgs_rl.training.config import read_yaml
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.identity import identity_of
from vgs_rl_main import COMMANDS

SMALL = ["--mdp.num_steps=2", "--evaluation.n_samples=8", "--device=cpu"]
MODULES = {
    "fails.py": "raise RuntimeError('no licence')",
    "syntax.py": "def energy(:",
    "energies.py": """
import torch, vgs_rl
class Raises(vgs_rl.Energy):
    dim = 2
    def energy(self, x): raise KeyError("weights")
class Flat(vgs_rl.Energy):
    dim = 2
    def energy(self, x): return x.square().sum(-1) / 2
def number() -> int: return 3
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained runs of two agents, and modules and files that are used wrongly."""
    folder = tmp_path_factory.mktemp("commands")
    for options in ([], ["--agent=PISConfig"]):
        arguments = [*SMALL, *options, f"--output={folder / 'runs'}"]
        config = config_of(parse_run(arguments))
        identity = identity_of(config)
        with RunFolder(config.folder, config.to_yaml(), identity=identity) as run:
            run.save("best", build(config)[1].state_dict())
    for name, text in MODULES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "a_file").write_text("", encoding="utf-8")
    (folder / "page.md").write_text("<!-- other:begin -->\n<!-- other:end -->\n", encoding="utf-8")
    (folder / "twice.yaml").write_text("env: GMM9\nseed: 1\nseed: 2\n", encoding="utf-8")
    (folder / "mdp.yaml").write_text("env: GMM9\nmdp: 3\n", encoding="utf-8")
    (folder / "sheep.yaml").write_text("env: GMM9\nsheep: 3\n", encoding="utf-8")
    (folder / "ebm.yaml").write_text("ebm: true\n", encoding="utf-8")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 15)]
    (folder / "bomb.yaml").write_text("\n".join(lines), encoding="utf-8")
    torch.save({"weights": torch.zeros(2)}, folder / "foreign.pt")
    return folder


VGS, PIS = "runs/GMM9/vgs/0", "runs/GMM9/pis/0"
MISTAKES = [
    ("train --conf x.yaml", "there is no option --conf; did you mean --config?"),
    ("train --agent.lrr 3", "there is no option --agent.lrr; did you mean --agent.lr?"),
    ("train --over true", "there is no option --over; did you mean --overwrite?"),
    ("train stray", "no run configuration is called 'stray'; there are ablation/action_bound, "),
    ("train gmm99", "no run configuration is called 'gmm99'; did you mean gmm9,"),
    ("train ebm_digits", "no run configuration is called 'ebm_digits'; "),
    ("train missing.yaml", "config missing.yaml"),
    ("train gmm9 --agent.lrr 3", "there is no option --agent.lrr; did you mean --agent.lr?"),
    ("train --config twice.yaml", "line 3: 'seed' is given twice, first in line 2"),
    ("train --config mdp.yaml", "mdp must be a mapping of chain, num_steps, "),
    ("train --config bomb.yaml", "it expands to more than 100000 values"),
    ("train --config a_file", "config a_file must be a mapping, got nothing"),
    ("train --config .", "config . cannot be read: [Errno 21] Is a directory"),
    ("train --config foreign.pt", "config foreign.pt cannot be read: 'utf-8' codec"),
    ("train --seed -1", "seed must be at least 0, got -1"),
    ("train --seed 1.5", "seed must be a whole number, got 1.5"),
    ("train --seed 9223372036854775808", "seed must be below 2**63, got 9223372036854775808"),
    ("train --budget.updates 2.5", "budget.updates must be a whole number, got 2.5"),
    ("train --budget.updates null", "budget needs at least one of updates, env_steps, "),
    ("train --budget.seconds nan", "budget.seconds must be a number, got 'nan'"),
    ("train --evaluation.n_samples 0", "evaluation.n_samples must be at least 1, got 0"),
    ("train --mdp.temperature .nan", "temperature must be a positive number, got nan"),
    ("train --overwrite on", "--overwrite: must be true or false, got 'on'"),
    ("train --agent vgs", "agent: no AgentConfig is called 'vgs'; there are DistilledConfig"),
    ("train --env fails:Rings", "module fails fails when it is imported: RuntimeError: no licence"),
    ("train --env syntax:Rings", "module syntax fails when it is imported: SyntaxError"),
    ("train --env energies:Raises", "Raises.energy failed on states of shape (64, 2)"),
    ("train --env energies:number", "must be a subclass of vgs_rl.Energy"),
    ("train --env energies:Missing", "no target is named 'Missing'"),
    ("train --env energies:Flat --ceiling true", "Flat has no exact sampler"),
    ("train --json a_file/x.json", "--json: a_file/x.json cannot be written: "),
    ("train --json .", "--json: must be a file to write, got '.'"),
    ("train --output a_file", "run folder a_file/GMM9/vgs/0 cannot be written to"),
    ("train --resume .", "nothing to go on with, it has no config.yaml"),
    (f"train --resume {VGS} --overwrite true", "--overwrite true starts a run, and --resume goes"),
    ("evaluate", "give at least one run folder, or --pretrained NAME"),
    ("evaluate nowhere", "nowhere is not a run folder: it has no config.yaml"),
    (f"evaluate {VGS} --n 0", "--n: must be at least 2, got 0"),
    (f"evaluate {VGS} --n -5", "--n: must be at least 2, got -5"),
    (f"evaluate {VGS} --n 2.5", "--n: must be a whole number, got 2.5"),
    (f"evaluate {VGS} --checkpoint bset", "--checkpoint: must be one of best, last, got 'bset'"),
    (f"evaluate {VGS} --split nonsense", "--split: must be one of test, validation, got 'nonsens"),
    (f"evaluate {VGS} --split test", "--split is for detectors, got a sampler: runs/GMM9/vgs/0"),
    (f"evaluate {VGS} --json a_file/x", "--json: a_file/x cannot be written: "),
    (f"evaluate {VGS} --export .", "--export: must be a file to write, got '.'"),
    (f"evaluate {VGS} --device tpu", "--device: device 'tpu' is not available here"),
    (f"evaluate {VGS} --resampl true", "there is no option --resampl; did you mean --resample?"),
    (f"evaluate {VGS} {PIS} --export x.pt", "--export needs exactly one run folder, got 2"),
    (
        f"evaluate {PIS} --export x.pt",
        "--export is for value gradients and students, got pis: runs/GMM9",
    ),
    (f"evaluate {PIS} --smc true", "--smc is for value gradients, got pis: runs/GMM9/pis/0"),
    (f"evaluate {PIS} --compiled true", "--compiled is for value gradients, got pis"),
    (f"evaluate {VGS} --compiled true", "comp"),
    (f"evaluate {VGS} --certificate 0", "must be a positive number, got 0"),
    (f"evaluate {VGS} --limit 10", "--limit is of --certificate, which is not given, got 10"),
    (f"evaluate {VGS} --budget maybe", "--budget: must be true or false, got 'maybe'"),
    ("evaluate --pretrained GMM8", "no trained sampler 'GMM8': no such file, and shipped are"),
    (f"evaluate --pretrained {VGS}/checkpoints/best.pt", "best.pt holds no sampler"),
    ("evaluate --pretrained foreign.pt", "foreign.pt"),
    ("evaluate --pretrained DW4 --checkpoint best", "--checkpoint is for run folders"),
    ("train_ebm --config ebm.yaml", "ebm must be a mapping of energy, on_sphere, mdp, "),
    ("train_ebm ebm_digit", "no detector configuration is called 'ebm_digit'; did you mean ebm_di"),
    ("train_ebm --jobs -1", "--jobs: must be at least 0, got -1"),
    ("train_ebm --seeds 0", "experiment.seeds must be at least 1, got 0"),
    ("train_ebm --data NoSource", "data: no SourceConfig is called 'NoSource'"),
    ("train_ebm --part 11", "part must be one of 0, 1, 2"),
    ("train_ebm --ebm.learnr.lr 3", "there is no option --ebm.learnr.lr; did you mean --ebm.lear"),
    ("train_ebm --json a_file/x", "--json: a_file/x cannot be written: "),
    ("detect", "the following arguments are required: data"),
    ("detect digit", "data: must be one of digits, textures, mvtec, got 'digit'"),
    ("detect digits --seed -1", "--seed: must be at least 0, got -1"),
    ("detect digits --max-rows 0", "--max-rows: must be at least 2, got 0"),
    ("detect digits --figures a_file", "--figures: a_file cannot be written"),
    ("detect digits --folder .", "--folder is for mvtec, got digits"),
    ("detect mvtec", "mvtec needs --folder"),
    ("detect mvtec --folder nowhere", "nowhere"),
    ("compare --agents vgz", "--agents: nothing is known by 'vgz'; did you mean vgs?"),
    ("compare --agents sb3-ppp", "must be one of PPO, A2C, SAC, TD3, DDPG, got 'PPP'"),
    ("compare --env GMM8", "no target is named 'GMM8'; did you mean GMM9"),
    ("compare --env sheep.yaml", "config sheep.yaml: sheep is no field of RunConfig"),
    ("compare --seeds 0", "--seeds: must be at least 1, got 0"),
    ("compare --budget updates=2.5", "--budget updates must be a whole number, got 2.5"),
    ("compare --budget steps=1,steps=2", "--budget: steps is given twice"),
    ("compare --budget hours=2", "--budget must read steps=NUMBER, energies=NUMBER"),
    ("compare --output a_file", "--output: a_file cannot be written"),
    ("compare --markdown page.md", "page.md has no section 'compare'"),
    ("compare --figures pictures", "--figures needs --markdown, which shows them"),
    ("compare GMM8", "no target is named 'GMM8'; did you mean GMM9"),
    ("compare GMM9 --env GMM25", "--env GMM25: GMM9 is given already, give one"),
    ("sample", "the following arguments are required: source"),
    ("sample LJ14", "no run folder or sampler is called 'LJ14'; did you mean LJ13?"),
    ("sample LJ13 --n 0", "--n: must be at least 1, got 0"),
    ("sample LJ13 --output x.txt", "--output: must end in .npz or .pt, got 'x.txt'"),
    ("sample LJ13 --output a_file/x.npz", "--output: a_file/x.npz cannot be written"),
    ("sample LJ13 --checkpoint last", "--checkpoint is for run folders, an exported sampler has"),
    ("sample foreign.pt", "foreign.pt"),
    (
        "list smaplers",
        "must be one of targets, agents, configs, samplers, got 'smaplers'; did ",
    ),
    ("list --json .", "--json: must be a file to write, got '.'"),
    ("completion fish", "shell: must be one of bash, zsh, got 'fish'"),
    ("make_reference --target LJ14 --out x.npz", "--target: must be one of DW4, LJ13, LJ55"),
    ("make_reference --target LJ13 --out x.npy", "--out: must end in .npz, got 'x.npy'"),
    ("make_reference --target LJ13 --out a_file/x.npz", "--out: a_file/x.npz cannot be written"),
    ("make_reference --target LJ13 --out x.npz --draws 0", "--draws: must be at least 1, got 0"),
    ("benchmark", "say which benchmark: env, libraries, sampling"),
    ("benchmark sampled", "no benchmark is called 'sampled'; did you mean sampling?"),
    ("benchmark sampling --repets 3", "there is no option --repets; did you mean --repeats?"),
    ("benchmark libraries --updates 2.5", "updates must be a whole number, got 2.5"),
    ("benchmark oracle --configs gmm9", "configs must be a list, got 'gmm9'"),
    ("benchmark quality --markdown page.md", "page.md has no section 'quality'"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_no_files(
    line: str,
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = sorted(path for path in place.rglob("*") if "__pycache__" not in path.parts)
    name, *arguments = line.split(" ")
    status = load(f"commands.{name}").main(arguments)
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert message in error
    assert before == sorted(path for path in place.rglob("*") if "__pycache__" not in path.parts)


def test_a_report_may_be_written_into_a_folder_that_is_not_there_yet(place: Path) -> None:
    main = load("commands.evaluate").main
    options = ["--n", "4", "--json", str(place / "made" / "it.json")]
    assert main([*options, str(place / VGS)]) == 0
    assert (place / "made" / "it.json").is_file()


def test_evaluate_draws_until_log_z_is_bounded_or_says_that_it_cannot(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main = load("commands.evaluate").main
    options = ["--n", "50", "--certificate", "0.01", "--limit", "100"]
    assert main([*options, "--json", str(tmp_path / "it.json"), str(place / VGS)]) == 0
    shown = capsys.readouterr()
    assert "certificate of this run\nlog Z, at least " in shown.out
    assert "log_z_high from exact samples" in shown.out
    assert "above the 0.01 asked for: 100 forward and 100 backward paths" in shown.err
    (report,) = json.loads((tmp_path / "it.json").read_text())
    assert report["metrics"]["log_z_low"]["n"] == 100 and report["metrics"]["elbo"]["n"] == 50
    assert report["details"]["certificate"]["n_backward"] == 100


@pytest.mark.parametrize("agent", [VGS, PIS])
def test_evaluate_splits_the_gap_and_keeps_it_in_the_run(
    agent: str, place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / agent, run)
    main = load("commands.evaluate").main
    assert main([str(run), "--n", "50", "--budget", "--json", str(tmp_path / "it.json")]) == 0
    shown = capsys.readouterr().out
    budget = json.loads((run / "budget.json").read_text())
    assert "error budget of this run" in shown and budget["sentence"] in shown
    assert (run / "figures" / "error_budget.png").is_file()
    (report,) = json.loads((tmp_path / "it.json").read_text())
    assert report["details"]["error_budget"] == budget


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "benchmark"])
def test_help_is_shown_on_an_ascii_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "shown"
    with open(file, "w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert command_named(name, f"vgs-rl {name}")(["--help"]) == 0
    text = file.read_text(encoding="ascii")
    assert text.startswith(f"usage: vgs-rl {name} ") and f"\n    vgs-rl {name}" in text.replace(
        f"\nvgs-rl {name}", f"\n    vgs-rl {name}"
    )


def defaults_of(text: str) -> dict[str, str]:
    """Options of a help text with the defaults that it shows, or what it says of them."""
    options = re.findall(r"^  (--[\w.-]+)(.*?)(?=^  --|^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(body.split()) for name, body in options if name != "--help"}


@pytest.mark.parametrize("name", ["train", "train-ebm", "evaluate", "compare", "sample", "detect"])
def test_help_explains_every_option_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_named(name, f"vgs-rl {name}")(["--help"]) == 0
    shown = defaults_of(capsys.readouterr().out)
    bare = {"--config", "--print_config", "--features"}  # which take a file, or nothing
    without = [
        option
        for option, text in shown.items()
        if "default" not in text and "all of it" not in text and option not in bare
    ]
    assert [each for each in without if not each.endswith(".help")] == []
    if name == "train":
        assert "learning rate" in shown["--agent.lr"] and "0.002" in shown["--agent.lr"]
        assert "--agent.objective.batch_size" in shown and "--mdp.num_steps" in shown


def test_a_configuration_is_named_or_a_file_and_what_is_printed_runs(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    main = command_named("train", "vgs-rl train")

    def printed(*arguments: str) -> str:
        assert main([*arguments, "--print_config"]) == 0
        return capsys.readouterr().out

    text = printed("gmm9", "--agent.lr", "1e-3", "--seed", "3")
    assert text == printed("--seed=3", "gmm9", "--agent.lr=0.001")
    assert text == printed("--config", str(CONFIGS / "gmm9.yaml"), "--seed=3", "--agent.lr=1e-3")
    config = RunConfig.from_yaml(text)
    assert (config.seed, getattr(config.agent, "lr", None)) == (3, 1e-3)
    assert config.mdp == named_config("gmm9").mdp
    (place / "again.yaml").write_text(text, encoding="utf-8")
    assert printed("again.yaml") == text
    (place / "again.yaml").unlink()


def test_messages_name_the_command_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agent, "learn", stopped)
    for typed in ("vgs-rl train", "python scripts/train.py"):
        main = command_named("train", typed)
        assert main(["gmm9", *SMALL, f"--output={tmp_path}", "--overwrite=true"]) == 130
        folder = tmp_path / "GMM9/vgs/0"
        assert f"stopped; go on with: {typed} --resume {folder}\n" in capsys.readouterr().out
    command_named("train", "vgs-rl train")


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_samples_are_written_with_their_weights_and_repeat(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = command_named("sample", "vgs-rl sample")
    run = [str(place / VGS), "--n=50", "--seed=3"]
    for name in ("one.npz", "two.npz", "three.pt"):
        assert main([*run, f"--output={tmp_path / name}"]) == 0
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one["x"].shape == (50, 2) and one["log_weight"].shape == (50,)
    assert np.array_equal(one["x"], two["x"])
    assert np.allclose(Samples.load(tmp_path / "three.pt").x, one["x"])
    assert main([*run, "--resample=true", f"--output={tmp_path / 'kept.npz'}"]) == 0
    weights = np.load(tmp_path / "kept.npz")["log_weight"]
    assert np.ptp(weights) == 0
    assert "log Z" in capsys.readouterr().out
    assert main(["DW4", "--n=4", f"--output={tmp_path / 'dw4.npz'}", "--device=cpu"]) == 0
    assert np.load(tmp_path / "dw4.npz")["x"].shape == (4, 8)


def test_few_calls_have_no_weights_and_every_command_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, few = str(place / VGS), tmp_path / "few.npz"
    assert command_named("sample", "vgs-rl sample")([run, "--calls=2", f"--output={few}"]) == 0
    assert "log_weight" not in np.load(few)
    said = "note: drawn in 2 network calls: there are no log-weights"
    assert said in capsys.readouterr().err
    evaluate = command_named("evaluate", "vgs-rl evaluate")
    assert evaluate([run, "--calls=2", "--n=100"]) == 0
    out, error = capsys.readouterr()
    assert "drawn in 2 network calls" in error and "tvd_energy" in out and "elbo" not in out
    for wrong, message in {
        "--calls=100": "calls must be at most 2, the steps of the chain, got 100",
        "--calls=1": "--calls: must be at least 2, got 1",
    }.items():
        assert evaluate([run, wrong]) == 2 and message in capsys.readouterr().err
    for option in ("--certificate=1", "--budget=true", "--smc=true", "--resample=true"):
        assert evaluate([run, "--calls=2", option]) == 2
        assert "needs log-weights" in capsys.readouterr().err


def test_the_list_shows_what_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    main = command_named("list", "vgs-rl list")
    assert main(["--json", "-"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert {row["id"] for row in tables["targets"]} == set(registered())
    names = {row["configuration"] for row in tables["configs"]}
    assert names == {*shipped_configs("run"), *shipped_configs("detector")}
    assert [row["sampler"] for row in tables["samplers"]] == shipped_samplers()
    assert all(row["elbo"] for row in tables["samplers"])
    agents = [row["agent"] for row in tables["agents"]]
    assert {"vgs", "pis", "sb3-ppo", "mala"} < set(agents)
    assert main(["samplers"]) == 0
    assert "LJ13" in capsys.readouterr().out


COMPLETIONS = {
    "vgs-rl tr": {"train", "train-ebm"},
    "vgs-rl train gm": {"gmm4", "gmm9", "gmm25", "gmm40"},
    "vgs-rl train-ebm ebm": {"ebm_digits", "ebm_textures"},
    "vgs-rl train --agent.objective.batch": {"--agent.objective.batch_size"},
    "vgs-rl train --mdp.chain v": {"ve", "vp"},
    "vgs-rl sample L": {"LJ13", "LJ55"},
    "vgs-rl evaluate --checkpoint b": {"best"},
    "vgs-rl benchmark qual": {"quality"},
    "vgs-rl benchmark quality --see": {"--seeds"},
}


def test_bash_completes_commands_names_options_and_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_named("completion", "vgs-rl completion")(["bash"]) == 0
    (tmp_path / "vgs-rl").write_text(capsys.readouterr().out, encoding="utf-8")
    script = "source ./vgs-rl\n"
    for line in COMPLETIONS:
        script += f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()\n"
        script += '_shtab_vgs_rl; echo "${COMPREPLY[*]}"\n'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(COMPLETIONS, found, strict=True)) == COMPLETIONS


def test_zsh_has_the_same_commands_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_named("completion", "vgs-rl completion")(["zsh"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#compdef vgs-rl")
    for word in (*COMMANDS, *shipped_configs("detector"), "--agent.objective.batch_size"):
        assert word in text or word.replace(".", "\\.") in text, word
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", "-c", text], check=True)


# --- the process ---------------------------------------------------------------------------------


def test_help_version_and_a_mistyped_command_answer_without_importing_torch() -> None:
    code = "import sys, vgs_rl_main as m; print(m.main(sys.argv[1:]), 'torch' in sys.modules)"
    for argument, status, words in (
        ("--help", 0, list(COMMANDS)),
        ("--version", 0, ["vgs-rl 0."]),
        ("trian", 2, ["error: no command is called 'trian'; did you mean train?"]),
    ):
        command = [sys.executable, "-c", code, argument]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == f"{status} False"
        assert all(word in done.stdout + done.stderr for word in words)


def test_ctrl_c_while_the_package_is_imported_is_no_traceback(tmp_path: Path) -> None:
    slow = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    (tmp_path / "torch.py").write_text(slow, encoding="utf-8")
    command = [sys.executable, str(ROOT / "vgs_rl_main.py"), "list"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for line in (command, [sys.executable, str(ROOT / "scripts/train.py"), "--help"]):
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_within_a_class_statement_is_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python 3.11 makes a RuntimeError of what `__set_name__` raises, whatever it is."""

    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def main(arguments: list[str]) -> int:
        type("Owner", (), {"field": Field()})
        return 0

    assert guarded(main)([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_runs_as_a_module_and_names_itself_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vgs_rl", "sample", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m vgs_rl sample ")


def test_a_reader_that_has_gone_ends_nothing() -> None:
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")


def test_ctrl_c_is_exit_code_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detect = load("commands.detect")

    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detect, "_load", interrupted)
    assert detect.main(["digits"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_text_files_are_read_and_written_as_utf8() -> None:
    missing = []
    folders = ("vgs_rl", "agents", "envs", "scripts")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        calls = re.findall(
            r"\.read_text\([^)]*\)|\.write_text\([^()]*\)|(?<![\w.])open\([^)]*\)", text
        )
        for call in calls:
            binary = re.search(r'"[rwab+]*b[rwab+]*"', call) or "O_" in call
            if "encoding=" not in call and not binary:
                missing.append(f"{path.relative_to(ROOT)}: {call}")
    assert missing == []


@pytest.mark.parametrize("name", shipped_configs("run"))
def test_a_shipped_run_and_its_record_are_one_configuration(name: str) -> None:
    config = named_config(name)
    text = config.to_yaml()
    again = RunConfig.from_yaml(text)
    assert again == config and type(again.agent) is type(config.agent)
    assert again.to_yaml() == text
    assert parse_run(["--config", str(CONFIGS / f"{name}.yaml")]).agent == config.agent


@pytest.mark.parametrize("name", shipped_configs("detector"))
def test_a_shipped_detector_and_its_record_are_one_configuration(name: str, tmp_path: Path) -> None:
    config = named_detector(name)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert saved_config(tmp_path, False) == config


def test_every_shipped_file_is_a_run_a_detector_or_a_table_of_settings() -> None:
    experiments = {*shipped_configs("run"), *shipped_configs("detector")}
    others = set(shipped_configs()) - experiments
    assert others == {"bounds", "compare/all", "compare/funnel10", "compare/gmm9"}


def test_shipped_configurations_are_utf8_mappings() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        content = read_yaml(path)
        assert parse_yaml(dump_yaml(content)) == content
