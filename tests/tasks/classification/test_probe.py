"""Probing end to end at a small size: every head, cached and online, resume, bad input."""

import csv
import json
import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from difflens import DiffLensError, ProbeConfig, TrainedModel, load_data, plan, presets, probe
from difflens.configs.options import resolve
from difflens.data.images import fit, to_float
from difflens.data.labels import limited
from difflens.metrics.calibration import expected_calibration_error
from difflens.metrics.classification import Evaluation, paired_difference
from difflens.metrics.statistics import wilson
from difflens.run.console import note
from difflens.tasks.classification import probe as probing
from tests.helpers.browser import open_in_browser
from tests.helpers.cli import run as cli
from tests.helpers.stopped import stop_after_two_checkpoints


def config(out: Path, folder: Path, images: Path, /, **changes: object) -> ProbeConfig:
    base = ProbeConfig(
        out=out,
        backbone=str(folder),
        data=str(images),
        head="linear",
        blocks=(6,),
        noise_steps=(5,),
        epochs=3,
        batch_size=8,
        device="cpu",
        workers=0,
    )
    if changes.get("head") == "knn":
        base = replace(base, epochs=None, batch_size=None)
    return replace(base, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "learning_rate": 0.03, "epochs": 8},
        {"head": "mlp", "width": 32},
        {"head": "cnn", "width": 8},
        {"head": "attention", "width": 16},
        {"head": "difformer", "width": 16, "blocks": (5, 7), "noise_steps": (2, 9)},
        {"head": "diffeed", "width": 16},
        {"head": "mix", "width": 16, "blocks": (5, 7), "noise_steps": (2, 9)},
        {"head": "mix", "width": 16, "blocks": (5, 7), "extractor": "feedback", "mix": "spatial"},
        {"head": "mix", "width": 16, "blocks": (5, 7), "extractor": "finetuned", "from_block": 3},
        {"head": "attention", "width": 16, "augment": "crop"},
        {"head": "linear", "extractor": "finetuned", "from_block": 3, "learning_rate": 0.01},
        {"head": "linear", "optimizer": "sgd", "lr_schedule": "step", "step_epochs": 2, "learning_rate": 0.1},
        {"head": "linear", "precision": "bfloat16"},
        {"head": "linear", "normalise": "whiten", "grid": True},
        {"head": "linear", "cache_gigabytes": 0.0, "learning_rate": 0.03},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_way_to_probe(backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict) -> None:
    out = tmp_path / "run"
    result = probe(config(out, backbone_folder, image_tree, **changes))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics()))
    assert metrics["test_images"] == 15
    assert metrics["trainable_parameters"] == result.model.probe.trainable_parameters
    assert sum(map(sum, metrics["confusion_matrix"])) == 15
    assert set(metrics["per_class"]) == {"red", "green", "blue"}
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(losses) == result_epochs(changes)
    assert losses[-1] < losses[0]
    assert not (out / "cache").exists()
    again = TrainedModel.load(out)
    assert again.classes == ("blue", "green", "red")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    if changes.get("precision") is None:
        torch.testing.assert_close(again.probabilities(images), result.model.probabilities(images))


def result_epochs(changes: dict) -> int:
    return changes.get("epochs", 3)


