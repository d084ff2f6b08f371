"""Pre-training at a tiny size: the loss falls, a stop changes nothing, diffusers loads the result."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from difflens import DiffLensError, PretrainConfig, load_backbone, pretrain


def config(out: Path, data: Path, **changes: object) -> PretrainConfig:
    base = PretrainConfig(
        data=str(data),
        out=out,
        preset="tiny",
        epochs=3,
        batch_size=8,
        device="cpu",
        checkpoint_minutes=0.0,
        workers=0,
    )
    return replace(base, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return UNet2DModel.from_pretrained(folder / "unet").state_dict()


def test_the_loss_falls_and_diffusers_loads_the_result(image_tree: Path, tmp_path: Path) -> None:
    folder = pretrain(config(tmp_path / "run", image_tree, epochs=15, learning_rate=2e-3))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 15
    assert losses[-1] < 0.7 * losses[0]
    for name in ("README.md", "samples.png", "loss.png"):
        assert (folder / name).stat().st_size > 0
    pipeline = DDPMPipeline.from_pretrained(folder)
    backbone = load_backbone(str(folder))
    assert backbone.image_size == 16
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(
        backbone.denoise(x, 5), pipeline.unet.float()(x, 5).sample, atol=1e-6, rtol=1e-5
    )
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in pipeline.unet.parameters())


def test_a_stopped_run_ends_as_an_uninterrupted_one(image_tree: Path, tmp_path: Path) -> None:
    whole = pretrain(config(tmp_path / "whole", image_tree, flip=True))
    stopped = config(tmp_path / "stopped", image_tree, flip=True)
    pretrain(replace(stopped, max_minutes=1e-9))
    assert len((stopped.out / "log.jsonl").read_text().splitlines()) == 1
    resumed = pretrain(replace(stopped, resume=True))
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    losses = [
        [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (tmp_path / "whole", stopped.out)
    ]
    assert losses[0] == losses[1]


def test_saved_weights_are_the_running_average(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the definition, from the weights after every step."""
    trace = []
    step = torch.optim.AdamW.step

    def record(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        if not trace:
            trace.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        result = step(self, *args, **kwargs)
        trace.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    folder = pretrain(config(tmp_path / "run", image_tree, epochs=2, ema_decay=0.5))
    average = trace[0]
    for number, parameters in enumerate(trace[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, parameters, strict=True)]
    for mine, saved in zip(average, weights(folder).values(), strict=True):
        torch.testing.assert_close(mine.half().float(), saved.float(), atol=1e-4, rtol=2e-3)


def test_snapshots(image_tree: Path, tmp_path: Path) -> None:
    pretrain(config(tmp_path / "run", image_tree, snapshot_epochs=2))
    assert [path.name for path in (tmp_path / "run" / "snapshots").iterdir()] == ["epoch-0002"]
    load_backbone(str(tmp_path / "run" / "snapshots" / "epoch-0002"))


def test_a_loss_that_explodes_names_step_and_checkpoint(image_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match=r"no longer finite in epoch \d+ \(step \d+\).*last\.pt"):
        pretrain(config(tmp_path / "run", image_tree, learning_rate=1e30, warmup_steps=0))


def test_another_configuration_is_not_resumed(image_tree: Path, tmp_path: Path) -> None:
    run = config(tmp_path / "run", image_tree, epochs=1)
    pretrain(run)
    with pytest.raises(DiffLensError, match="already holds a run"):
        pretrain(run)
    with pytest.raises(DiffLensError, match="learning_rate was"):
        pretrain(replace(run, resume=True, learning_rate=1.0))


def test_unknown_preset_and_missing_images(tmp_path: Path) -> None:
    with pytest.raises(DiffLensError, match="no preset 'huge'; there are tiny, fashion-32"):
        pretrain(config(tmp_path / "run", tmp_path, preset="huge"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffLensError, match="empty"):
        pretrain(config(tmp_path / "run", tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_bfloat16_trains_float32_weights(image_tree: Path, tmp_path: Path) -> None:
    pretrain(config(tmp_path / "run", image_tree, precision="bfloat16", epochs=1))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert {value.dtype for value in state["unet"].values()} == {torch.float32}
