"""Several processes on the CPU (gloo), as `torchrun` starts them."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from difflens.run.processes import accelerator
from tests.helpers.families import write_ncsnpp
from tests.helpers.images import make_image_tree
from tests.helpers.processes import run_several, run_two, start_two_of


def test_settings_of_accelerate_for_other_programs_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    process = accelerator("cpu")
    assert (process.mixed_precision, process.gradient_accumulation_steps) == ("no", 1)


def test_a_program_may_choose_its_matrix_products_for_each_backend() -> None:
    code = (
        "import torch; from difflens.run.processes import processes_for\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "with processes_for(None): pass\n"
        "print(torch.backends.cuda.matmul.fp32_precision)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["tf32"], found.stderr


def test_more_processes_than_images_are_refused_in_each(
    backbone_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = make_image_tree(tmp_path / "images", per_class=1)
    with pytest.raises(AssertionError, match="3 images of the train split for 4 processes: start fewer"):
        run_several(
            4,
            "difflens",
            *("probe", "--backbone", backbone_folder, "--data", tree, "--head", "linear", "--epochs", 1),
            *("--device", "cpu", "--out", tmp_path / "run"),
        )


@pytest.mark.parametrize(
    ("count", "module", "head"),
    [(2, "tests.helpers.slow_files", "linear"), (4, "difflens", "linear"), (2, "difflens", "diffeed")],
)
def test_probe_scores_every_test_image_once(
    backbone_folder: Path, image_tree: Path, tmp_path: Path, count: int, module: str, head: str
) -> None:
    """Cached and online features, and files that are renamed slowly; the processes share 15 test images."""
    out = tmp_path / "run"
    run_several(
        count,
        module,
        "probe",
        "--backbone",
        backbone_folder,
        "--data",
        image_tree,
        "--head",
        head,
        "--blocks",
        6,
        "--noise-steps",
        5,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        out,
    )
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 15
    assert len({row["image"] for row in rows}) == 15
    assert json.loads((out / "metrics.json").read_text())["test_images"] == 15
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


def test_fine_tuned_networks_may_leave_parameters_without_a_gradient(
    image_tree: Path, tmp_path: Path
) -> None:
    """NCSN++ adds to its output along a path that no feature map is on."""
    run_two(
        *("probe", "--backbone", write_ncsnpp(tmp_path / "ncsnpp"), "--extractor", "finetuned"),
        *("--data", image_tree, "--head", "linear", "--epochs", 2, "--batch-size", 8),
        *("--device", "cpu", "--out", tmp_path / "run"),
    )
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_pretrain_with_torchs_launcher(image_tree: Path, tmp_path: Path) -> None:
    launcher = start_two_of(
        "difflens",
        "pretrain",
        "--preset",
        "tiny",
        "--data",
        image_tree,
        "--epochs",
        2,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    _, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors[-8000:]
    assert (tmp_path / "run" / "model" / "unet" / "config.json").is_file()


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_dense_tasks_evaluate_every_image_once(
    backbone_folder: Path, scene_folder: Path, tmp_path: Path, task: str
) -> None:
    """Two processes share five validation images."""
    out = tmp_path / "run"
    run_two(
        task,
        "--backbone",
        backbone_folder,
        "--data",
        scene_folder,
        "--iterations",
        2,
        "--batch-size",
        4,
        "--width",
        16,
        "--side",
        32,
        "--device",
        "cpu",
        "--out",
        out,
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["val_images"] == 5
    if task == "segment":
        assert metrics["pixels"] == 5 * 32 * 32
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("cause", ["killed", "error"])
def test_a_process_that_dies_ends_the_other_with_its_reason(
    image_tree: Path, tmp_path: Path, cause: str
) -> None:
    """The process of rank 1 is killed in the middle of training, or one of the two meets a damaged image."""
    out, damaged = tmp_path / "run", image_tree / "train" / "red" / "0.png"
    if cause == "error":
        damaged.write_bytes(b"not an image")
    words = ["--preset", "tiny", "--data", image_tree, "--batch-size", 8, "--device", "cpu", "--workers", 0]
    launcher = start_two_of("difflens", "pretrain", *words, "--epochs", 100_000, "--out", out)
    members = []
    if cause == "killed":
        while not (out / "log.jsonl").exists():
            assert launcher.poll() is None
            time.sleep(0.05)
        members = psutil.Process(launcher.pid).children(recursive=True)
        (last,) = (process for process in members if process.environ().get("RANK") == "1")
        last.kill()
    died = time.monotonic()
    _, errors = launcher.communicate(timeout=60 if cause == "killed" else 240)
    assert launcher.returncode != 0
    if cause == "killed":
        assert time.monotonic() - died < 60
        assert f"Signal 9 (SIGKILL) received by PID {last.pid}" in errors
        assert not any(process.is_running() for process in members)
    else:
        assert f"difflens: error: cannot read image {damaged}: not an image" in errors
