"""Every kind of file that comes back, damaged as a whole and field by field, through the commands that read
it: one line that names file and field, nothing written, bounded time and memory."""

import contextlib
import json
import math
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import Phase, given, settings
from scipy.io import loadmat, savemat

import difflens
from difflens import (
    CompareConfig,
    DemoConfig,
    DetectConfig,
    DiffLensError,
    ExplainConfig,
    ExtractConfig,
    FidelityConfig,
    GenerateConfig,
    PredictConfig,
    PretrainConfig,
    ProbeConfig,
    ReportConfig,
    SegmentConfig,
    SweepConfig,
    load_backbone,
    load_data,
)
from difflens.data.pairs import load_pairs_of_points
from difflens.pretraining.export import images_seen
from tests.data.sources.test_fine_grained import make_dogs
from tests.helpers import damage
from tests.helpers.adm import Adm
from tests.helpers.cli import run
from tests.helpers.pipelines import write_stable_diffusion
from tests.test_earlier_versions import ARCHIVE, ATTENTION, BACKBONE, COMMON, HERE, PRETRAIN, SEGMENT

Read = Callable[[], object]
PAIR = {
    "src_imname": "a.png",
    "trg_imname": "b.png",
    "category": "cat",
    "src_imsize": [16, 16],
    "trg_imsize": [16, 16],
    "trg_bndbox": [1, 1, 9, 9],
    "src_kps": [[2, 3]],
    "trg_kps": [[4, 5]],
}
IMAGE = Path("data/test/dark/0.png")
PROBE: dict[str, Any] = {"head": "linear", "normalise": "none", "epochs": 2, "batch_size": 8, **COMMON}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished and stopped runs of every kind, a store and data."""
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.glob("**/model/config.json"):
        config = json.loads(path.read_text())
        if "backbone" in config and Path(config["backbone"]["spec"]).is_absolute():
            config["backbone"]["spec"] = str(folder / BACKBONE)
            path.write_text(json.dumps(config))
    (folder / "labels.txt").write_text("train/dark/0.png\ntrain/light/0.png\n")
    write_stable_diffusion(folder / "text")
    torch.save(Adm(head_channels=16).random_state(), folder / "adm.pt")
    flags = {
        "num_head_channels": 16,
        "num_heads": 4,
        "use_new_attention_order": False,
        "noise_schedule": "cosine",
    }
    (folder / "adm.json").write_text(json.dumps(flags))
    make_dogs(folder / "dogs")
    (folder / BACKBONE / "pretraining.json").write_text('{"images_seen": 96}')
    shutil.copytree(folder / BACKBONE, folder / "student", ignore=shutil.ignore_patterns("scheduler"))
    (folder / "student" / "distilled.json").write_text('{"time": 0, "difflens": "0.1.0"}')
    pictures, pairs = folder / "spair/JPEGImages/cat", folder / "spair/PairAnnotation/test"
    pictures.mkdir(parents=True)
    pairs.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        shutil.copy(folder / IMAGE, pictures / name)
    (pairs / "1.json").write_text(json.dumps(PAIR))
    with contextlib.chdir(folder):
        compare()  # version 0.1 wrote other names, which a resumed comparison replaces
        demo()
    return folder


@pytest.fixture(autouse=True)
def in_world(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(world)
    yield
    shutil.rmtree("predicted", ignore_errors=True)


def report(name: str) -> Read:
    """Read a run for a report, which ends before it draws: pixels do not generate."""
    runs = (name, "pixels:3x16")
    return lambda: difflens.report(ReportConfig(runs=runs, out=Path("page.html"), **HERE))


def predict(name: str) -> Read:
    out = Path("predicted") if name in ("segment", "detect") else None
    return lambda: difflens.predict(PredictConfig(model=Path(name), images=(IMAGE,), out=out, device="cpu"))


def again(name: str, **options: Any) -> Read:
    given = {**PROBE, **options}
    if given["head"] == "attention":
        given.pop("normalise")
    config = ProbeConfig(out=Path(name), resume=True, **given)
    return lambda: difflens.probe(config)


def explain() -> object:
    """Read a run to explain it, up to a block that its backbone does not have."""
    return difflens.explain(ExplainConfig(out=Path("new"), run=Path("probe"), blocks=(99,), **HERE))


def on_store() -> object:
    """Read a store, whose maps are of one draw."""
    places: dict[str, Any] = {"blocks": (6,), "noise_steps": (20,), "pool": 2, "draws": 2}
    options = {**PROBE, **places, "workers": None}
    return difflens.probe(ProbeConfig(out=Path("new"), store=Path("store"), **options))


def with_list() -> object:
    """Read a list of labels, up to an output folder that is taken."""
    return difflens.probe(ProbeConfig(out=Path("sweep"), label_list=Path("labels.txt"), **PROBE))


def fidelity() -> object:
    return difflens.fidelity(
        FidelityConfig(samples=Path("generate"), data="data", features=BACKBONE, limit=4, **HERE)
    )


def generate() -> object:
    config = GenerateConfig(out=Path("generate"), n=4, steps=2, batch_size=4, backbone=BACKBONE, device="cpu")
    return difflens.generate(replace(config, resume=True))


def extract() -> object:
    places: dict[str, Any] = {"blocks": (6, 8), "noise_steps": (20,), "pool": 2}
    return difflens.extract(ExtractConfig(out=Path("store"), resume=True, **places, **COMMON))


def compare() -> object:
    options: dict[str, Any] = {
        "protocols": ("knn",),
        "normalise": "none",
        "samples": 0,
        "data": "data",
        **HERE,
    }
    backbones = (BACKBONE, "pixels:1x16")
    return difflens.compare(CompareConfig(out=Path("rivals"), backbones=backbones, resume=True, **options))


def sweep() -> object:
    common: dict[str, Any] = {"blocks": (6, 8), "noise_steps": (20,), "resume": True, **COMMON}
    return difflens.sweep(SweepConfig(out=Path("sweep"), **common))


def segment(out: str = "segment", resume: bool = True) -> object:
    return difflens.segment(SegmentConfig(out=Path(out), resume=resume, **SEGMENT))


def detect() -> object:
    """Read annotations, up to an output folder that is taken."""
    options: dict[str, Any] = {"data": Path("scenes"), "backbone": BACKBONE, "side": 32, **HERE}
    return difflens.detect(DetectConfig(out=Path("probe"), **options))


def pretrain() -> object:
    return difflens.pretrain(PretrainConfig(out=Path("pretrain-stopped"), resume=True, **PRETRAIN))


def demo() -> object:
    short: dict[str, Any] = {"effort": 0.01, "samples": 1, "sampling_steps": 1}
    return difflens.demo(
        DemoConfig(out=Path("demo"), data="data", backbone=BACKBONE, device="cpu", resume=True, **short)
    )


def load(name: str, **options: Any) -> Read:
    """What `info` and every command with a backbone do first."""
    return lambda: load_backbone(name, **options)


class Reader(NamedTuple):
    """A file, and a command that reads it.

    Attributes:
        examples: how many changes of a field are tried.
        end: words of the refusal by which the command ends if the file is right; "" if it then succeeds.
    """

    file: str
    command: str
    read: Read
    end: str = ""
    examples: int = 12


DRAWS, TAKEN, BLOCK, PIXELS = "over 1 draw,", "already holds a run", "no block 99", "does not generate"
READERS = (
    Reader("probe/model/config.json", "predict", predict("probe")),
    Reader("probe/model/config.json", "report", report("probe"), PIXELS),
    Reader("probe/model/config.json", "explain", explain, BLOCK, 6),
    Reader("segment/model/config.json", "predict", predict("segment")),
    Reader("detect/model/config.json", "predict", predict("detect")),
    Reader("probe/config.yaml", "resume", again("probe")),
    Reader("probe/config.yaml", "report", report("probe"), PIXELS),
    Reader("probe/config.yaml", "explain", explain, BLOCK, 6),
    Reader("pretrain/config.yaml", "report", report("pretrain"), PIXELS),
    Reader("generate/config.yaml", "report", report("generate"), PIXELS),
    Reader("generate/config.yaml", "fidelity", fidelity),
    Reader("generate/config.yaml", "resume", generate),
    Reader("store/config.yaml", "resume", extract),
    Reader("rivals/config.yaml", "resume", compare, examples=3),
    Reader("probe/metrics.json", "resume", again("probe")),
    Reader("probe/metrics.json", "report", report("probe"), PIXELS),
    Reader("seeds/metrics.json", "report", report("seeds"), PIXELS),
    Reader("segment/metrics.json", "resume", segment),
    Reader("fidelity/metrics.json", "report", report("fidelity"), PIXELS),
    Reader("rivals/pixels%3A1x16/knn/metrics.json", "compare", compare, examples=3),
    Reader("sweep/images.json", "resume", sweep),
    Reader("store/manifest.json", "store", on_store, DRAWS),
    Reader("scenes/annotations/instances_val.json", "detect", detect, TAKEN),
    Reader("pretrain/model/unet/config.json", "load", load(BACKBONE)),
    Reader("pretrain/model/model_index.json", "load", load(BACKBONE)),
    Reader("pretrain/model/scheduler/scheduler_config.json", "load", load(BACKBONE)),
    Reader("supervised/model/config.json", "load", load("supervised/model")),
    Reader("pretrain/model/pretraining.json", "initial", partial(images_seen, BACKBONE)),
    Reader("student/distilled.json", "load", load("student")),
    Reader("spair/PairAnnotation/test/1.json", "match", partial(load_pairs_of_points, Path("spair"), "test")),
    Reader("adm.json", "load", load("adm.pt", image_size=16)),
    Reader("text/text_encoder/config.json", "load", load("text", condition="null")),
    Reader("text/tokenizer/tokenizer_config.json", "load", load("text", condition="null")),
    Reader("demo/metrics.json", "resume", demo),
    Reader("demo/config.yaml", "resume", demo),
)
TEXTS = (
    Reader("store/train/images.csv", "store", on_store, DRAWS),
    Reader("store/checksums.sha256", "store", on_store, DRAWS),
    Reader("store/checksums.sha256", "resume", extract),
    Reader("probe/predictions.csv", "resume", again("probe")),
    Reader("pretrain/log.jsonl", "report", report("pretrain"), PIXELS),
    Reader("scenes/classes.txt", "segment", partial(segment, "probe", False), TAKEN),
    Reader("labels.txt", "label list", with_list, TAKEN),
)


OTHERS = (
    "object has no attribute",
    "annotations[",
    "weights",
    "num_groups (",
    "difflens walks",
    "top1_interval_95 is missing",
    "not from `difflens generate`",
    "holds another run",
)
"""Words of refusals that name what no longer fits to the changed field."""
RIGHT = {
    "halved": ("log.jsonl", "classes.txt", "labels.txt"),
    "empty": ("log.jsonl",),
    "nested": ("log.jsonl",),
    "a number": ("log.jsonl",),
}
"""Damages that leave a right file of lines; a log may end with a line that is cut."""


def each(*readers: Reader) -> pytest.MarkDecorator:
    names = [f"{reader.file}-{reader.command}" for reader in readers]
    return pytest.mark.parametrize("reader", readers, ids=names)


def refusal(reader: Reader) -> str | None:
    """The line that refuses a file; None if the command went on to its usual end."""
    message = damage.refusal(reader.read)
    return None if message is not None and reader.end and reader.end in message else message


@each(*READERS, *TEXTS)
def test_a_file_as_it_was_written(reader: Reader) -> None:
    assert refusal(reader) is None


@each(*READERS, *TEXTS)
def test_a_file_that_is_damaged_as_a_whole(reader: Reader) -> None:
    path = Path(reader.file)
    for name, content in damage.whole(path.read_bytes()).items():
        if path.name in RIGHT.get(name, ()):
            continue
        with damage.replaced(path, content):
            message = refusal(reader)
        assert message is not None, name
        assert path.name in message, (name, message)


def check_fields(reader: Reader, examples: int) -> None:
    """Change one field after the other; a refusal names the file, and the field, its line or its value."""
    path = Path(reader.file)
    content = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())

    @settings(max_examples=examples, derandomize=True, deadline=None, phases=[Phase.generate])
    @given(damage.damages(content))
    def check(change: tuple[damage.Place, Any]) -> None:
        place, value = change
        with damage.replaced(path, damage.as_bytes(path, damage.changed(content, place, value))):
            message = refusal(reader)
        if message is not None:
            assert path.name in message or reader.file.split("/")[0] in message
            words = (
                *map(str, place),
                " line ",
                *([] if isinstance(value, dict | list) else [str(value)]),
                *OTHERS,
            )
            assert any(word in message for word in words), message

    check()


@each(*READERS)
def test_a_file_with_a_changed_field(reader: Reader) -> None:
    check_fields(reader, reader.examples)


@pytest.mark.slow
@each(*READERS)
def test_a_file_with_many_changed_fields(reader: Reader) -> None:
    check_fields(reader, 25 * reader.examples)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "probe/model/config.json",
            '"draws": 1',
            '"draws": -1',
            r"extractor\.draws is -1: it must be between 1 and 1,000",
        ),
        ("probe/model/config.json", '"seed": 0', '"sed": 0', r"extractor\.sed is not known to this version"),
        ("probe/metrics.json", '"epochs": 2', '"epochs": "2"', r"epochs is '2': it should be a valid int"),
        ("probe/metrics.json", '"top5": 1.0', '"top5": NaN', r"top5 is nan: it must be a finite number"),
        ("probe/metrics.json", '"top5": 1.0', '"top5": 1.5', r"top5 is 1\.5: it must be between 0 and 1"),
    ],
)
def test_the_field_is_named(file: str, old: str, new: str, message: str) -> None:
    path = Path(file)
    text = path.read_text()
    assert old in text
    read = predict("probe") if "model" in file else report("probe")
    with (
        damage.replaced(path, text.replace(old, new).encode()),
        pytest.raises(DiffLensError, match=rf"{path.name}: {message}"),
    ):
        read()


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("probe/model/config.json", ["predict", "probe", IMAGE, "--device", "cpu"]),
        ("probe/metrics.json", ["report", "probe", "--out", "page.html"]),
        ("generate/config.yaml", ["fidelity", "--samples", "generate", "--features", BACKBONE]),
        ("probe/config.yaml", ["explain", "--run", "probe", "--out", "new"]),
        ("pretrain/model/unet/config.json", ["info", BACKBONE]),
        ("store/manifest.json", ["probe", "--backbone", BACKBONE, "--store", "store", "--out", "new"]),
        ("probe/config.yaml", ["probe", "--backbone", BACKBONE, "--resume", "--out", "probe"]),
        ("scenes/annotations/instances_val.json", ["detect", "--data", "scenes", "--out", "new"]),
    ],
)
def test_the_command_line_prints_one_line(
    file: str, arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with damage.replaced(Path(file), b'{"task": 7'):
        assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("difflens: error: ")
    assert file in line
    assert not Path("new").exists()


def test_a_folder_of_predictions_that_is_damaged_keeps_its_files() -> None:
    """Old overlays are removed by the list in predictions.json alone."""
    assert refusal(Reader("", "", predict("segment"))) is None
    record = Path("predicted/predictions.json")
    content = json.loads(record.read_text())
    changes = (damage.changed(content, (0, "overlay"), value) for value in (7, [], "\ud800"))
    for damaged in (*damage.whole(record.read_bytes()).values(), *(json.dumps(c).encode() for c in changes)):
        with damage.replaced(record, damaged):
            message = refusal(Reader("", "", predict("segment")))
        assert message is not None, damaged
        assert "predicted is not a folder of predictions" in message


@pytest.mark.parametrize("file", ["probe/config.yaml", "generate/config.yaml"])
def test_yaml_aliases_are_refused(file: str) -> None:
    """A billion laughs in a kilobyte."""
    levels = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)]
    text = "command: probe\na0: &a0 [1]\n" + "".join(levels)
    with damage.replaced(Path(file), text.encode()):
        message = damage.refusal(report(file.split("/")[0]))
    assert message is not None
    assert f"{file} has the alias *a0" in message


def test_log_lines() -> None:
    path = Path("pretrain/log.jsonl")
    good = path.read_text()
    first = json.loads(good.splitlines()[0])
    for line in (
        "{",
        "[]",
        json.dumps({**first, "epoch": -1}),
        json.dumps({**first, "loss": float("nan")}),
        json.dumps({"epoch": 1}),
    ):
        with damage.replaced(path, f"{good}{line}\n".encode()):
            message = damage.refusal(report("pretrain"))
        assert message is not None, line
        assert f"log.jsonl, line {len(good.splitlines()) + 1}" in message
    with damage.replaced(path, f'{good}{{"epoch": 9, "lo'.encode()):  # killed while writing
        assert PIXELS in (damage.refusal(report("pretrain")) or "")


def test_predictions() -> None:
    path = Path("probe/predictions.csv")
    good = path.read_text()
    header, first, *_ = good.splitlines()
    changes = {
        "line 2: image": good.replace(first, first.replace(first.split(",")[0], "other")),
        "line 2: predicted": good.replace(first, ",".join([*first.split(",")[:2], "x", "0.5"])),
        "line 2: probability": good.replace(first, ",".join([*first.split(",")[:3], "nan"])),
        "line 2: there are not 4 cells": good.replace(first, first.rpartition(",")[0]),
        "the column class is missing": good.replace(header, header.replace("class", "klass")),
        "is there twice": f"{good}{first}\n",
        "is damaged, and no table": good.replace(first, '"' + first),
    }
    for wanted, text in changes.items():
        with damage.replaced(path, text.encode()):
            message = damage.refusal(again("probe"))
        assert message is not None, wanted
        assert wanted in message
        assert "predictions.csv" in message


def edit_state(path: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    state = torch.load(path, weights_only=True)
    change(state)
    other = path.with_name("other.pt")
    torch.save(state, other)
    content = other.read_bytes()
    other.unlink()
    return content


@pytest.mark.parametrize("name", ["attention-stopped", "pretrain-stopped"])
def test_checkpoints(name: str) -> None:
    path = Path(name) / "checkpoints" / "last.pt"
    read = pretrain if name.startswith("pretrain") else again(name, **ATTENTION)
    state = torch.load(path, weights_only=True)
    moments = state["optimizer"]["state"][0]
    part = "unet" if name.startswith("pretrain") else "probe"
    weight = next(iter(state[part]))

    def shrink(state: dict[str, Any]) -> None:
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1, 2, 3)

    assert "exp_avg" in moments
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "has no optimizer": lambda state: state.pop("optimizer"),
        "log_lines is missing": lambda state: state.pop("log_lines"),
        "log_lines is -1": lambda state: state.update(log_lines=-1),
        "of log.jsonl, which has": lambda state: state.update(log_lines=99),
        "seconds is nan": lambda state: state.update(seconds=float("nan")),
        f"{part}.{weight} is no tensor": lambda state: state[part].update({weight: torch.zeros(3, 1)}),
        "exp_avg does not fit": shrink,
        "rates.last_epoch": lambda state: state["rates"].update(last_epoch="x"),
    }
    for wanted, change in changes.items():
        content = edit_state(path, change)
        with damage.replaced(path, content):
            message = damage.refusal(read)
        assert message is not None, wanted
        assert wanted in message, message
        assert str(path) in message
    for content in damage.whole(path.read_bytes()).values():
        with damage.replaced(path, content):
            message = damage.refusal(read)
        assert message is not None
        assert "last.pt" in message


@pytest.mark.parametrize(
    ("file", "make"),
    [
        ("probe/model/model.safetensors", lambda: predict("probe")),
        ("sweep/steps/t00020.safetensors", lambda: sweep),
        ("supervised/model/model.safetensors", lambda: lambda: load_backbone("supervised/model")),
        (
            "pretrain/model/unet/diffusion_pytorch_model.safetensors",
            lambda: lambda: load_backbone("pretrain/model"),
        ),
    ],
)
def test_safetensors_whose_header_lies(file: str, make: Callable[[], Read]) -> None:
    path = Path(file)
    good = path.read_bytes()
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    first = next(name for name in header if name != "__metadata__")

    def with_header(changed: dict[str, Any], length: int | None = None) -> bytes:
        text = json.dumps(changed).encode()
        return (length or len(text)).to_bytes(8, "little") + text + good[8 + size :]

    lies: dict[str, bytes | str] = {
        "length": with_header(header, 2**40),
        "shape": with_header({**header, first: {**header[first], "shape": [2**40, 2**20]}}),
        "offsets": with_header({**header, first: {**header[first], "data_offsets": [0, 2**50]}}),
        "type": with_header({**header, first: {**header[first], "dtype": "F7"}}),
        "name": with_header({("x" if name == first else name): value for name, value in header.items()}),
    }
    for name, content in {**lies, **damage.whole(good)}.items():
        with damage.replaced(path, content):
            message = damage.refusal(make())
        assert message is not None, name
        assert path.parent.name in message, (name, message)


def test_networks_that_do_not_fit_are_counted_not_made(tmp_path: Path) -> None:
    shutil.copytree("pretrain/model", tmp_path / "model")
    path = tmp_path / "model" / "unet" / "config.json"
    config = json.loads(path.read_text())
    wide = [each * 512 for each in config["block_out_channels"]]
    path.write_text(json.dumps({**config, "block_out_channels": wide, "attention_head_dim": 64}))
    with damage.bounded(), pytest.raises(DiffLensError, match=r"config.json describes a network of"):
        load_backbone(str(tmp_path / "model"))
    path.write_text(json.dumps({**config, "layers_per_block": 10**6}))
    with (
        damage.bounded(),
        pytest.raises(DiffLensError, match="layers_per_block is 1000000: it must"),
    ):
        load_backbone(str(tmp_path / "model"))


def test_a_model_card_that_is_damaged_is_no_obstacle(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("pretrain/model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: &a mit\nother: *a\n---\n")
    assert run("info", tmp_path / "model") == 0
    assert "the licence is not known" in capfd.readouterr().err


def test_matlab_lists() -> None:
    path = Path("dogs/train_list.mat")
    content = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    read = partial(load_data, "dogs:dogs")
    assert damage.refusal(read) is None
    for name, damaged in damage.whole(path.read_bytes()).items():
        with damage.replaced(path, damaged):
            message = damage.refusal(read)
        assert message is not None, name
        assert path.name in message, (name, message)
    wrong = ("text", -1, 0, 2**40, 1.5, math.nan, [], [[1, 2], [3, 4]], {"a": 1}, 1j, [[1, 1, 1]])
    for key in content:
        for value in (damage.REMOVED, *wrong):
            changed = {name: item for name, item in content.items() if name != key}
            savemat("other.mat", changed if value is damage.REMOVED else {**changed, key: value})
            damaged = Path("other.mat").read_bytes()
            Path("other.mat").unlink()
            with damage.replaced(path, damaged):
                message = damage.refusal(read)
            assert message is not None, (key, value)
            assert path.name in message, (key, value, message)
