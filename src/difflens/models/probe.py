"""A probe: a head on the maps of an extractor."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor
from difflens.extractors.feature_extractor import FeatureExtractor
from difflens.heads.base import Head
from difflens.metrics.classification import Evaluation
from difflens.metrics.multi_label import MultiLabelEvaluation
from difflens.training.optimisers import ParameterGroup


class FeatureModel(nn.Module):
    """A head on the maps of an extractor; the base of the models of all tasks."""

    extractor: Extractor
    head: nn.Module

    def __init__(self, extractor: Extractor, head: nn.Module):
        super().__init__()
        self.extractor, self.head = extractor, head

    @property
    def trainable_parameters(self) -> int:
        """The number of parameters that training changes."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def parameter_groups(
        self, learning_rate: float, weight_decay: float, layer_decay: float | None
    ) -> list[ParameterGroup]:
        """Return the groups of parameters for an optimiser.

        Args:
            learning_rate: the rate of the head, and of all parameters without a layer decay.
            weight_decay: the weight decay of all groups.
            layer_decay: factor in (0, 1] on the rate for each block of a fine-tuned backbone, counted from
                the last block back; None: 1.
        """
        decay = 1.0 if layer_decay is None else layer_decay
        blocks = self.extractor.trained_blocks if decay != 1 else {}
        groups = [
            ParameterGroup(parameters, learning_rate * decay**depth, weight_decay)
            for depth, parameters in enumerate(reversed(blocks.values()), start=1)
        ]
        grouped = {id(parameter) for group in groups for parameter in group.parameters}
        others = [parameter for parameter in self.parameters() if id(parameter) not in grouped]
        return [ParameterGroup(others, learning_rate, weight_decay), *groups]

    def own_state(self) -> dict[str, Tensor]:
        """Return the state that training changes: head, feedback layers and fine-tuned weights.

        A parameter that several modules share has one name, the first.
        """
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        others = {name for name, _ in self.named_parameters(remove_duplicate=False)} - trained
        buffers = {name for name, _ in self.named_buffers() if name.startswith("extractor.backbone.")}
        return {name: value for name, value in self.state_dict().items() if name not in others | buffers}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load a result of `own_state`.

        Raises:
            DiffLensError: a name or a shape is that of another model.
        """
        self.check_own_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
        self.load_state_dict(state, strict=False)

    def check_own_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise DiffLensError if names and shapes are not those of `own_state`."""
        own = {name: tuple(tensor.shape) for name, tensor in self.own_state().items()}
        different = sorted({*shapes} ^ {*own}) or sorted(name for name in own if own[name] != shapes[name])
        if different:
            raise DiffLensError(f"the weights are of another model: {different[0]} does not fit")


class Probe(FeatureModel):
    """A classifier: a head that gives one vector of logits for an image, which has one label.

    Attributes:
        evaluation: the predictions on a split, with their metrics.
    """

    head: Head
    evaluation: ClassVar[type[Evaluation | MultiLabelEvaluation]] = Evaluation

    def __init__(self, extractor: Extractor | FeatureExtractor, head: Head):
        super().__init__(extractor.extractor if isinstance(extractor, FeatureExtractor) else extractor, head)

    def forward(self, images: Tensor, index: Tensor | None = None, draw: int = 0) -> Tensor:
        """Return logits (B, num_classes) of images (B, C, S, S) in [-1, 1].

        Args:
            index, draw: as in extractors; without an index, an image's content decides its noise.
        """
        index = self.extractor.content_index(images) if index is None else index
        return self.head(self.extractor(images, index, draw))

    @staticmethod
    def loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss, (), of logits (B, K).

        Args:
            target: labels, as in `ImageSplit`, or class probabilities, (B, K).
        """
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)

    @staticmethod
    def targets(labels: Tensor, classes: int) -> Tensor:
        """Return class probabilities, (B, K), of labels as in `ImageSplit`."""
        return F.one_hot(labels, classes).to(torch.get_default_dtype())

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Return the probabilities of the classes, (B, K), of logits (B, K)."""
        return logits.softmax(1)


class MultiLabelProbe(Probe):
    """A classifier of images with several labels: each class has a probability of its own."""

    evaluation = MultiLabelEvaluation

    @staticmethod
    def loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        if label_smoothing:
            raise DiffLensError("label smoothing is for images with one label: leave it out")
        return F.binary_cross_entropy_with_logits(logits, target.to(logits))

    @staticmethod
    def targets(labels: Tensor, classes: int) -> Tensor:
        return labels.to(torch.get_default_dtype())

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        return logits.sigmoid()


class DenseProbe(FeatureModel):
    """A model with a segmentation head or a detection head."""

    def forward(self, images: Tensor, index: Tensor, draw: int, **more: Any) -> Any:
        """Return the head's output for images (B, C, S, S) in [-1, 1].

        Args:
            index, draw: as in extractors.
            more: further arguments of the head.
        """
        return self.head(self.extractor(images, index, draw), **more)
