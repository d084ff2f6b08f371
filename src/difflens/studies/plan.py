"""`difflens.plan`, which --dry-run calls: what a command would run, counted on shapes alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from difflens.backbones.base import Backbone, DiffusionBackbone
from difflens.backbones.bigan import BiGANBackbone
from difflens.backbones.config import BackboneConfig
from difflens.backbones.load import BUNDLED, load_backbone
from difflens.backbones.maps import MapShape, Place, pooled_shape
from difflens.backbones.pixels import is_pixels
from difflens.backbones.unet import UNetBackbone
from difflens.choices import Precision
from difflens.configs.cka import CkaConfig
from difflens.configs.dense import DenseConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.options import Options, PrecisionOptions, given, resolve
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.segment import SegmentConfig
from difflens.configs.sweep import SweepConfig
from difflens.data.changes import channels_of
from difflens.data.files import list_images
from difflens.data.load import load_data, load_unlabelled, without_split
from difflens.data.published import LABEL_LISTS, PublishedSet, published_set
from difflens.data.split import ImageData, every_nth
from difflens.errors import DiffLensError, counted, expanded, listing, named, plural
from difflens.extractors.base import Extractor
from difflens.extractors.cache import READ_BATCH
from difflens.extractors.config import ExtractorConfig
from difflens.extractors.store import FeatureStore
from difflens.generation.fidelity import images_folder
from difflens.generation.samplers import make_sampler
from difflens.heads.config import DetectionHeadConfig, SegmentationHeadConfig
from difflens.heads.detection import DetectionHead
from difflens.heads.knn import NeighbourHead
from difflens.heads.make import make_head
from difflens.heads.segmentation import SegmentationHead
from difflens.opening import bundled_backbone
from difflens.presets import ADM_256, PRETRAIN
from difflens.pretraining.gradients import recomputed
from difflens.pretraining.networks import build_unet, unet_config
from difflens.processes.base import in_words
from difflens.processes.schedulers import process_of
from difflens.results.plan import PlanResult
from difflens.run.console import note
from difflens.run.counting import Cost, cost_of_images
from difflens.studies.places import default_levels
from difflens.tasks.classification.kinds import check_labels
from difflens.tasks.classification.probe import (
    epochs_of,
    places_and_head,
    training_images,
    with_normalisation,
    with_store,
    within_store,
)
from difflens.tasks.classification.selection import GRID
from difflens.tasks.dense import chosen_rows, make_plan
from difflens.tasks.detection.detect import Detection
from difflens.tasks.segmentation.segment import Segmentation, check_batch
from difflens.training.objectives import micro_batch

FID_IMAGES = 50_000
"""The usual number of generated images for FID, assumed where they do not exist yet."""

_META = torch.device("meta")
_INCEPTION_SIDE = 299
_ONLINE = ("hf:", "torchvision:")
# the folders in which these names lie are downloaded if they are not there
_DOWNLOADED = ("fashion-full", "aircraft", "cars", "cub", "dogs", "flowers", "nabirds")


def plan(config: Options) -> PlanResult:
    """Return what the command of `config` would run, from shapes and numbers of images.

    Nothing is downloaded or written, and no weights are read. The paper's network and data sets are planned
    with their published sizes where they are not at hand.

    Raises:
        DiffLensError: the command has no dry run, or its options, data or backbone have an error.
    """
    for kind, planner in _PLANNERS.items():
        if isinstance(config, kind):
            options: Any = with_store(config) if isinstance(config, ProbeConfig) else config
            if isinstance(config, PrecisionOptions) and config.precision == "auto":
                note("precision: planned for float32, since auto is measured when the run begins")
                options = replace(options, precision="float32")
            return planner(resolve(replace(options, dry_run=False)))
    raise DiffLensError(f"{config.command} has no dry run")


def _plan_probe(config: ProbeConfig) -> PlanResult:
    data = _labelled_data(given(config.data), config.val_fraction)
    if data.loaded is not None:
        check_labels(config, data.loaded)
    store = None if config.store is None else FeatureStore(config.store)
    if data.loaded is not None:
        config = within_store(config, store, data.loaded.train)
    train, test = _probed(config, store, data)
    if config.head != "knn":
        config = replace(config, epochs=epochs_of(config, train))
    source, backbone = _backbone(config, data.channels)
    extractor_config, head_config = places_and_head(
        replace(config, backbone=source.spec), backbone.defaults, store
    )
    with _META:
        extractor = extractor_config.build(backbone)
        head_config = with_normalisation(head_config, config, extractor, train)
        head: Any = make_head(head_config, extractor.shapes(), data.classes)
    online = extractor.trainable or config.augment != "none"
    trains = not isinstance(head, NeighbourHead)
    epochs, batch = config.epochs or 0, min(config.batch_size or READ_BATCH, train)
    read = _reading_cost(source, extractor_config, backbone.image_size, batch if online else READ_BATCH)
    operations: dict[str, float] = {}
    memory = {"weights": _bytes(backbone)}
    stored: dict[str, float] = {}
    if online:
        operations["backbone"] = epochs * train * read.training.operations
        operations["evaluation"] = test * read.evaluation.operations
        memory["activations of the backbone"] = read.training.peak
    elif store is None:
        operations["backbone"] = (train + test) * read.evaluation.operations
        memory["activations of the backbone"] = read.evaluation.peak
        stored["cached features"] = 2.0 * (train + test) * _values(extractor.shapes(), head.pool)
    if trains:
        cost = _head_cost(head, extractor.shapes(), batch, extractor.trainable)
        operations["head"] = epochs * train * cost.operations / batch
        memory["activations of the head"] = cost.peak
        memory |= _trained(head, extractor, config.optimizer == "sgd")
    trained = sum(each.numel() for each in _trainable(head, extractor)) if trains else 0
    steps, schedule = epochs * math.ceil(train / batch), _schedule(epochs, batch, config.seeds)
    if config.grid:
        heads, images = math.prod(map(len, GRID[given(config.optimizer)])), _in_grid(config, store, data)
        steps += epochs * math.ceil(images / batch)
        schedule += f", after as many epochs of a grid of {heads} heads on {counted(images, 'image')}"
        operations["grid"] = heads * operations["head"] * images / train
        (size,) = _trained(head, extractor, config.optimizer == "sgd").values()
        memory["heads of the grid"] = heads * size
    return PlanResult(
        command="probe",
        backbone=_described(backbone, config.decided_precision),
        images={"train": train, "test": test},
        data=data.source,
        reads=_places(extractor, extractor_config.name, head_config.name),
        steps=config.seeds * steps if trains else 0,
        schedule=schedule,
        trainable_parameters=trained,
        memory=memory,
        stored=stored,
        operations={name: config.seeds * count for name, count in operations.items()},
        precision=config.decided_precision,
    )


def _plan_dense(config: DenseConfig) -> PlanResult:
    if isinstance(config, SegmentConfig):
        check_batch(config, processes=1)
    task: Any = Segmentation(config) if isinstance(config, SegmentConfig) else Detection(config)  # type: ignore[arg-type]
    data, loaded = _dense_data(task)
    batch, iterations = given(config.batch_size), given(config.iterations)
    micro = micro_batch(batch, 1, config.accumulate)
    source, backbone = _backbone(config, data.channels)
    with _META:
        made = make_plan(config, backbone)
        extractor = made.extractor.build(backbone)
        shapes = extractor.shapes(made.side)
        kind: SegmentationHeadConfig | DetectionHeadConfig = task.head(made, loaded)
        head: nn.Module = (
            SegmentationHead(kind, shapes, data.classes)
            if isinstance(kind, SegmentationHeadConfig)
            else DetectionHead(kind, shapes, data.classes)
        )
    read = _reading_cost(source, made.extractor, made.side, micro)
    cost = _head_cost(head, shapes, micro, extractor.trainable, made.side)
    squares = f"squares of {made.side} pixels"
    if isinstance(config, SegmentConfig):
        squares += "; an evaluated image counts as one square a scale, and larger images take more"
    windows = data.test * (
        len(config.eval_scales) * (1 + config.eval_flip) if isinstance(config, SegmentConfig) else 1
    )
    return PlanResult(
        command=config.command,
        backbone=_described(backbone, config.decided_precision),
        images={"train": data.train, "validation": data.test},
        data=data.source,
        reads=f"{_places(extractor, made.extractor.name, kind.name)}, {squares}",
        steps=iterations,
        schedule=f"batch {batch}",
        trainable_parameters=sum(each.numel() for each in _trainable(head, extractor)),
        memory={
            "weights": _bytes(backbone),
            "activations of the backbone": read.training.peak,
            "activations of the head": cost.peak,
            **_trained(head, extractor, config.optimizer == "sgd"),
        },
        stored={},
        operations={
            "backbone": iterations * batch * read.training.operations,
            "head": iterations * config.accumulate * cost.operations,
            "evaluation": windows * read.evaluation.operations,
        },
        precision=config.decided_precision,
    )


def _plan_pretrain(config: PretrainConfig) -> PlanResult:
    if config.method != "diffusion":
        raise DiffLensError(f"only diffusion has a dry run of pretrain, not {config.method}")
    data = _unlabelled_data(config.data, config.val_fraction)
    images = min(data.train, config.limit or data.train)
    preset = PRETRAIN[config.preset]["unet"]
    batch, epochs = given(config.batch_size), given(config.epochs)
    precision: Precision = "float32" if config.precision == "float32" else "bfloat16"
    dtype = getattr(torch, precision)
    with _META:
        unet = build_unet(config)
    channels, side = unet.config["in_channels"], unet.config["sample_size"]

    if config.checkpoint_activations:
        unet.enable_gradient_checkpointing(recomputed)

    def step(count: int) -> None:
        shape = count, channels, side, side
        x_t, t = torch.empty(shape, device=_META, dtype=dtype), torch.zeros(count, device=_META)
        cast = {name: weight.to(dtype) for name, weight in unet.named_parameters()}
        torch.func.functional_call(unet, cast, (x_t, t)).sample.float().sum().backward()
        unet.zero_grad()

    cost = cost_of_images(step, micro_batch(batch, 1, config.accumulate))
    steps, weights = epochs * math.ceil(images / batch), 4.0 * unet.num_parameters()
    return PlanResult(
        command="pretrain",
        backbone=f"{preset}, {unet.num_parameters() / 1e6:,.1f} M parameters, float32 weights, {precision}",
        images={"train": images},
        data=data.source,
        reads=f"images of {channels} x {side} x {side}",
        steps=steps,
        schedule=_schedule(epochs, batch),
        trainable_parameters=unet.num_parameters(),
        memory={"weights and average": 2 * weights, "moments": 2 * weights, "a step": cost.peak},
        stored={},
        operations={"training": steps * config.accumulate * cost.operations},
        precision=precision,
    )


def _plan_sweep(config: SweepConfig) -> PlanResult:
    data = _labelled_data(config.data, config.val_fraction)
    limit, seconds = config.limits()
    images = min(data.train, limit or data.train)
    source, backbone = _backbone(config, data.channels)
    blocks = backbone.check_blocks(config.blocks or [block.index for block in backbone.blocks])
    steps = backbone.check_noise_steps(config.noise_steps or default_levels(backbone))
    # each noise step is read on its own, and costs the same
    read = ExtractorConfig("frozen", blocks, steps[:1], config.seed, precision=config.decided_precision)
    cost = _reading_cost(source, read, backbone.image_size, READ_BATCH).evaluation
    with _META:
        shapes = read.build(backbone).shapes()
    return PlanResult(
        command="sweep",
        backbone=_described(backbone, config.decided_precision),
        images={"train": images},
        data=data.source + ("" if seconds is None else f"; fewer images if {seconds:g} seconds end first"),
        reads=f"{counted(len(blocks), 'block')} at t = {listing(steps)}",
        memory={"weights": _bytes(backbone), "activations of the backbone": cost.peak},
        stored={"features of a noise step": 2.0 * images * _values(shapes, config.pool)},
        operations={"backbone": len(steps) * images * cost.operations},
        precision=config.decided_precision,
    )


def _plan_cka(config: CkaConfig) -> PlanResult:
    data = _unlabelled_data(config.data, config.val_fraction)
    images = min(data.train, config.limit)
    source, backbone = _backbone(config, data.channels)
    steps = config.noise_steps or (backbone.defaults.noise_step,)
    sources = [(source, config.blocks, steps)]
    if config.other is not None:
        other, network = _backbone(config, data.channels, config.other)
        at = network.defaults.noise_step if config.other_noise_step is None else config.other_noise_step
        sources.append((other, None, (at,)))
    operations, peak, reads = {}, 0.0, []
    for each, blocks, levels in sources:
        network = _loaded(each)
        read = blocks or tuple(block.index for block in network.blocks)
        places = ExtractorConfig("frozen", read, levels, config.seed, precision=config.decided_precision)
        cost = _reading_cost(each, places, network.image_size, READ_BATCH).evaluation
        operations[each.spec] = images * cost.operations
        peak = max(peak, cost.peak)
        reads.append(f"{each.spec}: {counted(len(read), 'block')} at t = {listing(levels)}")
    return PlanResult(
        command="cka",
        backbone=_described(backbone, config.decided_precision),
        images={"train": images},
        data=data.source,
        reads="; ".join(reads),
        memory={"weights": _bytes(backbone), "activations of the backbone": peak},
        stored={},
        operations=operations,
        precision=config.decided_precision,
    )


def _plan_generate(config: GenerateConfig) -> PlanResult:
    _, backbone = _backbone(config, 1)
    sampler = make_sampler(backbone, config.sampler, config.steps, config.eta, config.seed)
    backbone.convert(getattr(torch, config.decided_precision))
    batch = config.batch_size or max(1, min(64, 64 * 32 // backbone.image_size))

    @torch.no_grad()
    def call(count: int) -> None:
        if isinstance(backbone, BiGANBackbone):
            latents = count, backbone.generator.config.latent
            backbone.generator(torch.empty(latents, device=_META, dtype=backbone.dtype))
            return
        assert isinstance(backbone, DiffusionBackbone), "nothing else generates"
        x_t = torch.empty(count, *backbone.input_shape, device=_META, dtype=backbone.dtype)
        backbone.denoise(x_t, backbone.defaults.noise_step)

    cost = cost_of_images(call, batch)
    return PlanResult(
        command="generate",
        backbone=_described(backbone, config.decided_precision),
        images={"generated": config.n},
        data="by the seed",
        reads=f"{sampler.name}, {counted(sampler.steps, 'step')}, batch {batch}",
        memory={"weights": _bytes(backbone), "activations of the backbone": cost.peak},
        stored={},
        operations={"sampling": math.ceil(config.n / batch) * sampler.calls * cost.operations},
        precision=config.decided_precision,
    )


def _plan_fidelity(config: FidelityConfig) -> PlanResult:
    if config.val_fraction is None and _known(config.data) is None and without_split(config.data):
        data = _unlabelled_data(config.data, None)  # all of its images are the real ones
        data = replace(data, test=data.train)
    else:
        data = _labelled_data(config.data, config.val_fraction, labels=False)
    real = data.train if config.split == "train" else data.test
    made = expanded(config.samples)
    generated = len(list_images([images_folder(made)])) if made.is_dir() else FID_IMAGES
    sizes = {"generated": generated, f"real ({config.split})": real}
    sizes = {name: min(count, config.limit or count) for name, count in sizes.items()}
    if config.features == "inception":
        described, reads, cost, weights = _inception()
    else:
        space, backbone = _backbone(config, data.channels, config.features)
        block = config.block or backbone.defaults.block
        step = backbone.defaults.noise_step if config.noise_step is None else config.noise_step
        places = ExtractorConfig("frozen", (block,), (step,), config.seed)
        cost = _reading_cost(space, places, backbone.image_size, READ_BATCH).evaluation
        described, reads = _described(backbone, "float32"), f"block {block} at t = {step}"
        weights = _bytes(backbone)
    return PlanResult(
        command="fidelity",
        backbone=described,
        images=sizes,
        data=data.source + ("" if made.is_dir() else f"; {config.samples} does not exist yet"),
        reads=reads,
        memory={"weights": weights, "activations": cost.peak},
        stored={},
        operations={name: count * cost.operations for name, count in sizes.items()},
        precision="float32",
    )


_PLANNERS: dict[type[Options], Callable[[Any], PlanResult]] = {
    ProbeConfig: _plan_probe,
    DenseConfig: _plan_dense,
    PretrainConfig: _plan_pretrain,
    SweepConfig: _plan_sweep,
    CkaConfig: _plan_cka,
    GenerateConfig: _plan_generate,
    FidelityConfig: _plan_fidelity,
}


@dataclass(frozen=True)
class _Sizes:
    """The data of a plan: numbers of images and classes, and where they are from; `loaded` if it is here."""

    train: int
    test: int
    classes: int
    channels: int
    source: str
    loaded: ImageData | None = None

    @classmethod
    def of(cls, published: PublishedSet, spec: str) -> "_Sizes":
        source = f"{published.title} at its published size; {spec} was not read"
        return cls(published.train, published.test, published.classes, published.channels, source)


def _known(spec: str) -> _Sizes | None:
    """Return the published size of data that is not on this machine, or would have to be looked for online.

    Raises:
        DiffLensError: it would have to be downloaded, and its size is not known.
    """
    published = published_set(spec)
    online = spec.startswith(_ONLINE) or spec in _DOWNLOADED
    if published is not None and (online or not expanded(spec.removeprefix("folder:")).exists()):
        return _Sizes.of(published, spec)
    if online:
        raise DiffLensError(f"a dry run downloads nothing, and the size of {spec} is not known without it")
    return None


def _labelled_data(spec: str, val_fraction: float | None, labels: bool = True) -> _Sizes:
    known = _known(spec)
    if known is not None:
        return known
    data = load_data(spec, labels, val_fraction)
    channels = channels_of(data.train)
    return _Sizes(len(data.train), len(data.test), len(data.classes), channels, data.name, data)


def _unlabelled_data(spec: str, val_fraction: float | None) -> _Sizes:
    known = _known(spec)
    if known is not None:
        return known
    split = load_unlabelled(spec, val_fraction)
    return _Sizes(len(split), 0, 0, channels_of(split), spec)


def _dense_data(task: Any) -> tuple[_Sizes, Any]:
    """Return the sizes of a dense task's data, and the data; None for a published set that is not here."""
    config: DenseConfig = task.config
    known, data = None if config.data is None else _known(str(config.data)), None
    if known is None:
        data = task.load()
        known = _Sizes(len(data.train), len(data.val), len(data.classes), channels_of(data.train), data.name)
    rows = chosen_rows(config, known.train)
    return known if rows is None else replace(known, train=len(rows)), data


