"""Simple classifiers on the features of places: what `sweep`, and `pretrain` with a probe, measure."""

from collections.abc import Sequence

import torch
from torch import Tensor

from difflens.backbones.maps import Place
from difflens.choices import ClassifierName, NormaliseName
from difflens.data.split import every_nth
from difflens.extractors.cache import FeatureCache
from difflens.heads.normalise import Normalisation
from difflens.metrics.classifiers import held_out_scores
from difflens.metrics.recommendation import comparable


def measure_places(
    cache: FeatureCache,
    places: Sequence[Place],
    held_out: Tensor,
    classifiers: Sequence[ClassifierName],
    classes: int,
    device: torch.device,
    normalise: NormaliseName = "none",
) -> dict[str, Tensor]:
    """Train classifiers at each place, and evaluate them on the held-out images.

    Args:
        cache: the features of N images.
        places: P of its places.
        held_out: (N,) bool, True for the V validation images.
        classes: K.
        device: where the classifiers are computed.
        normalise: the normalisation of the maps, by statistics of the images that are not held out.

    Returns:
        "accuracy" (classifiers, P) float64 in [0, 1]; "scores" (P, V, K) float16 of the first classifier on
        the validation images; "labels" (V,) long.
    """
    labels = cache.labels.to(device)
    # a fifth of the remaining images chooses the classifiers' hyperparameters
    choosing = every_nth(cache.labels[~held_out], 5)
    accuracy, scores = [], []
    for place in places:
        features = _matrix(cache, place, ~held_out, device, normalise)
        by_classifier = [
            held_out_scores(name, features, labels, held_out, choosing, classes) for name in classifiers
        ]
        correct = (values.argmax(1) == labels[held_out] for values in by_classifier)
        accuracy.append([float(hits.double().mean()) for hits in correct])
        scores.append(comparable(by_classifier[0]).half().cpu())
    return {
        "accuracy": torch.tensor(accuracy, dtype=torch.float64).T.contiguous(),
        "scores": torch.stack(scores),
        "labels": cache.labels[held_out].contiguous(),
    }


def _matrix(
    cache: FeatureCache, place: Place, trained_on: Tensor, device: torch.device, normalise: NormaliseName
) -> Tensor:
    """Return the pooled, normalised maps of one place as vectors (N, D) float32.

    Args:
        trained_on: (N,) bool, True for the images whose statistics normalise.
    """
    maps = cache.maps[place][torch.arange(len(cache))].to(device).float()
    if normalise != "none":
        normalisation = Normalisation({place: maps.shape[1]}, normalise).to(maps.device)
        training = maps[trained_on.to(maps.device)]
        normalisation.fit(normalisation.moments([{place: training}]), len(training))
        maps = normalisation({place: maps})[place]
    return maps.flatten(1)
