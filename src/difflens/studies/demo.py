"""`difflens demo`: every head on the bundled backbone, two baselines, and the samples of the backbone."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflens.backbones.base import DiffusionBackbone
from difflens.backbones.config import BACKBONE_OPTIONS
from difflens.backbones.pixels import is_pixels
from difflens.choices import ExtractorName, HeadName
from difflens.configs.command_line import shown_command
from difflens.configs.demo import DemoConfig
from difflens.configs.explore import ExploreConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.options import given, resolve
from difflens.configs.probe import ProbeConfig
from difflens.data.images import fit, to_float, to_uint8
from difflens.data.labels import limited, one_label, several_classes
from difflens.data.load import load_data
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, counted, listing, named
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache
from difflens.extractors.frozen import FrozenExtractor
from difflens.extractors.store import FeatureStore
from difflens.generation.fidelity import at_random
from difflens.generation.grid import image_grid, to_picture
from difflens.generation.samplers import make_sampler, sample
from difflens.metrics.classification import Evaluation
from difflens.metrics.memorisation import UNSEEN, Seen, find_nearest
from difflens.models.feature_space import FeatureSpace
from difflens.noise import TEST_IMAGES
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.pretraining.export import card_fact
from difflens.processes.base import in_words
from difflens.reports.demo import BASELINES, EXPLORER, TITLES, demo_report
from difflens.reports.html import Section, interval
from difflens.reports.memorisation import copying_section
from difflens.results.demo import DemoResult, DemoScore
from difflens.run.directory import FINISHED, RunDirectory, read_log
from difflens.studies.explore import explore
from difflens.studies.extract import extract
from difflens.tasks.classification.probe import probe

# heads on stored features; DifFeed and the baselines read images
_STORED: tuple[HeadName, ...] = ("linear", "mlp", "cnn", "attention", "difformer")
# the head in `model/` is fixed, because a choice by test accuracy would select on test data
_SAVED = "attention"
_LARGEST = 16  # side of the largest maps that a head reads
_NOISED, _MAPPED = 4, 6  # numbers of images in the pictures of noise and of feature maps


def demo(config: DemoConfig, announce: Callable[[str], object] = lambda line: None) -> DemoResult:
    """Extract the frozen features, probe them with every head, and write a report.

    Args:
        announce: receives a line on the accuracy of each head as soon as it is known.

    Raises:
        DiffLensError: the folder holds another run, the backbone is not a diffusion network that generates
            and has a decoder, or backbone or data cannot be loaded.
    """
    config = resolve(config)
    data = load_data(config.data, val_fraction=config.val_fraction)
    data = several_classes(one_label(data, "the demo"), "the demo")
    config = with_backbone(config, data.train)
    data = replace(data, test=limited(data.test, config.test_images, config.seed))
    opened = open_run(config, data, one_process="; `difflens probe` runs in several")
    backbone = opened.backbone
    if not isinstance(backbone, DiffusionBackbone):
        raise DiffLensError(f"the demo needs a diffusion backbone, and {config.backbone} is none")
    if not backbone.generates:
        raise DiffLensError(f"the demo shows samples, and {config.backbone} does not generate")
    if not backbone.defaults.feedback_blocks:
        raise DiffLensError(
            f"DifFeed, a head of the demo, needs a decoder, and {config.backbone} has none; `difflens probe` "
            "trains the other heads"
        )
    with opened.directory() as run:
        if run.finished:
            return run.read_json(FINISHED, lambda metrics: DemoResult.from_metrics(metrics, config.out))
        return _Demo(opened, backbone, run, announce).run_all()


class _Demo:
    """The steps of a demo, and the results that it has so far."""

    def __init__(
        self,
        opened: OpenedRun[ImageData],
        backbone: DiffusionBackbone,
        run: RunDirectory,
        announce: Callable[[str], object],
    ):
        self.opened, self.backbone, self.run, self.announce = opened, backbone, run, announce
        self.config: DemoConfig = opened.config
        self.data = opened.data
        self.train = limited(self.data.train, self.config.train_images, self.config.seed)
        self.store = self.config.out / "features"
        self.examples = _one_of_each(self.data)
        self.evaluations: dict[str, Evaluation] = {}
        self.results: dict[str, DemoScore] = {}

    @property
    def _common(self) -> dict[str, Any]:
        """Options of every command that the demo runs."""
        config = self.config
        return {name: getattr(config, name) for name in ("data", "val_fraction", "seed", "device", "resume")}

    @property
    def _network(self) -> dict[str, Any]:
        """Options of the backbone, which pixels do not read."""
        return {name: getattr(self.config, name) for name in BACKBONE_OPTIONS}

    def run_all(self) -> DemoResult:
        started = time.monotonic()
        name, side, channels = (
            given(self.config.backbone),
            self.backbone.image_size,
            self.backbone.in_channels,
        )
        self.announce(f"Top-1 accuracy on {counted(len(self.data.test), 'test image')}, 95 % intervals:")
        self._probe("pixels", "linear", f"pixels:{channels}x{side}")
        self._probe("random_backbone", "linear", f"random:{name}")
        self._extract()
        for head in _STORED:
            self._probe(head, head, name, store=self.store)
        self._probe("diffeed", "attention", name, "feedback")
        self._explore()
        heads = [head for head in self.results if head not in BASELINES]
        result = DemoResult(
            out=self.config.out,
            results=self.results,
            seconds=round(time.monotonic() - started, 1),
            train_images=len(self.train),
            test_images=len(self.data.test),
            best=max(heads, key=lambda head: self.results[head].top1),
            saved_head=_SAVED,
        )
        self.run.write("report.html", self._report(result))
        self.run.write_json(FINISHED, result.metrics())
        shutil.rmtree(self.store)  # the store is large, and nothing reads it any more
        return result

    def _extract(self) -> None:
        """Store the features that all heads on the frozen backbone read, with one pass over the images."""
        config, defaults = self.config, self.backbone.defaults
        extractor = FrozenExtractor(
            self.backbone,
            {defaults.block, *defaults.fusion_blocks},
            {defaults.noise_step, *defaults.fusion_noise_steps},
        )
        sides = [side for _, *sides in extractor.shapes().values() for side in sides if side > _LARGEST]
        # a head pools stored maps again; the result must equal pooling at once
        exact = all(side % _LARGEST == 0 for side in sides) and _LARGEST % defaults.token_side == 0
        extract(
            ExtractConfig(
                out=self.store,
                backbone=config.backbone,
                limit=config.train_images,
                blocks=extractor.blocks,
                noise_steps=extractor.noise_steps,
                pool=_LARGEST if exact else 0,
                **self._common,
                **self._network,
            ),
            data=self.data,
        )
        self.run.keep()

    def _probe(
        self,
        name: str,
        head: HeadName,
        backbone: str,
        extractor: ExtractorName = "frozen",
        store: Path | None = None,
    ) -> None:
        """Probe a backbone, and record the figures as the result `name`."""
        config = self.config
        options = ProbeConfig(
            out=config.out / "heads" / name,
            backbone=backbone,
            head=head,
            extractor=extractor,
            store=store,
            limit=config.train_images,
            log=config.log,
            normalise="none" if head == "linear" else None,  # all heads read the same features
            **self._common,
            **({} if is_pixels(backbone) else self._network),
        )
        epochs = max(1, round(options.usual_epochs * config.effort))
        result = probe(replace(options, epochs=epochs), self.data)
        self.run.keep()
        (self.evaluations[name],), (figures,) = result.evaluations, result.seeds
        self.results[name] = score = DemoScore(
            top1=result.top1,
            top1_interval_95=figures.interval,
            trainable_parameters=figures.trainable_parameters,
            train_seconds=figures.train_seconds,
        )
        self.announce(f"{TITLES[name]}: {100 * score.top1:.1f} % ({interval(score.top1_interval_95)})")
        logged = {record["head"] for record in read_log(self.run.path, "head")}
        if name not in logged:  # a resumed run has logged some heads
            self.run.log({"head": name, **score.metrics()})
        if name == _SAVED:
            self.run.write_folder("model", result.model.save)

    def _explore(self) -> None:
        """Write a page to look at similar positions in, on one test image of each class."""
        config, page = self.config, self.config.out / EXPLORER
        if not page.exists():
            shutil.rmtree(page.parent, ignore_errors=True)  # a stopped run
            for row in self.examples.tolist():
                self.run.write_with(f"pictures/{row:06d}.png", to_picture(self.data.test.image(row)).save)
            options = {**self._network, "seed": config.seed, "device": config.device}
            explore(
                ExploreConfig(
                    out=page.parent, images=(config.out / "pictures",), backbone=config.backbone, **options
                )
            )
            self.run.keep()

    @torch.no_grad()
    def _report(self, result: DemoResult) -> str:
        """Generate samples, draw the pictures, and return the HTML of the report."""
        config, data = self.config, self.data
        backbone = self.backbone.to(self.opened.process.device)
        defaults = backbone.defaults
        examples = data.test.subset(self.examples)
        index = torch.arange(len(examples), device=backbone.device)
        images = to_float(self._images(examples, index)).to(backbone.device)
        log_snr = backbone.process.by_noise
        # no head reads the large noise steps; they make noise visible
        large = {backbone.process.at(share) for share in (0.1, 0.25, 0.5)}
        steps = {*defaults.fusion_noise_steps, defaults.noise_step, *large}
        encoder, decoder = backbone.of_role("encoder"), backbone.of_role("decoder")
        ends = {encoder[len(encoder) // 2].index, decoder[-2].index}
        blocks = {*ends, *defaults.fusion_blocks, defaults.block}
        noise = FrozenExtractor(backbone, (defaults.block,), steps, config.seed)
        reader = FrozenExtractor(backbone, blocks, (defaults.noise_step,), config.seed)
        reader.compiled = False  # reading one batch takes less time than compiling
        samples = sample(backbone, config.samples, config.sampling_steps, config.seed)
        sampler = make_sampler(backbone, steps=config.sampling_steps)
        distance = card_fact(given(config.backbone), "Fréchet distance")
        # the model card's figure, because a distance of a few dozen samples would say nothing
        stated = "" if distance is None else f" The network's model card states: Fréchet distance {distance}."
        return demo_report(
            backbone=given(config.backbone),
            network=f"The network predicts {backbone.process.describe_prediction()}.",
            data=data.name,
            result=result,
            evaluations=self.evaluations,
            read_at=f"The single-map heads read noise step t = {in_words(log_snr((defaults.noise_step,)))}; "
            f"DifFormer reads t = {in_words(log_snr(defaults.fusion_noise_steps))}.",
            images=images[:_MAPPED],
            noised=noise.noised(images[:_NOISED], index[:_NOISED]),
            log_snr=log_snr(steps),
            maps=reader(images[:_MAPPED], index[:_MAPPED]),
            blocks=backbone.describe_blocks().capitalize(),
            samples=image_grid(samples),
            stated=stated,
            sampled=f"Number of samples: {config.samples}. Sampler: {sampler.name}, steps: {sampler.steps}.",
            memorisation=self._memorisation(to_uint8(samples)),
            provenance=self._provenance(result),
        )

    def _memorisation(self, samples: Tensor) -> Section:
        """Compare samples with training images, by the features that single-map heads read."""
        backbone, store = self.backbone, FeatureStore(self.store)
        space = FeatureSpace.of(backbone, seed=self.config.seed)
        (place,) = space.extractor.places

        def stored(split: ImageSplit) -> Iterator[Seen]:
            cache: FeatureCache = store.cache(split, [place])
            for entries in torch.arange(len(cache)).split(READ_BATCH):
                rows = cache.rows[entries]
                yield self._images(split, rows), cache.batch(entries)[place].mean((2, 3)), rows

        with evaluating(space.extractor):
            index = torch.arange(len(samples), device=backbone.device)
            # as test images: not with the noise of training images
            maps = space.extractor(to_float(samples).to(backbone.device), index + TEST_IMAGES)[place]
        generated = samples, maps.mean((2, 3)), index
        unseen = at_random(self.data.test, UNSEEN, self.config.seed)
        neighbours = find_nearest(generated, stored(self.train), stored(unseen), space.name)
        searched = f"the {counted(len(self.train), 'training image')} of this run"
        return copying_section(samples, neighbours, lambda rows: self._images(self.train, rows), searched)

    def _images(self, split: ImageSplit, rows: Tensor) -> Tensor:
        """Return images (N, C, S, S) uint8 in the size of the backbone."""
        shape = self.backbone.in_channels, self.backbone.image_size
        return torch.stack([fit(split.image(i), *shape) for i in rows.tolist()])

    def _provenance(self, result: DemoResult) -> dict[str, object]:
        defaults, log_snr = self.backbone.defaults, self.backbone.process.by_noise
        return {
            "Command": shown_command(self.config),
            "Places read": f"single-map heads: block {defaults.block} at t = "
            f"{in_words(log_snr((defaults.noise_step,)))}; DifFormer: blocks "
            f"{listing(defaults.fusion_blocks)} at t = {in_words(log_snr(defaults.fusion_noise_steps))}; "
            f"DifFeed returns {named('block', defaults.feedback_blocks)}",
            "Parameters": f"{sum(p.numel() for p in self.backbone.parameters()):,} in the backbone",
            "Time": f"{result.seconds} s since the last start",
            **self.opened.provenance(),
        }


def _one_of_each(data: ImageData) -> Tensor:
    """Return the positions of the first test image of each of the first eight classes that are present."""
    labels = data.test.labels
    assert labels is not None
    return torch.tensor([int((labels == k).nonzero()[0]) for k in labels.unique()[:8].tolist()])
