"""A trained model as an ONNX file."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from difflens.errors import DiffLensError
from difflens.models.probe import Probe
from difflens.models.saved import SegmentationModel, TrainedModel
from difflens.noise import PICTURE, seeded_noise
from difflens.processes.base import Level
from difflens.processes.clean import Clean
from difflens.run.reading import reason

TOLERANCE = 1e-4
"""The largest difference of a probability between the file and the model."""


class _Network(nn.Module):
    """Images to probabilities, with the noise of pictures as a constant.

    Args:
        model: the model, which must not be used afterwards: its noise is fixed.
        channels, side: of the images.
    """

    def __init__(self, model: TrainedModel | SegmentationModel, channels: int, side: int):
        super().__init__()
        self.probe = probe = model.probe.eval().requires_grad_(False)
        self.dense = isinstance(model, SegmentationModel)
        self.side = side
        extractor = probe.extractor
        backbone = extractor.backbone
        if isinstance(backbone.process, Clean):
            return
        with torch.no_grad():
            shape = tuple(backbone.encode(torch.zeros(1, channels, side, side)).shape[1:])
        index = torch.tensor([PICTURE])
        noise = {
            (t, draw): seeded_noise(shape, index, t, extractor.seed, draw)
            for t in extractor.noise_steps
            for draw in range(extractor.draws)
        }

        def noised(x_0: Tensor, index: Tensor, t: Level, draw: int) -> Tensor:
            return backbone.add_noise(x_0, t, noise[t, draw].expand_as(x_0)).to(backbone.dtype)

        extractor._noised = noised  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        index = images.new_full(images.shape[:1], PICTURE, dtype=torch.long)
        if isinstance(self.probe, Probe):
            return (self.probe.probabilities(self.probe(images, index, 0)),)
        probabilities = self.probe(images, index, 0, size=(self.side, self.side)).softmax(1)
        return probabilities, probabilities.argmax(1)


def write_onnx(model: TrainedModel | SegmentationModel, file: Path) -> float:
    """Write a model on the CPU as an ONNX file, and return how far it is from the model.

    The input `images` is float32, (B, C, S, S), in [-1, 1], for any B. The output `probabilities` is (B, K),
    or (B, K, S, S) for a segmentation, which also has `mask`, (B, S, S) int64.

    Args:
        model: the model, which must not be used afterwards.

    Returns:
        The largest difference of a probability, for three images of noise.

    Raises:
        DiffLensError: a package is missing, the backbone is not read in float32, the network cannot be
            converted, or the difference is more than `TOLERANCE`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DiffLensError(f'{error.name} is missing: pip install "difflens[onnx]"') from error
    backbone = model.probe.extractor.backbone
    if backbone.dtype != torch.float32:
        read = str(backbone.dtype).removeprefix("torch.")
        raise DiffLensError(
            f"the model reads its backbone in {read}, and ONNX files are written in float32: train the head "
            "with --precision float32"
        )
    channels = backbone.in_channels
    side = model.head.side if isinstance(model, SegmentationModel) else backbone.image_size
    images = torch.rand(3, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = _Network(model, channels, side).eval()
    with torch.no_grad():
        expected = network(images)[0]
    names = ["probabilities", "mask"] if network.dense else ["probabilities"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (images[:2],),
                file,
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=names,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                external_data=False,
            )
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])
    except Exception as error:  # torch and onnxruntime raise many kinds
        raise DiffLensError(f"{backbone.spec} cannot be written as ONNX: {reason(error)}") from error
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:
        raise DiffLensError(
            f"the ONNX file of {backbone.spec} differs from the model by {difference:.1e}, and at most "
            f"{TOLERANCE:g} is allowed: it was not kept"
        )
    return difference
