"""difflens: see what a frozen, unconditional diffusion model already knows."""

from difflens.backbones.blocks import Backbone, Block, DiffusionBackbone
from difflens.backbones.load import load_backbone
from difflens.data.sources import load_data
from difflens.errors import DiffLensError
from difflens.extract import Extractor, FeedbackExtractor, FineTunedExtractor, FrozenExtractor
from difflens.heads import Head, HeadConfig, make_head
from difflens.model import Probe, TrainedModel
from difflens.noise import NoiseSchedule, seeded_noise
from difflens.tasks.classification import ProbeConfig, TrainConfig, evaluate, fit, probe
from difflens.tasks.demo import DemoConfig, demo
from difflens.tasks.generation import sample
from difflens.tasks.prediction import PredictConfig, predict
from difflens.tasks.pretraining import PretrainConfig, pretrain
from difflens.version import __version__

__all__ = [
    "Backbone",
    "Block",
    "DemoConfig",
    "DiffLensError",
    "DiffusionBackbone",
    "Extractor",
    "FeedbackExtractor",
    "FineTunedExtractor",
    "FrozenExtractor",
    "Head",
    "HeadConfig",
    "NoiseSchedule",
    "PredictConfig",
    "PretrainConfig",
    "Probe",
    "ProbeConfig",
    "TrainConfig",
    "TrainedModel",
    "__version__",
    "demo",
    "evaluate",
    "fit",
    "load_backbone",
    "load_data",
    "make_head",
    "predict",
    "pretrain",
    "probe",
    "sample",
    "seeded_noise",
]
