"""`difflens probe`: a head on a backbone's features, trained, and evaluated once on the test split."""

import math
import re
import shutil
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens import presets
from difflens.backbones.base import Defaults
from difflens.backbones.config import BackboneConfig
from difflens.choices import (
    HeadName,
)
from difflens.configs.probe import ProbeConfig
from difflens.data.images import fit as fit_images
from difflens.data.labels import label_fraction, label_list
from difflens.data.load import load_data
from difflens.data.loader import epoch_order
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, listing
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.store import FeatureStore
from difflens.heads.config import HeadConfig
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead
from difflens.heads.make import make_head
from difflens.metrics.classification import Evaluation
from difflens.models.probe import Probe
from difflens.models.saved import TrainedModel
from difflens.reports.probe import probe_report
from difflens.run.commands import shown_command
from difflens.run.directory import FINISHED, RunDirectory, read_log, settings_of
from difflens.run.processes import accelerator
from difflens.run.provenance import environment
from difflens.tasks.classification.predictions import predictions_csv, read_predictions
from difflens.tasks.classification.selection import choose_linear, choose_neighbours
from difflens.tasks.classification.train import evaluate, fit

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


def probe(config: ProbeConfig, data: ImageData | None = None) -> ProbeResult:
    """Run `config` and fill its run directory.

    Args:
        data: what `config.data` names, or a part of it, where it is loaded already.

    Raises:
        DiffLensError: anything in the configuration, the data or the backbone is not what it should be.
    """
    config = config.resolved()
    config.check_resolved()
    assert config.data is not None
    process = accelerator(config.device)
    run = _probe_once if config.seeds == 1 else _probe_seeds
    return run(config, data or load_data(config.data), process)


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
                extractor, head.pool, split, self.process, Reading.of(self.training, self.skipped),
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
