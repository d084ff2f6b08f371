"""What is learnt in pre-training, one method a file; the loop around it is `tasks.pretraining`."""

from importlib import import_module

from accelerate import Accelerator

from difflens.data.split import ImageSplit
from difflens.tasks.learners.base import Learner
from difflens.tasks.pretrain_config import Method, PretrainConfig

# Imported when used: most need an optional package.
_LEARNERS: dict[Method, str] = {
    "diffusion": "DiffusionLearner",
    "bigan": "BiGANLearner",
    "simclr": "SimCLRLearner",
    "mae": "MAELearner",
    "supervised": "SupervisedLearner",
}


def make_learner(
    config: PretrainConfig, images: ImageSplit, process: Accelerator, total_steps: int
) -> Learner:
    """The learner of `config.method`, its weights drawn from torch's generator.

    Args:
        config: resolved.
        images: with labels for the supervised one.
        total_steps: of the whole run, over which learning rates fall.

    Raises:
        DiffLensError: the preset has no network for the method or for the image size, or a package is not installed.
    """
    module = import_module(f"difflens.tasks.learners.{config.method}")
    learner: Learner = getattr(module, _LEARNERS[config.method])(config, images, process, total_steps)
    return learner