def _probed(config: ProbeConfig, store: FeatureStore | None, data: _Sizes) -> tuple[int, int]:
    """Return how many images a probe trains on and is tested on."""
    if data.loaded is not None:
        return len(training_images(config, store, data.loaded)), data.test
    count = min(data.train, config.limit or data.train)
    if config.label_fraction is not None:
        return round(config.label_fraction * count), data.test
    if config.label_list is None:
        return count, data.test
    path = expanded(config.label_list)
    if path.is_file():
        return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()), data.test
    if path.name not in LABEL_LISTS:
        raise DiffLensError(f"no such file: {path}")
    return LABEL_LISTS[path.name], data.test


def _in_grid(config: ProbeConfig, store: FeatureStore | None, data: _Sizes) -> int:
    """Return on how many of the training images the heads of a grid train; the others choose one of them."""
    if data.loaded is None:
        train, _ = _probed(config, store, data)
        return train - train // 5
    labels = training_images(config, store, data.loaded).labels
    assert labels is not None
    return int((~every_nth(labels, 5)).sum())


def _backbone(options: Any, channels: int, spec: str | None = None) -> tuple[BackboneConfig, Backbone]:
    """Return a backbone without weights: `spec`, else that of the options, else the bundled one for images of
    so many channels."""
    spec = spec or getattr(options, "backbone", None) or bundled_backbone(channels)
    source = BackboneConfig.of(options, spec)
    return source, _loaded(source)


