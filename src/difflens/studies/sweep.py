"""`difflens sweep`: which block, which noise step."""

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.configs.command_line import shown_command
from difflens.configs.options import resolve
from difflens.configs.probe import ProbeConfig
from difflens.configs.sweep import SweepConfig
from difflens.data.labels import balanced
from difflens.data.load import load_data
from difflens.data.split import ImageData, ImageSplit, every_nth
from difflens.errors import DiffLensError, listing
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.recommendation import Recommendation, comparable, recommend
from difflens.metrics.statistics import wilson
from difflens.opening import open_run
from difflens.reports.heat_maps import accuracy_map
from difflens.reports.sweep import sweep_report
from difflens.results.sweep import SweepResult
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment

# shares of the schedule at which a sweep looks if nothing is said
_LADDER = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)

# the part of a time budget that is planned for; the rest is for the classifiers and for surprises
_PLANNED = 0.7


def sweep(config: SweepConfig, announce: Callable[[str], object] = lambda line: None) -> SweepResult:
    """Run `config` and fill its run directory.

    Args:
        announce: is told how many images the sweep will use, and of each noise step that is done.

    Raises:
        DiffLensError: anything in the configuration, the data or the backbone is not what it should be.
    """
    config = resolve(config)
    began = time.monotonic()
    data = load_data(config.data)
    if len(data.classes) < 2:
        raise DiffLensError(f"a sweep needs at least two classes, and {data.name} has {len(data.classes)}")
    opened = open_run(config, data, one_process="; `difflens extract` runs in several")
    backbone, process = opened.backbone, opened.process
    blocks = backbone.check_blocks(config.blocks or [block.index for block in backbone.blocks])
    steps = backbone.check_noise_steps(config.noise_steps or _ladder(backbone))
    with opened.directory({"blocks": blocks, "noise_steps": steps}, growing="noise_steps") as run:
        run.grow()
        backbone.to(process.device)
        return _Sweep(
            config, data, backbone, opened.fingerprints, blocks, steps, run, process, announce, began
        ).run_all()


def _ladder(backbone: Backbone) -> list[int]:
    return sorted({int(share * backbone.num_noise_steps) for share in _LADDER})


