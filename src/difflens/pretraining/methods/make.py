"""The methods of pre-training by name; each has a file beside this one."""

from importlib import import_module

from accelerate import Accelerator

from difflens.choices import Method
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.pretraining.methods.base import PretrainingMethod

# imported when used, as most methods need an optional package
_METHODS: dict[Method, str] = {
    "diffusion": "DiffusionMethod",
    "bigan": "BiGANMethod",
    "simclr": "SimCLRMethod",
    "mae": "MAEMethod",
    "supervised": "SupervisedMethod",
}

_OF_BATCHES = ("bigan", "simclr")


def make_method(config: PretrainConfig, images: ImageSplit, process: Accelerator) -> PretrainingMethod:
    """Return the objective of `config.method`; its weights are drawn from torch's generator.

    Args:
        config: the resolved options.
        images: the images to train on, with labels for supervised training.

    Raises:
        DiffLensError: the preset has no network for the method or for the image size, the batch is too small
            for it, or a package is not installed.
    """
    if config.method in _OF_BATCHES and given(config.batch_size) < 2 * process.num_processes:
        raise DiffLensError(
            f"{config.method} compares the images of a batch: batch-size must be at least "
            f"{2 * process.num_processes}, two for each process"
        )
    module = import_module(f"difflens.pretraining.methods.{config.method}")
    method: PretrainingMethod = getattr(module, _METHODS[config.method])(config, images, process)
    return method
