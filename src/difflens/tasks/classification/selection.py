"""Choosing a head's settings on the training images, never on the test images."""

import itertools

import torch
from torch import nn

from difflens.configs.options import given
from difflens.configs.train import TrainConfig
from difflens.data.loader import epoch_order
from difflens.data.split import every_nth
from difflens.errors import DiffLensError
from difflens.extractors.cache import FeatureCache
from difflens.heads.knn import NeighbourHead
from difflens.heads.linear import LinearHead
from difflens.metrics.classifiers import NEIGHBOURS, left_out_neighbours
from difflens.results.probe import GridTrial, NeighbourTrial
from difflens.run.console import progress_bar
from difflens.tasks.classification.train import mix
from difflens.training.optimisers import ParameterGroup, epoch_seed, make_optimizer, make_schedule

# what `probe --head linear --grid` tries: learning rates by weight decays
GRID: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "adamw": ((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0.0, 0.05, 0.5)),
    "sgd": ((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3), (0.0, 1e-5, 1e-4, 1e-3)),
}


def choose_neighbours(head: NeighbourHead, classes: int) -> tuple[NeighbourTrial, ...]:
    """How well each number of neighbours does on the training images that `head` remembers, each left out in turn.

    Returns:
        A trial for each of `classifiers.NEIGHBOURS`; the best is chosen.
    """
    accuracy = left_out_neighbours(head.bank, head.labels, classes)
    best = accuracy.index(max(accuracy))
    return tuple(
        NeighbourTrial(k, each, place == best)
        for place, (k, each) in enumerate(zip(NEIGHBOURS, accuracy, strict=True))
    )


def choose_linear(
    head: LinearHead, cache: FeatureCache, config: TrainConfig, device: torch.device
) -> tuple[GridTrial, ...]:
    """Train a linear head for every learning rate and weight decay, all in the same pass over the features.

    A fifth of the images of each class is held out to judge them. The head itself is not changed.

    Args:
        cache: of the training images.
        config: of the training; its learning rate and weight decay are not used.

    Returns:
        A trial for each pair; the best is chosen.
    """
    pairs = list(itertools.product(*GRID[given(config.optimizer)]))
    held_out = every_nth(cache.labels, 5)
    if not held_out.any():
        raise DiffLensError("the grid holds out a fifth of each class, and no class has two training images")
    train, validation = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    torch.manual_seed(config.seed)
    size, classes = head.inputs, head.num_classes
    start = nn.Linear(size, classes).state_dict()
    heads = nn.ModuleList(nn.Linear(size, classes) for _ in pairs).to(device)
    for each in heads:
        each.load_state_dict(start)
    optimizer = make_optimizer(
        given(config.optimizer), *(ParameterGroup(each.parameters(), *pair) for each, pair in zip(heads, pairs, strict=True))
    )  # fmt: skip
    batch_size = min(given(config.batch_size), len(train))
    steps = -(-len(train) // batch_size)
    rates = make_schedule(
        optimizer, given(config.lr_schedule), given(config.epochs) * steps, steps // 2 if config.warmup_steps is None else config.warmup_steps,
        (config.step_epochs or 0) * steps,
    )  # fmt: skip
    with progress_bar() as bar:
        task = bar.add_task(
            "choosing on held-out training images", total=given(config.epochs) * steps, note=""
        )
        for epoch in range(given(config.epochs)):
            generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
            for chosen in train[epoch_order(len(train), config.seed, epoch)].split(batch_size):
                vectors = head.vectors(cache.batch(chosen, device))
                (vectors,), target = mix(
                    (vectors,), cache.labels[chosen].to(device), classes, given(config.mixup), generator
                )
                losses = [
                    nn.functional.cross_entropy(
                        each(vectors), target, label_smoothing=given(config.label_smoothing)
                    )
                    for each in heads
                ]
                optimizer.zero_grad(set_to_none=True)
                torch.stack(losses).sum().backward()  # each head has its own parameters, so its own gradient
                optimizer.step()
                rates.step()
                bar.update(task, advance=1)
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