def test_colours_are_learnt(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    result = probe(
        config(
            tmp_path / "run", backbone_folder, image_tree, head="mlp", width=64, epochs=15, learning_rate=3e-3
        )
    )
    assert result.metrics()["top1"] == 1.0
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    assert len(rows) == 15
    assert all(row["class"] == row["predicted"] for row in rows)
    assert rows[0]["image"] == "val/blue/0.png"


@pytest.mark.parametrize("head", ["mlp", "diffeed"])
def test_resuming_ends_as_an_uninterrupted_run(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    whole = config(
        tmp_path / "whole", backbone_folder, image_tree, head=head, width=16, augment="flip", dropout=0.3
    )
    expected = probe(whole)
    stopped = replace(whole, out=tmp_path / "stopped")
    stop_after_two_checkpoints(stopped, monkeypatch)
    assert not (stopped.out / "metrics.json").exists()
    result = probe(replace(stopped, resume=True))
    for name, value in expected.model.probe.own_state().items():
        assert torch.equal(value, result.model.probe.own_state()[name]), name
    assert comparable(result.metrics()) == comparable(expected.metrics())
    assert (stopped.out / "log.jsonl").read_text() == (whole.out / "log.jsonl").read_text()
    # a finished run is not run again
    finished = probe(replace(stopped, resume=True)).metrics()
    assert comparable(finished) == comparable(expected.metrics())


def test_the_same_seed_gives_the_same_model_and_another_another(
    backbone_folder: Path, image_tree: Path, tmp_path: Path
) -> None:
    states = [
        probe(config(tmp_path / str(i), backbone_folder, image_tree, seed=seed)).model.probe.own_state()
        for i, seed in enumerate((0, 0, 1))
    ]
    weights = [state["head.classifier.weight"] for state in states]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_cache_gives_what_reading_the_images_gives(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are equal up to the cache's float16."""
    options = {"epochs": 1, "normalise": "none"}
    cached = probe(config(tmp_path / "cached", backbone_folder, image_tree, **options))
    monkeypatch.setattr(probing._Run, "_read", lambda *_: None)
    monkeypatch.setattr(ProbeConfig, "_online", True)
    run = config(tmp_path / "online", backbone_folder, image_tree, **options, fresh_noise=False)
    online = probe(run).model.probe.own_state()
    for name, value in cached.model.probe.own_state().items():
        torch.testing.assert_close(value, online[name], atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("head", ["linear", "diffeed"])
def test_bad_images_can_be_skipped_and_are_listed(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, head: str
) -> None:
    (image_tree / "train" / "red" / "3.png").write_bytes(b"not an image")
    truncated = image_tree / "val" / "blue" / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    run = config(
        tmp_path / "run", backbone_folder, image_tree, head=head, width=None if head == "linear" else 16
    )
    with pytest.raises(DiffLensError, match=r"train/red/3\.png"):
        probe(run)
    assert not run.out.exists()
    metrics = probe(replace(run, on_bad_image="skip")).metrics()
    assert metrics["test_images"] == 14
    assert sorted(line.split(":")[0] for line in metrics["skipped_images"]) == [
        "train/red/3.png",
        "val/blue/1.png",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (12,)}, "no block 12: the backbone has 9 blocks: encoder 1-4, middle 5, decoder 6-9"),
        ({"noise_steps": (100,)}, "noise step 100 is outside the schedule"),
        ({"head": "attention", "blocks": (5, 6)}, "reads one map, not 2: --head difformer reads several"),
        ({"head": "diffeed", "extractor": "frozen"}, "on the feedback extractor, not on frozen"),
        ({"head": "diffeed", "feedback_blocks": (2,)}, "only decoder blocks"),
        ({"extractor": "finetuned", "precision": "bfloat16"}, "keeps float32 weights"),
        ({"extractor": "finetuned", "from_block": 8}, "nothing to fine-tune: block 8 comes after block 6"),
        ({"head": "diffeed", "blocks": (1,), "feedback_blocks": (6,)}, "block 1 comes before block 4"),
        ({"epochs": 0}, "epochs is 0; it must be between 1 and 1,000,000"),
        ({"batch_size": -3}, "batch-size is -3"),
        ({"learning_rate": -1.0}, "learning-rate is -1"),
        ({"label_smoothing": 3.0}, "label-smoothing is 3; it must be between 0 and 1"),
        ({"dropout": 2.0}, "dropout is 2"),
        ({"limit": 0}, "limit is 0"),
        ({"preset": "paper-attention"}, "is for the head attention, not linear"),
        (
            {"preset": "paper-nothing"},
            "no preset 'paper-nothing'; did you mean paper-linear\\? there are diffeed, paper-linear",
        ),
        ({"learning_rate": 1e6, "optimizer": "sgd"}, "no longer finite in epoch"),
        ({"backbone": "nothing"}, "no backbone 'nothing'"),
        ({"data": "/nothing"}, "/nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_says_so_and_leaves_nothing(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        probe(config(tmp_path / "run", backbone_folder, image_tree, **changes))
    if "learning_rate" not in changes:
        assert not (tmp_path / "run").exists()


def test_grey_backbone_on_colour_images_of_another_size(image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", Path("fashion"), image_tree, blocks=(13,), epochs=1)
    assert probe(run).metrics()["test_images"] == 15


def test_colour_backbone_on_grey_images(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    for path in image_tree.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    run = config(tmp_path / "run", backbone_folder, image_tree, epochs=1)
    assert math.isfinite(probe(run).metrics()["top1"])


@pytest.mark.parametrize("name", ["linear", "attention", "difformer", "diffeed"])
def test_the_papers_recipes(tmp_path: Path, name: str) -> None:
    resolved = resolve(ProbeConfig(out=tmp_path, preset=f"paper-{name}"))
    assert (resolved.optimizer, resolved.weight_decay, resolved.epochs) == ("sgd", 0.0, 28)
    assert (resolved.lr_schedule, resolved.step_epochs, resolved.augment) == ("step", 7, "crop")
    expected = ("attention", "feedback") if name == "diffeed" else (name, "frozen")
    assert (resolved.head, resolved.extractor) == expected
    assert resolved.learning_rate == (5e-2 if name in ("attention", "difformer") else 1e-2)
    explicit = resolve(ProbeConfig(out=tmp_path, preset=f"paper-{name}", epochs=2, blocks=(5,)))
    assert (explicit.epochs, explicit.blocks) == (2, (5,))


@pytest.mark.parametrize("name", [name for name in presets.PROBE if name.startswith("photos-")])
def test_a_recipe_for_photographs_fits_the_bundled_network(
    name: str, image_tree: Path, tmp_path: Path
) -> None:
    """Images in colour are read by `photos`, at the recipe's places and for its epochs."""
    planned = plan(ProbeConfig(out=tmp_path / "run", preset=name, data=str(image_tree)))
    recipe = presets.PROBE[name]
    assert planned.backbone.startswith("photos, ")
    assert planned.reads.endswith(f"; {recipe['head']} head")
    assert all(str(value) in planned.reads for value in (*recipe["blocks"], *recipe["noise_steps"]))
    assert planned.schedule.startswith("28 epochs")


def test_every_recipe_names_existing_fields() -> None:
    fields = set(ProbeConfig.__dataclass_fields__)
    for recipe in [*presets.PROBE.values(), *presets.HEADS.values(), *presets.EXTRACTORS.values()]:
        assert set(recipe) <= fields


def test_metrics_against_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 8), torch.randint(0, 8, (200,))
    ranked = logits.topk(5).indices
    evaluation = Evaluation(torch.arange(200), labels, ranked, torch.rand(200), tuple("abcdefgh"))
    assert evaluation.top1 == pytest.approx(top_k_accuracy_score(labels, logits, k=1))
    assert evaluation.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert (evaluation.confusion.numpy() == confusion_matrix(labels, ranked[:, 0])).all()
    per_class = recall_score(labels, ranked[:, 0], average=None)
    assert list(evaluation.per_class.values()) == pytest.approx(per_class)
    assert evaluation.metrics()["mean_per_class"] == pytest.approx(sum(per_class) / 8)


def test_ten_thousand_classes_take_no_square_of_them() -> None:
    count = 10_000
    labels = torch.arange(count)
    predicted = torch.where(labels < 3, labels + 1, torch.where(labels < 50, 7, labels))
    ranked = predicted[:, None].expand(-1, 5)
    names = tuple(map(str, range(count)))
    evaluation = Evaluation(labels, labels, ranked, torch.ones(count), names)
    metrics = evaluation.metrics()
    assert "confusion_matrix" not in metrics
    assert metrics["top1"] == pytest.approx(1 - 49 / count)
    few = Evaluation(labels[:60], labels[:60], ranked[:60], torch.ones(60), names[:60])
    mistakes = few.confusion.fill_diagonal_(0)
    assert few.most_confused(100) == [(i, k, int(mistakes[i, k])) for i, k in mistakes.nonzero().tolist()]
    assert evaluation.most_confused(3) == [(0, 1, 1), (1, 2, 1), (2, 3, 1)]
    assert Evaluation(labels, labels, labels[:, None], torch.ones(count), names).most_confused() == []


def test_calibration_is_that_of_the_saved_model(image_tree: Path, tmp_path: Path) -> None:
    """Without noise, the evaluation's probabilities are those of `predict`, but for float16 features."""
    run = config(tmp_path / "run", Path("pixels:3x16"), image_tree, blocks=None, noise_steps=None)
    result = probe(run)
    test = load_data(str(image_tree)).test
    images = torch.stack([fit(test.image(row), 3, 16) for row in range(len(test))])
    probabilities = result.model.probabilities(to_float(images))
    true = probabilities[torch.arange(len(test)), test.labels]
    best = probabilities.max(1)
    assert result.nll == pytest.approx(float(-true.log().mean()), abs=2e-3)
    expected = expected_calibration_error(best.values, best.indices == test.labels)
    assert result.ece == pytest.approx(expected, abs=2e-3)
    metrics = json.loads((run.out / "metrics.json").read_text())
    assert (metrics["ece"], metrics["nll"]) == (result.ece, result.nll)
    assert probe(replace(run, resume=True)).nll == result.nll
    page = (run.out / "report.html").read_text()
    assert "ECE, %" in page
    assert f"{result.nll:.3f}" in page


def test_wilson_interval() -> None:
    low, high = wilson(81, 263)  # worked example in Newcombe (1998), method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_paired_difference_counts_disagreements_only() -> None:
    labels = torch.zeros(100, dtype=torch.long)

    def evaluation(right: int) -> Evaluation:
        ranked = (torch.arange(100) >= right).long()[:, None]
        return Evaluation(torch.arange(100), labels, ranked, torch.ones(100), ("a", "b"))

    assert paired_difference(evaluation(90), evaluation(90)) == (0.0, 0.0)
    difference, half = paired_difference(evaluation(90), evaluation(80))
    assert difference == pytest.approx(0.1)
    assert half == pytest.approx(1.96 * (0.1 * 0.9 / 99) ** 0.5, rel=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_paired_difference_on_one_image_is_sure_of_nothing() -> None:
    row, right, wrong = torch.zeros(1, dtype=torch.long), torch.tensor([[0]]), torch.tensor([[1]])
    first, second = (Evaluation(row, row, ranked, torch.ones(1), ("a", "b")) for ranked in (right, wrong))
    assert paired_difference(first, second) == (1.0, 2.0)


def test_bundled_data_by_default() -> None:
    resolved = resolve(ProbeConfig(out=Path("x")))
    assert (resolved.data, resolved.head) == ("fashion", "attention")
    assert len(load_data(resolved.data).classes) == 10


@pytest.mark.slow
def test_the_mix_of_the_bundled_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's command, on few images for one epoch; the saved model is read back."""
    data = load_data("fashion")
    few = replace(data, test=data.test.subset(torch.arange(100)))
    monkeypatch.setattr("difflens.data.load.load_fashion", lambda: few)
    words = "--head mix --blocks 13 18 20 --noise-steps 5 20 --normalise standard --limit 200 --epochs 1"
    assert cli("probe", *words.split(), "--out", tmp_path / "run") == 0
    model = TrainedModel.load(tmp_path / "run")
    assert (model.head.name, model.head.mix, model.head.normalise) == ("mix", "image", "standard")
    assert len(model.probe.head.mixture.places) == 6


def comparable(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if key != "train_seconds"}


def test_seeds_are_runs_of_their_own(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    """Each equals the run with that seed alone; mean and standard deviation are theirs; a resume repeats
    nothing."""
    many = config(tmp_path / "many", backbone_folder, image_tree, seed=4, seeds=2, label_fraction=0.5)
    result = probe(many)
    singles = [
        probe(replace(many, out=tmp_path / str(seed), seed=seed, seeds=1)).metrics() for seed in (4, 5)
    ]
    assert [comparable(run) for run in result.metrics()["runs"]] == [comparable(single) for single in singles]
    values = torch.tensor([single["top1"] for single in singles], dtype=torch.float64)
    assert result.metrics()["top1"] == pytest.approx(float(values.mean()))
    assert result.metrics()["top1_std"] == pytest.approx(float(values.std()))
    assert TrainedModel.load(many.out).info["seed"] == 4
    (many.out / "metrics.json").unlink()
    again = probe(replace(many, resume=True))
    assert again.metrics() == result.metrics()
    for ours, theirs in zip(again.evaluations, result.evaluations, strict=True):
        assert torch.equal(ours.confusion, theirs.confusion)


def test_few_labels_are_the_same_for_every_head(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fit = probing.fit
    monkeypatch.setattr(
        probing, "fit", lambda probe, split, *rest: (seen.append(split.ids), fit(probe, split, *rest))[1]
    )
    for head in ("linear", "cnn"):
        out = tmp_path / head
        metrics = probe(
            config(
                out,
                backbone_folder,
                image_tree,
                head=head,
                width=None if head == "linear" else 8,
                label_fraction=0.25,
            )
        ).metrics()
        assert metrics["train_images"] == 9
    assert seen[0] == seen[1]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{name}\n" for name in seen[0]))
    probe(config(tmp_path / "listed", backbone_folder, image_tree, label_list=names))
    assert seen[2] == seen[0]


def test_few_images_get_more_epochs(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "FEW_IMAGES", 300)
    run = config(tmp_path / "run", backbone_folder, image_tree, epochs=None, batch_size=None)
    # 36 images are one step of the default batch of 128
    expected = presets.HEADS["linear"]["epochs"] * math.ceil(presets.FEW_IMAGES / 128)
    assert probe(run).metrics()["epochs"] == expected
    assert probe(replace(run, out=tmp_path / "asked", epochs=3)).metrics()["epochs"] == 3


def test_nearest_neighbours(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    result = probe(config(tmp_path / "run", backbone_folder, image_tree, head="knn"))
    assert [record["k"] for record in result.metrics()["neighbours"]] == [5, 10, 20, 200]
    (chosen,) = (record for record in result.metrics()["neighbours"] if record["chosen"])
    assert chosen["validation_top1"] == max(r["validation_top1"] for r in result.metrics()["neighbours"])
    assert chosen["top1"] == result.metrics()["top1"] > 0.6
    assert result.metrics()["trainable_parameters"] == 0
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(
        TrainedModel.load(tmp_path / "run").probabilities(images), result.model.probabilities(images)
    )


def test_no_head_knows_a_test_image_by_its_noise(backbone_folder: Path, tmp_path: Path) -> None:
    """Pictures without a class, of which both splits hold as many in one order: chance is 50 %."""
    generator = torch.Generator().manual_seed(0)
    for split, name in product(("train", "val"), "ab"):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = torch.randint(256, (16, 16, 3), generator=generator).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number:02}.png")
    changes = {"head": "knn", "noise_steps": (99,), "pool": 8}
    run = config(tmp_path / "run", backbone_folder, tmp_path / "images", **changes)
    assert probe(run).metrics()["top1"] < 0.7
    index = load_data(run.data).test.subset(torch.tensor([3, 1])).mirrored().noise_index
    assert index.tolist() == [2**30 + 3, 2**30 + 1]


def test_one_class_is_refused(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (image_tree / split / colour for split in ("train", "val") for colour in ("green", "blue")):
        shutil.rmtree(folder)
    with pytest.raises(DiffLensError, match="has one class, 'red': a probe tells several apart"):
        probe(config(tmp_path / "run", backbone_folder, image_tree, head="knn"))
    for command, name in (("sweep", "a sweep"), ("demo", "the demo")):
        words = ("--backbone", backbone_folder, "--data", image_tree, "--out", tmp_path / "run")
        assert cli(command, *words) == 2
        assert f"has one class, 'red': {name} tells several apart" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_features_are_whitened_where_there_are_enough_images(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    for limit, kind, said in ((36, "whiten", "features are whitened;"), (12, "standard", "too few images")):
        run = config(tmp_path / f"{limit}", backbone_folder, image_tree, head=head, limit=limit)
        note.cache_clear()
        result = probe(run)  # of a map with 16 channels
        assert said in capsys.readouterr().err
        assert f"normalised: {kind}" in (run.out / "config.yaml").read_text()
        named = probe(replace(run, out=tmp_path / f"{limit}-named", normalise=kind))
        assert torch.equal(*(each.evaluations[0].confidence for each in (result, named)))
        assert probe(replace(run, resume=True)).metrics() == result.metrics()


@pytest.mark.parametrize("kind", ["standard", "whiten"])
@pytest.mark.parametrize("head", ["linear", "knn", "mix"])
def test_normalisation_is_saved_with_the_head(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, head: str, kind: str
) -> None:
    """Read back, and trained on a store, the model is the same."""
    from difflens import ExtractConfig, extract

    blocks = (5, 6) if head == "mix" else (6,)
    run = config(tmp_path / "run", backbone_folder, image_tree, head=head, normalise=kind, blocks=blocks)
    result = probe(run)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    expected = result.model.probabilities(images)
    again = TrainedModel.load(run.out)
    torch.testing.assert_close(again.probabilities(images), expected)
    assert again.head.normalise == ("none" if head == "linear" else kind)
    plain = probe(replace(run, out=tmp_path / "plain", normalise="none"))
    assert not torch.allclose(plain.model.probabilities(images), expected, atol=1e-4)
    store = ExtractConfig(
        out=tmp_path / "store",
        backbone=str(backbone_folder),
        data=str(image_tree),
        blocks=blocks,
        noise_steps=(5,),
        pool=0 if head == "mix" else 2,
        device="cpu",
        workers=0,
    )
    extract(store)
    stored = probe(replace(run, out=tmp_path / "stored", store=store.out, workers=None))
    torch.testing.assert_close(stored.model.probabilities(images), expected)
    # maps that stay in the store, unpooled, are normalised by the statistics of pooled ones, too
    whole = replace(store, out=tmp_path / "whole", pool=0)
    extract(whole)
    unpooled = replace(run, out=tmp_path / "unpooled", store=whole.out, workers=None, cache_gigabytes=0)
    torch.testing.assert_close(probe(unpooled).model.probabilities(images), expected, atol=0.01, rtol=0.0)


def test_the_grid_chooses_on_training_images_only(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path / "grid", backbone_folder, image_tree, grid=True, epochs=4)
    read: list[str] = []
    real = probing._Run._read
    monkeypatch.setattr(
        probing._Run, "_read", lambda self, split: (read.append(split.name), real(self, split))[1]
    )
    choose = probing.choose_linear
    counts: list[int] = []
    monkeypatch.setattr(
        probing,
        "choose_linear",
        lambda head, cache, *rest: (counts.append(len(cache)), choose(head, cache, *rest))[1],
    )
    metrics = probe(run).metrics()
    assert counts == [36]
    assert len(metrics["grid"]) == 15
    (best,) = (record for record in metrics["grid"] if record["chosen"])
    assert best["validation_top1"] == max(record["validation_top1"] for record in metrics["grid"])
    plain = probe(
        replace(
            run,
            out=tmp_path / "plain",
            grid=False,
            learning_rate=best["learning_rate"],
            weight_decay=best["weight_decay"],
        )
    ).metrics()
    assert plain["confusion_matrix"] == metrics["confusion_matrix"]


@pytest.mark.parametrize("head", ["linear", "attention", "difformer", "mix", "knn"])
def test_a_store_gives_what_the_backbone_gives(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, head: str
) -> None:
    from difflens import ExtractConfig, extract

    places = {"blocks": (5, 6), "noise_steps": (2, 5)} if head in ("difformer", "mix") else {}
    direct = config(
        tmp_path / "direct",
        backbone_folder,
        image_tree,
        head=head,
        width=None if head in ("linear", "knn") else 16,
        label_fraction=0.5,
        **places,
    )
    extract(
        ExtractConfig(
            out=tmp_path / "store",
            backbone=direct.backbone,
            data=str(image_tree),
            blocks=(5, 6),
            noise_steps=(2, 5),
            pool=2 if head in ("linear", "knn") else 0,
            device="cpu",
            workers=0,
        )
    )
    stored = replace(direct, out=tmp_path / "stored", store=tmp_path / "store", workers=None)
    first, second = probe(direct), probe(stored)
    assert comparable(first.metrics()) == comparable(second.metrics())
    for name, value in first.model.probe.own_state().items():
        assert torch.equal(value, second.model.probe.own_state()[name]), name


def test_a_store_says_what_to_read(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    """Its blocks, noise steps and pooling are the defaults; images that it left out are reported."""
    from difflens import ExtractConfig, extract

    (image_tree / "train" / "green" / "a: b.png").write_bytes(b"not an image")
    whole = load_data(str(image_tree)).train
    kept = set(limited(whole, 30, 0).ids)
    beyond = next(name for name in whole.ids if name not in kept)
    (image_tree / beyond).write_bytes(b"not an image")
    extract(
        ExtractConfig(
            out=tmp_path / "store",
            backbone=str(backbone_folder),
            data=str(image_tree),
            blocks=(3, 7),
            noise_steps=(2, 9),
            pool=4,
            limit=30,
            on_bad_image="skip",
            device="cpu",
            workers=0,
        )
    )
    asked = config(
        tmp_path / "run",
        backbone_folder,
        image_tree,
        head="difformer",
        blocks=None,
        noise_steps=None,
        width=16,
        limit=30,
        store=tmp_path / "store",
        workers=None,
    )
    result = probe(asked)
    assert (result.model.extractor.blocks, result.model.extractor.noise_steps) == ((3, 7), (2, 9))
    assert result.model.head.pool == 4
    assert result.metrics()["train_images"] == 29
    assert result.metrics()["test_images"] == 15
    (line,) = result.metrics()["skipped_images"]
    assert line.startswith("train/green/a: b.png: not in the store")
    with pytest.raises(DiffLensError, match="reads one map, not 2"):
        probe(replace(asked, out=tmp_path / "other", head="attention"))


def test_a_run_is_the_same_by_any_spelling_but_not_on_other_images(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(tmp_path / "run", backbone_folder, image_tree)
    expected = probe(first).metrics()
    monkeypatch.chdir(image_tree.parent)
    again = replace(first, data=f"./{image_tree.name}", resume=True)
    assert probe(again).metrics() == expected
    Image.new("RGB", (16, 16)).save(image_tree / "val" / "red" / "0.png")
    with pytest.raises(DiffLensError, match="data_fingerprint was"):
        probe(again)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({}, {"blocks": (7,)}, "no block 7 at noise step 5"),
        ({}, {"noise_steps": (6,)}, "no block 6 at noise step 6"),
        ({"backbone": "random"}, {}, "its backbone was random:.*, with other weights than"),
        ({"pool": 1}, {}, "pooled to side 1, and the head reads maps of side 2: give --pool 1"),
        ({"pool": 3}, {"pool": 2}, "pooled to side 3, and the head reads maps of side 2: give --pool 3"),
        ({"limit": 20}, {"limit": 30}, r"lacks \d+ of the 30 train images, train/\w+/\d+.png for example"),
        ({"unlabelled": True}, {}, "its data was"),
        ({}, {"precision": "bfloat16"}, "its backbone ran in float32, not in bfloat16"),
        ({}, {"draws": 2}, "averages over 1 draw, not over 2"),
    ],
    ids=str,
)
def test_a_store_that_does_not_fit_is_refused(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, made: dict, asked: dict, message: str
) -> None:
    from difflens import ExtractConfig, extract

    if "backbone" in made:
        made = {"backbone": f"random:{backbone_folder}"}
    base = {"backbone": str(backbone_folder), "data": str(image_tree), "blocks": (6,), "noise_steps": (5,)}
    extract(ExtractConfig(**{**base, "out": tmp_path / "store", "device": "cpu", "workers": 0, **made}))
    with pytest.raises(DiffLensError, match=message):
        run = config(tmp_path / "run", backbone_folder, image_tree, store=tmp_path / "store", workers=None)
        probe(replace(run, **asked))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_fraction": 0.01}, "leaves no image of blue, green, red"),
        ({"label_fraction": 1.5}, "label-fraction is 1.5; it must be between 0 and 1"),
        ({"label_fraction": 0.5, "label_list": Path("x")}, "give only one of them"),
        ({"label_list": Path("/nowhere.txt")}, "/nowhere.txt"),
        ({"seeds": 0}, "seeds is 0"),
        ({"layer_decay": 2.0}, "layer-decay is 2"),
        ({"grid": True, "head": "mlp"}, "the grid is for the linear head, not for mlp"),
        ({"grid": True, "augment": "flip"}, "read features of a frozen backbone"),
        ({"head": "knn", "extractor": "finetuned"}, "read features of a frozen backbone"),
        (
            {"head": "knn", "learning_rate": 0.1, "mixup": 0.5},
            "k-NN trains nothing: leave out --learning-rate, --mixup",
        ),
        ({"grid": True, "weight_decay": 0.1}, "learning rates and weight decays: leave out --weight-decay"),
        (
            {"head": "diffeed", "store": Path("x"), "workers": None},
            "a store holds features of a frozen backbone",
        ),
        ({"store": Path("/nowhere"), "workers": None}, "not a feature store"),
        ({"normalise": "whiten", "limit": 12}, "needs at least 16 training images, not 12"),
        ({"normalise": "standard", "augment": "flip"}, "take --normalise none"),
        ({"normalise": "standard", "head": "mix", "extractor": "feedback"}, "take --normalise none"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DiffLensError, match=message):
        probe(config(tmp_path / "run", backbone_folder, image_tree, **changes))
    assert not (tmp_path / "run").exists()


def test_layers_learn_at_their_own_rates(backbone_folder: Path) -> None:
    """Geometric from the head down; every trained parameter once; frozen ones nowhere."""
    from difflens import FineTunedExtractor, HeadConfig, Probe, load_backbone, make_head

    extractor = FineTunedExtractor(load_backbone(str(backbone_folder)), (6,), (5,), from_block=3)
    probed = Probe(extractor, make_head(HeadConfig("linear"), extractor.shapes(), 3))
    groups = probed.parameter_groups(0.1, 0.0, 0.5)
    rates = {id(p): group.learning_rate for group in groups for p in group.parameters if p.requires_grad}
    trained = [p for p in probed.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == set(rates)
    assert sum(len([p for p in g.parameters if p.requires_grad]) for g in groups) == len(trained)
    assert all(rates[id(p)] == 0.1 for p in probed.head.parameters())
    for block in range(3, 7):
        for module in extractor.backbone.modules_of(block):
            assert all(rates[id(p)] == pytest.approx(0.1 * 0.5 ** (7 - block)) for p in module.parameters())
    assert len(probed.parameter_groups(0.1, 0.0, 1.0)) == 1


def test_the_report_opens_in_a_browser(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    probe(config(tmp_path / "run", backbone_folder, image_tree, grid=True, seeds=2, epochs=1))
    dom, console = open_in_browser(tmp_path / "run" / "report.html")
    assert console == []
    for heading in ("Result", "Training", "Per class", "Most confused", "Confusion matrix", "Provenance"):
        assert heading in dom
    assert "--grid" in dom
    assert "--seeds 2" in dom


def test_a_store_alone_is_enough(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data, backbone with its options, images and places are the store's; without --head all are read."""
    from difflens import ExtractConfig, extract

    stored = ExtractConfig(
        out=tmp_path / "store",
        backbone=str(backbone_folder),
        data=str(image_tree),
        image_size=24,
        precision="bfloat16",
        blocks=(5, 6),
        noise_steps=(2, 5),
        pool=4,
        limit=30,
        device="cpu",
        workers=0,
    )
    extract(stored)
    alone = ProbeConfig(out=tmp_path / "alone", store=stored.out, epochs=1, width=16, device="cpu")
    model = probe(alone).model
    assert (model.extractor.blocks, model.extractor.noise_steps) == ((5, 6), (2, 5))
    assert (model.head.name, model.extractor.precision) == ("difformer", "bfloat16")
    assert (model.backbone.spec, model.backbone.image_size) == (str(backbone_folder), 24)
    said = " ".join(capsys.readouterr().err.split())
    assert f"was read from: data {image_tree}, backbone {backbone_folder}" in said
    assert "holds 30 of 36 training images, which are read" in said
    linear = probe(replace(alone, out=tmp_path / "linear", head="linear", width=None)).model
    assert linear.extractor.noise_steps == (2, 5)  # the default step is not among them
    one = replace(alone, out=tmp_path / "one", head="linear", width=None, noise_steps=(5,))
    assert probe(replace(one, blocks=(6,))).model.extractor.blocks == (6,)
    said = " ".join(capsys.readouterr().err.split())
    read = (
        f"Of {stored.out}, the head reads block 6 at noise step 5; --blocks and --noise-steps choose others"
    )
    assert read in said


def test_a_store_remembers_the_share_that_was_held_out(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is part of the data, so data that is named brings its own."""
    from difflens import ExtractConfig, extract

    classes = image_tree / "train"
    stored = ExtractConfig(
        out=tmp_path / "store",
        backbone=str(backbone_folder),
        data=str(classes),
        val_fraction=0.25,
        blocks=(5,),
        noise_steps=(2,),
        device="cpu",
        workers=0,
    )
    extract(stored)
    alone = ProbeConfig(out=tmp_path / "alone", store=stored.out, epochs=1, width=16, device="cpu")
    assert probe(alone).seeds[0].test_images == 9
    assert "25 % of each class held out" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DiffLensError, match="--val-fraction"):
        probe(replace(alone, out=tmp_path / "named", data=str(classes)))
    other = replace(alone, out=tmp_path / "other", val_fraction=0.5)
    with pytest.raises(DiffLensError, match=r"its data was .* which is not what"):
        probe(other)


def test_a_store_whose_data_is_gone_names_it(backbone_folder: Path, image_tree: Path, tmp_path: Path) -> None:
    from difflens import ExtractConfig, extract

    stored = ExtractConfig(
        out=tmp_path / "store",
        backbone=str(backbone_folder),
        data=str(image_tree),
        blocks=(5,),
        noise_steps=(2,),
        device="cpu",
        workers=0,
    )
    extract(stored)
    image_tree.rename(tmp_path / "moved")
    alone = ProbeConfig(out=tmp_path / "alone", store=stored.out, epochs=1, width=16, device="cpu")
    with pytest.raises(DiffLensError, match=rf"--store .*store is of --data {image_tree}: .* is neither"):
        probe(alone)
    assert not alone.out.exists()
    probe(replace(alone, data=str(tmp_path / "moved")))
