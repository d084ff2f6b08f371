"""One result of every command, with figures that are made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from difflens import (
    AveragePrecision,
    BackboneScores,
    BlockInfo,
    CkaResult,
    ClassPredictResult,
    CompareResult,
    Comparison,
    ConditionInfo,
    DefaultsInfo,
    DemoResult,
    DemoScore,
    DensePredictResult,
    DetectedImage,
    DetectedObject,
    DetectResult,
    Distance,
    DistillResult,
    ExplainResult,
    ExploreResult,
    ExportResult,
    ExtractResult,
    FidelityResult,
    GenerateResult,
    GridTrial,
    HeadShares,
    InceptionFigures,
    InfoResult,
    KeypointResult,
    KeypointScore,
    LatentsInfo,
    MatchedPoint,
    MatchResult,
    Mirrors,
    MultiLabelSeedResult,
    Neighbour,
    NeighbourTrial,
    NoiseInfo,
    ObjectScore,
    PlaceGeometry,
    Prediction,
    PresetsResult,
    PretrainResult,
    ProbeResult,
    PropagatedSequence,
    PropagateResult,
    PushResult,
    Recommendation,
    ReportResult,
    Representation,
    SampleSource,
    ScenesResult,
    Score,
    SeedResult,
    SegmentedImage,
    SegmentResult,
    SplitCounts,
    Suggestion,
    SuggestResult,
    SweepResult,
)
from difflens.results.predict import MultiLabelPrediction
from difflens.results.probe import SeedFigures

OUT = Path("run")


def seed(number: int = 0, **changes: object) -> SeedResult:
    """A seed that classifies `3 - number` of four test images right."""
    right = 3 - number
    values = {
        "top1": right / 4,
        "top1_interval_95": (0.25, 0.9),
        "top5": 1.0,
        "mean_per_class": right / 4,
        "test_images": 4,
        "per_class": {"cat": 1.0, "dog": (right - 2) / 2, "emu": None},
        "confusion_matrix": ((2, 0, 0), (4 - right, right - 2, 0), (0, 0, 0)),
        "metric": "top1",
        "trainable_parameters": 1234,
        "train_images": 5000,
        "train_seconds": 1.25,
        "epochs": 3,
        "seed": number,
        "skipped_images": (),
    }
    return SeedResult(**{**values, **changes})


CALIBRATED = {"ece": 0.0625, "nll": 0.5}


_MODEL: Any = SimpleNamespace(head=SimpleNamespace(name="mlp"))


def multi_label(number: int = 0) -> MultiLabelSeedResult:
    """A seed on four test images, none of which has an emu."""
    return MultiLabelSeedResult(
        map=0.75 - number / 4,
        map_interval_95=(0.5, 1.0),
        test_images=4,
        per_class={"cat": 1.0, "dog": 0.5 - number / 2, "emu": None},
        positives={"cat": 2, "dog": 1, "emu": 0},
        metric="map",
        trainable_parameters=1234,
        train_images=5000,
        train_seconds=1.25,
        epochs=3,
        seed=number,
        skipped_images=(),
    )


def probed(*seeds: SeedFigures) -> ProbeResult:
    return ProbeResult(out=OUT, model=_MODEL, seeds=seeds or (seed(),), evaluations=())


GRID = (GridTrial(0.1, 0.0, 0.5, False), GridTrial(0.01, 0.0, 0.75, True))
NEIGHBOURS = (NeighbourTrial(5, 0.5, False, 0.25), NeighbourTrial(10, 0.75, True, 0.5))

RECOMMENDATION = Recommendation(
    block=6,
    noise_step=5,
    top1=0.875,
    interval=(0.75, 0.95),
    cross_validated=0.85,
    cross_validated_interval=(0.7, 0.93),
    cheaper=(3, 20),
    fusion_blocks=(5, 6),
    fusion_noise_steps=(5, 20),
    fusion_top1=0.9,
    fusion_cross_validated=0.88,
    fusion_cross_validated_interval=(0.8, 0.94),
)

SWEEP = SweepResult(
    out=OUT,
    accuracy={"ridge": torch.tensor([[0.5, 0.875], [0.25, 0.75]], dtype=torch.float64)},
    blocks=(3, 6),
    noise_steps=(5, 20),
    log_snr=(7.0, None),
    not_measured=(40,),
    images=5000,
    validation_images=1000,
    recommendation=RECOMMENDATION,
    commands=("difflens probe --out DIR",),
    skipped_images=("a.png: broken",),
)

SUGGEST = SuggestResult(
    out=OUT,
    statistics={
        "effective_rank": torch.tensor([[10.5, 30.25], [8.0, 20.0]], dtype=torch.float64),
        "neighbour_alignment": torch.tensor([[torch.nan, 0.5], [0.75, 0.25]], dtype=torch.float64),
    },
    score=torch.tensor([[0.25, 1.0], [0.0, 0.5]], dtype=torch.float64),
    blocks=(3, 6),
    noise_steps=(5, 20),
    log_snr=(7.0, None),
    images=125,
    passes=500,
    suggestion=Suggestion(6, 5, 1.0, 10, ((6, 5, 8), (3, 20, 2))),
    commands=("difflens probe --out DIR",),
    skipped_images=("a.png: broken",),
)

SEGMENT = SegmentResult(
    out=OUT,
    model=None,
    miou=0.5,
    pixel_accuracy=0.75,
    mean_accuracy=0.625,
    iou={"sky": 0.5, "sea": None},
    pixels=4096,
    train_images=1200,
    val_images=50,
    trainable_parameters=4321,
    iterations=2000,
    train_seconds=9.5,
    seed=0,
    bad_annotations=("b.png: no mask",),
)


def precision(ap: float) -> AveragePrecision:
    return AveragePrecision(
        ap=ap,
        ap50=ap + 0.2,
        ap75=ap + 0.1,
        ap_small=None,
        ap_medium=ap,
        ap_large=ap,
        ar=0.6,
        ap_by_class={"bar": ap, "disc": None},
    )


DETECT = DetectResult(
    out=OUT,
    model=None,
    box=precision(0.5),
    mask=precision(0.25),
    train_images=1200,
    train_negatives=7,
    val_images=50,
    trainable_parameters=4321,
    iterations=3000,
    train_seconds=9.5,
    seed=0,
    bad_annotations=(),
)

EXTRACT = ExtractResult(
    out=OUT,
    images={"train": 16, "test": 8},
    predicted_bytes=9928,
    bytes=9840,
    shards=2,
    skipped=1,
    sha256="3c021ac17c6eb598fd28b5f9eee5a60626c04652658974a32e8765b65bf14dca",
    images_per_second=12.5,
    skipped_images=("train/a.png: broken",),
)

GENERATE = GenerateResult(out=OUT, images=1000, sampler="ddim", steps=50, images_per_second=3.25)

INFO = InfoResult(
    backbone="fashion",
    network="UNet2DModel",
    parameters=1234,
    channels=1,
    image_size=32,
    noise=NoiseInfo(
        "variance preserving",
        "x_t = ...",
        "step",
        (0, 999),
        (9.21, None),
        True,
        "epsilon",
        "epsilon = ...",
        "DDPMScheduler",
        {"beta_schedule": "linear"},
        ("timestep_spacing",),
    ),
    latents=LatentsInfo("AutoencoderKL", 5678, 4, 8, 4, (0.5,), (0.0625,)),
    condition=ConditionInfo("class 3", "mean, zero or a class from 0 to 9"),
    samplers=("ddpm", "ddim"),
    blocks=(BlockInfo(1, "encoder", 8, 1, 3, 0.25), BlockInfo(2, "middle", 8, 1, None, None)),
    defaults=DefaultsInfo(1, 5, 4.5, (1, 2), (5, 20), (4.5, 2.25), (), 16),
    licence="mit",
    card=None,
)

DEMO = DemoResult(
    out=OUT,
    seconds=12.5,
    train_images=160,
    test_images=64,
    best="attention",
    saved_head="attention",
    results={
        name: DemoScore(
            top1=top1, top1_interval_95=(top1 - 0.1, top1 + 0.1), trainable_parameters=1234, train_seconds=2.5
        )
        for name, top1 in (("pixels", 0.5), ("attention", 0.75))
    },
)

FIDELITY = FidelityResult(
    space="fashion, block 18",
    dimensions=128,
    real="test images of fashion",
    real_images=10_000,
    distances=(
        Distance("samples", 60, 12.345, 0.0125, 0.001),
        Distance("train images", 60, 1.5, 0.0005, 0.0002),
    ),
    source=SampleSource("fashion", "0123", "ddim", 50),
    class_shares={"shoe": 0.25, "shirt": 0.75},
    skipped_images=("c.png: broken",),
)

INCEPTION = FidelityResult(
    space="Inception (FID)",
    dimensions=2048,
    real="test images of fashion",
    real_images=10_000,
    distances=(Distance("samples", 5000, 12.345, 0.0125, 0.001),),
    inception=InceptionFigures(12.345, 0.0125, 0.001, 5.5, 0.25, 0.75, 0.5),
)

SCENES = ScenesResult(
    out=OUT,
    classes=("bar", "disc"),
    train=SplitCounts(1200, 3000, 16),
    val=SplitCounts(50, 120, 4),
    skipped=("bar/opaque.png: no transparency",),
)

COMPARE = CompareResult(
    out=OUT,
    metric="top1",
    test_images=1000,
    feature_space="fashion",
    samples=500,
    titles={"linear": "linear", "few-0.1": "10 % of labels"},
    backbones=tuple(
        BackboneScores(
            name,
            (6, 5),
            190_883,
            speed,
            {"linear": Score(top1, (0.5, 0.9)), "few-0.1": Score(top1 / 2, (0.25, 0.5))},
            {"linear": (0.0, 0.0), "few-0.1": (-0.125, 0.0625)},
            frechet,
            log_snr,
            rank,
            ece,
        )
        for name, top1, speed, frechet, log_snr, rank, ece in (
            ("fashion", 0.75, 1.0, 12.345, 7.0, 9.25, {"linear": 0.0625, "few-0.1": 0.125}),
            ("pixels", 0.5, 8.0, None, None, None, {}),
        )
    ),
)

CKA = CkaResult(
    out=OUT,
    representations=(Representation(0, 1, 5, 4), Representation(0, 6, 5, 4)),
    values=torch.tensor([[1.0, 0.25], [0.25, 1.0]]),
    half_widths=torch.tensor([[0.0, 0.125], [0.125, torch.nan]]),
    cknna=torch.tensor([[1.0, 0.125], [0.125, 1.0]]),
    cknna_half_widths=torch.tensor([[0.0, 0.25], [0.25, 0.0]]),
    neighbours=4,
    geometry=(PlaceGeometry(0, 1, 5, 3.5, 8, 0.25, -1.5), PlaceGeometry(0, 6, 5, 7.25, 16, 0.5, -2.25)),
    images=100,
    minibatches=20,
    blocks=(1, 6),
    noise_steps=(5, 40),
    log_snr=(7.0, None),
    pool=(4,),
    mirrors={5: Mirrors({0: (0.5, 0.125), 1: (0.25, 0.0625)}, (0.25, 0.125), 4, 3, 4), 40: None},
    comparisons=(
        Comparison(
            "blocks",
            "blocks-t5",
            "t = 5",
            torch.tensor([[1.0, 0.25], [0.25, 1.0]]),
            torch.tensor([[1.0, 0.125], [0.125, 1.0]]),
            ("1", "6"),
            ("1", "6"),
            ("block", "block"),
            (("encoder", "decoder"), ("encoder", "decoder")),
            ((1, 0),),
        ),
    ),
    skipped_images=(),
)

EXPLAIN = ExplainResult(
    out=OUT,
    images=("val/a.png",),
    neighbours=((Neighbour("train/b.png", "red", 0.875),),),
    skipped_images=(),
    head=HeadShares(15, {"t = 5": 0.75, "t = 40": 0.25}, {"block 6, t = 5": 0.5}, {"t = 5": 0.5}),
)

CLASSES = ClassPredictResult(
    predictions=(
        Prediction("a.png", {"cat": 0.75, "dog": 0.25}),
        Prediction("b.png", {"dog": 0.5, "cat": 0.5}),
    ),
    skipped_images=("c.png: broken",),
)

SEVERAL = ClassPredictResult(
    predictions=(
        MultiLabelPrediction("a.png", {"cat": 0.75, "dog": 0.5, "emu": 0.25}),
        MultiLabelPrediction("b.png", {"dog": 0.25, "cat": 0.125, "emu": 0.0}),
    ),
    skipped_images=(),
    kind=MultiLabelPrediction,
)

MASKS = DensePredictResult(
    predictions=(
        SegmentedImage(
            image="a.png",
            width=32,
            height=24,
            overlay="a.overlay.png",
            mask="a.mask.png",
            classes={"sky": 0.75, "sea": 0.25},
            values={"0": "sky", "1": "sea"},
        ),
    ),
    skipped_images=(),
    out=Path("predictions"),
)

OBJECTS = DensePredictResult(
    predictions=(
        DetectedImage(
            image="a.png",
            width=32,
            height=24,
            overlay="a.overlay.png",
            objects=(
                DetectedObject(
                    label="bar",
                    bbox=(1.0, 2.0, 3.5, 4.0),
                    score=0.875,
                    segmentation={"size": (24, 32), "counts": "abc"},
                ),
                DetectedObject(label="disc", bbox=(1.0, 2.0, 3.5, 4.0), score=0.5),
            ),
        ),
        DetectedImage(image="b.png", width=32, height=24, overlay="b.overlay.png", objects=()),
    ),
    skipped_images=(),
    out=Path("predictions"),
)

MATCH = MatchResult(
    out=OUT,
    pictures=("a.jpg", "b.jpg"),
    sizes=((640, 480), (320, 240)),
    block=18,
    noise_step=5,
    matches=(
        MatchedPoint((120.0, 80.0), (61.5, 40.25), 0.8754, (121.0, 79.5), True),
        MatchedPoint((9.0, 9.0), (300.0, 200.0), 0.5, (400.0, 300.0), False),
    ),
)

KEYPOINTS = KeypointResult(
    out=OUT,
    alpha=0.1,
    block=24,
    noise_step=101,
    overall=KeypointScore(3, 1500, 0.5, 0.75, 0.4, 0.8),
    classes={
        "cat": KeypointScore(2, 1000, 0.6, 0.8, 0.5, 0.9),
        "dog": KeypointScore(1, 500, 0.3, 0.65, 0.2, 0.6),
    },
)

PROPAGATED = PropagateResult(
    out=OUT,
    block=27,
    noise_step=51,
    sequences={
        "bear": PropagatedSequence(82, 80, {"1": ObjectScore(0.75, 0.5), "2": ObjectScore(0.25, 0.5)}),
        "own": PropagatedSequence(5, 0, {}),
    },
)

EXPLORED = ExploreResult(
    out=OUT,
    images=("a.png", "b.png"),
    blocks=(3, 6),
    noise_steps=(5, 20, 40),
    bytes=2_100_000,
    agreement=0.9871,
    skipped_images=("c.png: broken",),
)

EVERY = {
    "probe": probed(),
    "suggest": SUGGEST,
    "sweep": SWEEP,
    "segment": SEGMENT,
    "detect": DETECT,
    "extract": EXTRACT,
    "generate": GENERATE,
    "demo": DEMO,
    "info": INFO,
    "push": PushResult(files={"README.md": 1234}, url="https://huggingface.co/me/clothes"),
    "export": ExportResult(file=OUT / "model.onnx", shape=(3, 32, 32), classes=("a",), difference=1e-6),
    "presets": PresetsResult({"segment": {"one": {"blocks": (24, 27), "lr_schedule": "poly"}}}),
    "fidelity": FIDELITY,
    "scenes": SCENES,
    "compare": COMPARE,
    "cka": CKA,
    "explain": EXPLAIN,
    "distill": DistillResult(path=OUT / "model", first_loss=0.25, last_loss=0.125, epochs_done=5, epochs=5),
    "explore": EXPLORED,
    "match": MATCH,
    "propagate": PROPAGATED,
    "predict": CLASSES,
    "pretrain": PretrainResult(
        path=OUT / "model",
        epochs_done=3,
        epochs=3,
        commands=("difflens probe --backbone run/model --out run-probe",),
    ),
    "report": ReportResult(path=OUT / "backbone.html", heads=(), distances=(FIDELITY,)),
}
