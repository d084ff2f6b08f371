"""difflens: see what a frozen, unconditional diffusion model already knows."""

from difflens.backbones.blocks import Backbone, Block, DiffusionBackbone
from difflens.backbones.load import load_backbone
from difflens.data.sources import load_data
from difflens.errors import DiffLensError
from difflens.extract import Extractor, FeedbackExtractor, FineTunedExtractor, FrozenExtractor
from difflens.heads import Head, HeadConfig, make_head
from difflens.model import Probe, TrainedModel
from difflens.noise import NoiseSchedule, seeded_noise
from difflens.sampling import sample
from difflens.store import FeatureStore
from difflens.tasks.classification import TrainConfig, evaluate, fit
from difflens.tasks.demo import DemoConfig, demo
from difflens.tasks.explanation import ExplainConfig, explain
from difflens.tasks.extraction import ExtractConfig, extract
from difflens.tasks.fidelity import FidelityConfig, FidelityResult, fidelity
from difflens.tasks.generation import GenerateConfig, generate
from difflens.tasks.prediction import PredictConfig, predict
from difflens.tasks.pretraining import PretrainConfig, pretrain
from difflens.tasks.probing import ProbeConfig, probe
from difflens.tasks.reporting import ReportConfig, report
from difflens.tasks.rivals import RivalsConfig, rivals
from difflens.tasks.similarity import CkaConfig, cka
from difflens.tasks.sweep import SweepConfig, sweep
from difflens.version import __version__

__all__ = [
    "Backbone",
    "Block",
    "CkaConfig",
    "DemoConfig",
    "DiffLensError",
    "DiffusionBackbone",
    "ExplainConfig",
    "ExtractConfig",
    "Extractor",
    "FeatureStore",
    "FeedbackExtractor",
    "FidelityConfig",
    "FidelityResult",
    "FineTunedExtractor",
    "FrozenExtractor",
    "GenerateConfig",
    "Head",
    "HeadConfig",
    "NoiseSchedule",
    "PredictConfig",
    "PretrainConfig",
    "Probe",
    "ProbeConfig",
    "ReportConfig",
    "RivalsConfig",
    "SweepConfig",
    "TrainConfig",
    "TrainedModel",
    "__version__",
    "cka",
    "demo",
    "evaluate",
    "explain",
    "extract",
    "fidelity",
    "fit",
    "generate",
    "load_backbone",
    "load_data",
    "make_head",
    "predict",
    "pretrain",
    "probe",
    "report",
    "rivals",
    "sample",
    "seeded_noise",
    "sweep",
]
