"""difflens: see what a frozen, unconditional diffusion model already knows."""

from difflens.backbones.base import Backbone, Block, DiffusionBackbone
from difflens.backbones.load import load_backbone
from difflens.configs.cka import CkaConfig
from difflens.configs.compare import RivalsConfig
from difflens.configs.demo import DemoConfig
from difflens.configs.detect import DetectConfig
from difflens.configs.explain import ExplainConfig
from difflens.configs.extract import ExtractConfig
from difflens.configs.fidelity import FidelityConfig
from difflens.configs.generate import GenerateConfig
from difflens.configs.predict import PredictConfig
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.report import ReportConfig
from difflens.configs.scenes import ScenesConfig
from difflens.configs.segment import SegmentConfig
from difflens.configs.sweep import SweepConfig
from difflens.configs.train import TrainConfig
from difflens.data.dense.scenes import scenes
from difflens.data.load import load_data
from difflens.errors import DiffLensError
from difflens.extractors.base import Extractor
from difflens.extractors.feedback import FeedbackExtractor
from difflens.extractors.finetuned import FineTunedExtractor
from difflens.extractors.frozen import FrozenExtractor
from difflens.extractors.store import FeatureStore
from difflens.generation.fidelity import FidelityResult, fidelity
from difflens.generation.generate import generate
from difflens.generation.samplers import sample
from difflens.heads.base import Head
from difflens.heads.config import HeadConfig
from difflens.heads.make import make_head
from difflens.models.probe import Probe
from difflens.models.saved import DetectionModel, SegmentationModel, TrainedModel
from difflens.noise import NoiseSchedule, seeded_noise
from difflens.pretraining.pretrain import pretrain
from difflens.studies.cka import cka
from difflens.studies.compare import rivals
from difflens.studies.demo import demo
from difflens.studies.explain import explain
from difflens.studies.extract import extract
from difflens.studies.report import report
from difflens.studies.sweep import sweep
from difflens.tasks.classification.predict import predict
from difflens.tasks.classification.probe import probe
from difflens.tasks.classification.train import evaluate, fit
from difflens.tasks.dense_prediction import predict_dense
from difflens.tasks.detection.detect import detect
from difflens.tasks.segmentation.segment import segment
from difflens.version import __version__

__all__ = [
    "Backbone",
    "Block",
    "CkaConfig",
    "DemoConfig",
    "DetectConfig",
    "DetectionModel",
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
    "ScenesConfig",
    "SegmentConfig",
    "SegmentationModel",
    "SweepConfig",
    "TrainConfig",
    "TrainedModel",
    "__version__",
    "cka",
    "demo",
    "detect",
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
    "predict_dense",
    "pretrain",
    "probe",
    "report",
    "rivals",
    "sample",
    "scenes",
    "seeded_noise",
    "segment",
    "sweep",
]
