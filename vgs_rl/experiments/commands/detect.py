"""Anomaly detection by classical detectors: image and pixel AUROC of each on the same features.

vgs-rl detect digits
vgs-rl detect textures --figures runs/detect
vgs-rl detect mvtec --folder DIR        (pictures; --features: the authors' files)
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

from vgs_rl.agents.ebm.classical import OUTLIER_METHODS, OutlierConfig, OutlierDetector
from vgs_rl.envs import anomaly
from vgs_rl.evaluation.detection import detection_metrics, mean_metrics
from vgs_rl.evaluation.report import Metric
from vgs_rl.experiments.cli import (
    STANDARD,
    Mistake,
    Parser,
    command,
    one_of,
    output,
    output_folder,
    seed,
    whole,
)
from vgs_rl.files.checkpoint import write_text
from vgs_rl.plots.detection import plot_detections
from vgs_rl.plots.plots import save_figure, try_picture


@command
def main(arguments: list[str]) -> int:
    """Prints a table, and writes JSON; returns its exit status."""
    options = _parse(arguments)
    out = sys.stderr if options.json == STANDARD else sys.stdout
    start = time.perf_counter()
    data_sets = _load(options)
    print(f"data and features: {time.perf_counter() - start:.1f} s", file=out, flush=True)
    table: dict[str, dict[str, Metric]] = {}
    for method in OUTLIER_METHODS:
        start, each = time.perf_counter(), []
        for data in data_sets:
            detector = OutlierDetector(method, data.train, OutlierConfig(max_rows=options.max_rows))
            each.append(detection_metrics(detector, getattr(data, options.split)))
            if options.figures and data.is_grid and data.test.images is not None:
                path = options.figures / f"{data.class_name}-{method}.png"
                try_picture(str(path), partial(_draw, detector, data, path))
        table[method] = mean_metrics(each)
        shown = {name: f"{figure.value:.3f}" for name, figure in table[method].items()}
        classes = {
            name: {label: round(value, 3) for label, value in figure.details["classes"].items()}
            for name, figure in table[method].items()
        }
        seconds = f"{time.perf_counter() - start:.1f} s"
        print(f"{method:22} {shown} {seconds}\n    {classes}", file=out, flush=True)
    if options.json:
        content = {
            method: {name: {"value": f.value, **f.details} for name, f in figures.items()}
            for method, figures in table.items()
        }
        text = json.dumps(content, indent=2)
        if options.json == STANDARD:
            print(text)
        else:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.json, text)
    return 0


def _draw(detector: OutlierDetector, data: anomaly.AnomalyData, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(plot_detections(detector, data.test), path)


def make_parser() -> Parser:
    """The command's options."""
    parser = Parser(__doc__, "detect")
    parser.add_argument(
        "data", type=one_of("digits", "textures", "mvtec"), help="digits, textures or mvtec"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of splits, crops and defects")
    split = one_of("validation", "test")
    parser.add_argument("--split", type=split, default="test", help="test or validation")
    parser.add_argument("--max-rows", type=whole(2), default=4_000, help="rows to fit on at most")
    parser.add_argument("--folder", type=Path, help="where MVTec-AD is")
    parser.add_argument("--features", action="store_true", help="read the authors' feature files")
    parser.add_argument("--figures", type=output_folder, help="folder for pictures of scores")
    parser.add_argument("--json", type=output, help="write the metrics as JSON; - is stdout")
    return parser


def _parse(arguments: list[str]) -> Namespace:
    options = make_parser().read(arguments)
    if options.data == "mvtec" and options.folder is None:
        raise Mistake("mvtec needs --folder")
    for name in ("folder", "features"):
        if options.data != "mvtec" and getattr(options, name):
            raise Mistake(f"--{name} is for mvtec, got {options.data}")
    return options


def _load(options: Namespace) -> list[anomaly.AnomalyData]:
    if options.data == "digits":
        return [anomaly.load_digits(digit, seed=options.seed) for digit in anomaly.DIGITS]
    if options.data == "textures":
        return [anomaly.load_texture(each, seed=options.seed) for each in anomaly.TEXTURES]
    load = anomaly.load_mvtec_features if options.features else anomaly.load_mvtec
    return [load(options.folder, seed=options.seed)]