def _loaded(source: BackboneConfig) -> Backbone:
    """Return a backbone on the meta device.

    Raises:
        DiffLensError: it is not on this machine, and its shapes are not known without it.
    """
    name = source.spec.removeprefix("random:")
    path = expanded(name)
    if path.name == ADM_256 and not path.exists():
        with _META:
            unet = UNet2DModel(**unet_config("adm-256", learned_variance=True)).eval()
        return UNetBackbone(unet, process_of({"beta_schedule": "linear"}), source.spec, source.image_size)
    here = name in BUNDLED or name.startswith("timm:") or is_pixels(name) or path.exists()
    if not here:
        raise DiffLensError(f"a dry run downloads nothing, and {name} is no file or folder here")
    if is_pixels(name):
        return load_backbone(name, image_size=source.image_size)
    # no weights are read, whichever file of weights is named
    kind = name.partition("@")[0] if name.startswith("timm:") else name
    return replace(source, spec=f"random:{kind}").load(_META)


@dataclass(frozen=True)
class _Reading:
    """The costs of an extractor: `training` of a batch in memory and of an image in operations, likewise
    `evaluation`."""

    training: Cost
    evaluation: Cost


@cache
def _reading_cost(source: BackboneConfig, config: ExtractorConfig, side: int, batch: int) -> _Reading:
    backbone = _loaded(source)
    with _META:
        extractor = config.build(backbone)

    def read(count: int, train: bool) -> None:
        images = torch.empty(count, backbone.in_channels, side, side, device=_META)
        index = torch.zeros(count, dtype=torch.long, device=_META)
        extractor.train(train)
        with nullcontext() if train and extractor.trainable else torch.no_grad():
            maps = extractor(images, index, int(train))
            if train and extractor.trainable:
                sum((each.sum() for each in maps.values()), start=torch.zeros((), device=_META)).backward()
                extractor.zero_grad()

    def of(train: bool) -> Cost:
        cost = cost_of_images(lambda count: read(count, train), batch)
        return Cost(cost.operations / batch, cost.peak)

    evaluation = of(train=False)
    return _Reading(of(train=True) if extractor.trainable else evaluation, evaluation)


