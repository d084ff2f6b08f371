"""The command line: one command per public function. It parses, calls and prints, nothing else."""

import csv
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from difflens.analysis.recommendation import describe
from difflens.analysis.rivals_report import PROTOCOLS
from difflens.errors import DiffLensError, listing
from difflens.tasks.demo import DemoConfig, demo
from difflens.tasks.explanation import ExplainConfig, explain
from difflens.tasks.extraction import ExtractConfig, extract
from difflens.tasks.prediction import PredictConfig, Prediction, predict
from difflens.tasks.pretraining import PretrainConfig, pretrain
from difflens.tasks.probing import ProbeConfig, probe
from difflens.tasks.rivals import RivalsConfig, rivals
from difflens.tasks.similarity import CkaConfig, cka
from difflens.tasks.sweep import SweepConfig, sweep


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `difflens` and `python -m difflens`: exits 0, or 2 after a user's error."""
    config = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in COMMANDS.items()},
        prog="difflens",
        description="See what a frozen, unconditional diffusion model already knows.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    commands: dict[type, Callable[[Any], None]] = dict(COMMANDS.values())
    # of several processes one speaks
    silent = int(os.environ.get("RANK", 0)) > 0
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if silent else sys.stdout):
            commands[type(config)](config)
    except DiffLensError as error:
        print(f"difflens: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        where = f"{error.filename}: " if error.filename else ""
        print(f"difflens: error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("difflens: interrupted; what has a --resume goes on with it", file=sys.stderr)
        sys.exit(130)


def _demo(config: DemoConfig) -> None:
    results = demo(config)["results"]
    table = Table("features and head", "top-1", "trainable parameters", "training seconds")
    for name, row in results.items():
        table.add_row(
            name,
            f"{100 * row['top1']:.1f} %",
            f"{row['trainable_parameters']:,}",
            f"{row['train_seconds']:.0f}",
        )
    Console().print(table)
    print(f"Report: {config.out / 'report.html'}")


def _probe(config: ProbeConfig) -> None:
    metrics = probe(config).metrics
    if "runs" in metrics:
        top1, top5, per_class = (
            f"{100 * metrics[key]:.2f} ± {100 * metrics[f'{key}_std']:.2f} %"
            for key in ("top1", "top5", "mean_per_class")
        )
        top1 += f" (mean and standard deviation over {len(metrics['runs'])} seeds)"
        skipped = sorted({line for run in metrics["runs"] for line in run["skipped_images"]})
    else:
        low, high = metrics["top1_interval_95"]
        top1, top5, per_class = (f"{100 * metrics[key]:.2f} %" for key in ("top1", "top5", "mean_per_class"))
        top1 += f" (95 % interval {100 * low:.2f} to {100 * high:.2f})"
        skipped = metrics["skipped_images"]
    usual = ", which is what is reported on this data set" if metrics["metric"] == "mean_per_class" else ""
    print(
        f"top-1 {top1}, top-5 {top5}, mean per class {per_class}{usual}, {metrics['train_images']:,} training and "
        f"{metrics['test_images']:,} test images, {metrics['trainable_parameters']:,} trainable parameters"
    )
    _report_skipped(skipped)
    print(f"Report: {config.out / 'report.html'}\nModel: {config.out / 'model'}")


def _extract(config: ExtractConfig) -> None:
    metrics = extract(config, announce=lambda line: print(f"Writing {line}", flush=True))
    _report_skipped(metrics["skipped_images"])
    print(
        f"{metrics['bytes']:,} bytes in {metrics['shards']:,} shards, {metrics['images_per_second']:.0f} images/s, "
        f"SHA-256 of all {metrics['sha256'][:16]}…\nStore: {config.out}"
    )


def _sweep(config: SweepConfig) -> None:
    result = sweep(config, announce=lambda line: print(line, flush=True))
    best = result.recommendation
    print(f"Recommended: {describe(best, result.metrics['validation_images'])}")
    print(
        f"For DifFormer: blocks {listing(best.fusion_blocks)} at noise steps {listing(best.fusion_noise_steps)}\n"
        f"Report: {config.out / 'report.html'}, heat map: {config.out / 'heatmap.png'}\nNext:"
    )
    for command in result.commands:
        print(f"  {command}")
    _report_skipped(result.metrics["skipped_images"])


def _cka(config: CkaConfig) -> None:
    metrics = cka(config).metrics
    print(f"{metrics['images']:,} images in {metrics['minibatches']} minibatches; the widest 95 % interval is "
          f"± {metrics['largest_half_width_95']:.3f}")  # fmt: skip
    for t, found in metrics["mirrors"].items():
        lead, half = found["lead_of_mirrors"]
        print(f"t = {t}: decoder blocks are {lead:+.3f} ± {half:.3f} more like their mirrors than like other encoder "
              f"blocks; {found['nearest_is_mirror']} of {found['decoder_blocks']} are most like their mirror")  # fmt: skip
    _report_skipped(metrics["skipped_images"])
    print(f"Report: {config.out / 'report.html'}, every pair: {config.out / 'table.csv'}")


def _rivals(config: RivalsConfig) -> None:
    found = rivals(config, announce=lambda line: print(line, flush=True)).rivals
    protocols = [PROTOCOLS[each] for each in config.protocols]
    table = Table(Column("backbone", overflow="fold"), *protocols, "parameters", "speed")
    for rival in found:
        table.add_row(
            rival.name,
            *(f"{100 * rival.scores[each].value:.2f} %" for each in config.protocols),
            f"{rival.parameters:,}",
            f"{rival.relative_speed:.2f}",
        )
    Console().print(table)
    print(f"Report: {config.out / 'report.html'}, plot: {config.out / 'rivals.png'}")


def _explain(config: ExplainConfig) -> None:
    metrics = explain(config)
    for name, share in {**metrics.get("attention_shares", {}), **metrics.get("logit_shares", {})}.items():
        print(f"{name}: {100 * share:.1f} %")
    _report_skipped(metrics["skipped_images"])
    print(f"Report: {config.out / 'report.html'}, pictures beside it")


def _pretrain(config: PretrainConfig) -> None:
    print(f"Model: {pretrain(config)}")


def _predict(config: PredictConfig) -> None:
    skipped: list[str] = []
    predictions = list(predict(config, skipped))
    if config.format == "json":
        print(json.dumps([_record(prediction) for prediction in predictions], indent=2))
    elif config.format == "csv":
        classes = sorted(predictions[0].probabilities) if predictions else []
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "label", "probability", *classes])
        for prediction in predictions:
            values = prediction.probabilities
            writer.writerow([
                prediction.image, prediction.label, f"{values[prediction.label]:.6f}",
                *(f"{values[name]:.6f}" for name in classes),
            ])  # fmt: skip
    else:
        _print_table(predictions, config.top)
    _report_skipped(skipped)


