"""Every command: a user's mistake is one line and exit code 2, before anything is drawn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, load

from vgs_rl.experiments.config import RunConfig, config_of, named_config, parse_run
from vgs_rl.experiments.detectors.config import named_detector, saved_config
from vgs_rl.experiments.run import build
from vgs_rl.files.shipped import CONFIGS, shipped_configs
from vgs_rl.files.yaml_text import dump_yaml, parse_yaml
from vgs_rl.training.config import read_yaml
from vgs_rl.training.folder import RunFolder
from vgs_rl.training.identity import identity_of

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
    ("train stray", "unrecognized arguments: stray"),
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
    ("train --agent vgs", "agent: no AgentConfig is called 'vgs'; there are ValueGradientConfig"),
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
    (f"evaluate {PIS} --export x.pt", "--export is for value gradients, got pis: runs/GMM9/pis/0"),
    (f"evaluate {PIS} --smc true", "--smc is for value gradients, got pis: runs/GMM9/pis/0"),
    (f"evaluate {PIS} --compiled true", "--compiled is for value gradients, got pis"),
    (f"evaluate {VGS} --compiled true", "comp"),
    ("evaluate --pretrained GMM8", "no trained sampler 'GMM8': no such file, and shipped are"),
    (f"evaluate --pretrained {VGS}/checkpoints/best.pt", "best.pt holds no sampler"),
    ("evaluate --pretrained foreign.pt", "foreign.pt"),
    ("evaluate --pretrained DW4 --checkpoint best", "--checkpoint is for run folders"),
    ("train_ebm --config ebm.yaml", "ebm must be a mapping of energy, on_sphere, mdp, "),
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


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "train_ebm", "detect", "compare", "make_reference"]
)
def test_help_is_shown_on_an_ascii_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "shown"
    with open(file, "w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert load(f"commands.{name}").main(["--help"]) == 0
    assert "--json" in file.read_text(encoding="ascii") or name == "make_reference"


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
            r"\.read_text\([^)]*\)|\.write_text\([^()]*\)|(?<!Image\.)\bopen\([^)]*\)", text
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
