"""Supervised training from scratch, as a reference with labels at the same size and budget."""

from torch import Tensor, nn
from torch.nn import functional as F

from difflens.data.images import to_float
from difflens.data.loader import Batch
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.pretraining.methods.base import EncoderMethod


class SupervisedMethod(EncoderMethod):
    """A ResNet with a linear classifier on its pooled maps; the classifier is not saved."""

    method = "supervised training"
    labels = "on the labels of its training images"
    description = "cross-entropy"

    def make_head(self, images: ImageSplit) -> nn.Module:
        if images.labels is None:
            raise DiffLensError("supervised training needs labels, and the images have none")
        return nn.Linear(self.encoder.num_features, int(images.labels.max()) + 1)

    def loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return F.cross_entropy(self.head(self.encoder(to_float(batch.images))), batch.labels)