def _head_cost(
    head: nn.Module, shapes: dict[Place, MapShape], batch: int, gradient: bool, side: int | None = None
) -> Cost:
    """Return the cost of a training step of a head.

    Args:
        gradient: True if the maps take a gradient, for an extractor that is trained too.
        side: the side of the images, for a dense head.
    """

    def step(count: int) -> None:
        maps = {
            place: torch.empty(count, *shape, device=_META, requires_grad=gradient)
            for place, shape in shapes.items()
        }
        with _META:
            outputs = _outputs(head, maps, side)
        sum((each.sum() for each in outputs), start=torch.zeros((), device=_META)).backward()
        head.zero_grad()

    head.train()
    return cost_of_images(step, batch)


def _outputs(head: nn.Module, maps: dict[Place, Tensor], side: int | None) -> Iterator[Tensor]:
    """Yield all outputs of a head; of a detection head those of its layers on as many regions as it trains
    on."""
    if isinstance(head, SegmentationHead):
        assert side is not None
        yield head(maps, (side, side))
    elif isinstance(head, DetectionHead):
        yield from head.layers_on(maps)
    else:
        yield head(maps)


def _inception() -> tuple[str, str, Cost, float]:
    """Return Inception-v3 in words, what is read of it, its cost of a batch, and its bytes.

    It has the layers of the FID network, which pools in other ways and multiplies as often.
    """
    from torchvision.models import inception_v3

    with _META:
        network = inception_v3(weights=None, init_weights=False).eval()

    def read(count: int) -> None:
        with torch.no_grad():
            network(torch.empty(count, 3, _INCEPTION_SIDE, _INCEPTION_SIDE, device=_META))

    cost = cost_of_images(read, READ_BATCH)
    weights = 4.0 * sum(parameter.numel() for parameter in network.parameters())
    reads = f"its last features, images of {_INCEPTION_SIDE} pixels"
    return "Inception-v3", reads, Cost(cost.operations / READ_BATCH, cost.peak), weights


