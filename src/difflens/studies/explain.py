"""`difflens explain`: feature maps and nearest neighbours of a backbone, and what a trained head reads."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place, pool_to
from difflens.configs.command_line import shown_command
from difflens.configs.explain import MOST_IMAGES, ExplainConfig
from difflens.configs.options import given, resolve
from difflens.data.changes import say_changes
from difflens.data.files import list_images
from difflens.data.images import fit, to_float
from difflens.data.labels import balanced, one_label
from difflens.data.load import load_data
from difflens.data.loader import epoch_order
from difflens.data.split import FileSplit, ImageData, ImageSplit
from difflens.errors import DiffLensError, counted, listing
from difflens.extractors.base import evaluating
from difflens.extractors.cache import READ_BATCH, FeatureCache, Reading, read_features
from difflens.extractors.frozen import FrozenExtractor
from difflens.heads.difformer import DifFormerHead
from difflens.heads.linear import LinearHead
from difflens.heads.mix import MixHead
from difflens.metrics.attribution import logit_shares
from difflens.models.probe import Probe
from difflens.models.saved import TrainedModel
from difflens.opening import OpenedRun, open_run, with_backbone
from difflens.processes.base import bracketed, in_words
from difflens.reports.explain import (
    Explained,
    attention_section,
    components_section,
    explain_report,
    linear_section,
    mix_section,
    neighbours_section,
)
from difflens.reports.html import report_of
from difflens.reports.png import write_png
from difflens.reports.style import shortened
from difflens.results.explain import ExplainResult, HeadShares, Neighbour
from difflens.run.directory import CONFIG, FINISHED, RunDirectory
from difflens.run.reading import read_yaml
from difflens.studies.places import evenly
from difflens.studies.run_data import RunData

_COUNT = 4  # images, where none are named
_BLOCKS = 7  # the most blocks beside each other
_STEPS = (0.005, 0.05, 0.1, 0.2, 0.4)  # default noise steps, as shares of the schedule


def explain(config: ExplainConfig) -> ExplainResult:
    """Explain a backbone, or the trained head of a run, and write a report and a PNG of each picture.

    Raises:
        DiffLensError: an option is out of range, the data, the backbone or the run cannot be loaded, or the
            run's head has neither attention nor weights of places.
    """
    config = resolve(config)
    config, data = _with_data(config)
    data = one_label(data, "explain")
    model = None if config.run is None else TrainedModel.load(config.run, config.backbone)
    if model is not None:
        if not isinstance(model.probe.head, (LinearHead, DifFormerHead, MixHead)):
            raise DiffLensError(
                f"the head of {config.run} is {model.head.name}: explain shows the attention of attention "
                "heads and DifFormer, and the weights of mix and of linear heads. Leave out --run to explain "
                "the backbone alone"
            )
        config = replace(config, backbone=model.backbone.spec)
    config = with_backbone(config, data.train)
    read = None
    if model is not None:
        read = model.backbone, model.probe.extractor.backbone, model.fingerprint
    opened = open_run(config, data, one_process="", read=read)
    if model is not None:
        model.probe.to(opened.process.device)
    explanation = _Explanation(opened, opened.backbone.to(opened.process.device), model)
    with opened.directory() as run:
        return explanation.write(run)


def _with_data(config: ExplainConfig) -> tuple[ExplainConfig, ImageData]:
    """Return the configuration and the data that it names: else those of the run, else the bundled ones."""
    run = config.run
    if config.data is not None or run is None:
        config = replace(config, data=config.data or "fashion")
        return config, load_data(given(config.data), val_fraction=config.val_fraction)
    folder = next((each for each in (run, run.parent) if (each / CONFIG).exists()), None)
    if folder is None:
        raise DiffLensError(f"{run} does not say what it was trained on: name the data with --data")
    record = read_yaml(folder / CONFIG, RunData)
    return replace(config, data=record.data, val_fraction=record.val_fraction), record.load(run)


class _Explanation:
    """The images, places and pictures of one explanation."""

    def __init__(self, opened: OpenedRun[ImageData], backbone: Backbone, model: TrainedModel | None):
        self.opened, self.backbone, self.model = opened, backbone, model
        self.config: ExplainConfig = opened.config
        self.data = data = opened.data
        config = self.config
        blocks = [block.index for block in backbone.blocks]
        self.blocks = backbone.check_blocks(config.blocks or evenly(blocks, _BLOCKS))
        ladder = {*map(backbone.process.at, _STEPS)}
        self.steps = backbone.check_noise_steps(config.noise_steps or ladder)
        self.block = backbone.block(config.block or backbone.defaults.block).index
        step = backbone.defaults.noise_step if config.noise_step is None else config.noise_step
        (self.step,) = backbone.check_noise_steps((step,))
        if config.images:
            paths = list_images(config.images)[: config.count]
            if len(paths) > MOST_IMAGES:
                raise DiffLensError(
                    f"{counted(len(paths), 'image')} are named, and a report shows at most {MOST_IMAGES}: "
                    "name fewer, "
                    "or give --count"
                )
            self.examples: ImageSplit = FileSplit("images", [str(path) for path in paths])
            self.examples.use_test_noise()
            say_changes(self.examples, backbone.spec, backbone.in_channels, backbone.image_size)
        else:
            self.examples = data.test.subset(balanced(data.test, config.count or _COUNT, config.seed))
        self.reading = Reading(config.workers, config.on_bad_image, [])

    def write(self, run: RunDirectory) -> ExplainResult:
        """Compute the sections, and write the pictures and the report."""
        config = self.config
        images, index, rows = self._read_examples()
        explained = [self._components(images, index, rows)]
        shares = None
        if self.model is not None:
            section, shares = self._head(images, index)
            explained.append(section)
        section, neighbours = self._neighbours(images, index, rows)
        explained.append(section)
        result = ExplainResult(
            out=config.out,
            images=tuple(self.examples.ids[row] for row in rows),
            head=shares,
            neighbours=neighbours,
            skipped_images=tuple(self.reading.skipped),
        )
        for name, figure in (item for _, figures in explained for item in figures.items()):
            run.write_with(f"{name}.png", partial(write_png, figure))
        report = explain_report(
            backbone=given(config.backbone),
            images=f"the given images ({listing(config.images)})"
            if config.images
            else f"images of {self.data.name}",
            head="" if self.model is None else f"the {self.model.head.name} head of {config.run}",
            sections=[section for section, _ in explained],
            provenance={
                "Command": shown_command(config),
                "Seed": config.seed,
                **({} if config.run is None else report_of(config.out, "Report of the run", config.run)),
                **self.opened.provenance(),
            },
        )
        run.write("report.html", report)
        run.write_json(FINISHED, result.metrics())
        return result

    def _read_examples(self) -> tuple[Tensor, Tensor, list[int]]:
        """Return images (N, C, S, S) in [-1, 1], the index of their noise, and their rows in `examples`."""
        reader = FrozenExtractor(self.backbone, (self.block,), (self.step,))
        batches = list(self.reading.batches(reader, self.examples, torch.arange(len(self.examples))))
        if not batches:
            raise DiffLensError("none of the images to explain can be read")
        return (
            torch.cat([to_float(batch.images) for batch in batches]),
            torch.cat([batch.index for batch in batches]),
            torch.cat([batch.rows for batch in batches]).tolist(),
        )

    @torch.no_grad()
    def _components(self, images: Tensor, index: Tensor, rows: list[int]) -> Explained:
        extractor = FrozenExtractor(self.backbone, self.blocks, self.steps, self.config.seed)
        names = [self._name(row) for row in rows]
        log_snr = self.backbone.process.by_noise(self.steps)
        return components_section(extractor.noised(images, index), extractor(images, index), log_snr, names)

    def _name(self, row: int) -> str:
        labels = self.examples.labels
        label = "" if labels is None else f" ({self.data.classes[int(labels[row])]})"
        return f"{self.examples.ids[row]}{label}"

    @torch.no_grad()
    def _neighbours(
        self, images: Tensor, index: Tensor, rows: list[int]
    ) -> tuple[Explained, tuple[tuple[Neighbour, ...], ...]]:
        """Return the section and the most similar training images, by cosine similarity at one place."""
        config, train = self.config, self.data.train
        extractor = FrozenExtractor(self.backbone, (self.block,), (self.step,), config.seed)
        place = (self.block, self.step)
        bank_split = train.subset(balanced(train, config.limit, config.seed))
        cache = read_features(extractor, config.pool, bank_split, self.opened.process, self.reading)
        bank = normalize(_vectors(cache, place), dim=1)
        queries = pool_to(extractor(images, index)[place], config.pool).cpu().half().float().flatten(1)
        nearest = (normalize(queries, dim=1) @ bank.T).topk(min(config.neighbours, len(bank)))
        shape = self.backbone.in_channels, self.backbone.image_size
        neighbours: list[tuple[Neighbour, ...]] = []
        tiles, names = [], []
        for similarities, indices in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True):
            positions = [int(cache.rows[k]) for k in indices]
            classes = [self._class_of(bank_split, row) for row in positions]
            ranked = list(zip(positions, classes, similarities, strict=True))
            neighbours.append(
                tuple(Neighbour(bank_split.ids[row], label, round(value, 4)) for row, label, value in ranked)
            )
            tiles.append(torch.stack([to_float(fit(bank_split.image(row), *shape)) for row in positions]))
            # a title has room for 18 letters
            names.append([f"{shortened(label, 12)} {value:.2f}".strip() for _, label, value in ranked])
        examples = self.examples
        own = [self._class_of(examples, row) or examples.ids[row].rpartition("/")[2] for row in rows]
        level = in_words(self.backbone.process.by_noise((self.step,)))
        searched = (
            f"The most similar of {counted(len(bank), 'training image')} of {self.data.name}, by the "
            f"features of block {self.block} at noise step {level}, pooled to {config.pool} x {config.pool}."
        )
        return neighbours_section(images, torch.stack(tiles), own, names, searched), tuple(neighbours)

    def _class_of(self, split: ImageSplit, row: int) -> str:
        return "" if split.labels is None else self.data.classes[int(split.labels[row])]

    @torch.no_grad()
    def _head(self, images: Tensor, index: Tensor) -> tuple[Explained, HeadShares]:
        """Return the section on the run's head, and its shares on test images."""
        assert self.model is not None
        probe, test = self.model.probe, self.data.test
        if isinstance(probe.head, MixHead):
            return self._mix(probe, probe.head, images, index)
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
                on_itself, attention_by_place = probe.head.attention(maps)
                own.append(on_itself.cpu())
                for place, weights in attention_by_place.items():
                    shares.setdefault(place, []).append(weights.sum((1, 2)).cpu())
        if images_seen < 2:
            raise DiffLensError("the shares of logits need two test images or more: raise --limit")
        contributions = logit_shares(torch.cat(parts, dim=1)).tolist()
        if isinstance(probe.head, LinearHead):
            by_place = dict(zip(probe.head.places, contributions, strict=True))
            shown = {
                f"block {block}, t = {bracketed(t, self.backbone.process.log_snr(t))}": share
                for (block, t), share in by_place.items()
            }
            named = {_words(place): share for place, share in by_place.items()}
            return linear_section(shown, images_seen), HeadShares(images_seen, named)
        assert isinstance(probe.head, DifFormerHead)
        attention = {place: float(torch.cat(values).mean()) for place, values in shares.items()}
        steps = probe.head.noise_steps
        on_cls = dict(zip(steps, torch.cat(own).mean(0).tolist(), strict=True))
        by_step = dict(zip(steps, contributions, strict=True))
        with evaluating(probe):
            _, example_attention = probe.head.attention(probe.extractor(images, index))
        log_snr = self.backbone.process.by_noise(steps)
        section = attention_section(
            images, example_attention, attention, on_cls, by_step, log_snr, images_seen
        )
        return section, HeadShares(
            test_images=images_seen,
            logits={f"t = {t}": share for t, share in by_step.items()},
            attention={_words(place): share for place, share in attention.items()},
            on_cls={f"t = {t}": share for t, share in on_cls.items()},
        )

    def _mix(
        self, probe: Probe, head: MixHead, images: Tensor, index: Tensor
    ) -> tuple[Explained, HeadShares]:
        """Return the section on the weights of the head mix, and their means over positions."""
        with evaluating(probe):
            _, attention = head.attention(probe.extractor(images, index))
        weights = dict(zip(head.mixture.places, head.mixture.weights.cpu(), strict=True))
        log_snr = self.backbone.process.by_noise(probe.extractor.noise_steps)
        section = mix_section(images, weights, attention, log_snr)
        return section, HeadShares(mix={_words(place): float(each.mean()) for place, each in weights.items()})


def _words(place: Place) -> str:
    return "block {}, t = {}".format(*place)


def _vectors(cache: FeatureCache, place: Place) -> Tensor:
    return cache.maps[place][torch.arange(len(cache))].float().flatten(1)