class _Sweep:
    def __init__(
        self,
        config: SweepConfig,
        data: ImageData,
        backbone: Backbone,
        fingerprints: dict[str, str],
        blocks: tuple[int, ...],
        steps: tuple[int, ...],
        run: RunDirectory,
        process: Accelerator,
        announce: Callable[[str], object],
        began: float,
    ):
        self.config, self.data, self.backbone, self.blocks, self.steps = config, data, backbone, blocks, steps
        self.run, self.process, self.announce, self.began = run, process, announce, began
        self.fingerprints, self._told = fingerprints, False
        self.reading = Reading(config.workers, config.on_bad_image, [])
        self.seconds = config.limits()[1]

    def run_all(self) -> SweepResult:
        split = self._images()
        self.announce(
            f"{len(split):,} training images, of which a fifth judges; {len(self.blocks)} blocks at noise steps "
            f"{listing(self.steps)}"
        )
        done: dict[int, dict[str, Tensor]] = {}
        for t in self.steps:
            found = self._stored(t)
            if found is None:
                if self.seconds is not None and done and time.monotonic() - self.began > self.seconds:
                    break
                found = self._measure(split, t)
                self.run.write_with(f"steps/t{t:05d}.safetensors", partial(save_file, found))
                self.run.keep()
                best = int(found["accuracy"][0].argmax())
                self.announce(
                    f"t = {t}: best block {self.blocks[best]}, {100 * float(found['accuracy'][0, best]):.2f} %"
                )
            done[t] = found
        return self._conclude(split, done)

    def _images(self) -> ImageSplit:
        """The training images that the budget allows, the same ones after a resume."""
        if (self.run.path / "images.json").exists():
            count = int(self.run.read_json("images.json")["images"])
            asked = self.config.limits()[0]
            if asked is not None and count != min(asked, len(self.data.train)):
                self.announce(f"The sweep goes on with the {count:,} images that it began with")
        else:
            count = self._affordable()
            self.run.write_json("images.json", {"images": count})
        return self.data.train.subset(balanced(self.data.train, count, self.config.seed))

    def _affordable(self) -> int:
        images, seconds = self.config.limits()
        train = self.data.train
        count = min(len(train), images or len(train))
        least = min(len(train), 5 * len(self.data.classes))
        if seconds is not None:
            pilot = train.subset(balanced(train, 128, self.config.seed))
            extractor = self._extractor(self.steps[0])
            for _ in range(2):  # the first reading also warms up
                started = time.monotonic()
                read_features(extractor, self.config.pool, pilot, self.process, self.reading)
                each = (time.monotonic() - started) / len(pilot)
            count = min(count, int(_PLANNED * seconds / (len(self.steps) * each)))
        if count < least:
            raise DiffLensError(
                f"the budget {' '.join(self.config.budget)} allows {count} images, and {len(self.data.classes)} classes "
                f"at {len(self.steps)} noise steps need at least {least}: allow more, or look at fewer noise steps"
            )
        return count

    def _stored(self, t: int) -> dict[str, Tensor] | None:
        path = self.run.path / "steps" / f"t{t:05d}.safetensors"
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise DiffLensError(f"{path} is damaged: delete it and run again with --resume") from error

    def _measure(self, split: ImageSplit, t: int) -> dict[str, Tensor]:
        """All blocks at one noise step, which one pass through the backbone reads.

        Returns:
            "accuracy" (classifiers, B); "scores" (B, V, K) float16 of the first classifier on the validation images;
            "labels" (V,).
        """
        spill = self.run.path / "cache"
        cache = read_features(
            self._extractor(t), self.config.pool, split, self.process, self.reading, self.config.cache_gigabytes,
            spill,
        )  # fmt: skip
        held_out = every_nth(cache.labels, 5)
        if not held_out.any():
            raise DiffLensError(
                "a sweep holds out a fifth of each class, and no class has two training images"
            )
        alone = (cache.labels.bincount() == 1).nonzero()[:, 0].tolist()
        if alone and not self._told:
            self._told = True
            names = listing([self.data.classes[label] for label in alone])
            self.announce(f"Trained on but not judged, with a single image: {names}")
        labels = cache.labels.to(self.process.device)
        choosing = every_nth(cache.labels[~held_out], 5)
        accuracy, scores = [], []
        for block in self.blocks:
            features = self._matrix(cache, (block, t))
            by_classifier = [
                held_out_scores(name, features, labels, held_out, choosing, len(self.data.classes))
                for name in self.config.classifiers
            ]
            accuracy.append(
                [float((each.argmax(1) == labels[held_out]).double().mean()) for each in by_classifier]
            )
            scores.append(comparable(by_classifier[0]).half().cpu())
        for file in spill.glob("*.bin"):
            file.unlink()
        return {
            "accuracy": torch.tensor(accuracy, dtype=torch.float64).T.contiguous(),
            "scores": torch.stack(scores),
            "labels": cache.labels[held_out].contiguous(),
        }

    def _extractor(self, t: int) -> Extractor:
        config = self.config
        places = ExtractorConfig("frozen", self.blocks, (t,), config.seed, precision=config.precision)
        return places.build(self.backbone)

    def _matrix(self, cache: FeatureCache, place: tuple[int, int]) -> Tensor:
        maps = cache.maps[place]
        return maps[torch.arange(len(cache))].flatten(1).to(self.process.device).float()

    def _conclude(self, split: ImageSplit, done: dict[int, dict[str, Tensor]]) -> SweepResult:
        config, steps = self.config, tuple(done)
        accuracy: dict[str, Tensor] = {
            name: torch.stack([done[t]["accuracy"][k] for t in steps])
            for k, name in enumerate(config.classifiers)
        }
        labels = done[steps[0]]["labels"]
        best = recommend(torch.stack([done[t]["scores"] for t in steps]), labels, self.blocks, steps)
        commands = self._commands(best)
        result = SweepResult(
            out=config.out,
            accuracy=accuracy,
            blocks=self.blocks,
            noise_steps=steps,
            not_measured=tuple(t for t in self.steps if t not in done),
            images=len(split),
            validation_images=len(labels),
            recommendation=best,
            commands=commands,
            skipped_images=tuple(self.reading.skipped),
        )
        table = _table(self.backbone, self.blocks, steps, accuracy, len(labels))
        self.run.write("table.csv", table)
        roles = [self.backbone.block(block).role for block in self.blocks]
        place = (best.block, best.noise_step)
        figure = accuracy_map(accuracy[config.classifiers[0]], self.blocks, steps, roles, place)
        self.run.write_with("heatmap.png", lambda path: figure.savefig(path, dpi=160))
        report = sweep_report(
            summary=f"How well a simple classifier reads each block of {config.backbone} at each noise step on "
            f"{self.data.name}, on maps pooled to {config.pool} x {config.pool}.",
            accuracy=accuracy, blocks=self.blocks, roles=roles, noise_steps=steps, not_measured=result.not_measured,
            best=best, images=len(labels), commands=commands, provenance={
                "Command": shown_command(config),
                "Backbone": f"{config.backbone}, fingerprint {self.fingerprints['backbone_fingerprint'][:12]}",
                "Data": f"{self.data.name}, fingerprint {self.fingerprints['data_fingerprint'][:12]}",
                "Images": f"{len(split):,} training images, equally many of each class where possible; {len(labels):,} of "
                "them validate. The test split was not read.",
                "Seed": config.seed,
                **environment(self.process.device),
            },
        )  # fmt: skip
        self.run.write("report.html", report)
        self.run.write_json(FINISHED, result.metrics())
        return result

    def _commands(self, best: Recommendation) -> tuple[str, ...]:
        same = {field.name for field in fields(ProbeConfig)} & {field.name for field in fields(SweepConfig)}
        given = {name: getattr(self.config, name) for name in same - {"pool", "resume"}}
        probe = ProbeConfig(**given)
        single = replace(probe, head="attention", blocks=(best.block,), noise_steps=(best.noise_step,))
        fused = replace(
            probe, head="difformer", blocks=best.fusion_blocks, noise_steps=best.fusion_noise_steps
        )
        return shown_command(single), shown_command(fused)  # fmt: skip


def _table(
    backbone: Backbone, blocks: Sequence[int], steps: Sequence[int], accuracy: dict[str, Tensor], images: int
) -> str:
    """table.csv: a line a place."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["noise_step", "block", "part", "channels", "stride", "classifier", "accuracy", "low_95", "high_95"]
    )
    for name, values in accuracy.items():
        for k, t in enumerate(steps):
            for block, value in zip(blocks, values[k].tolist(), strict=True):
                low, high = wilson(round(value * images), images)
                what = backbone.block(block)
                writer.writerow([
                    t, block, what.role, what.channels, what.stride, name, f"{value:.4f}", f"{low:.4f}", f"{high:.4f}",
                ])  # fmt: skip
    return text.getvalue()
