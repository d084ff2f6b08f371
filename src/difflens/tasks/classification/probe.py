"""`difflens probe`: trains a head on a backbone's features, and evaluates it once on the test split."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens import presets
from difflens.backbones.base import Defaults
from difflens.backbones.config import BACKBONE_OPTIONS, BackboneConfig
from difflens.backbones.pixels import is_pixels
from difflens.configs.command_line import shown_command
from difflens.configs.options import given, resolve
from difflens.configs.probe import ProbeConfig
from difflens.data.changes import changes
from difflens.data.copies import copies
from difflens.data.images import fit as fit_images
from difflens.data.labels import label_fraction, label_list, limited, say_few
from difflens.data.load import load_data
from difflens.data.loader import share_of
from difflens.data.split import ImageData, ImageSplit
from difflens.errors import DiffLensError, counted, listing, named, plural
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, is_about, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.shared import SharedFeatures
from difflens.extractors.store import FeatureStore
from difflens.heads.config import HeadConfig
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead
from difflens.heads.make import make_head
from difflens.metrics.classification import Evaluation
from difflens.metrics.multi_label import MultiLabelEvaluation
from difflens.models.saved import TrainedModel
from difflens.opening import OpenedRun, open_run, with_backbone, with_data
from difflens.processes.base import Level, in_words
from difflens.reports.html import BACKBONE_REPORT, report_of, reports_of
from difflens.reports.probe import probe_report
from difflens.results.base import plain
from difflens.results.probe import GridTrial, NeighbourTrial, ProbeResult
from difflens.run.console import note
from difflens.run.directory import CONFIG, FINISHED, RunDirectory, read_log
from difflens.run.processes import accelerator
from difflens.run.provenance import environment
from difflens.run.text import a
from difflens.tasks.classification.kinds import check_labels, kind_of
from difflens.tasks.classification.normalise import fit_normalisation, usual_normalisation
from difflens.tasks.classification.selection import choose_linear, choose_neighbours
from difflens.tasks.classification.train import evaluate, fit

L = TypeVar("L", int, Level)

_NORMALISING = {"standard": "standardised, as there are too few images to whiten them", "whiten": "whitened"}


def probe(
    config: ProbeConfig, data: ImageData | None = None, shared: SharedFeatures | None = None
) -> ProbeResult:
    """Run `config` and fill its run directory.

    Args:
        data: what `config.data` names, or a part of it, where it is loaded already; or those of
            `data_from_arrays`. None loads what `config` names.
        shared: features that other runs on the same backbone read too.

    Raises:
        DiffLensError: the configuration, the data or the backbone has an error, which the message names.
    """
    config = resolve(with_data(with_store(config), data))
    process = accelerator(config.device)
    data = data or _load(config)
    check_labels(config, data)
    run = _probe_once if config.seeds == 1 else _probe_seeds
    return run(with_backbone(config, data.train), data, process, shared)


def with_store(config: ProbeConfig) -> ProbeConfig:
    """Return `config` with what its store was read from, where data, backbone, blocks, noise steps or head
    are left out. Without a head, all places of the store are read.

    Raises:
        DiffLensError: the store is damaged or unfinished.
    """
    if config.store is None or config.expanded().chosen("extractor") not in (None, "frozen"):
        return config  # the second is refused with the other options that do not fit
    store = FeatureStore(config.store)
    stored, replaced, said = store.manifest.backbone, dict[str, Any](), []
    if config.chosen("data") is None:
        replaced["data"] = store.manifest.data.spec
        said.append(f"data {replaced['data']}")
        fraction = store.manifest.data.val_fraction
        if config.val_fraction is None and fraction is not None:
            replaced["val_fraction"] = fraction
            said.append(f"{100 * fraction:g} % of each class held out")
    if config.backbone is None:
        usual = BackboneConfig(stored.spec)
        options = {name: getattr(stored, name) for name in BACKBONE_OPTIONS}
        replaced |= {
            name: value for name, value in options.items() if getattr(config, name) == getattr(usual, name)
        }
        replaced |= {"backbone": stored.spec}
        if config.precision == "float32":
            replaced["precision"] = stored.precision
        said.append(f"backbone {stored.spec}")
    if config.chosen("head") is None:
        for name, levels in (("blocks", store.blocks), ("noise_steps", store.noise_steps)):
            if config.chosen(name) is None:
                replaced[name] = levels
    if config.precision == "auto":
        replaced["precision"] = stored.precision
    if said:
        note(f"{store.path} was read from: {', '.join(said)}")
    return replace(config, **replaced)


def _load(config: ProbeConfig) -> ImageData:
    """Return the data of a resolved configuration; an error names the store that it is from."""
    try:
        return load_data(given(config.data), val_fraction=config.val_fraction)
    except DiffLensError as error:
        if config.store is None:
            raise
        raise DiffLensError(f"--store {config.store} is of --data {config.data}: {error}") from error


def _probe_once(
    config: ProbeConfig, whole: ImageData, process: Accelerator, shared: SharedFeatures | None
) -> ProbeResult:
    store = None if config.store is None else FeatureStore(config.store)
    if store is not None and config.verify:
        store.verify()
    config = within_store(config, store, whole.train)
    data = replace(whole, train=training_images(config, store, whole))
    say_few(data.train, data.classes)
    if config.head != "knn":
        config = replace(config, epochs=epochs_of(config, len(data.train)))
    opened = open_run(config, whole, process=process)
    backbone, fingerprint = opened.backbone, opened.fingerprints["backbone_fingerprint"]
    extractor_config, head_config = places_and_head(config, backbone.defaults, store)
    torch.manual_seed(config.seed)
    extractor = extractor_config.build(backbone)
    head_config = with_normalisation(head_config, config, extractor, len(data.train))
    head = make_head(head_config, extractor.shapes(), len(data.classes))
    if head.normalisation is not None:
        head.normalisation.check(len(data.train))  # before features are read
    if store is not None:
        _check_store(store, config, whole, fingerprint, head.pool, extractor)
        in_a_run = (store.path.parent / CONFIG).exists()  # the demo chooses the places itself
        if len(extractor.places) < len(store.blocks) * len(store.noise_steps) and not in_a_run:
            note(
                f"Of {store.path}, the head reads {named('block', extractor.blocks)} at "
                f"{named('noise step', extractor.noise_steps)}; --blocks and --noise-steps choose others"
            )
    kind = kind_of(data).model
    model = kind(
        kind.probe_kind(extractor, head),
        data.classes,
        opened.backbone_config,
        extractor_config,
        head_config,
        fingerprint,
    )
    identity = {
        "blocks": extractor.blocks,
        "noise_steps": extractor.noise_steps,
        "noise_seed": extractor.seed,
        "draws": extractor.draws,
        "labels_sha256": data.train.former_fingerprint() if config.label_list else None,
    }
    if config.normalises_by_images:
        identity["normalised"] = head_config.normalise  # the option itself stays open for other runs
    with opened.directory(identity) as run:
        if run.finished:
            return _finished(config, data, run)
        run.track(config.log)
        return _Run(config, model, data, store, run, process, shared).run_all()


def _probe_seeds(
    config: ProbeConfig, data: ImageData, process: Accelerator, shared: SharedFeatures | None
) -> ProbeResult:
    """Run each seed in a run directory of its own within the run directory, and write a summary."""
    opened = OpenedRun(config, process, data, None, None, {})
    with opened.directory() as run:
        results = list[ProbeResult]()
        for seed in range(config.seed, config.seed + config.seeds):
            out = config.out / f"seed-{seed}"
            result = _probe_once(replace(config, out=out, seed=seed, seeds=1), data, process, shared)
            # each model has a backbone of its own, and that of the first seed is saved
            results.append(replace(result, model=results[0].model) if results else result)
            run.keep()
        result = ProbeResult(
            out=config.out,
            model=results[0].model,
            seeds=tuple(seed for each in results for seed in each.seeds),
            evaluations=tuple(evaluation for each in results for evaluation in each.evaluations),
        )
        logs = [read_log(config.out / f"seed-{each.seed}") for each in result.seeds]
        run.write("report.html", _report(config, result, data, logs, process))
        run.write_folder("model", result.model.save)
        run.write_json(FINISHED, result.metrics())
    return result


def within_store(config: ProbeConfig, store: FeatureStore | None, train: ImageSplit) -> ProbeConfig:
    """Return a configuration that reads no more training images than a store holds, and say so."""
    kept = None if store is None else store.manifest.images.get(train.name)
    if store is None or config.limit is not None or kept is None or kept >= len(train):
        return config
    note(f"{store.path} holds {kept:,} of {counted(len(train), 'training image')}, which are read")
    return replace(config, limit=kept)


def training_images(config: ProbeConfig, store: FeatureStore | None, data: ImageData) -> ImageSplit:
    """Return the training images of `data` whose labels are used."""
    seed = config.seed if store is None else store.manifest.seed  # a store's images are drawn by its seed
    train, classes = limited(data.train, config.limit, seed), data.classes
    if config.label_fraction is not None:
        return label_fraction(train, config.label_fraction, config.seed, classes)
    if config.label_list is not None:
        return label_list(train, config.label_list, classes)
    return train


def epochs_of(config: ProbeConfig, images: int) -> int:
    """Return the epochs of the configuration, or else the recipe's, increased if few images would give few
    steps."""
    if config.epochs is not None:
        return config.epochs
    batch_size = given(config.batch_size)
    enough, steps = (math.ceil(count / batch_size) for count in (presets.FEW_IMAGES, images))
    return math.ceil(config.usual_epochs * max(1, enough / steps))


def places_and_head(
    config: ProbeConfig, defaults: Defaults, store: FeatureStore | None
) -> tuple[ExtractorConfig, HeadConfig]:
    """Return the extractor and the head of a resolved configuration on a backbone with these defaults."""
    assert config.head is not None
    several = config.head in ("difformer", "mix")
    blocks, steps = config.blocks, config.noise_steps
    if blocks is None:
        usual = defaults.fusion_blocks if several else (defaults.block,)
        blocks = usual if store is None else _usual(usual, store.blocks)
    if steps is None:
        levels = defaults.fusion_noise_steps if several else (defaults.noise_step,)
        steps = levels if store is None else _usual(levels, store.noise_steps)
    seed, draws = (
        (config.seed, config.draws) if store is None else (store.manifest.seed, store.manifest.draws)
    )
    extractor = ExtractorConfig(
        given(config.extractor),
        blocks,
        steps,
        seed,
        config.feedback_blocks,
        config.from_block,
        config.decided_precision,
        draws,
        config.checkpoint_activations,
    )
    head = config.head
    assert head != "diffeed", "`resolve` has expanded it"
    if head == "attention" and config.extractor == "feedback" and len(blocks) * len(steps) > 1:
        head = "difformer"  # DifFeed reads several places as DifFormer does
    pool = config.pool
    if pool is None and is_pixels(given(config.backbone)):
        pool = 0  # pooling would leave little of the images to read
    if pool is None and head in ("attention", "difformer", "mix"):
        pool = defaults.token_side
        kept = 0 if store is None else store.manifest.pool
        if kept:
            pool = min(pool, kept)
    mix = config.mix or "image"
    dropout = config.dropout or 0.0
    return extractor, HeadConfig(
        head, pool, config.width, config.depth, dropout, mix=mix, normalise=config.normalise or "none"
    )


def with_normalisation(
    head: HeadConfig, config: ProbeConfig, extractor: Extractor, images: int
) -> HeadConfig:
    """Return the configuration of a head, with the default normalisation where `config` names none.

    Args:
        images: the number of training images.
    """
    if not config.normalises_by_images:
        return head
    kind = usual_normalisation((channels for channels, *_ in extractor.shapes().values()), images)
    note(f"features are {_NORMALISING[kind]}; --normalise chooses another way")
    return replace(head, normalise=kind)


def _usual(usual: tuple[L, ...], stored: tuple[L, ...]) -> tuple[L, ...]:
    """Return the default blocks or noise steps if all are stored, else all that are stored."""
    return usual if {*usual} <= {*stored} else stored


def _check_store(
    store: FeatureStore,
    config: ProbeConfig,
    data: ImageData,
    fingerprint: str,
    side: int | None,
    extractor: Extractor,
) -> None:
    """Raise DiffLensError that names the difference if a store's features are not those that the run would
    read."""
    manifest = store.manifest
    stored, asked = manifest.backbone, config
    different = []
    if stored.fingerprint != fingerprint:
        different.append(f"its backbone was {stored.spec}, with other weights than {asked.backbone}")
    if manifest.data.fingerprint not in (data.former_fingerprint(), data.fingerprint()):
        different.append(f"its data was {manifest.data.spec}, which is not what {asked.data} holds now")
    if stored.precision != asked.precision:
        different.append(f"its backbone ran in {stored.precision}, not in {asked.precision}")
    if manifest.preprocessing.side != extractor.backbone.image_size:
        different.append(
            f"its images were {manifest.preprocessing.side} pixels wide, not {extractor.backbone.image_size}"
        )
    if asked.draws not in (1, manifest.draws):
        different.append(
            f"its maps are averages over {counted(manifest.draws, 'draw')}, not over {asked.draws}"
        )
    kept = manifest.pool
    widths = {max(shape[1:]) for shape in extractor.shapes().values()}
    if kept and any(not pools_alike(width, kept, side) for width in widths):
        wanted = "whole maps" if side is None else f"maps of side {side}"
        different.append(
            f"its maps are pooled to side {kept}, and the head reads {wanted}: give --pool {kept}"
        )
    if different:
        raise DiffLensError(f"{store.path} does not fit: {'; '.join(different)}")


def pools_alike(width: int, kept: int, side: int | None) -> bool:
    """Return True if pooling to `kept` and then to `side` equals pooling to `side` at once."""
    if width <= kept or side == kept:
        return True
    return side is not None and side < kept and width % kept == 0 and kept % side == 0


def _finished(config: ProbeConfig, data: ImageData, run: RunDirectory) -> ProbeResult:
    kind = kind_of(data)
    return ProbeResult(
        out=config.out,
        model=kind.model.load(config.out),
        seeds=(run.read_json(FINISHED, kind.figures),),
        evaluations=(kind.read(config.out / "predictions.csv", data.test.ids, data.classes),),
    )


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
        shared: SharedFeatures | None,
    ):
        self.config, self.model, self.data, self.store = config, model, data, store
        self.run, self.process, self.shared = run, process, shared
        self.training, self.skipped = config, list[str]()
        self.probe = model.probe.to(process.device)
        self.grid: tuple[GridTrial, ...] | None = None
        self.neighbours: tuple[NeighbourTrial, ...] | None = None
        online = self.probe.extractor.trainable or self.training.augment != "none"
        if process.num_processes > 1:
            if online and self.training.on_bad_image == "skip":
                raise DiffLensError(
                    "bad images cannot be skipped while several processes train online, since each must take "
                    "as many steps: remove them, or use one process"
                )
            if config.head == "knn" or config.grid:
                raise DiffLensError("k-NN and the grid take one process; --store brings features of several")
        self.caches = None if online else (self._read(data.train), self._read(data.test))

    def run_all(self) -> ProbeResult:
        head, caches, seconds = self.probe.head, self.caches, 0.0
        if head.normalisation is not None:
            assert caches is not None
            fit_normalisation(head.normalisation, caches[0], head.pool, self.process)
        if isinstance(head, NeighbourHead):
            assert caches is not None
            self._remember(head, caches[0])
        else:
            if self.config.grid:
                assert caches is not None
                self._choose_rate(caches[0])
            seconds = fit(
                self.probe,
                self.data.train,
                self.training,
                self.process,
                self.run,
                caches and caches[0],
                self.skipped,
                f"{self.config.head} on {self.config.backbone}, seed {self.config.seed}",
            )
        if isinstance(head, LinearHead):
            head.fold()
            self.model.head = replace(self.model.head, normalise="none")
        evaluation = self._evaluate()
        if isinstance(head, NeighbourHead):
            self._evaluate_others(head, evaluation)
        return self._write(evaluation, seconds)

    def _read(self, split: ImageSplit) -> FeatureCache:
        extractor, head, config = self.probe.extractor, self.probe.head, self.config
        if self.store is None:
            reading, memory = Reading.of(self.training, self.skipped), config.cache_gigabytes
            if self.shared is not None:
                return self.shared.read(extractor, head.pool, split, self.process, reading, memory)
            spill = config.out / "cache"
            return read_features(extractor, head.pool, split, self.process, reading, memory, spill)
        rows = share_of(len(split), self.process.process_index, self.process.num_processes)
        cache = self.store.cache(split.subset(rows), extractor.places, config.cache_gigabytes, head.pool)
        there = set(cache.rows.tolist())
        self.skipped += [
            f"{split.ids[row]}: not in the store, which left it out as unreadable"
            for k, row in enumerate(rows.tolist())
            if k not in there
        ]
        return replace(cache, rows=rows[cache.rows])

    def _remember(self, head: NeighbourHead, cache: FeatureCache) -> None:
        """Store the training features in the k-NN head, and choose the number of neighbours that vote."""
        vectors = [
            head.vectors(cache.batch(chosen, self.process.device)).half()
            for chosen in torch.arange(len(cache)).split(1024)
        ]
        head.remember(torch.cat(vectors), cache.labels)
        self.neighbours = choose_neighbours(head, len(self.data.classes))
        head.neighbours = next(trial.k for trial in self.neighbours if trial.chosen)
        self.model.head = replace(self.model.head, bank=len(cache), neighbours=head.neighbours)

    def _choose_rate(self, cache: FeatureCache) -> None:
        self.grid = choose_linear(self.probe, cache, self.training, self.process)
        best = next(trial for trial in self.grid if trial.chosen)
        self.training = replace(
            self.training, learning_rate=best.learning_rate, weight_decay=best.weight_decay
        )

    def _evaluate(self) -> Evaluation | MultiLabelEvaluation:
        cache = self.caches and self.caches[1]
        return evaluate(
            self.probe, self.data.test, self.data.classes, self.training, self.process, cache, self.skipped
        )

    def _evaluate_others(self, head: NeighbourHead, chosen: Evaluation | MultiLabelEvaluation) -> None:
        """Add the test accuracy of each number of neighbours to the table; the choice does not change."""
        assert self.neighbours is not None
        kept, trials = head.neighbours, []
        for trial in self.neighbours:
            head.neighbours = trial.k
            measured = chosen if trial.chosen else self._evaluate()
            assert isinstance(measured, Evaluation), "k-NN reads one label an image"
            trials.append(replace(trial, top1=measured.top1))
        head.neighbours, self.neighbours = kept, tuple(trials)

    def _write(self, evaluation: Evaluation | MultiLabelEvaluation, seconds: float) -> ProbeResult:
        config, data, run, process = self.config, self.data, self.run, self.process
        skipped = self.skipped
        if process.num_processes > 1:
            skipped = sorted(set(gather_object(skipped)))
        names = set(data.train.ids)
        unread = sum(is_about(line, names) for line in skipped)
        kind = kind_of(data)
        tried = {"grid": self.grid, "neighbours": self.neighbours}
        seed = kind.figures.from_metrics(
            {
                "metric": data.metric,
                **evaluation.metrics(),
                "trainable_parameters": self.probe.trainable_parameters,
                "train_images": len(data.train) - unread,
                "train_seconds": round(seconds, 2),
                "epochs": config.epochs if config.epochs is not None and config.head != "knn" else 0,
                "seed": config.seed,
                "skipped_images": skipped,
                **{name: plain(trials) for name, trials in tried.items() if trials is not None},
            }
        )
        self.model.info = {
            "data": data.name,
            seed.SHARES[0]: round(getattr(seed, seed.SHARES[0]), 4),
            "test_images": seed.test_images,
            "train_images": seed.train_images,
            "epochs": seed.epochs,
            "seed": seed.seed,
        }
        scores = (*seed.SHARES, "ece", "nll")
        run.trackers.results({f"test/{name}": getattr(seed, name, None) for name in scores})
        run.write("predictions.csv", kind.write(evaluation, data.test.ids))
        run.write_folder("model", self.model.save)
        result = ProbeResult(out=config.out, model=self.model, seeds=(seed,), evaluations=(evaluation,))
        run.write("report.html", _report(config, result, data, [run.read_log()], process))
        run.write_json(FINISHED, result.metrics())
        process.wait_for_everyone()
        if run.main_process:
            shutil.rmtree(config.out / "cache", ignore_errors=True)
        return result


def _report(
    config: ProbeConfig,
    result: ProbeResult,
    data: ImageData,
    logs: Sequence[list[dict[str, Any]]],
    process: Accelerator,
) -> str:
    model, train_images = result.model, result.seeds[0].train_images
    extractor, backbone = model.probe.extractor, model.probe.extractor.backbone

    def examples(rows: Sequence[int]) -> Tensor:
        images = [fit_images(data.test.image(row), backbone.in_channels, backbone.image_size) for row in rows]
        return torch.stack(images)

    labels = (
        f"{config.label_fraction:g} of each class, chosen by the seed"
        if config.label_fraction is not None
        else f"those that {config.label_list} names"
        if config.label_list is not None
        else "all"
    )
    found = changes(data.train, backbone.in_channels, backbone.image_size)
    known = copies(data.train, data.test)
    provenance: dict[str, object] = {
        "Backbone": f"{config.backbone}, fingerprint {model.fingerprint[:12]}",
        **report_of(config.out, BACKBONE_REPORT, given(config.backbone)),
        "Places read": f"{named('block', extractor.blocks)} at "
        f"{plural('noise step', len(extractor.noise_steps))} "
        f"{in_words(backbone.process.by_noise(extractor.noise_steps))}, {model.extractor.name} extractor",
        **backbone.facts(),
        "Data": f"{data.name}, fingerprint {data.fingerprint()[:12]}",
        **({"Images as read": found} if found else {}),
        **({"Copies": known} if known else {}),
        "Labels used": f"{train_images:,}: {labels}",
        "Seeds": listing([each.seed for each in result.seeds]),
        **environment(process.device),
    }
    head = a(given(config.head)).capitalize().replace("difformer", "DifFormer")
    summary = (
        f"{head} head on the {model.extractor.name} features of {config.backbone}, trained on "
        f"{counted(train_images, 'labelled image')} of {data.name}."
    )
    return probe_report(
        command=shown_command(config),
        summary=summary,
        evaluations=result.evaluations,
        metrics=[each.metrics() for each in result.seeds],
        logs=logs,
        examples=examples,
        provenance=provenance,
        beneath=reports_of(
            config.out,
            {
                f"Seed {each.seed}": config.out / f"seed-{each.seed}"
                for each in result.seeds
                if len(result.seeds) > 1
            },
        ),
    )
