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

from difflens.configs.cka import CkaConfig
from difflens.configs.compare import RivalsConfig
from difflens.configs.demo import DemoConfig
from difflens.configs.detect import DetectConfig
from difflens.configs.explain import ExplainConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.predict import PredictConfig
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.report import ReportConfig
from difflens.configs.scenes import ScenesConfig
from difflens.configs.segment import SegmentConfig
from difflens.configs.sweep import SweepConfig
from difflens.data.dense.scenes import scenes
from difflens.errors import DiffLensError, listing
from difflens.generation.fidelity import caution, fidelity
from difflens.generation.generate import generate
from difflens.metrics.recommendation import describe
from difflens.models.saved import TrainedModel, model_task
from difflens.pretraining.pretrain import pretrain
from difflens.run.processes import leave_together
from difflens.studies.cka import cka
from difflens.studies.compare import rivals
from difflens.studies.demo import demo
from difflens.studies.explain import explain
from difflens.studies.extract import extract
from difflens.studies.report import report
from difflens.studies.sweep import sweep
from difflens.tasks.classification.predict import Prediction, predict
from difflens.tasks.classification.probe import probe
from difflens.tasks.dense_prediction import predict_dense
from difflens.tasks.detection.detect import detect
from difflens.tasks.segmentation.segment import segment


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
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if _silent() else sys.stdout):
            commands[type(config)](config)
        leave_together()
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


def _silent() -> bool:
    """Of several processes one speaks."""
    return int(os.environ.get("RANK", 0)) > 0


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
    table = Table(
        Column("backbone", overflow="fold"),
        *(trial.title for trial in config.trials), "parameters", "speed", "Fréchet",
        title="accuracy, %",
    )  # fmt: skip
    for rival in found:
        table.add_row(
            rival.name,
            *(f"{100 * score.value:.2f}" for score in rival.scores.values()),
            f"{rival.parameters:,}",
            f"{rival.relative_speed:.2f}",
            "" if rival.frechet is None else f"{rival.frechet:.4g}",
        )
    Console().print(table)
    print(f"Report: {config.out / 'report.html'}, plot: {config.out / 'rivals.png'}")


def _explain(config: ExplainConfig) -> None:
    metrics = explain(config)
    for name, share in {**metrics.get("attention_shares", {}), **metrics.get("logit_shares", {})}.items():
        print(f"{name}: {100 * share:.1f} %")
    _report_skipped(metrics["skipped_images"])
    print(f"Report: {config.out / 'report.html'}, pictures beside it")


def _scenes(config: ScenesConfig) -> None:
    counts = scenes(config)
    for split in ("train", "val"):
        print(
            f"{split}: {counts[f'{split}_scenes']:,} scenes with {counts[f'{split}_instances']:,} objects of "
            f"{len(counts['classes'])} classes, from {counts[f'{split}_cutouts']:,} cut-outs"
        )
    if counts["left_out"]:
        print(f"left out {len(counts['left_out'])}: {listing(counts['left_out'], 5)}", file=sys.stderr)
    print(f"Data set: {config.out}")


def _segment(config: SegmentConfig) -> None:
    metrics = segment(config).metrics
    print(
        f"mIoU {100 * metrics['miou']:.2f} %, pixel accuracy {100 * metrics['pixel_accuracy']:.2f} %, "
        f"{metrics['train_images']:,} training and {metrics['val_images']:,} validation images, "
        f"{metrics['trainable_parameters']:,} trainable parameters"
    )
    _report_bad(metrics["bad_annotations"])
    print(f"Report: {config.out / 'report.html'}\nModel: {config.out / 'model'}")


def _detect(config: DetectConfig) -> None:
    metrics = detect(config).metrics
    figures = [
        f"{kind} AP {100 * metrics[f'{kind}_ap']:.2f}, AP50 {100 * metrics[f'{kind}_ap50']:.2f}, "
        f"AP75 {100 * metrics[f'{kind}_ap75']:.2f}"
        for kind in ("box", "mask")
        if f"{kind}_ap" in metrics
    ]
    print(
        f"{'; '.join(figures)} (%), {metrics['train_images']:,} training and {metrics['val_images']:,} validation "
        f"images, {metrics['trainable_parameters']:,} trainable parameters"
    )
    _report_bad(metrics["bad_annotations"])
    print(
        f"Report: {config.out / 'report.html'}\nModel: {config.out / 'model'}\nResults: {config.out / 'results.json'}"
    )


def _pretrain(config: PretrainConfig) -> None:
    print(f"Model: {pretrain(config)}")


def _generate(config: GenerateConfig) -> None:
    metrics = generate(config)
    print(
        f"{metrics['images']:,} images ({metrics['sampler']}, {metrics['steps']:,} steps), "
        f"{metrics['images_per_second']:.3g} images/s\n"
        f"Images: {config.out / 'images'}, grid: {config.out / 'grid.png'}"
    )


def _fidelity(config: FidelityConfig) -> None:
    skipped: list[str] = []
    result = fidelity(config, skipped)
    inception = result.inception is not None
    table = Table(
        "images", Column("number", justify="right"), "FID" if inception else "Fréchet distance", "KID x 1,000"
    )
    for row in result.distances:
        kid = f"{1000 * row.kid:.3f} ± {1000 * row.kid_std:.3f}"
        table.add_row(row.images, f"{row.count:,}", f"{row.frechet:.4g}", kid)
    print(f"Features: {result.space}\nCompared with: {result.real}, {result.real_images:,}")
    Console().print(table)
    few = caution(result.distances[0].count, result.dimensions)
    if few:
        print(few)
    for name in ("inception_score", "precision", "recall"):
        if result.inception and name in result.inception:
            print(f"{name.replace('_', ' ')}: {result.inception[name]:.4g}")
    if result.class_shares is not None:
        shares = sorted(result.class_shares.items(), key=lambda item: -item[1])
        print(
            "Classes of the samples:", listing([f"{name} {100 * share:.1f} %" for name, share in shares], 20)
        )
    _report_skipped(skipped)


def _report(config: ReportConfig) -> None:
    print(f"Report: {report(config)}")


def _predict(config: PredictConfig) -> None:
    if model_task(config.model) != TrainedModel.task:
        _predict_dense(config)
        return
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


def _predict_dense(config: PredictConfig) -> None:
    skipped: list[str] = []
    if config.format == "csv":
        raise DiffLensError("csv is a format of classes; take json")
    records = predict_dense(config, skipped)
    if config.format == "json":
        print(json.dumps(records, indent=2))
    else:
        table = Table(Column("image", overflow="fold"), "found")
        for record in records:
            named = [f"{name} {100 * share:.1f} %" for name, share in record.get("classes", {}).items()]
            named += [f"{each['label']} {each['score']:.2f}" for each in record.get("objects", ())]
            table.add_row(record["image"], listing(named, config.top) if named else "nothing")
        Console().print(table)
        print(f"Overlays and predictions.json: {config.out or 'predictions'}")
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
    if skipped and not _silent():
        print(f"skipped {len(skipped)} unreadable images: {listing(skipped, 5)}", file=sys.stderr)


def _report_bad(bad: list[str]) -> None:
    if bad:
        print(f"left out {len(bad)} bad annotations: {listing(bad, 5)}", file=sys.stderr)


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
    "generate": (GenerateConfig, _generate),
    "fidelity": (FidelityConfig, _fidelity),
    "report": (ReportConfig, _report),
    "scenes": (ScenesConfig, _scenes),
    "segment": (SegmentConfig, _segment),
    "detect": (DetectConfig, _detect),
}
