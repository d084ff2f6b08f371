"""`difflens probe`: a head on a backbone's features, trained, and evaluated once on the test split."""

import math
import re
import shutil
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens import presets
from difflens.analysis.probe_report import probe_report
from difflens.analysis.provenance import environment
from difflens.backbones.blocks import Defaults
from difflens.data.images import Augmentation
from difflens.data.images import fit as fit_images
from difflens.data.labels import label_fraction, label_list
from difflens.data.loader import OnBadImage, epoch_order
from difflens.data.sources import load_data
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, listing, require
from difflens.extract import Extractor
from difflens.features import FeatureCache, read_features
from difflens.heads import HeadConfig, HeadName, LinearHead, NeighbourHead, make_head
from difflens.model import BackboneConfig, ExtractorConfig, ExtractorName, Probe, TrainedModel
from difflens.noise import ScheduleName
from difflens.runs import FINISHED, RunDirectory, read_log, settings_of, shown_command
from difflens.store import FeatureStore
from difflens.tasks.classification import TrainConfig, evaluate, fit
from difflens.tasks.evaluation import Evaluation, predictions_csv, read_predictions
from difflens.tasks.selection import choose_linear, choose_neighbours
from difflens.training import OptimizerName, Precision, ScheduleKind, accelerator

HeadChoice = Literal["linear", "mlp", "cnn", "attention", "difformer", "diffeed", "knn"]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train a head on frozen diffusion features and evaluate it once on the test split.

    A field left at None takes the preset's value, or else what fits head and backbone.
    """

    out: Path
    """Run directory."""
    backbone: str = "fashion"
    """fashion, a diffusers folder, an OpenAI checkpoint, a hub id, timm:NAME, pixels, or random: before any of them."""
    data: str | None = None
    """fashion, fashion-full, aircraft, cars, cub, dogs, flowers, nabirds, idx:FOLDER, folder:PATH (or the path alone),
    torchvision:NAME, hf:ID. None: the preset's, or fashion."""
    store: Path | None = None
    """Read the features from a store of `difflens extract` instead of running the backbone."""
    preset: str | None = None
    """A recipe of `difflens.presets.PROBE`, such as paper-attention."""
    head: HeadChoice | None = None
    """diffeed is the attention head on the feedback extractor; knn trains nothing. None: the preset's, or attention."""
    extractor: ExtractorName | None = None
    """frozen, feedback (DifFeed), or finetuned. None: frozen, but feedback for diffeed."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read; None: those that suit the head, or what the store holds."""
    noise_steps: tuple[int, ...] | None = None
    """Noise steps to read them at; None: likewise."""
    feedback_blocks: tuple[int, ...] | None = None
    """Decoder blocks that DifFeed sends back."""
    from_block: int = 1
    """First block to train with the finetuned extractor."""
    draws: int = 1
    """Average the maps over so many noises."""
    pool: int | None = None
    """Side that larger maps are pooled to: 2 for linear, MLP and knn, 16 for the others; 0: no pooling."""
    width: int | None = None
    """Width of the head."""
    depth: int | None = None
    """Depth of the head."""
    dropout: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    """Images per step, over all processes. None: 128."""
    optimizer: OptimizerName | None = None
    """None: adamw."""
    learning_rate: float | None = None
    grid: bool = False
    """linear: try a grid of learning rates and weight decays on a fifth of the training images, keep the best."""
    weight_decay: float | None = None
    lr_schedule: ScheduleKind | None = None
    """Learning rate: cosine to zero, x0.1 every `step_epochs`, or constant. None: cosine."""
    step_epochs: int | None = None
    warmup_epochs: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    """Blend pairs of inputs and labels, the share drawn from Beta(mixup, mixup). None: the head's."""
    layer_decay: float | None = None
    """finetuned: each block learns at so many times the rate of the next one. None: 0.85."""
    augment: Augmentation | None = None
    """none; flip; crop: the paper's random crop and flip. With none, a frozen extractor runs once. None: the head's, else
    none."""
    fresh_noise: bool = True
    """Draw new noise in every epoch where features are not cached."""
    precision: Precision = "float32"
    """Of the backbone's arithmetic; heads are always float32."""
    checkpoint_activations: bool = False
    """feedback: compute the second pass again in the backward pass: slower, in less memory."""
    cache_gigabytes: float = 4.0
    """Features beyond this lie in a file in the run directory while training, not in memory."""
    num_head_channels: int = 64
    """Of an OpenAI checkpoint, whose weights do not show it."""
    noise_schedule: ScheduleName = "linear"
    """Of an OpenAI checkpoint."""
    image_size: int | None = None
    """Overrides the image side that the backbone was trained on."""
    limit: int | None = None
    """Train on the first so many images only."""
    label_fraction: float | None = None
    """Train on so large a part of each class, chosen by the seed, the same for every head."""
    label_list: Path | None = None
    """Train on the images that this file names, one a line."""
    seed: int = 0
    """Of the head's weights, the order of the images, the augmentation, the noise and the choice of labels."""
    seeds: int = 1
    """Repeat with so many seeds, from `seed` up, and give mean and standard deviation."""
    on_bad_image: OnBadImage = "error"
    """skip leaves images out that cannot be read, and lists them in metrics.json."""
    workers: int | None = None
    """Processes that decode images; None: as many as help."""
    device: Literal["cpu"] | None = None
    """"cpu" to stay off the GPU."""
    resume: bool = False
    """Go on with the run in `out`."""

    def recipe(self) -> dict[str, Any]:
        """Values for fields left at None: the preset's, or else the head's defaults."""
        if self.preset is not None and self.preset not in presets.PROBE:
            raise DiffLensError(f"no preset {self.preset!r}; there are {listing(list(presets.PROBE))}")
        preset = presets.PROBE.get(self.preset or "", {})
        if self.head is not None and self.head != preset.get("head", self.head):
            raise DiffLensError(f"the preset {self.preset} is for the head {preset['head']}, not {self.head}")
        head = self.head or preset.get("head", "attention")
        finetuning = presets.FINETUNING if self.extractor == "finetuned" else {}
        return {"data": "fashion", **presets.HEADS[head], **finetuning, **preset, "head": head}

    def resolved(self) -> "ProbeConfig":
        """With every field that a recipe or a general default knows filled in."""
        recipe = self.recipe()
        self.check()
        unused = self._unused(recipe["head"])
        general = {field.name: field.default for field in fields(TrainConfig)}
        filled: dict[str, Any] = {
            field.name: recipe.get(field.name, general.get(field.name))
            for field in fields(self)
            if getattr(self, field.name) is None and field.name not in unused
        }
        if self.epochs is None and "epochs" not in presets.PROBE.get(self.preset or "", {}):
            filled["epochs"] = None  # they depend on the number of images
        return replace(self, **filled)

    def _unused(self, head: HeadChoice) -> tuple[str, ...]:
        """Options that mean nothing to the head or the grid; DiffLensError if one is given."""
        unused: tuple[str, ...] = ()
        why = ""
        if head == "knn":
            unused, why = ("width", "depth", "dropout", *_TRAINING), "k-NN trains nothing"
        elif self.grid:
            unused, why = ("learning_rate", "weight_decay"), "the grid tries rates and decays of its own"
        given = [f"--{name.replace('_', '-')}" for name in unused if getattr(self, name) is not None]
        if given:
            raise DiffLensError(f"{why}: leave out {listing(given)}")
        return unused

    def check(self) -> None:
        """DiffLensError for a number that cannot be right."""
        require(
            pool=(self.pool, 0, None), width=(self.width, 1, None), depth=(self.depth, 1, None),
            dropout=(self.dropout, 0, 0.99), epochs=(self.epochs, 1, None), batch_size=(self.batch_size, 1, None),
            learning_rate=(self.learning_rate, 0, None), weight_decay=(self.weight_decay, 0, None),
            step_epochs=(self.step_epochs, 1, None), warmup_epochs=(self.warmup_epochs, 0, None),
            label_smoothing=(self.label_smoothing, 0, 1), mixup=(self.mixup, 0, None),
            cache_gigabytes=(self.cache_gigabytes, 0, None), num_head_channels=(self.num_head_channels, 1, None),
            image_size=(self.image_size, 1, None), limit=(self.limit, 1, None), workers=(self.workers, 0, None),
            seed=(self.seed, 0, 2**31), seeds=(self.seeds, 1, None), draws=(self.draws, 1, None),
            layer_decay=(self.layer_decay, 0, 1),
        )  # fmt: skip
        if self.label_fraction is not None and self.label_list is not None:
            raise DiffLensError("--label-fraction and --label-list both choose the labels: give one of them")

    def check_resolved(self) -> None:
        """DiffLensError for options of a resolved configuration that do not go together."""
        online = (
            self.extractor in ("feedback", "finetuned") or self.head == "diffeed" or self.augment != "none"
        )
        if self.store is not None and online:
            raise DiffLensError("a store holds frozen features of unchanged images: leave out --store, or use a frozen "
                                "extractor without --augment")  # fmt: skip
        if self.grid and self.head != "linear":
            raise DiffLensError(f"the grid is for the linear head, not for {self.head}")
        if (self.grid or self.head == "knn") and online:
            raise DiffLensError("k-NN and the grid read frozen features of unchanged images: leave out --extractor and "
                                "--augment")  # fmt: skip

    def training(self) -> TrainConfig:
        """The part of a resolved configuration that `fit` takes."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{name: value for name, value in values.items() if value is not None})


# How a head is trained, and so nothing to one that is not.
_TRAINING = (
    "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "lr_schedule", "step_epochs",
    "warmup_epochs", "label_smoothing", "mixup", "layer_decay",
)  # fmt: skip

# What may differ between a run and its continuation.
_FREE = (
    "out", "resume", "device", "workers", "cache_gigabytes", "store", "on_bad_image", "checkpoint_activations",
)  # fmt: skip

# What summarises several seeds: mean, and standard deviation between seeds.
_SUMMARISED = ("top1", "top5", "mean_per_class")


@dataclass
class ProbeResult:
    """What `probe` returns.

    Attributes:
        model: the trained one; of several seeds the first.
        metrics: metrics.json's content.
        evaluations: predictions on the test split, by seed.
    """

    model: TrainedModel
    metrics: dict[str, Any]
    evaluations: list[Evaluation]


def probe(config: ProbeConfig) -> ProbeResult:
    """Run `config` and fill its run directory.

    Raises:
        DiffLensError: anything in the configuration, the data or the backbone is not what it should be.
    """
    config = config.resolved()
    config.check_resolved()
    assert config.data is not None
    process = accelerator(config.device)
    return (_probe_once if config.seeds == 1 else _probe_seeds)(config, load_data(config.data), process)


def _probe_once(config: ProbeConfig, whole: ImageData, process: Accelerator) -> ProbeResult:
    data = replace(whole, train=_labelled(config, whole.train.first(config.limit), whole.classes))
    if config.head != "knn":
        config = replace(config, epochs=_epochs(config, len(data.train)))
    backbone_config = BackboneConfig.of(config, config.backbone)
    backbone = backbone_config.load()
    fingerprint = backbone.fingerprint()  # before anything converts or trains its weights
    data_fingerprint = whole.fingerprint()
    store = None if config.store is None else FeatureStore(config.store)
    extractor_config, head_config = _plan(config, backbone.defaults, store)
    torch.manual_seed(config.seed)
    extractor = extractor_config.build(backbone)
    head = make_head(head_config, extractor.shapes(), len(data.classes))
    if store is not None:
        _check_store(store, config, data_fingerprint, fingerprint, head.pool, extractor)
    model = TrainedModel(
        Probe(extractor, head),
        data.classes,
        backbone_config,
        extractor_config,
        head_config,
        fingerprint,
    )
    run = RunDirectory(config.out, "probe", settings_of(config, _FREE) | {
        "blocks": extractor.blocks, "noise_steps": extractor.noise_steps, "noise_seed": extractor.seed,
        "draws": extractor.draws, "backbone_fingerprint": fingerprint, "data_fingerprint": data_fingerprint,
        "labels_sha256": data.train.fingerprint() if config.label_list else None,
    }, config.resume, process)  # fmt: skip
    with run.working():
        if run.finished:
            return _finished(config, data, run)
        return _Run(config, model, data, store, run, process).run_all()


def _probe_seeds(config: ProbeConfig, data: ImageData, process: Accelerator) -> ProbeResult:
    """A run directory a seed within the run directory, and a summary of them."""
    run = RunDirectory(config.out, "probe", settings_of(config, _FREE), config.resume, process)
    with run.working():
        results = []
        for seed in range(config.seed, config.seed + config.seeds):
            out = config.out / f"seed-{seed}"
            results.append(_probe_once(replace(config, out=out, seed=seed, seeds=1), data, process))
            run.keep()
        every = [result.metrics for result in results]
        metrics: dict[str, Any] = {key: statistics.mean(each[key] for each in every) for key in _SUMMARISED}
        metrics |= {f"{key}_std": statistics.stdev(each[key] for each in every) for key in _SUMMARISED}
        metrics |= {
            key: every[0][key] for key in ("metric", "test_images", "train_images", "trainable_parameters")
        } | {"runs": every}  # fmt: skip
        first = results[0]
        logs = [read_log(config.out / f"seed-{each['seed']}") for each in every]
        evaluations = [evaluation for result in results for evaluation in result.evaluations]
        run.write("report.html", _report(config, first.model, data, evaluations, every, logs, process))
        run.write_folder("model", first.model.save)
        run.write_json(FINISHED, metrics)
    return ProbeResult(first.model, metrics, evaluations)


def _labelled(config: ProbeConfig, train: ImageSplit, classes: tuple[str, ...]) -> ImageSplit:
    """The training images whose labels are used."""
    if config.label_fraction is not None:
        return label_fraction(train, config.label_fraction, config.seed, classes)
    if config.label_list is not None:
        return label_list(train, config.label_list, classes)
    return train


def _epochs(config: ProbeConfig, images: int) -> int:
    """As asked; or else the recipe's, and more of them where a few images would make few steps of them."""
    if config.epochs is not None:
        return config.epochs
    epochs: int = config.recipe()["epochs"]
    assert config.batch_size is not None
    enough, steps = (math.ceil(count / config.batch_size) for count in (presets.FEW_IMAGES, images))
    return math.ceil(epochs * max(1, enough / steps))


