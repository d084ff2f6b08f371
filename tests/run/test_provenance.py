"""Hardware and versions in a report."""

import platform

import pytest
import torch

from difflens import __version__
from difflens.run.provenance import environment


def test_versions() -> None:
    rows = environment(torch.device("cpu"))
    assert list(rows) == ["Hardware", "Versions"]
    assert rows["Versions"].startswith(f"difflens {__version__}, torch {torch.__version__}, diffusers ")
    assert rows["Versions"].endswith(f"Python {platform.python_version()}")


@pytest.mark.parametrize(("threads", "said"), [(1, "1 CPU thread ("), (3, "3 CPU threads (")])
def test_threads(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert environment(torch.device("cpu"))["Hardware"].startswith(said)
    assert environment(torch.device("mps"))["Hardware"].startswith(f"mps, {said}")


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert environment(torch.device("cuda", 1))["Hardware"] == "GPU 1"
