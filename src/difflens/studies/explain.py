"""`difflens explain`: pictures of what a backbone's features are like, and of where a trained head looks."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from matplotlib.figure import Figure
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
from difflens.noise import seeded_noise
from difflens.opening import open_run
from difflens.reports.charts import share_bars
from difflens.reports.html import Picture, Section, Table, render
from difflens.reports.pictures import attention_overlays, components_over_noise, nearest_neighbours
from difflens.results.explain import ExplainResult, HeadShares, Neighbour
from difflens.run.directory import FINISHED, RunDirectory
from difflens.run.provenance import environment

_BLOCKS = 7  # that fit beside each other
_STEPS = (0.005, 0.05, 0.1, 0.2, 0.4)  # shares of the schedule
_OVERLAYS = 8  # maps beside each other; of more, the sum of each noise step


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
        self.pictures: dict[str, Figure] = {}

    def write(self, run: RunDirectory, fingerprint: str) -> ExplainResult:
        config = self.config
        images, index, rows = self._shown_images()
        sections = [self._components(images, index, rows)]
        shares = None
        if self.model is not None:
            section, shares = self._head(images, index)
            sections.append(section)
        section, neighbours = self._neighbours(images, index, rows)
        sections.append(section)
        result = ExplainResult(
            out=config.out,
            images=tuple(self.shown.ids[row] for row in rows),
            head=shares,
            neighbours=neighbours,
            skipped_images=tuple(self.reading.skipped),
        )
        for name, figure in self.pictures.items():
            run.write_with(f"{name}.png", partial(figure.savefig, dpi=160, bbox_inches="tight"))
        head = "" if self.model is None else f", read by the {self.model.head.name} head of {config.run}"
        lead = f"The features of {config.backbone} on images of {self.data.name}{head}."
        report = render("What the features are like", lead, sections, {
            "Command": shown_command(config),
            "Backbone": f"{config.backbone}, fingerprint {fingerprint[:12]}",
            "Data": f"{self.data.name}, fingerprint {self.data.fingerprint()[:12]}",
            "Seed": config.seed,
            **environment(self.process.device),
        })  # fmt: skip
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
    def _components(self, images: Tensor, index: Tensor, rows: list[int]) -> Section:
        config = self.config
        maps = FrozenExtractor(self.backbone, self.blocks, self.steps, config.seed)(images, index)
        shape = tuple(images.shape[1:])
        noised = {
            t: self.backbone.add_noise(images, t, seeded_noise(shape, index, t, config.seed))
            for t in self.steps
        }
        parts = []
        for number, row in enumerate(rows):
            figure = components_over_noise(noised, maps, number)
            self.pictures[f"components-{number}"] = figure
            parts.append(Picture(figure, f"{self._name(row)}.", f"Principal components of image {number}"))
        text = (
            "The first three principal components of each block's map as red, green and blue, fitted over all positions "
            "of these images at all noise steps: within a column colours compare, between columns they do not."
        )
        return Section("Maps over noise steps", text, tuple(parts))

    def _name(self, row: int) -> str:
        labels = self.shown.labels
        label = "" if labels is None else f" ({self.data.classes[int(labels[row])]})"
        return f"{self.shown.ids[row]}{label}"

    @torch.no_grad()
    def _neighbours(
        self, images: Tensor, index: Tensor, rows: list[int]
    ) -> tuple[Section, tuple[tuple[Neighbour, ...], ...]]:
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
        figure = nearest_neighbours(images, torch.stack(tiles), own, names)
        self.pictures["neighbours"] = figure
        picture = Picture(
            figure, "On the left the image, then its neighbours with their classes and cosine similarities.",
            "Images and their nearest neighbours",
        )  # fmt: skip
        text = (
            f"The most similar of {len(bank):,} training images, by block {self.block} at noise step {self.step}, "
            f"pooled to {config.pool} x {config.pool}. Labels played no part in finding them."
        )
        return Section("Nearest neighbours", text, (picture,)), tuple(found)

    def _class_of(self, split: ImageSplit, row: int) -> str:
        return "" if split.labels is None else self.data.classes[int(split.labels[row])]

    @torch.no_grad()
    def _head(self, images: Tensor, index: Tensor) -> tuple[Section, HeadShares]:
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
            return self._linear(probe.head, contributions, images_seen)
        assert isinstance(probe.head, DifFormerHead)
        attention = {place: float(torch.cat(each).mean()) for place, each in shares.items()}
        with evaluating(probe):
            looked = probe.head.attention(probe.extractor(images, index))[1]
        return self._attention(
            probe.head, attention, torch.cat(own).mean(0).tolist(), contributions, images, looked, images_seen
        )

    def _linear(
        self, head: LinearHead, contributions: list[float], images: int
    ) -> tuple[Section, HeadShares]:
        named = {
            f"block {block}, t = {t}": share
            for (block, t), share in zip(head.places, contributions, strict=True)
        }
        figure = share_bars(named, "share of the variance of the logits")
        self.pictures["weights"] = figure
        text = (
            f"How much of what tells classes and images apart in the logits comes from each place, measured on {images:,} "
            "test images. A negative share means that a place works against the others."
        )
        if len(named) == 1:
            text += " This run reads one place; a linear probe on several --blocks shows more."
        picture = Picture(
            figure, "Shares of the places; they sum to 100 %.", "Which blocks the linear probe uses"
        )
        return Section("Which blocks the weights use", text, (picture,)), HeadShares(images, named)

    def _attention(
        self,
        head: DifFormerHead,
        attention: dict[Place, float],
        own: list[float],
        contributions: list[float],
        images: Tensor,
        looked: dict[Place, Tensor],
        count: int,
    ) -> tuple[Section, HeadShares]:
        if len(looked) <= _OVERLAYS:
            overlays = {f"block {block}\nt = {t}": weights for (block, t), weights in looked.items()}
        else:
            overlays = {f"all blocks\nt = {t}": _summed(looked, head, t) for t in head.noise_steps}
        overlay = attention_overlays(images, overlays)
        bars = share_bars(
            {f"block {block}, t = {t}": share for (block, t), share in attention.items()},
            "share of CLS's attention at this noise step",
        )
        self.pictures |= {"attention": overlay, "attention-shares": bars}
        rows: list[tuple[object, ...]] = [
            (f"t = {t}", *(f"{100 * attention[block, t]:.1f}" for block in head.blocks), f"{100 * own[k]:.1f}",
             f"{100 * contributions[k]:.1f}")
            for k, t in enumerate(head.noise_steps)
        ]  # fmt: skip
        tokens = {block: looked[block, head.noise_steps[0]][0].numel() for block in head.blocks}
        even = 1 + sum(tokens.values())
        rows.append(("if all tokens had the same", *(f"{100 * tokens[b] / even:.1f}" for b in head.blocks),
                     f"{100 / even:.1f}", None))  # fmt: skip
        columns = (
            "Noise step",
            *(f"block {block}, %" for block in head.blocks),
            "CLS itself, %",
            "share of logits, %",
        )
        text = (
            "Weights with which CLS attends to the maps in the last transformer block, averaged over attention heads and "
            f"{count:,} test images. Each noise step has a CLS of its own, whose attention sums to 100 %; how much the "
            "noise steps matter is seen in the logits, as each one's share of their variance."
        )
        section = Section("Where CLS looks", text, (
            Picture(overlay, "Attention over the places of the image, each overlay scaled to its own maximum.",
                    "Attention of CLS over images"),
            Table(columns, rows, "Shares; the last row is what the number of tokens alone would give."),
            Picture(bars, "The same shares.", "Shares of the attention of CLS"),
        ))  # fmt: skip
        return section, HeadShares(
            test_images=count,
            logits={f"t = {t}": share for t, share in zip(head.noise_steps, contributions, strict=True)},
            attention={f"block {block}, t = {t}": share for (block, t), share in attention.items()},
            on_cls={f"t = {t}": share for t, share in zip(head.noise_steps, own, strict=True)},
        )


def _summed(looked: dict[Place, Tensor], head: DifFormerHead, t: int) -> Tensor:
    """The attention of all blocks at one noise step, (B, S, S), on the grid of the largest map."""
    side = max(looked[block, t].shape[-1] for block in head.blocks)
    total = torch.zeros(())
    for block in head.blocks:
        weights = looked[block, t].cpu()
        grown = torch.nn.functional.interpolate(weights[:, None], (side, side), mode="bilinear")[:, 0]
        # a token's weight is spread over the places that it covers
        total = total + grown * (weights.shape[-1] / side) ** 2
    return total


def _vectors(cache: FeatureCache, place: Place) -> Tensor:
    return cache.maps[place][torch.arange(len(cache))].float().flatten(1)
