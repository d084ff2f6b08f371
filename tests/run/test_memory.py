"""What does not fit into memory is refused from a count, and nothing is allocated or written."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from difflens import DiffLensError, cli, load_backbone
from difflens.run import memory
from difflens.run.memory import built, require_memory


def test_bytes_that_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    require_memory(10**9, "it", "take less")
    message = r"it takes at least 1\.1 GB of memory, and 1\.0 GB are free: take less"
    with pytest.raises(DiffLensError, match=message):
        require_memory(1.1e9, "it", "take less")


def test_counting_changes_no_weight() -> None:
    torch.manual_seed(0)
    counted = built(lambda: nn.Linear(3, 4), "it", "take less")
    torch.manual_seed(0)
    assert torch.equal(counted.weight, nn.Linear(3, 4).weight)


@pytest.mark.parametrize("width", [10**8, 10**18])
def test_a_module_that_does_not_fit_is_not_built(width: int) -> None:
    with pytest.raises(DiffLensError, match=r"it (is too large|takes at least [\d,.]+ GB).*: take less"):
        built(lambda: nn.Linear(width, width), "it", "take less")


def test_a_batch_that_does_not_fit() -> None:
    backbone = load_backbone("fashion")
    backbone.require_memory(64)
    with pytest.raises(DiffLensError, match="a batch of 1,000,000 images of side 512"):
        backbone.require_memory(10**6, (1,), 512)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("probe --width 65536", "the attention head takes"),
        ("probe --head mlp --width 65536 --depth 99", "the mlp head takes"),
        ("probe --head cnn --depth 99", "the cnn head is too large"),
        ("probe --image-size 16384 --pool 2", "images of side 16384 takes"),
        ("generate --n 4 --batch-size 1000000", "a batch of 1,000,000 images"),
        ("pretrain --data fashion --image-size 16384", "a batch of 256 images of side 16384 takes"),
        ("pretrain --data fashion --batch-size 1000000", "a batch of 1,000,000 images"),
        ("sweep --image-size 16384 --budget 100", "images of side 16384 takes"),
        ("explain --image-size 16384", "images of side 16384 takes"),
        ("extract --image-size 16384", "needs .* GB"),
    ],
)
def test_commands_refuse_before_they_write(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*words.split(), "--device", "cpu", "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not [*tmp_path.iterdir()]
