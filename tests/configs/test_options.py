"""Options: ranges, choices, options without effect, recipes, and what a run records."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from difflens import (
    CompareConfig,
    DiffLensError,
    ExplainConfig,
    FidelityConfig,
    GenerateConfig,
    SweepConfig,
)
from difflens.configs.earlier import upgraded
from difflens.configs.options import LIMIT_KEEPS, Options, given, recorded, resolve
from difflens.configs.pretrain import PretrainConfig
from difflens.configs.probe import ProbeConfig
from difflens.configs.segment import SegmentConfig


def probe(**options: Any) -> ProbeConfig:
    return ProbeConfig(out=Path("x"), **options)


def segment(**options: Any) -> SegmentConfig:
    return SegmentConfig(out=Path("x"), data=Path("y"), **options)


def pretrain(**options: Any) -> PretrainConfig:
    return PretrainConfig(out=Path("x"), data="y", **options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (probe(epochs=0), "epochs is 0; it must be between 1 and 1,000,000"),
        (probe(mixup=float("nan")), "mixup is nan"),
        (probe(learning_rate=float("inf")), "learning-rate is inf"),
        (probe(dropout=1.0), "dropout is 1; it must be between 0 and 0.99"),
        (pretrain(ema_decay=1.0), "ema-decay is 1; it must be between 0 and 0.999999"),
        (segment(momentum=1.0), "momentum is 1; it must be between 0 and 0.9999"),
        (segment(image_fraction=0.0), "image-fraction is 0; it must be between 0.0001 and 1"),
        (probe(seed=-1), "seed is -1"),
        (segment(step_at=(0.5, 1.5), lr_schedule="step"), "step-at is 1.5"),
        (segment(scale=(0.01, 1.0)), "scale is 0.01"),
        (probe(precision="double"), "no precision 'double'; there are auto, float32, bfloat16, float16"),
        (pretrain(method="gan"), r"no method 'gan'; did you mean bigan\? there are diffusion"),
        (probe(epochs="x"), "epochs is 'x'; it must be a whole number between 1 and 1,000,000"),
        (probe(epochs=1.5), "epochs is 1.5; it must be a whole number"),
        (probe(seed=True), "seed is True; it must be a whole number"),
        (probe(seed=None), "seed is None; it must be a whole number"),
        (probe(blocks=(3, "a")), "blocks is 'a'; it must be a whole number"),
        (probe(noise_steps=("x",)), "noise-steps is 'x'; it must be a number between 0"),
        (probe(data=5), "data is 5; it must be text"),
        (probe(grid=1), "grid is 1; it must be True or False"),
        (pretrain(preset="huge"), "no preset 'huge'; there are tiny"),
        (
            probe(head="diffeed", precision="float16"),
            "float16 rounds small gradients to 0: choose --precision",
        ),
    ],
)
def test_what_cannot_be_right_is_named(config: Options, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        resolve(config)


def test_numbers_of_numpy_are_those_of_python() -> None:
    config = resolve(probe(blocks=np.array([3, 4]), epochs=np.int64(2), dropout=np.float32(0.5)))
    assert (config.blocks, config.epochs, config.dropout) == ((3, 4), 2, 0.5)
    assert {type(number) for number in (*given(config.blocks), config.epochs)} == {int}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            probe(from_block=3),
            "the frozen extractor does not read options of finetuned: leave out --from-block",
        ),
        (probe(layer_decay=0.5), "leave out --layer-decay"),
        (probe(feedback_blocks=(7,)), "options of feedback: leave out --feedback-blocks"),
        (segment(feedback_blocks=(7,)), "options of feedback: leave out --feedback-blocks"),
        (probe(extractor="finetuned", precision="bfloat16"), "keeps float32 weights: leave out --precision"),
        (
            segment(extractor="finetuned", precision="bfloat16"),
            "keeps float32 weights: leave out --precision",
        ),
        (
            probe(head="linear", depth=2, dropout=0.5),
            "the linear head does not read them: leave out --depth, --dropout",
        ),
        (
            probe(store=Path("y"), workers=2, on_bad_image="skip"),
            "read from --store, not from images: leave out --on-bad-image, --workers",
        ),
        (probe(head="knn", epochs=3), "k-NN trains nothing: leave out --epochs"),
        (probe(head="difformer", mix="spatial"), "the difformer head does not read them: leave out --mix"),
        (
            probe(head="mlp", normalise="whiten"),
            "the mlp head does not read them: leave out --normalise",
        ),
        (
            SweepConfig(out=Path("x"), normalise="standard", classifiers=("ridge", "logistic")),
            "ridge and logistic standardise each feature in any case: leave out --normalise",
        ),
        (probe(head="linear", grid=True, weight_decay=0.1), "leave out --weight-decay"),
        (probe(step_epochs=3), "--lr-schedule step only: leave out --step-epochs"),
        (segment(momentum=0.5), "only sgd has a momentum"),
        (segment(head="linear", width=8), "leave out --width"),
        (
            probe(fresh_noise=False),
            "cached features keep the noise of the evaluation: leave out --no-fresh-noise",
        ),
        (probe(augment="flip", cache_gigabytes=1.0), "leave out --cache-gigabytes"),
        (pretrain(method="mae", min_snr_gamma=5.0), "leave out --min-snr-gamma"),
        (
            GenerateConfig(out=Path("x"), n=4, tap="norm"),
            "the whole network, .*: leave out --tap",
        ),
        (
            ExplainConfig(out=Path("x"), run=Path("y"), image_size=32, tap="norm"),
            "a run says how its backbone is read: leave out --image-size, --tap",
        ),
        (
            CompareConfig(out=Path("x"), backbones=("fashion",), num_head_channels=32),
            "none of the backbones is a checkpoint file: leave out --num-head-channels",
        ),
        (
            CompareConfig(out=Path("x"), backbones=("fashion",), condition="zero"),
            "none of the backbones is a file, a folder or a model of the hub: leave out --condition",
        ),
        (
            FidelityConfig(samples=Path("x"), features="inception", image_size=32, on_bad_image="skip"),
            "inception has one feature space: leave out --image-size",
        ),
        (
            FidelityConfig(samples=Path("x"), features="inception", on_bad_image="skip", workers=2),
            "inception reads every image, in this process: leave out --on-bad-image, --workers",
        ),
    ],
)
def test_options_without_effect_are_refused(config: Options, message: str) -> None:
    with pytest.raises(DiffLensError, match=message):
        resolve(config)


def test_diffeed_stands_for_a_head_and_an_extractor() -> None:
    by_head, by_preset = resolve(probe(head="diffeed")), resolve(probe(preset="diffeed"))
    explicit = resolve(probe(head="attention", extractor="feedback"))
    for config in (by_head, by_preset, explicit):
        assert (config.head, config.extractor, config.augment) == ("attention", "feedback", "flip")
        assert (config.learning_rate, config.usual_epochs) == (2e-3, 2)
    with pytest.raises(DiffLensError, match="diffeed is the attention head on the feedback extractor"):
        resolve(probe(head="diffeed", extractor="finetuned"))


def test_fine_tuning_has_one_layer_decay() -> None:
    assert resolve(probe(extractor="finetuned")).layer_decay == 0.85
    assert resolve(segment(extractor="finetuned")).layer_decay == 0.85
    assert resolve(segment()).layer_decay is None


def test_resolving_twice_changes_nothing() -> None:
    for config in (
        probe(),
        probe(head="diffeed"),
        probe(preset="paper-difformer"),
        segment(),
        pretrain(method="bigan"),
    ):
        once = resolve(config)
        assert resolve(once) == once


def test_what_a_run_records_is_what_makes_it_the_same_run() -> None:
    record = recorded(probe(blocks=(3,), workers=2, resume=True, label_list=Path("list.txt")))
    assert record["blocks"] == [3]
    assert record["label_list"] == "list.txt"
    assert not {"out", "workers", "resume", "device", "cache_gigabytes", "store", "on_bad_image"} & {*record}


def test_records_of_version_0_1() -> None:
    stored = {
        "command": "probe",
        "head": "diffeed",
        "extractor": None,
        "warmup_epochs": 0.5,
        "layer_decay": 1.0,
        "lr_schedule": "cosine",
        "step_epochs": 7,
    }
    assert upgraded(stored) == {
        "command": "probe",
        "head": "attention",
        "extractor": "feedback",
        "warmup_steps": None,
        "lr_schedule": "cosine",
        "normalise": None,
    }
    assert upgraded({"command": "probe", "head": "linear"})["normalise"] == "none"
    assert upgraded({"command": "pretrain", "flip": True}) == {
        "command": "pretrain",
        "augment": "flip",
        "precision": "auto",
    }
    assert upgraded({"command": "detect", "flip": False, "label_fraction": 0.1, "warmup_iterations": 3}) == {
        "command": "detect",
        "augment": "none",
        "image_fraction": 0.1,
        "warmup_steps": 3,
        "exif": "apply",
        "mix": False,
        "accumulate": 1,
    }
    assert upgraded({"command": "rivals", "label_fraction": [0.1]}) == {
        "command": "compare",
        "label_fraction": [0.1],
        "normalise": "none",
    }
    attention = {"command": "compare", "protocols": ["attention"]}  # which does not read the option
    assert upgraded(attention) == {**attention, "normalise": "standard"}


def test_a_limited_run_of_version_0_1_kept_other_images() -> None:
    """It is refused by name, since it read the first images."""
    record = recorded(probe(limit=5))
    assert record["limit_keeps"] == LIMIT_KEEPS
    assert "limit_keeps" not in recorded(probe())
    assert upgraded({"command": "probe", "limit": 5})["limit_keeps"] == "the first images"
    assert upgraded({"command": "probe", **record})["limit_keeps"] == LIMIT_KEEPS
    assert "limit_keeps" not in upgraded({"command": "probe", "limit": None})
    assert "limit_keeps" not in upgraded({"command": "cka", "limit": 500})


def test_a_checkpoint_of_a_comparison_is_read_with_its_options(tmp_path: Path) -> None:
    """Every run on it gets them, a folder those that are not of files alone, and a bundled network none."""
    file = tmp_path / "dit.pt"
    file.touch()
    folder = str(tmp_path)
    backbones = (str(file), "fashion", folder)
    config = resolve(
        CompareConfig(out=tmp_path, backbones=backbones, condition="zero", tap="norm", family="dit")
    )
    (trial, *_), place = config.trials, (3, 20)
    for run in (config.probe(str(file), trial, place), config.extract(str(file), place)):
        assert (run.condition, run.tap, run.family) == ("zero", "norm", "dit")
    assert config.probe("fashion", trial, place).condition is None
    read = config.probe(folder, trial, place)
    assert (read.condition, read.tap, read.family) == ("zero", "norm", None)
    assert resolve(config.generate(str(file), "ddim")).family == "dit"
