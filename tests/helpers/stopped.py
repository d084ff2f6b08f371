"""Probes that are stopped in the middle of their training."""

import pytest

from difflens import ProbeConfig, probe
from difflens.run.directory import RunDirectory
from difflens.tasks.classification import train


def stop_after_two_checkpoints(config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a probe, which keeps a checkpoint at each epoch, and interrupt it when it has two."""
    save, saved = RunDirectory.save_checkpoint, []

    def stop_after_two(self: RunDirectory, state: dict) -> None:
        save(self, state)
        saved.append(state["epoch"])
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "_CHECKPOINT_SECONDS", 0.0)
        patched.setattr(RunDirectory, "save_checkpoint", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            probe(config)
