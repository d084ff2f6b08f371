"""Networks and recipes for `photos`, compared at equal compute by the ridge accuracy of their best place.

Usage: python benchmarks/photo_trials.py CIFAR10_FOLDER OUTPUT_FOLDER [MINUTES [TRIAL ...]]

CIFAR10_FOLDER has train/CLASS/*. A tenth of its training images, each tenth of a class, is held out. Each
trial trains on the others without labels for as many images as take MINUTES (15) of processor time on one
core. The rate is that of the plain network, measured once, divided by the relative cost of the trial's own
step, measured in turn with the plain one's. Ridge regression on 2x2 pooled maps learns 10,000 labels of the
images trained on, and the 5,000 held-out images judge it. Test images are not read. TRIAL names some of the
trials (all). All train in the floating-point format that is faster on this machine, with seed 0. Finished
trials are kept, so a run that was stopped goes on. The table is printed, and written to
OUTPUT_FOLDER/table.md.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from accelerate import Accelerator

from difflens import PretrainConfig, load_backbone, pretrain
from difflens.backbones.base import Backbone
from difflens.choices import Precision
from difflens.configs.options import resolve
from difflens.data.labels import balanced
from difflens.data.load import load_data
from difflens.data.split import FileSplit, every_nth
from difflens.extractors.cache import read_features
from difflens.extractors.config import ExtractorConfig
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.statistics import wilson
from difflens.presets import PRETRAIN, UNETS
from difflens.pretraining.gradients import Gradients
from difflens.pretraining.loss import DiffusionLoss
from difflens.pretraining.networks import build_unet
from difflens.pretraining.precision import choose_precision
from difflens.processes.schedulers import process_of
from difflens.processes.variance_preserving import VariancePreserving

PLAIN = "channels 16, 32, 96, 160"
TRIALS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "channels 16, 64, 128, 192": {"channels": (16, 64, 128, 192)},
    "channels 32, 64, 128, 192": {"channels": (32, 64, 128, 192)},
    "predicts v": {"prediction": "v_prediction"},
    "cosine schedule": {"schedule": "squaredcos_cap_v2"},
    "min-SNR, gamma 5": {"min_snr_gamma": 5.0},
    "learning rate 2e-3": {"learning_rate": 2e-3},
    "no flips": {"augment": "none"},
    "EMA 0.999": {"ema_decay": 0.999},
    "batches of 32": {"batch_size": 32},
}
NOISE_STEPS = (10, 30, 100)
LABELS = 10_000


def config_of(preset: str, **options: Any) -> PretrainConfig:
    return resolve(PretrainConfig(data="", out=Path(), preset=preset, **options))


def training_step(preset: str, options: dict[str, Any], precision: Precision) -> Callable[[], float]:
    """Return a function that makes a training step of 64 images, and gives its processor time."""
    unet = build_unet(config_of(preset, **options))
    process, schedule = Accelerator(cpu=True), process_of({})
    assert isinstance(schedule, VariancePreserving)
    gradients = Gradients(unet, DiffusionLoss(schedule), process, precision)
    images, t = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), torch.randint(1000, (64,))

    def step() -> float:
        began = time.process_time()
        gradients(images, torch.arange(64), t, torch.tensor(0))
        return time.process_time() - began

    step()  # libraries choose their algorithms
    return step


def images_of(minutes: float, options: dict[str, Any], precision: Precision, rate: Path) -> int:
    """Return how many images a trial trains on: as many as take `minutes`.

    Args:
        options: of the preset "trial".
        rate: the file of the plain network's rate, in seconds an image; it is written if it is missing.
    """
    plain = training_step("photos-32", {}, precision)
    own = training_step("trial", options, precision)
    pairs = [(plain(), own()) for _ in range(20)]
    if not rate.exists():
        rate.write_text(str(median(first for first, _ in pairs) / 64))
    cost = median(second / first for first, second in pairs)
    print(f"a training step costs {cost:.3f} times the plain network's", flush=True)
    return int(minutes * 60 / float(rate.read_text()) / cost)


def score(backbone: Backbone, data: Any, held_out: torch.Tensor) -> dict[str, Any]:
    """Return the best place by ridge accuracy on the held-out images."""
    trained = data.train.subset((~held_out).nonzero()[:, 0])
    learned = trained.index[balanced(trained, LABELS, 0)]
    rows = torch.cat([learned, held_out.nonzero()[:, 0]])
    split, tested = data.train.subset(rows), torch.arange(len(rows)) >= LABELS
    blocks = tuple(block.index for block in backbone.blocks)
    best: dict[str, Any] = {"accuracy": 0.0}
    for t in NOISE_STEPS:
        extractor = ExtractorConfig("frozen", blocks, (t,), 0).build(backbone)
        cache = read_features(extractor, 2, split, Accelerator(cpu=True))
        for block in blocks:
            features = cache.maps[(block, t)][torch.arange(len(split))].flatten(1).float()
            scores = held_out_scores("ridge", features, split.labels, tested, tested[:0], len(data.classes))
            hits = int((scores.argmax(1) == split.labels[tested]).sum())
            if hits / int(tested.sum()) > best["accuracy"]:
                low, high = wilson(hits, int(tested.sum()))
                best = {"accuracy": hits / int(tested.sum()), "low": low, "high": high, "place": [block, t]}
    return best


def trial(name: str, cifar: Path, out: Path, minutes: float) -> dict[str, Any]:
    """Train and score one trial."""
    file = out / f"{name}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    data = load_data(f"folder:{cifar}")
    assert isinstance(data.train, FileSplit)
    assert data.train.labels is not None
    held_out = every_nth(data.train.labels, 10)
    kept = out / "images"
    if not kept.exists():
        for row in (~held_out).nonzero()[:, 0].tolist():
            source = data.train.root / data.train.ids[row]
            link = kept / source.parent.name / source.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())
    recipe, preset = dict(TRIALS[name]), UNETS["photos-32"]
    UNETS["trial"] = {**preset, "channels": recipe.pop("channels", preset["channels"])}
    PRETRAIN["trial"] = {**PRETRAIN["photos-32"], "unet": "trial"}
    plan, kept_precision = out / f"{name}.plan", out / "precision"
    if not kept_precision.exists():
        kept_precision.write_text(choose_precision(config_of("photos-32"), Accelerator(cpu=True)))
    precision: Literal["float32", "bfloat16"] = (
        "bfloat16" if kept_precision.read_text() == "bfloat16" else "float32"
    )
    if not plan.exists():
        plan.write_text(str(images_of(minutes, recipe, precision, out / "plain.seconds")))
    images = int(plan.read_text())
    epochs = math.ceil(images / 45_000)
    config = PretrainConfig(
        data=f"folder:{kept}",
        preset="trial",
        out=out / name.replace(" ", "-"),
        resume=True,
        epochs=epochs,
        limit=images // epochs,
        precision=precision,
        workers=0,
        **recipe,
    )
    model = pretrain(config).path
    log = (config.out / "log.jsonl").read_text().splitlines()
    backbone = load_backbone(str(model))
    parameters = sum(p.numel() for p in backbone.parameters())
    result = {"parameters": parameters, "images": images, "loss": json.loads(log[-1])["loss"]}
    result |= score(backbone, data, held_out)
    file.write_text(json.dumps(result))
    return result


def main(cifar: Path, out: Path, minutes: float, names: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = [
        "| trial | parameters | images | loss | ridge, % | 95 % interval | block, t |",
        "|---|" + "---|" * 6,
    ]
    for name in names:
        found = trial(name, cifar, out, minutes)
        accuracy, low, high = (f"{100 * found[key]:.1f}" for key in ("accuracy", "low", "high"))
        block, t = found["place"]
        lines.append(
            f"| {name} | {found['parameters'] / 1e6:.1f} M | {found['images']:,} "
            f"| {found['loss']:.4f} | {accuracy} | {low} to {high} | {block}, {t} |"
        )
        print(lines[-1], flush=True)
        (out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    given = sys.argv[1:]
    chosen = given[3:] or [*TRIALS]
    if unknown := {*chosen} - {*TRIALS}:
        raise SystemExit(f"no trial {', '.join(sorted(unknown))}: there are {'; '.join(TRIALS)}")
    main(Path(given[0]), Path(given[1]), float(given[2]) if len(given) > 2 else 15.0, chosen)
