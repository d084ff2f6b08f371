"""`difflens demo`: the bundled backbone read with every head, against two baselines, and its samples."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens.backbones.base import DiffusionBackbone
from difflens.choices import ExtractorName, HeadName
from difflens.configs.command_line import shown_command
from difflens.configs.demo import DemoConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.options import resolve
from difflens.configs.probe import ProbeConfig
from difflens.data.images import fit, to_float, to_uint8
from difflens.data.load import load_data
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, listing
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache
from difflens.extractors.frozen import FrozenExtractor
from difflens.extractors.store import FeatureStore
from difflens.generation.grid import image_grid
from difflens.generation.samplers import sample
from difflens.metrics.classification import Evaluation
from difflens.metrics.memorisation import Seen, find_nearest
from difflens.models.feature_space import FeatureSpace
from difflens.opening import open_run
from difflens.pretraining.export import card_fact
from difflens.reports.demo import BASELINES, demo_report
from difflens.reports.html import Section
from difflens.reports.memorisation import copying_section
from difflens.results.demo import DemoResult, DemoScore
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment
from difflens.studies.extract import extract
from difflens.tasks.classification.probe import probe

# heads on the stored features; the others read images
_STORED: tuple[HeadName, ...] = ("linear", "mlp", "cnn", "attention", "difformer")
# which head `model/` holds: named beforehand, since choosing by test accuracy would be selecting on test data
_KEPT = "attention"
_LARGEST = 16  # the side of the largest maps that a head reads
_NOISED, _MAPPED = 4, 6  # images whose noise, and whose feature maps, are shown


def demo(config: DemoConfig) -> DemoResult:
    """Run `config`: extract the frozen features, probe them with every head, and write a report.

    Raises:
        DiffLensError: the folder holds another run, or backbone or data cannot be loaded.
    """
    config = resolve(config)
    data = load_data(config.data)
    data = replace(data, test=data.test.first(config.test_images))
    opened = open_run(config, data, one_process="; `difflens probe` runs in several")
    backbone = opened.backbone
    if not isinstance(backbone, DiffusionBackbone):
        raise DiffLensError(f"the demo needs a diffusion backbone, and {config.backbone} is none")
    with opened.directory() as run:
        if run.finished:
            return DemoResult.from_metrics(run.read_json(FINISHED), config.out)
        return _Demo(config, data, backbone, run, opened.process).run_all()


class _Demo:
    def __init__(
        self,
        config: DemoConfig,
        data: ImageData,
        backbone: DiffusionBackbone,
        run: RunDirectory,
        process: Accelerator,
    ):
        self.config, self.data, self.backbone, self.run, self.process = config, data, backbone, run, process
        self.train = data.train.first(config.train_images)
        self.store = config.out / "features"
        self.evaluations: dict[str, Evaluation] = {}
        self.results: dict[str, DemoScore] = {}

    @property
    def _common(self) -> dict[str, Any]:
        """Options of every command that the demo runs."""
        config = self.config
        return {
            "data": config.data, "seed": config.seed, "device": config.device, "resume": config.resume,
            "num_head_channels": config.num_head_channels, "noise_schedule": config.noise_schedule,
            "image_size": config.image_size,
        }  # fmt: skip

    def run_all(self) -> DemoResult:
        started = time.monotonic()
        name, side, channels = self.config.backbone, self.backbone.image_size, self.backbone.in_channels
        self._probe("pixels", "linear", f"pixels:{channels}x{side}")
        self._probe("random_backbone", "linear", f"random:{name}")
        self._extract()
        for head in _STORED:
            self._probe(head, head, name, store=self.store)
        self._probe("diffeed", "attention", name, "feedback")
        heads = [head for head in self.results if head not in BASELINES]
        result = DemoResult(
            out=self.config.out,
            results=self.results,
            seconds=round(time.monotonic() - started, 1),
            train_images=len(self.train),
            test_images=len(self.data.test),
            best=max(heads, key=lambda head: self.results[head].top1),
            saved_head=_KEPT,
        )
        self.run.write("report.html", self._report(result))
        self.run.write_json(FINISHED, result.metrics())
        shutil.rmtree(self.store)  # large, and read by nothing any more
        return result

    def _extract(self) -> None:
        """Store what all heads on the frozen backbone read, in one reading."""
        config, defaults = self.config, self.backbone.defaults
        extractor = FrozenExtractor(
            self.backbone, {defaults.block, *defaults.fusion_blocks}, {defaults.noise_step, *defaults.fusion_noise_steps}
        )  # fmt: skip
        sides = [side for _, *sides in extractor.shapes().values() for side in sides if side > _LARGEST]
        # pooled once here and once more by a head, maps must be what they are when pooled at once
        exact = all(side % _LARGEST == 0 for side in sides) and _LARGEST % defaults.token_side == 0
        extract(
            ExtractConfig(
                out=self.store, backbone=config.backbone, limit=config.train_images, blocks=extractor.blocks,
                noise_steps=extractor.noise_steps, pool=_LARGEST if exact else 0, **self._common,
            ),
            data=self.data,
        )  # fmt: skip
        self.run.keep()

    def _probe(
        self,
        name: str,
        head: HeadName,
        backbone: str,
        extractor: ExtractorName = "frozen",
        store: Path | None = None,
    ) -> None:
        """Probe a backbone, and keep the figures as the result `name`."""
        config = self.config
        asked = ProbeConfig(
            out=config.out / "heads" / name, backbone=backbone, head=head, extractor=extractor, store=store,
            limit=config.train_images, **self._common,
        )  # fmt: skip
        epochs = max(1, round(asked.usual_epochs * config.effort))
        result = probe(replace(asked, epochs=epochs), self.data)
        self.run.keep()
        (self.evaluations[name],), (figures,) = result.evaluations, result.seeds
        self.results[name] = score = DemoScore(
            top1=figures.top1, top1_interval_95=figures.top1_interval_95,
            trainable_parameters=figures.trainable_parameters, train_seconds=figures.train_seconds,
        )  # fmt: skip
        if name not in {record["head"] for record in self.run.read_log()}:  # a resumed run has logged some
            self.run.log({"head": name, **score.metrics()})
        if name == _KEPT:
            self.run.write_folder("model", result.model.save)

    @torch.no_grad()
    def _report(self, result: DemoResult) -> str:
        config, data = self.config, self.data
        backbone = self.backbone.to(self.process.device)
        defaults = backbone.defaults
        shown = data.test.subset(_one_of_each(data))
        index = torch.arange(len(shown), device=backbone.device)
        images = to_float(self._images(shown, index)).to(backbone.device)
        far = {backbone.num_noise_steps // share for share in (10, 4, 2)}  # for the eye: not read by any head
        steps = {*defaults.fusion_noise_steps, defaults.noise_step, *far}
        spread = {
            backbone.of_role("encoder")[len(backbone.of_role("encoder")) // 2].index,
            *defaults.fusion_blocks, defaults.block, backbone.of_role("decoder")[-2].index,
        }  # fmt: skip
        noise = FrozenExtractor(backbone, (defaults.block,), steps, config.seed)
        reader = FrozenExtractor(backbone, spread, (defaults.noise_step,), config.seed)
        reader.compiled = False  # one batch is read sooner than a graph is made
        samples = sample(backbone, config.samples, config.sampling_steps, config.seed)
        distance = card_fact(config.backbone, "Fréchet distance")
        # of a few dozen samples it would mean nothing
        stated = "" if distance is None else f" The network's model card states: Fréchet distance {distance}."
        return demo_report(
            backbone=config.backbone, data=data.name, result=result, evaluations=self.evaluations,
            read_at=f"The single-map heads read noise step t = {defaults.noise_step}; DifFormer reads t = "
            f"{listing(defaults.fusion_noise_steps)}.",
            images=images[:_MAPPED], noised=noise.noised(images[:_NOISED], index[:_NOISED]),
            maps=reader(images[:_MAPPED], index[:_MAPPED]), blocks=backbone.describe_blocks().capitalize(),
            samples=image_grid(samples),
            stated=stated, sampled=f"{config.samples} samples, DDIM with {config.sampling_steps} steps.",
            memorisation=self._memorisation(to_uint8(samples)), provenance=self._provenance(result),
        )  # fmt: skip

    def _memorisation(self, samples: Tensor) -> Section:
        """Whether the samples are copies of training images, by the features that the single-map heads read."""
        backbone, store = self.backbone, FeatureStore(self.store)
        space = FeatureSpace.of(backbone, seed=self.config.seed)
        (place,) = space.extractor.places

        def seen(split: ImageSplit) -> Iterator[Seen]:
            cache: FeatureCache = store.cache(split, [place])
            for entries in torch.arange(len(cache)).split(READ_BATCH):
                rows = cache.rows[entries]
                yield self._images(split, rows), cache.batch(entries)[place].mean((2, 3)), rows

        with evaluating(space.extractor):
            index = torch.arange(len(samples), device=backbone.device)
            maps = space.extractor(to_float(samples).to(backbone.device), index)[place]
        own = samples, maps.mean((2, 3)), index
        neighbours = find_nearest(own, seen(self.train), seen(self.data.test), space.name)
        searched = f"the {len(self.train):,} training images of this run"
        return copying_section(samples, neighbours, lambda rows: self._images(self.train, rows), searched)

    def _images(self, split: ImageSplit, rows: Tensor) -> Tensor:
        """uint8 (N, C, S, S), as the backbone takes them."""
        shape = self.backbone.in_channels, self.backbone.image_size
        return torch.stack([fit(split.image(i), *shape) for i in rows.tolist()])

    def _provenance(self, result: DemoResult) -> dict[str, object]:
        config, defaults = self.config, self.backbone.defaults
        return {
            "Command": shown_command(config),
            "Backbone": f"{config.backbone}, {sum(p.numel() for p in self.backbone.parameters()):,} parameters, "
            f"fingerprint {self.backbone.fingerprint()[:12]}",
            "Places read": f"single-map heads: block {defaults.block} at t = {defaults.noise_step}; DifFormer: blocks "
            f"{listing(defaults.fusion_blocks)} at t = {listing(defaults.fusion_noise_steps)}; DifFeed returns blocks "
            f"{listing(defaults.feedback_blocks)}",
            "Data": f"{self.data.name}, fingerprint {self.data.fingerprint()[:12]}",
            "Whole run": f"{result.seconds} s",
            **environment(self.process.device),
        }


def _one_of_each(data: ImageData) -> Tensor:
    """The first test image of each of the first eight classes present."""
    labels = data.test.labels
    assert labels is not None
    return torch.tensor([int((labels == k).nonzero()[0]) for k in labels.unique()[:8].tolist()])
