"""Recognition while it is learnt: simple classifiers on a network in training, as `sweep` measures them."""

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from difflens.backbones.base import Backbone
from difflens.backbones.maps import Place
from difflens.choices import ClassifierName
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.changes import say_changes
from difflens.data.labels import balanced, one_label, several_classes
from difflens.data.load import load_data, same_data, without_test
from difflens.data.loader import iterate
from difflens.data.split import ImageSplit, MemorySplit, every_nth
from difflens.errors import DiffLensError, counted
from difflens.extractors.base import Extractor
from difflens.extractors.cache import FeatureCache, Reading, read_features
from difflens.extractors.config import ExtractorConfig
from difflens.metrics.geometry import effective_rank
from difflens.metrics.moments import Moments
from difflens.models.simple import measure_places

CLASSIFIERS: tuple[ClassifierName, ...] = ("ridge", "knn")
POOL = 2
"""Side, in cells, that maps are pooled to: the default of `sweep`."""
_IMAGES = 1000
_IMAGES_A_CLASS = 10


class OnlineProbe:
    """Measures a network in training on a fixed subset of labelled training images.

    The images are drawn as by `sweep`, equally many of each class, and stay in memory. The places are the
    blocks that DifFormer reads by default, at the least of its noise steps.

    Args:
        config: the resolved options, with `probe_data`.
        channels, side: the shape of the images that the network takes.
        process: this process. With several, each reads its share.

    Raises:
        DiffLensError: the data has no labels, no class has two images, or an image cannot be read.
    """

    def __init__(self, config: PretrainConfig, channels: int, side: int, process: Accelerator):
        self.config, self.process = config, process
        spec = given(config.probe_data)
        try:
            # of data without a split, a fifth of each class is left unread
            fraction = 0.2 if without_test(spec) else None
            if config.val_fraction is not None and same_data(spec, config.data):
                fraction = config.val_fraction
            data = one_label(load_data(spec, val_fraction=fraction), "the probe of --probe-every")
        except DiffLensError as error:
            raise DiffLensError(f"--probe-data needs images with labels: {error}") from error
        data = several_classes(data, "--probe-data")
        self.name, self.classes = data.name, len(data.classes)
        count = max(_IMAGES, _IMAGES_A_CLASS * self.classes)
        chosen = data.train.subset(balanced(data.train, count, config.seed))
        say_changes(chosen, f"the probe, as the preset {config.preset},", channels, side)
        self.images = _in_memory(chosen, channels, side, config)
        assert self.images.labels is not None
        self.held_out = every_nth(self.images.labels, 5)
        if not self.held_out.any():
            raise DiffLensError(
                f"--probe-data {config.probe_data}: a probe holds out a fifth of each class, and no class "
                "has two images"
            )

    def due(self, epoch: int) -> bool:
        """Return True if the network is measured at the end of an epoch, counted from 1."""
        return epoch % given(self.config.probe_every) == 0 or epoch == given(self.config.epochs)

    def measure(self, backbone: Backbone) -> dict[str, Any]:
        """Return the fields of a log record: accuracies and effective rank of each place, and the seconds.

        The accuracies are those of `sweep` on the same weights and images. The random state of the training
        stays as it is.

        Raises:
            DiffLensError: a feature is not finite or overflows float16.
        """
        began = time.monotonic()
        places = probed_places(backbone)
        blocks, levels = (tuple(sorted(set(values))) for values in zip(*places, strict=True))
        extractor = ExtractorConfig("frozen", blocks, levels, self.config.seed).build(backbone)
        extractor.compiled = False  # compiling takes longer than reading once
        cache = self._read(extractor)
        measured = measure_places(
            cache, places, self.held_out, CLASSIFIERS, self.classes, self.process.device
        )
        records = []
        for place, accuracy in zip(places, measured["accuracy"].T.tolist(), strict=True):
            rank = _effective_rank(cache.maps[place][torch.arange(len(cache))])
            by_classifier = dict(zip(CLASSIFIERS, accuracy, strict=True))
            records.append(
                {"block": place[0], "noise_step": place[1], **by_classifier, "effective_rank": rank}
            )
        return {"probe": records, "probe_seconds": round(time.monotonic() - began, 2)}

    def _read(self, extractor: Extractor) -> FeatureCache:
        """Return the features of all images, in their order; each process reads its share.

        Raises:
            DiffLensError: the features of one process cannot be kept; all processes raise it.
        """
        own: FeatureCache | DiffLensError
        try:
            own = read_features(
                extractor, POOL, self.images, self.process, Reading(0, "error", []), show=False
            )
        except DiffLensError as error:
            own = error
        read = [own] if self.process.num_processes == 1 else gather_object([own])
        if failures := [each for each in read if isinstance(each, DiffLensError)]:
            raise failures[0]
        shares = [each for each in read if isinstance(each, FeatureCache)]
        if len(shares) == 1:
            return shares[0]
        rows = torch.cat([each.rows for each in shares])
        order = rows.argsort()
        maps = {
            place: torch.cat([each.maps[place][torch.arange(len(each))] for each in shares])[order]
            for place in shares[0].maps
        }
        return FeatureCache(maps, torch.cat([each.labels for each in shares])[order], rows[order])

    def fact(self, log: Sequence[Mapping[str, Any]], seconds: float) -> str:
        """Return the row of the model card: what was measured, and its share of the training's time.

        Args:
            log: the records of the training.
            seconds: the seconds of the training, with those of the probe.
        """
        spent = sum(record.get("probe_seconds", 0.0) for record in log)
        share = f"; {100 * spent / seconds:.1f} % of the time" if seconds else ""
        return (
            f"{counted(len(self.images), 'training image')} of {self.name}, of which "
            f"{int(self.held_out.sum()):,} "
            f"validate{share}"
        )


def probed_places(backbone: Backbone) -> tuple[Place, ...]:
    """Return the places that are measured: the blocks that DifFormer reads by default, at its least noise."""
    defaults = backbone.defaults
    level = next(iter(backbone.process.by_noise(defaults.fusion_noise_steps)))
    return tuple((block, level) for block in backbone.check_blocks(defaults.fusion_blocks))


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the points of a log record's probe by the names of their curves; none without a probe."""
    return {
        f"probe/{measure}/block{place['block']}-t{place['noise_step']}": place[measure]
        for place in record.get("probe", ())
        for measure in (*CLASSIFIERS, "effective_rank")
        if place[measure] is not None
    }


def _effective_rank(maps: Tensor) -> float | None:
    """Return the effective rank of the means over positions of maps (N, C, H, W); None if all are 0."""
    moments = Moments(maps.shape[1])
    moments.add(maps.float().mean((2, 3)))
    rank = effective_rank(moments.second)
    return rank if isfinite(rank) else None


def _in_memory(split: ImageSplit, channels: int, side: int, config: PretrainConfig) -> ImageSplit:
    """Return the readable images of a split in the shape that the network takes, with their noise."""
    batches = iterate(
        split,
        channels=channels,
        side=side,
        batch_size=64,
        workers=config.workers,
        on_bad_image=config.on_bad_image,
        bad=[],
    )
    read = [(batch.images, batch.rows) for batch in batches]
    if not read:
        raise DiffLensError(f"no image of --probe-data {config.probe_data} could be read")
    rows = torch.cat([rows for _, rows in read])
    assert split.labels is not None
    images = MemorySplit(split.name, torch.cat([pixels for pixels, _ in read]), split.labels[rows])
    images.index, images.noise_index = split.index[rows], split.noise_index[rows]
    return images
