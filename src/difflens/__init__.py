"""difflens: see what a frozen, unconditional diffusion model already knows."""

from difflens.backbones.base import Backbone, Block, DiffusionBackbone
from difflens.backbones.load import load_backbone
from difflens.configs.cka import CkaConfig
from difflens.configs.compare import CompareConfig
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
from difflens.generation.fidelity import fidelity
from difflens.generation.generate import generate
from difflens.generation.samplers import sample
from difflens.heads.base import Head
from difflens.heads.config import HeadConfig
from difflens.heads.make import make_head
from difflens.metrics.recommendation import Recommendation
from difflens.models.probe import Probe
from difflens.models.saved import DetectionModel, SegmentationModel, TrainedModel
from difflens.noise import NoiseSchedule, seeded_noise
from difflens.pretraining.pretrain import pretrain
from difflens.results.base import Result
from difflens.results.cka import CkaResult, Comparison, Mirrors, Representation
from difflens.results.compare import BackboneScores, CompareResult, Score
from difflens.results.demo import DemoResult, DemoScore
from difflens.results.detect import AveragePrecision, DetectResult
from difflens.results.explain import ExplainResult, HeadShares, Neighbour
from difflens.results.extract import ExtractResult
from difflens.results.fidelity import Distance, FidelityResult, InceptionFigures, SampleSource
from difflens.results.generate import GenerateResult
from difflens.results.predict import (
    ClassPredictResult,
    DensePredictResult,
    DetectedImage,
    DetectedObject,
    Prediction,
    PredictResult,
    SegmentedImage,
)
from difflens.results.pretrain import PretrainResult
from difflens.results.probe import GridTrial, NeighbourTrial, ProbeResult, SeedResult
from difflens.results.report import HeadScore, ReportResult
from difflens.results.scenes import ScenesResult, SplitCounts
from difflens.results.segment import SegmentResult
from difflens.results.sweep import SweepResult
from difflens.studies.cka import cka
from difflens.studies.compare import compare
from difflens.studies.demo import demo
from difflens.studies.explain import explain
from difflens.studies.extract import extract
from difflens.studies.predict import predict
from difflens.studies.report import report
from difflens.studies.sweep import sweep
from difflens.tasks.classification.probe import probe
from difflens.tasks.classification.train import evaluate, fit
from difflens.tasks.detection.detect import detect
from difflens.tasks.segmentation.segment import segment
from difflens.version import __version__

__all__ = [
    "AveragePrecision",
    "Backbone",
    "BackboneScores",
    "Block",
    "CkaConfig",
    "CkaResult",
    "ClassPredictResult",
    "CompareConfig",
    "CompareResult",
    "Comparison",
    "DemoConfig",
    "DemoResult",
    "DemoScore",
    "DensePredictResult",
    "DetectConfig",
    "DetectResult",
    "DetectedImage",
    "DetectedObject",
    "DetectionModel",
    "DiffLensError",
    "DiffusionBackbone",
    "Distance",
    "ExplainConfig",
    "ExplainResult",
    "ExtractConfig",
    "ExtractResult",
    "Extractor",
    "FeatureStore",
    "FeedbackExtractor",
    "FidelityConfig",
    "FidelityResult",
    "FineTunedExtractor",
    "FrozenExtractor",
    "GenerateConfig",
    "GenerateResult",
    "GridTrial",
    "Head",
    "HeadConfig",
    "HeadScore",
    "HeadShares",
    "InceptionFigures",
    "Mirrors",
    "Neighbour",
    "NeighbourTrial",
    "NoiseSchedule",
    "PredictConfig",
    "PredictResult",
    "Prediction",
    "PretrainConfig",
    "PretrainResult",
    "Probe",
    "ProbeConfig",
    "ProbeResult",
    "Recommendation",
    "ReportConfig",
    "ReportResult",
    "Representation",
    "Result",
    "SampleSource",
    "ScenesConfig",
    "ScenesResult",
    "Score",
    "SeedResult",
    "SegmentConfig",
    "SegmentResult",
    "SegmentationModel",
    "SegmentedImage",
    "SplitCounts",
    "SweepConfig",
    "SweepResult",
    "TrainConfig",
    "TrainedModel",
    "__version__",
    "cka",
    "compare",
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
    "pretrain",
    "probe",
    "report",
    "sample",
    "scenes",
    "seeded_noise",
    "segment",
    "sweep",
]