def _plan(
    config: ProbeConfig, defaults: Defaults, store: FeatureStore | None
) -> tuple[ExtractorConfig, HeadConfig]:
    """Which extractor and head a resolved configuration means on a backbone with these defaults."""
    assert config.head is not None
    several = config.head == "difformer"
    blocks, steps = config.blocks, config.noise_steps
    if blocks is None:
        usual = defaults.fusion_blocks if several else (defaults.block,)
        blocks = usual if store is None else _usual(usual, store.blocks)
    if steps is None:
        usual = defaults.fusion_noise_steps if several else (defaults.noise_step,)
        steps = usual if store is None else _usual(usual, store.noise_steps)
    name = config.extractor or ("feedback" if config.head == "diffeed" else "frozen")
    if config.head == "diffeed" and name != "feedback":
        raise DiffLensError(f"diffeed is the attention head on the feedback extractor, not on {name}")
    seed, draws = (
        (config.seed, config.draws) if store is None else (store.manifest["seed"], store.manifest["draws"])
    )
    extractor = ExtractorConfig(
        name,
        blocks,
        steps,
        seed,
        config.feedback_blocks,
        config.from_block,
        config.precision,
        draws,
        config.checkpoint_activations,
    )
    reads_many = config.head == "diffeed" and len(blocks) * len(steps) > 1
    head: HeadName = "attention" if config.head == "diffeed" else config.head
    if reads_many:
        head = "difformer"
    pool = config.pool
    if pool is None and config.backbone.startswith("pixels"):
        pool = 0  # pooling would leave little of the images to read
    if pool is None and head in ("attention", "difformer"):
        pool = defaults.token_side
        kept = 0 if store is None else store.manifest["pool"]
        if config.pool is None and kept:
            pool = min(pool, kept)
    return extractor, HeadConfig(head, pool, config.width, config.depth, config.dropout or 0.0)


