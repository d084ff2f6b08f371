"""`difflens explain`: a backbone's feature maps and nearest neighbours, and what a trained head attends to."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import normalize

from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place, pool_to
from difflens.configs.command_line import shown_command
from difflens.configs.explain import ExplainConfig
from difflens.configs.options import given, resolve
from difflens.data.files import list_images
from difflens.data.images import fit, to_float
from difflens.data.labels import balanced
from difflens.data.load import load_data
from difflens.data.loader import epoch_order
from difflens.data.split import FileSplit, ImageData, ImageSplit
from difflens.errors import DiffLensError
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, Reading, read_features
from difflens.extractors.frozen import FrozenExtractor
from difflens.heads.difformer import DifFormerHead
from difflens.heads.linear import LinearHead
from difflens.metrics.attribution import logit_shares
from difflens.models.saved import TrainedModel
from difflens.opening import open_run
from difflens.reports.explain import (
    Explained,
    attention_section,
    components_section,
    explain_report,
    linear_section,
    neighbours_section,
)
from difflens.results.explain import ExplainResult, HeadShares, Neighbour
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment

_BLOCKS = 7  # that fit beside each other
_STEPS = (0.005, 0.05, 0.1, 0.2, 0.4)  # shares of the schedule


def explain(config: ExplainConfig) -> ExplainResult:
    """Run `config` and fill its run directory with a report and a PNG of each picture.

    Raises:
        DiffLensError: anything in the configuration, the data, the backbone or the run is not what it should be.
    """
    config = resolve(config)
    config = replace(config, data=config.data or _data_of(config.run))
    data = load_data(given(config.data))
    model = None if config.run is None else TrainedModel.load(config.run, config.backbone)
    if model is not None:
        if not isinstance(model.probe.head, (LinearHead, DifFormerHead)):
            raise DiffLensError(
                f"the head of {config.run} is {model.head.name}: explain shows the attention of attention and DifFormer "
                "and the weights of linear heads. Leave out --run to explain the backbone alone"
            )
        config = replace(config, backbone=model.backbone.spec)
    config = replace(config, backbone=config.backbone or "fashion")
    opened = open_run(config, data, one_process="")
    if model is not None:
        model.probe.to(opened.process.device)
    backbone = opened.backbone.to(opened.process.device) if model is None else model.probe.extractor.backbone
    explanation = _Explanation(config, data, backbone, model, opened.process)
    with opened.directory() as run:
        return explanation.write(run, opened.fingerprints["backbone_fingerprint"])


def _data_of(run: Path | None) -> str:
    """What a run was trained on, as its configuration says."""
    if run is None:
        return "fashion"
    for stored in (run / "config.yaml", run.parent / "config.yaml"):
        try:
            return str(yaml.safe_load(stored.read_text())["data"])
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue
    raise DiffLensError(f"{run} does not say what it was trained on: name the data with --data")


class _Explanation:
    def __init__(
        self,
        config: ExplainConfig,
        data: ImageData,
        backbone: Backbone,
        model: TrainedModel | None,
        process: Accelerator,
    ):
        self.config, self.data, self.backbone, self.model, self.process = (
            config, data, backbone, model, process
        )  # fmt: skip
        every = [block.index for block in backbone.blocks]
        count = min(_BLOCKS, len(every))
        spread = {every[round(k * (len(every) - 1) / max(1, count - 1))] for k in range(count)}
        self.blocks = backbone.check_blocks(config.blocks or spread)
        ladder = {int(share * backbone.num_noise_steps) for share in _STEPS}
        self.steps = backbone.check_noise_steps(config.noise_steps or ladder)
        self.block = backbone.block(config.block or backbone.defaults.block).index
        step = backbone.defaults.noise_step if config.noise_step is None else config.noise_step
        (self.step,) = backbone.check_noise_steps((step,))
        if config.images:
            paths = list_images(config.images)[: config.count]
            self.shown: ImageSplit = FileSplit("images", [str(path) for path in paths])
        else:
            self.shown = data.test.subset(balanced(data.test, config.count, config.seed))
        self.reading = Reading(config.workers, config.on_bad_image, [])

    def write(self, run: RunDirectory, fingerprint: str) -> ExplainResult:
        config = self.config
        images, index, rows = self._shown_images()
        explained = [self._components(images, index, rows)]
        shares = None
        if self.model is not None:
            section, shares = self._head(images, index)
            explained.append(section)
        section, neighbours = self._neighbours(images, index, rows)
        explained.append(section)
        result = ExplainResult(
            out=config.out,
            images=tuple(self.shown.ids[row] for row in rows),
            head=shares,
            neighbours=neighbours,
            skipped_images=tuple(self.reading.skipped),
        )
        for name, figure in (item for _, figures in explained for item in figures.items()):
            run.write_with(f"{name}.png", partial(figure.savefig, dpi=160, bbox_inches="tight"))
        report = explain_report(
            backbone=given(config.backbone), data=self.data.name,
            head="" if self.model is None else f"the {self.model.head.name} head of {config.run}",
            sections=[section for section, _ in explained],
            provenance={
                "Command": shown_command(config),
                "Backbone": f"{config.backbone}, fingerprint {fingerprint[:12]}",
                "Data": f"{self.data.name}, fingerprint {self.data.fingerprint()[:12]}",
                "Seed": config.seed,
                **environment(self.process.device),
            },
        )  # fmt: skip
        run.write("report.html", report)
        run.write_json(FINISHED, result.metrics())
        return result

    def _shown_images(self) -> tuple[Tensor, Tensor, list[int]]:
        """(N, C, S, S) in [-1, 1], their noise's index, and their positions among the images to show."""
        reader = FrozenExtractor(self.backbone, (self.block,), (self.step,))
        batches = list(self.reading.batches(reader, self.shown, torch.arange(len(self.shown))))
        if not batches:
            raise DiffLensError("none of the images to show could be read")
        return (
            torch.cat([to_float(batch.images) for batch in batches]),
            torch.cat([batch.index for batch in batches]),
            torch.cat([batch.rows for batch in batches]).tolist(),
        )

    @torch.no_grad()
    def _components(self, images: Tensor, index: Tensor, rows: list[int]) -> Explained:
        extractor = FrozenExtractor(self.backbone, self.blocks, self.steps, self.config.seed)
        names = [self._name(row) for row in rows]
        return components_section(extractor.noised(images, index), extractor(images, index), names)

    def _name(self, row: int) -> str:
        labels = self.shown.labels
        label = "" if labels is None else f" ({self.data.classes[int(labels[row])]})"
        return f"{self.shown.ids[row]}{label}"

    @torch.no_grad()
    def _neighbours(
        self, images: Tensor, index: Tensor, rows: list[int]
    ) -> tuple[Explained, tuple[tuple[Neighbour, ...], ...]]:
        config, train = self.config, self.data.train
        extractor = FrozenExtractor(self.backbone, (self.block,), (self.step,), config.seed)
        place = (self.block, self.step)
        bank_split = train.subset(balanced(train, config.limit, config.seed))
        cache = read_features(extractor, config.pool, bank_split, self.process, self.reading)
        bank = normalize(_vectors(cache, place), dim=1)
        queries = pool_to(extractor(images, index)[place], config.pool).cpu().half().float().flatten(1)
        nearest = (normalize(queries, dim=1) @ bank.T).topk(min(config.neighbours, len(bank)))
        found: list[tuple[Neighbour, ...]] = []
        tiles, names = [], []
        for similarity, where in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
            positions = [int(cache.rows[k]) for k in where]
            classes = [self._class_of(bank_split, row) for row in positions]
            found.append(tuple(
                Neighbour(bank_split.ids[row], label, round(value, 4))
                for row, label, value in zip(positions, classes, similarity, strict=True)
            ))  # fmt: skip
            side, channels = self.backbone.image_size, self.backbone.in_channels
            tiles.append(
                torch.stack([to_float(fit(bank_split.image(row), channels, side)) for row in positions])
            )
            names.append(
                [f"{label} {value:.2f}".strip() for label, value in zip(classes, similarity, strict=True)]
            )
        own = [self._class_of(self.shown, row) or self.shown.ids[row].rpartition("/")[2] for row in rows]
        searched = (
            f"The most similar of {len(bank):,} training images, by block {self.block} at noise step {self.step}, "
            f"pooled to {config.pool} x {config.pool}."
        )
        return neighbours_section(images, torch.stack(tiles), own, names, searched), tuple(found)

    def _class_of(self, split: ImageSplit, row: int) -> str:
        return "" if split.labels is None else self.data.classes[int(split.labels[row])]

    @torch.no_grad()
    def _head(self, images: Tensor, index: Tensor) -> tuple[Explained, HeadShares]:
        """Where the run's head looks, on test images; and on those that are shown."""
        assert self.model is not None
        probe, test = self.model.probe, self.data.test
        rows = epoch_order(len(test), self.config.seed, 0)[: self.config.limit]
        parts, own, shares, images_seen = [], [], dict[Place, list[Tensor]](), 0
        with evaluating(probe):
            for batch in self.reading.batches(probe.extractor, test, rows, READ_BATCH):
                maps = probe.extractor(to_float(batch.images), batch.index)
                images_seen += len(batch)
                if isinstance(probe.head, LinearHead):
                    parts.append(probe.head.logits_by_place(maps).cpu())
                    continue
                assert isinstance(probe.head, DifFormerHead)
                parts.append(probe.head.logits_by_noise_step(maps).cpu())
                cls, looked = probe.head.attention(maps)
                own.append(cls.cpu())
                for place, weights in looked.items():
                    shares.setdefault(place, []).append(weights.sum((1, 2)).cpu())
        contributions = logit_shares(torch.cat(parts, dim=1)).tolist()
        if isinstance(probe.head, LinearHead):
            places = map(_words, probe.head.places)
            named = dict(zip(places, contributions, strict=True))
            return linear_section(named, images_seen), HeadShares(images_seen, named)
        assert isinstance(probe.head, DifFormerHead)
        attention = {place: float(torch.cat(each).mean()) for place, each in shares.items()}
        steps = probe.head.noise_steps
        on_cls = dict(zip(steps, torch.cat(own).mean(0).tolist(), strict=True))
        by_step = dict(zip(steps, contributions, strict=True))
        with evaluating(probe):
            looked = probe.head.attention(probe.extractor(images, index))[1]
        section = attention_section(images, looked, attention, on_cls, by_step, images_seen)
        return section, HeadShares(
            test_images=images_seen,
            logits={f"t = {t}": share for t, share in by_step.items()},
            attention={_words(place): share for place, share in attention.items()},
            on_cls={f"t = {t}": share for t, share in on_cls.items()},
        )


def _words(place: Place) -> str:
    return "block {}, t = {}".format(*place)


def _vectors(cache: FeatureCache, place: Place) -> Tensor:
    return cache.maps[place][torch.arange(len(cache))].float().flatten(1)
