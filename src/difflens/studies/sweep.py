"""`difflens sweep`: the accuracy of every block at every noise step, and the recommended place."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from safetensors.torch import save_file
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place
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
from difflens.extractors.latents import Latents
from difflens.heads.normalise import Normalisation
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.recommendation import Recommendation, comparable, recommend
from difflens.metrics.statistics import wilson
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.processes.base import Level, finite, in_words, level_name
from difflens.ranges import Count
from difflens.reports.heat_maps import accuracy_map
from difflens.reports.sweep import sweep_report
from difflens.results.sweep import SweepResult
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.reading import read_tensors
from difflens.run.text import csv_text

_LADDER = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)  # default noise steps, as shares of the schedule

# share of a time budget for reading features; the rest is for the classifiers and for delays
_READING = 0.7


def sweep(config: SweepConfig, announce: Callable[[str], object] = lambda line: None) -> SweepResult:
    """Measure the accuracy of simple classifiers at every place, recommend one, and write a table and a
    report.

    Args:
        announce: receives a line on the number of images, and one on each finished noise step.

    Raises:
        DiffLensError: an option is out of range, the data or the backbone cannot be loaded, or the budget is
            too small.
    """
    config = resolve(config)
    began = time.monotonic()
    data = load_data(config.data)
    if len(data.classes) < 2:
        raise DiffLensError(f"a sweep needs at least two classes, and {data.name} has {len(data.classes)}")
    config = with_backbone(config, data.train)
    opened = open_run(config, data, one_process="; `difflens extract` runs in several")
    backbone = opened.backbone
    blocks = backbone.check_blocks(config.blocks or [block.index for block in backbone.blocks])
    steps = backbone.check_noise_steps(config.noise_steps or _ladder(backbone))
    with opened.directory({"blocks": blocks, "noise_steps": steps}, growing="noise_steps") as run:
        backbone.to(opened.process.device)
        return _Sweep(opened, blocks, backbone.process.by_noise(steps), run, announce, began).run_all()


def _ladder(backbone: Backbone) -> list[Level]:
    return sorted({*map(backbone.process.at, _LADDER)})


@dataclass(frozen=True)
class _Images:
    """images.json: the number of training images that a sweep reads."""

    images: Count


class _Sweep:
    """The noise steps of a sweep, measured one after the other, from the least to the most noise."""

    def __init__(
        self,
        opened: OpenedRun[ImageData],
        blocks: tuple[int, ...],
        log_snr: dict[Level, float],
        run: RunDirectory,
        announce: Callable[[str], object],
        began: float,
    ):
        self.opened, self.blocks, self.log_snr, self.run = opened, blocks, log_snr, run
        self.steps = tuple(log_snr)
        self.config: SweepConfig = opened.config
        self.data, self.backbone, self.process = opened.data, opened.backbone, opened.process
        self.announce, self.began = announce, began
        self._announced_single = False
        self._latents: Latents | None = None
        self.reading = Reading(self.config.workers, self.config.on_bad_image, [])
        self.seconds = self.config.limits()[1]

    def run_all(self) -> SweepResult:
        """Measure every noise step that the time budget allows, and write the results."""
        split = self._images()
        self.announce(
            f"{len(split):,} training images, of which a fifth validates; {len(self.blocks)} "
            f"block{'s' * (len(self.blocks) != 1)} at t = {in_words(self.log_snr)}"
        )
        measured: dict[Level, dict[str, Tensor]] = {}
        for t in self.steps:
            step = self._stored(t)
            if step is None:
                if self.seconds is not None and measured and time.monotonic() - self.began > self.seconds:
                    break
                self.run.grow()
                step = self._measure(split, t)
                self.run.write_with(_file(t), partial(save_file, step))
                self.run.keep()
                accuracy = step["accuracy"][0]
                best = int(accuracy.argmax())
                self.announce(
                    f"t = {in_words({t: self.log_snr[t]})}: best block {self.blocks[best]}, "
                    f"{100 * float(accuracy[best]):.2f} %"
                )
            measured[t] = step
        if self._latents is not None:
            shutil.rmtree(self.run.path / "cache", ignore_errors=True)
        return self._conclude(split, measured)

    def _images(self) -> ImageSplit:
        """Return the training images that the budget allows; a resumed run reads the same ones."""
        if (self.run.path / "images.json").exists():
            count = self.run.read_json("images.json", _Images).images
            if count > len(self.data.train):
                raise DiffLensError(
                    f"{self.run.path / 'images.json'}: images is {count}, and there are "
                    f"{len(self.data.train)} training images"
                )
            limit = self.config.limits()[0]
            if limit is not None and count != min(limit, len(self.data.train)):
                self.announce(f"The sweep goes on with the {count:,} images that it began with")
        else:
            count = self._affordable()
            self.run.write_json("images.json", {"images": count})
        if self.config.normalise != "none":  # four fifths train
            channels = {(block, self.steps[0]): self.backbone.block(block).channels for block in self.blocks}
            Normalisation(channels, self.config.normalise).check(count - count // 5)
        return self.data.train.subset(balanced(self.data.train, count, self.config.seed))

    def _affordable(self) -> int:
        """Return how many images the budget allows, from the measured speed of reading."""
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
                seconds_an_image = (time.monotonic() - started) / len(pilot)
            count = min(count, int(_READING * seconds / (len(self.steps) * seconds_an_image)))
        if count < least:
            plural = "s" * (len(self.steps) != 1)
            raise DiffLensError(
                f"the budget {' '.join(self.config.budget)} allows {count} images, and "
                f"{len(self.data.classes)} classes at {len(self.steps)} noise step{plural} need at least "
                f"{least}: allow more, or name fewer noise steps"
            )
        return count

    def _stored(self, t: Level) -> dict[str, Tensor] | None:
        """Return what an earlier run measured at `t`; None if it is not measured yet."""
        path = self.run.path / _file(t)
        if not path.exists():
            return None
        step = read_tensors(path)
        if not self._fits(step):
            raise DiffLensError(f"{path} is damaged: delete it and run again with --resume")
        return step

    def _fits(self, step: dict[str, Tensor]) -> bool:
        """Return True for tensors that `_measure` may have returned."""
        found = {name: tuple(tensor.shape) for name, tensor in step.items()}
        blocks, classes = len(self.blocks), len(self.data.classes)
        images = max(found.get("labels", ()), default=0)
        if found != {
            "accuracy": (len(self.config.classifiers), blocks),
            "scores": (blocks, images, classes),
            "labels": (images,),
        }:
            return False
        accuracy, labels = step["accuracy"], step["labels"]
        return (
            accuracy.is_floating_point()
            and bool(((accuracy >= 0) & (accuracy <= 1)).all())
            and not labels.is_floating_point()
            and bool(((labels >= 0) & (labels < classes)).all())
            and not bool(step["scores"].isnan().any())
        )

    def _measure(self, split: ImageSplit, t: Level) -> dict[str, Tensor]:
        """Measure all blocks at one noise step, with one pass through the backbone.

        Returns:
            "accuracy" (classifiers, B) float64 in [0, 1]; "scores" (B, V, K) float16 of the first classifier
            on the validation images; "labels" (V,) long.
        """
        spill, memory = self.run.path / "cache", self.config.cache_gigabytes
        latents = self._latents = self._latents or Latents.of(self.backbone, split, memory, spill)
        memory = max(0.0, memory - latents.gigabytes) if latents else memory
        cache = read_features(
            self._extractor(t), self.config.pool, split, self.process, self.reading, memory, spill, latents
        )
        held_out = every_nth(cache.labels, 5)
        if not held_out.any():
            raise DiffLensError(
                "a sweep holds out a fifth of each class, and no class has two training images"
            )
        single = (cache.labels.bincount() == 1).nonzero()[:, 0].tolist()
        if single and not self._announced_single:
            self._announced_single = True
            names = listing([self.data.classes[label] for label in single])
            self.announce(f"Classes with a single image are trained on but not validated: {names}")
        labels = cache.labels.to(self.process.device)
        # a fifth of the remaining images chooses the classifiers' hyperparameters
        choosing = every_nth(cache.labels[~held_out], 5)
        accuracy, scores = [], []
        for block in self.blocks:
            features = self._matrix(cache, (block, t), ~held_out)
            by_classifier = [
                held_out_scores(name, features, labels, held_out, choosing, len(self.data.classes))
                for name in self.config.classifiers
            ]
            correct = (values.argmax(1) == labels[held_out] for values in by_classifier)
            accuracy.append([float(hits.double().mean()) for hits in correct])
            scores.append(comparable(by_classifier[0]).half().cpu())
        for file in spill.glob("*.bin"):
            file.unlink()
        return {
            "accuracy": torch.tensor(accuracy, dtype=torch.float64).T.contiguous(),
            "scores": torch.stack(scores),
            "labels": cache.labels[held_out].contiguous(),
        }

    def _extractor(self, t: Level) -> Extractor:
        config = self.config
        places = ExtractorConfig("frozen", self.blocks, (t,), config.seed, precision=config.precision)
        return places.build(self.backbone)

    def _matrix(self, cache: FeatureCache, place: Place, trained_on: Tensor) -> Tensor:
        """Return the pooled, normalised maps of one place as vectors (N, D) float32.

        Args:
            trained_on: (N,) bool, True for the images whose statistics normalise.
        """
        maps = cache.maps[place][torch.arange(len(cache))].to(self.process.device).float()
        if self.config.normalise != "none":
            normalisation = Normalisation({place: maps.shape[1]}, self.config.normalise).to(maps.device)
            training = maps[trained_on.to(maps.device)]
            normalisation.fit(normalisation.moments([{place: training}]), len(training))
            maps = normalisation({place: maps})[place]
        return maps.flatten(1)

    def _conclude(self, split: ImageSplit, measured: dict[Level, dict[str, Tensor]]) -> SweepResult:
        """Recommend a place, and write the table, the heat map and the report."""
        config, steps = self.config, tuple(measured)
        log_snr = {t: self.log_snr[t] for t in steps}
        accuracy: dict[str, Tensor] = {
            name: torch.stack([measured[t]["accuracy"][k] for t in steps])
            for k, name in enumerate(config.classifiers)
        }
        labels = measured[steps[0]]["labels"]
        best = recommend(torch.stack([measured[t]["scores"] for t in steps]), labels, self.blocks, steps)
        commands = self._commands(best)
        result = SweepResult(
            out=config.out,
            accuracy=accuracy,
            blocks=self.blocks,
            noise_steps=steps,
            log_snr=tuple(map(finite, log_snr.values())),
            not_measured=tuple(t for t in self.steps if t not in measured),
            images=len(split),
            validation_images=len(labels),
            recommendation=best,
            commands=commands,
            skipped_images=tuple(self.reading.skipped),
        )
        table = _table(self.backbone, self.blocks, log_snr, accuracy, len(labels))
        self.run.write("table.csv", table)
        roles = [self.backbone.block(block).role for block in self.blocks]
        place = (best.block, best.noise_step)
        figure = accuracy_map(accuracy[config.classifiers[0]], self.blocks, log_snr, roles, place)
        self.run.write_with("heatmap.png", lambda path: figure.savefig(path, dpi=160))
        report = sweep_report(
            summary=f"The accuracy of a simple classifier on the features of each block of {config.backbone} "
            f"at each noise step, on {self.data.name}. The maps are pooled to {config.pool} x {config.pool}.",
            accuracy=accuracy,
            blocks=self.blocks,
            roles=roles,
            log_snr=log_snr,
            not_measured={t: self.log_snr[t] for t in result.not_measured},
            best=best,
            images=len(labels),
            commands=commands,
            provenance={
                "Command": shown_command(config),
                "Images": f"{len(split):,} training images, the same number of each class where possible; "
                f"{len(labels):,} of them validate. The test split was not read.",
                "Seed": config.seed,
                **self.opened.provenance(),
            },
        )
        self.run.write("report.html", report)
        self.run.write_json(FINISHED, result.metrics())
        return result

    def _commands(self, best: Recommendation) -> tuple[str, ...]:
        """Return command lines that probe the recommended place and the recommended fusion."""
        shared = {field.name for field in fields(ProbeConfig)} & {field.name for field in fields(SweepConfig)}
        options = {name: getattr(self.config, name) for name in shared - {"pool", "resume", "normalise"}}
        probe = ProbeConfig(**options)
        single = replace(probe, head="attention", blocks=(best.block,), noise_steps=(best.noise_step,))
        fused = replace(
            probe, head="difformer", blocks=best.fusion_blocks, noise_steps=best.fusion_noise_steps
        )
        return shown_command(single), shown_command(fused)


def _file(t: Level) -> str:
    """Return the name of the file that holds what was measured at a noise step."""
    return f"steps/t{level_name(t)}.safetensors"


def _table(
    backbone: Backbone,
    blocks: Sequence[int],
    log_snr: dict[Level, float],
    accuracy: dict[str, Tensor],
    images: int,
) -> str:
    """Return the text of table.csv, one line for each place and classifier."""
    columns = ("noise_step", "log_snr", "block", "part", "channels", "stride")
    rows: list[list[object]] = [[*columns, "classifier", "accuracy", "low_95", "high_95"]]
    for name, values in accuracy.items():
        for k, (t, snr) in enumerate(log_snr.items()):
            for block, value in zip(blocks, values[k].tolist(), strict=True):
                info = backbone.block(block)
                shares = (value, *wilson(round(value * images), images))
                place = (t, f"{snr:.4f}", block, info.role, info.channels, info.stride)
                rows.append([*place, name, *(f"{share:.4f}" for share in shares)])
    return csv_text(rows)