def _usual(usual: tuple[int, ...], stored: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks or noise steps to read if nothing is said: the usual ones where they are, else all that is stored."""
    return usual if {*usual} <= {*stored} else stored


def _check_store(
    store: FeatureStore,
    config: ProbeConfig,
    data_fingerprint: str,
    backbone_fingerprint: str,
    side: int | None,
    extractor: Extractor,
) -> None:
    """DiffLensError that names the difference if a store's features are not those that the run would read."""
    manifest = store.manifest
    stored, asked = manifest["backbone"], config
    different = []
    if stored["fingerprint"] != backbone_fingerprint:
        different.append(f"its backbone was {stored['spec']}, with other weights than {asked.backbone}")
    if manifest["data"]["fingerprint"] != data_fingerprint:
        different.append(f"its data was {manifest['data']['spec']}, which is not what {asked.data} holds now")
    if stored["precision"] != asked.precision:
        different.append(f"its backbone ran in {stored['precision']}, not in {asked.precision}")
    if manifest["preprocessing"]["side"] != extractor.backbone.image_size:
        different.append(
            f"its images were {manifest['preprocessing']['side']} pixels wide, not {extractor.backbone.image_size}"
        )
    if asked.draws not in (1, manifest["draws"]):
        different.append(f"its maps are averages over {manifest['draws']} draws, not over {asked.draws}")
    kept = manifest["pool"]
    widths = {max(shape[1:]) for shape in extractor.shapes().values()}
    if kept and any(not _pools_alike(width, kept, side) for width in widths):
        wanted = "whole maps" if side is None else f"maps of side {side}"
        different.append(
            f"its maps are pooled to side {kept}, and the head reads {wanted}: give --pool {kept}"
        )
    if different:
        raise DiffLensError(f"{store.path} does not fit: {'; '.join(different)}")


def _pools_alike(width: int, kept: int, side: int | None) -> bool:
    """Is a map pooled to `kept` and then to `side` what it is when pooled to `side` at once?"""
    if width <= kept or side == kept:
        return True
    return side is not None and side < kept and width % kept == 0 and kept % side == 0


def _finished(config: ProbeConfig, data: ImageData, run: RunDirectory) -> ProbeResult:
    metrics = run.read_json(FINISHED)
    evaluation = read_predictions(config.out / "predictions.csv", data.test.ids, data.classes)
    return ProbeResult(TrainedModel.load(config.out), metrics, [evaluation])


class _Run:
    """One seed of a probe."""

    def __init__(
        self,
        config: ProbeConfig,
        model: TrainedModel,
        data: ImageData,
        store: FeatureStore | None,
        run: RunDirectory,
        process: Accelerator,
    ):
        self.config, self.model, self.data, self.store = config, model, data, store
        self.run, self.process = run, process
        self.training, self.skipped = config.training(), list[str]()
        self.probe = model.probe.to(process.device)
        self.chosen: dict[str, Any] = {}
        online = self.probe.extractor.trainable or self.training.augment != "none"
        if process.num_processes > 1:
            if online and self.training.on_bad_image == "skip":
                raise DiffLensError(
                    "bad images cannot be skipped while several processes train online, since each must take as many "
                    "steps: remove them, or use one process"
                )
            if config.head == "knn" or config.grid:
                raise DiffLensError("k-NN and the grid take one process; --store brings features of several")
        self.caches = None if online else (self._read(data.train), self._read(data.test))

    def run_all(self) -> ProbeResult:
        head, caches, seconds = self.probe.head, self.caches, 0.0
        if isinstance(head, NeighbourHead):
            assert caches is not None
            self._remember(head, caches[0])
        else:
            if self.config.grid:
                assert caches is not None
                assert isinstance(head, LinearHead)
                self._choose_rate(head, caches[0])
            seconds = fit(
                self.probe,
                self.data.train,
                self.training,
                self.process,
                self.run,
                caches and caches[0],
                self.skipped,
            )
        evaluation = self._evaluate()
        if isinstance(head, NeighbourHead):
            self._evaluate_others(head, evaluation)
        return self._write(evaluation, seconds)

    def _read(self, split: ImageSplit) -> FeatureCache:
        extractor, head, config = self.probe.extractor, self.probe.head, self.config
        if self.store is None:
            return read_features(
                extractor, head.pool, split, self.process, self.training.reading(self.skipped),
                config.cache_gigabytes, config.out / "cache",
            )  # fmt: skip
        rows = epoch_order(
            len(split), 0, 0, self.process.process_index, self.process.num_processes, shuffle=False
        )
        cache = self.store.cache(split.subset(rows), extractor.places, config.cache_gigabytes, head.pool)
        there = set(cache.rows.tolist())
        self.skipped += [
            f"{split.ids[row]}: not in the store, which left it out as unreadable"
            for k, row in enumerate(rows.tolist())
            if k not in there
        ]
        return replace(cache, rows=rows[cache.rows])

    def _remember(self, head: NeighbourHead, cache: FeatureCache) -> None:
        """Fill the bank, and choose how many neighbours vote."""
        vectors = [
            head.vectors(cache.batch(chosen, self.process.device)).half()
            for chosen in torch.arange(len(cache)).split(1024)
        ]
        head.remember(torch.cat(vectors), cache.labels)
        records = choose_neighbours(head, len(self.data.classes))
        head.neighbours = _best(records)["k"]
        self.chosen = {"neighbours": records}
        self.model.head = replace(self.model.head, bank=len(cache), neighbours=head.neighbours)

    def _choose_rate(self, head: LinearHead, cache: FeatureCache) -> None:
        records = choose_linear(head, cache, self.training, self.process.device)
        best = _best(records)
        self.chosen = {"grid": records}
        self.training = replace(
            self.training, learning_rate=best["learning_rate"], weight_decay=best["weight_decay"]
        )

    def _evaluate(self) -> Evaluation:
        cache = self.caches and self.caches[1]
        return evaluate(
            self.probe, self.data.test, self.data.classes, self.training, self.process, cache, self.skipped
        )

    def _evaluate_others(self, head: NeighbourHead, chosen: Evaluation) -> None:
        """The usual table by number of neighbours; the choice among them is made already."""
        kept = head.neighbours
        for record in self.chosen["neighbours"]:
            head.neighbours = record["k"]
            record["top1"] = chosen.top1 if record["chosen"] else self._evaluate().top1
        head.neighbours = kept

    def _write(self, evaluation: Evaluation, seconds: float) -> ProbeResult:
        config, data, run, process = self.config, self.data, self.run, self.process
        skipped = self.skipped
        if process.num_processes > 1:
            skipped = sorted(set(gather_object(skipped)))
        names = set(data.train.ids)
        unread = sum(_image_of(line, names) is not None for line in skipped)
        metrics = {
            **evaluation.metrics(),
            "metric": data.metric,
            "trainable_parameters": self.probe.trainable_parameters,
            "train_images": len(data.train) - unread,
            "train_seconds": round(seconds, 2),
            "epochs": 0 if config.head == "knn" else config.epochs,
            "seed": config.seed,
            "skipped_images": skipped,
            **self.chosen,
        }
        self.model.info = {
            "data": data.name, "top1": round(evaluation.top1, 4), "test_images": len(evaluation.rows),
            "train_images": metrics["train_images"], "epochs": metrics["epochs"], "seed": config.seed,
        }  # fmt: skip
        run.write("predictions.csv", predictions_csv(evaluation, data.test.ids))
        run.write_folder("model", self.model.save)
        report = _report(config, self.model, data, [evaluation], [metrics], [run.read_log()], process)
        run.write("report.html", report)
        run.write_json(FINISHED, metrics)
        process.wait_for_everyone()
        if run.main_process:
            shutil.rmtree(config.out / "cache", ignore_errors=True)
        return ProbeResult(self.model, metrics, [evaluation])


def _image_of(line: str, names: Collection[str]) -> str | None:
    """Which of `names` a line "name: reason" is about; both may hold colons."""
    ends = (found.start() for found in re.finditer(": ", line))
    return next((line[:end] for end in ends if line[:end] in names), None)


def _best(records: list[dict[str, Any]]) -> dict[str, Any]:
    return next(record for record in records if record["chosen"])


def _report(
    config: ProbeConfig,
    model: TrainedModel,
    data: ImageData,
    evaluations: Sequence[Evaluation],
    metrics: Sequence[dict[str, Any]],
    logs: Sequence[list[dict[str, Any]]],
    process: Accelerator,
) -> str:
    extractor, backbone = model.probe.extractor, model.probe.extractor.backbone

    def examples(rows: Sequence[int]) -> Tensor:
        images = [fit_images(data.test.image(row), backbone.in_channels, backbone.image_size) for row in rows]
        return torch.stack(images)

    labels = (
        f"{config.label_fraction:g} of each class, chosen by the seed" if config.label_fraction is not None
        else f"those that {config.label_list} names" if config.label_list is not None
        else "all"
    )  # fmt: skip
    provenance = {
        "Backbone": f"{config.backbone}, fingerprint {model.fingerprint[:12]}",
        "Places read": f"blocks {listing(extractor.blocks)} at noise steps {listing(extractor.noise_steps)}, "
        f"{model.extractor.name} extractor",
        "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}",
        "Labels used": f"{metrics[0]['train_images']:,}: {labels}",
        "Seeds": listing([each["seed"] for each in metrics]),
        **environment(process.device),
    }
    summary = (
        f"A {config.head} head on the {model.extractor.name} features of {config.backbone}, trained on "
        f"{metrics[0]['train_images']:,} labelled images of {data.name}."
    )
    return probe_report(
        command=shown_command("probe", config), summary=summary, evaluations=evaluations, metrics=metrics, logs=logs,
        examples=examples, provenance=provenance,
    )  # fmt: skip
