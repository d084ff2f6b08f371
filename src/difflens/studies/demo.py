"""The main job in one command: what the bundled backbone knows, read with every head, against two baselines."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from difflens import presets
from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.config import BackboneConfig
from difflens.backbones.load import load_backbone
from difflens.backbones.pixels import PixelBackbone
from difflens.choices import HeadName
from difflens.configs.command_line import shown_command
from difflens.configs.demo import DemoConfig
from difflens.configs.options import given, recorded, resolve
from difflens.configs.train import TrainConfig
from difflens.data.images import fit as fit_images
from difflens.data.images import to_float, to_uint8
from difflens.data.load import load_data
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.frozen import FrozenExtractor
from difflens.generation.grid import image_grid
from difflens.generation.samplers import sample
from difflens.heads.config import HeadConfig
from difflens.heads.make import make_head
from difflens.metrics.classification import Evaluation, paired_difference
from difflens.metrics.memorisation import Seen, find_nearest
from difflens.models.feature_space import FeatureSpace
from difflens.models.probe import Probe
from difflens.models.saved import TrainedModel
from difflens.pretraining.export import card_fact
from difflens.reports import charts, pictures
from difflens.reports.html import Picture, Section, Table, render
from difflens.reports.memorisation import copying_section
from difflens.results.demo import DemoResult, DemoScore
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.processes import accelerator
from difflens.run.provenance import environment
from difflens.tasks.classification.train import evaluate, fit

# name in the results, how the table calls it
_TITLES = {
    "pixels": "Raw pixels, linear",
    "random_backbone": "Untrained backbone, linear",
    "linear": "Linear probe",
    "mlp": "MLP",
    "cnn": "CNN",
    "attention": "Attention head",
    "difformer": "DifFormer",
    "diffeed": "DifFeed",
}
_BASELINES = ("pixels", "random_backbone")
# which head `model/` holds: named beforehand, since choosing by test accuracy would be selecting on test data
_KEPT = "attention"


def demo(config: DemoConfig) -> DemoResult:
    """Run `config` and fill its run directory.

    Raises:
        DiffLensError: the folder holds something, or backbone or data cannot be loaded.
    """
    settings = recorded(config)
    config = resolve(config)
    process = accelerator(config.device)
    if process.num_processes > 1:
        raise DiffLensError("the demo runs in one process; `difflens probe` runs in several")
    data = load_data(config.data)
    data = replace(
        data, train=data.train.first(config.train_images), test=data.test.first(config.test_images)
    )
    backbone = load_backbone(config.backbone)
    if not isinstance(backbone, DiffusionBackbone):
        raise DiffLensError(f"the demo needs a diffusion backbone, and {config.backbone} is none")
    run = RunDirectory(config.out, "demo", settings, resume=None)
    with run.working():
        return _Demo(config, data, backbone, run, process).run_all()


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
        self.evaluations: dict[str, Evaluation] = {}
        self.results: dict[str, DemoScore] = {}
        self.model: TrainedModel | None = None

    def run_all(self) -> DemoResult:
        started = time.monotonic()
        defaults = self.backbone.defaults
        single, fused = ((defaults.block,), (defaults.noise_step,)), (
            defaults.fusion_blocks, defaults.fusion_noise_steps
        )  # fmt: skip
        clean = PixelBackbone(self.backbone.in_channels, self.backbone.image_size)
        self._frozen("pixels", "linear", clean, ((1,), (0,)), pool=0)
        untrained = load_backbone(f"random:{self.config.backbone}").to(self.process.device)
        self._frozen("random_backbone", "linear", untrained, single)
        self.backbone.to(self.process.device)
        # one reading of the frozen backbone serves every head on it
        blocks, steps = ({*a, *b} for a, b in zip(single, fused, strict=True))
        self.caches = caches = self._extract(FrozenExtractor(self.backbone, blocks, steps, self.config.seed))
        heads: tuple[HeadName, ...] = ("linear", "mlp", "cnn", "attention")
        for name in heads:
            self._frozen(name, name, self.backbone, single, caches=caches)
        self._frozen("difformer", "difformer", self.backbone, fused, caches=caches)
        self._feedback(single)
        result = DemoResult(
            out=self.config.out,
            results=self.results,
            seconds=round(time.monotonic() - started, 1),
            train_images=len(self.data.train),
            test_images=len(self.data.test),
            best=max((n for n in self.results if n not in _BASELINES), key=lambda n: self.results[n].top1),
            saved_head=_KEPT,
        )
        self.run.write("report.html", self._report(result))
        assert self.model is not None
        self.run.write_folder("model", self.model.save)
        self.run.write_json(FINISHED, result.metrics())
        return result

    def _frozen(
        self,
        name: str,
        head: HeadName,
        backbone: Backbone,
        places: tuple[tuple[int, ...], tuple[int, ...]],
        pool: int | None = None,
        caches: tuple[FeatureCache, FeatureCache] | None = None,
    ) -> None:
        extractor = ExtractorConfig("frozen", *places, self.config.seed)
        built = extractor.build(backbone)
        built.compiled = False  # twelve thousand images are read sooner than a graph is made
        train, test = caches or self._extract(built)
        self._train(
            name,
            backbone,
            extractor,
            self._head(head, pool),
            (train.only(built.places), test.only(built.places)),
        )

    def _feedback(self, places: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        extractor = ExtractorConfig("feedback", *places, self.config.seed)
        self._train("diffeed", self.backbone, extractor, self._head("attention"))

    def _train(
        self,
        name: str,
        backbone: Backbone,
        extractor: ExtractorConfig,
        head: HeadConfig,
        caches: tuple[FeatureCache, FeatureCache] | None = None,
    ) -> None:
        torch.manual_seed(self.config.seed)
        built = extractor.build(backbone)
        built.compiled = False
        probe = Probe(built, make_head(head, built.shapes(), len(self.data.classes)))
        training = self._training(name if name in (*presets.HEADS, "diffeed") else head.name)
        seconds = fit(
            probe, self.data.train, training, self.process, cache=caches and caches[0], label=_TITLES[name]
        )
        evaluation = evaluate(
            probe, self.data.test, self.data.classes, training, self.process, caches and caches[1]
        )
        self.evaluations[name] = evaluation
        self.results[name] = DemoScore(
            top1=evaluation.top1,
            top1_interval_95=evaluation.top1_interval,
            trainable_parameters=probe.trainable_parameters,
            train_seconds=round(seconds, 2),
        )
        self.run.log({"head": name, **self.results[name].metrics()})
        if name == _KEPT:
            info = {"data": self.data.name, "top1": round(evaluation.top1, 4), "epochs": training.epochs}
            self.model = TrainedModel(
                probe, self.data.classes, BackboneConfig(self.config.backbone), extractor, head,
                self.backbone.fingerprint(), info,
            )  # fmt: skip

    def _head(self, name: HeadName, pool: int | None = None) -> HeadConfig:
        tokens = self.backbone.defaults.token_side if name in ("attention", "difformer") else None
        return HeadConfig(name, pool if pool is not None else tokens)

    def _training(self, head: str) -> TrainConfig:
        recipe = presets.EXTRACTORS["feedback"] if head == "diffeed" else presets.HEADS[head]
        known = {key: value for key, value in recipe.items() if key in TrainConfig.__dataclass_fields__}
        training = TrainConfig(**known, seed=self.config.seed)
        return replace(training, epochs=max(1, round(given(training.epochs) * self.config.effort)))

    def _extract(self, extractor: Any) -> tuple[FeatureCache, FeatureCache]:
        pool = None if isinstance(extractor.backbone, PixelBackbone) else 16
        train, test = (
            read_features(extractor, pool, split, self.process) for split in (self.data.train, self.data.test)
        )
        return train, test

    def _report(self, result: DemoResult) -> str:
        config, data, backbone, results = self.config, self.data, self.backbone, self.results
        defaults = backbone.defaults
        best = result.best
        shown = data.test.subset(_one_of_each(data))
        images = to_float(self._images(shown, torch.arange(len(shown)))).to(backbone.device)
        far = {backbone.num_noise_steps // share for share in (10, 4, 2)}  # for the eye: not read by any head
        steps = sorted({*defaults.fusion_noise_steps, defaults.noise_step, *far})
        spread = sorted({
            backbone.of_role("encoder")[len(backbone.of_role("encoder")) // 2].index,
            *defaults.fusion_blocks, defaults.block, backbone.of_role("decoder")[-2].index,
        })  # fmt: skip
        samples = sample(backbone, config.samples, config.sampling_steps, config.seed)
        distance = card_fact(config.backbone, "Fréchet distance")
        # of a few dozen samples it would mean nothing
        stated = "" if distance is None else f" The network's model card states: Fréchet distance {distance}."
        rows: list[tuple[object, ...]] = [
            (
                _TITLES[name], f"{100 * row.top1:.2f}",
                "{:.1f} - {:.1f}".format(*(100 * bound for bound in row.top1_interval_95)),
                f"{row.trainable_parameters:,}", f"{row.train_seconds:.1f}",
            )
            for name, row in results.items()
        ]  # fmt: skip
        sections = [
            Section("Results", self._findings(), (
                Table(("Features and head", "Top-1, %", "95 % interval", "Trainable parameters", "Training, s"), rows,
                      f"{len(data.train):,} training images, {len(data.test):,} test images, each evaluated once. "
                      "Training times are for comparison within this run; reading features is not included.",
                      list(results).index(best)),
                Picture(
                    charts.accuracy_bars(
                        [_TITLES[name] for name in results], [row.top1 for row in results.values()],
                        [row.top1_interval_95 for row in results.values()],
                        [_TITLES[name] for name in _BASELINES],
                    ),
                    "Top-1 accuracy with 95 % intervals.", "Top-1 accuracy of every head with its interval"),
            )),
            Section("What the backbone sees", f"The single-map heads read noise step t = {defaults.noise_step}; "
                    f"DifFormer reads t = {_join(defaults.fusion_noise_steps)}.", (
                Picture(pictures.noised_images(backbone, images[:4], steps, config.seed),
                        "Test images, clean and noised.", "Images at increasing noise steps"),
            )),
            Section("What it makes of it", "The first three principal components of each block's feature maps, as red, "
                    "green and blue. No label was used to make them.", (
                Picture(pictures.principal_components(backbone, images[:6], spread, defaults.noise_step, config.seed),
                        f"Feature maps at t = {defaults.noise_step}. {backbone.describe_blocks().capitalize()}.",
                        "Principal components of feature maps as colour images"),
            )),
            Section("What it can draw", f"Images generated by the same weights, not selected.{stated}", (
                Picture(image_grid(samples),
                        f"{config.samples} samples, DDIM with {config.sampling_steps} steps.",
                        "A grid of generated images", scale=3),
            )),
            self._copying(to_uint8(samples)),
            Section(f"Where the best head errs: {_TITLES[best]}", "", (
                Picture(charts.confusion_matrix(self.evaluations[best].confusion, data.classes, ""),
                        "Rows are true classes, columns predictions; test images counted.",
                        "Confusion matrix of the best head"),
            )),
        ]  # fmt: skip
        lead = (
            f"One unconditional diffusion network ({config.backbone}), trained only to predict noise and never shown a "
            f"label, frozen, and read by small heads on {data.name}."
        )
        return render("What a diffusion model knows", lead, sections, self._provenance(result))

    def _copying(self, samples: Tensor) -> Section:
        """Are the samples copies of training images? By the features that the single-map heads read."""
        backbone, (train, test) = self.backbone, self.caches
        space = FeatureSpace.of(backbone, seed=self.config.seed)
        (place,) = space.extractor.places

        def seen(split: ImageSplit, cache: FeatureCache) -> Iterator[Seen]:
            for entries in torch.arange(len(cache)).split(READ_BATCH):
                rows = cache.rows[entries]
                yield self._images(split, rows), cache.only([place]).batch(entries)[place].mean((2, 3)), rows

        with evaluating(space.extractor):
            index = torch.arange(len(samples), device=backbone.device)
            maps = space.extractor(to_float(samples).to(backbone.device), index)[place]
        neighbours = find_nearest(
            (samples, maps.mean((2, 3)), index),
            seen(self.data.train, train),
            seen(self.data.test, test),
            space.name,
        )
        searched = f"the {len(train):,} training images of this run"
        return copying_section(
            samples, neighbours, lambda rows: self._images(self.data.train, rows), searched
        )

    def _images(self, split: ImageSplit, rows: Tensor) -> Tensor:
        """uint8 (N, C, S, S), as the backbone takes them."""
        shape = self.backbone.in_channels, self.backbone.image_size
        return torch.stack([fit_images(split.image(i), *shape) for i in rows.tolist()])

    def _findings(self) -> str:
        """The comparisons that matter, in words, with their uncertainty."""
        sentences = []
        for a, b in (("attention", "linear"), ("difformer", "attention"), ("diffeed", "attention")):
            difference, half = paired_difference(self.evaluations[a], self.evaluations[b])
            verdict = (
                "above"
                if difference > half
                else "below"
                if difference < -half
                else "within the uncertainty of"
            )
            sentences.append(
                f"{_TITLES[a]} minus {_TITLES[b]}: {100 * difference:+.2f} ± {100 * half:.2f} points on the same "
                f"test images (95 %), so {_TITLES[a]} is {verdict} {_TITLES[b]}."
            )
        pixels = self.results["pixels"].top1
        behind = [_TITLES[n] for n, row in self.results.items() if n not in _BASELINES and row.top1 <= pixels]
        sentences.append(
            f"Not above raw pixels: {_join(behind)}."
            if behind
            else "Every head on the frozen backbone is above raw pixels."
        )
        return " ".join(sentences)

    def _provenance(self, result: DemoResult) -> dict[str, object]:
        config = self.config
        return {
            "Command": shown_command(config),
            "Backbone": f"{config.backbone}, {sum(p.numel() for p in self.backbone.parameters()):,} parameters, "
            f"fingerprint {self.backbone.fingerprint()[:12]}",
            "Places read": f"single-map heads: block {self.backbone.defaults.block} at t = "
            f"{self.backbone.defaults.noise_step}; DifFormer: blocks {_join(self.backbone.defaults.fusion_blocks)} at "
            f"t = {_join(self.backbone.defaults.fusion_noise_steps)}; DifFeed returns blocks "
            f"{_join(self.backbone.defaults.feedback_blocks)}",
            "Data": f"{self.data.name}, fingerprint {self.data.fingerprint()[:12]}",
            "Whole run": f"{result.seconds} s",
            **environment(self.process.device),
        }


def _one_of_each(data: ImageData) -> torch.Tensor:
    """The first test image of each of the first eight classes present."""
    labels = data.test.labels
    assert labels is not None
    return torch.tensor([int((labels == k).nonzero()[0]) for k in labels.unique()[:8].tolist()])


def _join(values: Any) -> str:
    return ", ".join(str(value) for value in values)