def _record(prediction: Prediction) -> dict[str, Any]:
    return {
        "image": prediction.image,
        "label": prediction.label,
        "probability": prediction.probabilities[prediction.label],
        "probabilities": prediction.probabilities,
    }


def _print_table(predictions: list[Prediction], top: int) -> None:
    table = Table(Column("image", overflow="fold"), "label", "probability", "then" if top > 1 else "")
    for prediction in predictions:
        (label, share), *others = list(prediction.probabilities.items())[:top]
        then = ", ".join(f"{name} {100 * value:.1f} %" for name, value in others)
        table.add_row(prediction.image, label, f"{100 * share:.1f} %", then)
    Console().print(table)


def _report_skipped(skipped: list[str]) -> None:
    if skipped:
        print(f"skipped {len(skipped)} unreadable images: {listing(skipped, 5)}", file=sys.stderr)


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "demo": (DemoConfig, _demo),
    "extract": (ExtractConfig, _extract),
    "sweep": (SweepConfig, _sweep),
    "probe": (ProbeConfig, _probe),
    "predict": (PredictConfig, _predict),
    "cka": (CkaConfig, _cka),
    "rivals": (RivalsConfig, _rivals),
    "explain": (ExplainConfig, _explain),
    "pretrain": (PretrainConfig, _pretrain),
}
