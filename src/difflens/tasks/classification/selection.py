"""Chooses the settings of a head on the training images, never on the test images."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from difflens.configs.options import given
from difflens.configs.train import TrainConfig
from difflens.data.split import every_nth
from difflens.errors import DiffLensError
from difflens.extractors.cache import FeatureCache
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead
from difflens.metrics.classifiers import NEIGHBOURS, left_out_neighbours
from difflens.models.probe import Probe
from difflens.results.probe import GridTrial, NeighbourTrial
from difflens.tasks.classification.train import HeadObjective, Inputs, cached_batches
from difflens.training.loop import TrainingLoop
from difflens.training.optimisers import ParameterGroup

# the grid of `probe --head linear --grid`: (learning rates, weight decays) by optimiser
GRID: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "adamw": ((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0.0, 0.05, 0.5)),
    "sgd": ((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3), (0.0, 1e-5, 1e-4, 1e-3)),
}


def choose_neighbours(head: NeighbourHead, classes: int) -> tuple[NeighbourTrial, ...]:
    """Measure the leave-one-out accuracy of each number of neighbours on the training images of `head`.

    Returns:
        A trial for each of `classifiers.NEIGHBOURS`; the best is chosen.
    """
    accuracy = left_out_neighbours(head.bank, head.labels, classes)
    best = accuracy.index(max(accuracy))
    return tuple(
        NeighbourTrial(k, each, place == best)
        for place, (k, each) in enumerate(zip(NEIGHBOURS, accuracy, strict=True))
    )


class GridObjective(HeadObjective):
    """Linear heads with different learning rates, which train in the same pass over cached maps.

    Args:
        probe: a probe with a linear head, which is not changed.
        heads: the linear heads to train.
        pairs: learning rate and weight decay of each head.
        cache: the maps of the training images.
        rows: (M,) long: the entries of the cache to train on.
    """

    def __init__(
        self,
        probe: Probe,
        heads: nn.ModuleList,
        pairs: Sequence[tuple[float, float]],
        cache: FeatureCache,
        rows: Tensor,
        config: TrainConfig,
        process: Accelerator,
    ):
        def read(order: Tensor, epoch: int, batch_size: int) -> Iterator[Inputs]:
            assert isinstance(probe.head, LinearHead)
            for maps, labels in cached_batches(cache, rows[order], batch_size, process.device):
                yield (probe.head.vectors(maps),), labels

        self.heads = heads
        groups = [ParameterGroup(each.parameters(), *pair) for each, pair in zip(heads, pairs, strict=True)]
        super().__init__(probe, heads, read, len(rows), config, process, groups=groups)

    def loss(self, inputs: tuple[Any, ...], target: Tensor) -> Tensor:
        """Return the loss of each head, (K,), with a graph; heads share no parameters, so gradients do not
        mix."""
        return torch.stack([self.loss_of(each(*inputs), target) for each in self.heads])

    def step(self, batch: Any) -> Tensor:
        # a head may diverge; the others continue
        return super().step(batch).nan_to_num(nan=torch.inf).amin()

    def weights(self) -> list[Tensor]:
        return []


def choose_linear(
    probe: Probe, cache: FeatureCache, config: TrainConfig, process: Accelerator
) -> tuple[GridTrial, ...]:
    """Train a linear head for each learning rate and weight decay, all in the same pass over the features.

    The heads are compared on a held-out fifth of the images of each class. The probe itself is not changed.

    Args:
        probe: a probe with a linear head, on the process's device.
        cache: the maps of the training images.
        config: the options of the training; its learning rate and weight decay are not used.

    Returns:
        A trial for each pair; the best is chosen.
    """
    pairs = list(itertools.product(*GRID[given(config.optimizer)]))
    held_out = every_nth(cache.labels, 5)
    if not held_out.any():
        raise DiffLensError("the grid holds out a fifth of each class, and no class has two training images")
    train, validation = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    torch.manual_seed(config.seed)
    head, device = probe.head, process.device
    assert isinstance(head, LinearHead)
    start = nn.Linear(head.inputs, head.num_classes).state_dict()
    heads = nn.ModuleList(nn.Linear(head.inputs, head.num_classes) for _ in pairs).to(device)
    for each in heads:
        each.load_state_dict(start)
    objective = GridObjective(probe, heads, pairs, cache, train, config, process)
    TrainingLoop(objective, process, title="choosing on held-out training images").train()
    hits = torch.zeros(len(pairs))
    with torch.no_grad():
        for chosen in validation.split(1024):
            vectors = head.vectors(cache.batch(chosen, device))
            labels = cache.labels[chosen].to(device)
            hits += torch.tensor([int((each(vectors).argmax(1) == labels).sum()) for each in heads])
    shares = [float(hit) / len(validation) for hit in hits]
    best = shares.index(max(shares))
    return tuple(
        GridTrial(*pair, share, place == best)
        for place, (pair, share) in enumerate(zip(pairs, shares, strict=True))
    )
