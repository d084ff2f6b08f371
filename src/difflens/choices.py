"""The values that options take, where there are a few of them."""

from typing import Literal

ExtractorName = Literal["frozen", "feedback", "finetuned"]
SamplerName = Literal["ddpm", "ddim", "dpm-solver"]
Precision = Literal["float32", "bfloat16", "float16"]
OptimizerName = Literal["adamw", "sgd"]
ScheduleKind = Literal["cosine", "step", "poly", "constant"]
ScheduleName = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction"]
EvaluationProtocol = Literal["linear", "attention", "knn", "few"]
Method = Literal["diffusion", "bigan", "simclr", "mae", "supervised"]
StoreFormat = Literal["safetensors", "parquet"]
StoreType = Literal["float16", "bfloat16", "float32"]
SplitName = Literal["train", "test"]
DenseSchedule = ScheduleKind
Background = Literal["plain", "gradient", "photo"]
ClassifierName = Literal["ridge", "logistic", "knn"]
HeadChoice = Literal["linear", "mlp", "cnn", "attention", "difformer", "diffeed", "knn"]
DetectionHeadName = Literal["mask-rcnn", "faster-rcnn"]
HeadName = Literal["linear", "mlp", "cnn", "attention", "difformer", "knn"]
SegmentationHeadName = Literal["upernet", "linear"]
OnBadImage = Literal["error", "skip"]
Augmentation = Literal["none", "flip", "crop"]
OnBadAnnotation = Literal["error", "skip"]
