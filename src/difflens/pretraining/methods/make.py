"""What is learnt in pre-training, one method a file; the loop around it is `tasks.pretraining`."""

from importlib import import_module

from accelerate import Accelerator

from difflens.choices import Method
from difflens.configs.options import given
from difflens.configs.pretrain import PretrainConfig
from difflens.data.split import ImageSplit
from difflens.errors import DiffLensError
from difflens.pretraining.methods.base import Learner

# Imported when used: most need an optional package.
_LEARNERS: dict[Method, str] = {
    "diffusion": "DiffusionLearner",
    "bigan": "BiGANLearner",
    "simclr": "SimCLRLearner",
    "mae": "MAELearner",
    "supervised": "SupervisedLearner",
}

_OF_BATCHES = ("bigan", "simclr")


def make_learner(
    config: PretrainConfig, images: ImageSplit, process: Accelerator, total_steps: int
) -> Learner:
    """The learner of `config.method`, its weights drawn from torch's generator.

    Args:
        config: resolved.
        images: with labels for the supervised one.
        total_steps: of the whole run, over which learning rates fall.

    Raises:
        DiffLensError: the preset has no network for the method or for the image size, the batch is too small for it,
            or a package is not installed.
    """
    if config.method in _OF_BATCHES and given(config.batch_size) < 2 * process.num_processes:
        raise DiffLensError(
            f"{config.method} compares the images of a batch: batch-size must be at least {2 * process.num_processes}, two "
            "for each process"
        )
    module = import_module(f"difflens.pretraining.methods.{config.method}")
    learner: Learner = getattr(module, _LEARNERS[config.method])(config, images, process, total_steps)
    return learner