def _described(backbone: Backbone, precision: Precision) -> str:
    count = sum(parameter.numel() for parameter in backbone.parameters())
    return f"{backbone.spec.removeprefix('random:')}, {count / 1e6:,.1f} M parameters, {precision}"


def _places(extractor: Extractor, kind: str, head: str) -> str:
    levels = in_words(extractor.backbone.process.by_noise(extractor.noise_steps))
    at = plural("noise step", len(extractor.noise_steps))
    return f"{kind} extractor, {named('block', extractor.blocks)} at {at} {levels}; {head} head"


def _schedule(epochs: int, batch: int, seeds: int = 1) -> str:
    return f"{counted(epochs, 'epoch')}, batch {batch}" + (f", {counted(seeds, 'seed')}" if seeds > 1 else "")


def _values(shapes: dict[Place, MapShape], side: int | None) -> int:
    """Return the number of values that a cache keeps of an image."""
    return sum(math.prod(pooled_shape(shape, side)) for shape in shapes.values())


def _trainable(head: nn.Module, extractor: Extractor) -> list[nn.Parameter]:
    return [each for part in (head, extractor) for each in part.parameters() if each.requires_grad]


def _trained(head: nn.Module, extractor: Extractor, sgd: bool) -> dict[str, float]:
    """Return the bytes of trained weights, their gradients and the optimiser's moments."""
    size = 4.0 * sum(parameter.numel() for parameter in _trainable(head, extractor))
    return {"trained weights, gradients, moments": size * (2 if sgd else 4)}


def _bytes(module: nn.Module) -> float:
    return float(sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()))
