"""The losses of SimCLR and masked autoencoding against their equations, pair by pair and patch by patch."""

from math import exp, log
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from difflens.presets import PATCH
from difflens.pretraining.methods.mae import reconstruction_loss
from difflens.pretraining.methods.simclr import nt_xent


def direct_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of SimCLR, one pair of views after the other."""
    views = [*first, *second]
    count = len(first)

    def similarity(i: int, j: int) -> float:
        return exp(float(cosine_similarity(views[i], views[j], dim=0)) / temperature)

    losses = []
    for i in range(2 * count):
        others = sum(similarity(i, k) for k in range(2 * count) if k != i)
        losses.append(-log(similarity(i, (i + count) % (2 * count)) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_nt_xent_is_the_papers(count: int, temperature: float) -> None:
    torch.manual_seed(count)
    first, second = torch.randn(2, count, 5, dtype=torch.float64)
    found = nt_xent(first, second, temperature)
    assert float(found) == pytest.approx(direct_nt_xent(first, second, temperature), rel=1e-12)


def test_autocast_does_not_round_the_similarities() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(first, second, 0.1)
    assert found == nt_xent(first, second, 0.1)


def test_nt_xent_of_orthogonal_images_is_known() -> None:
    """Equal views of n orthogonal images: log(e^(1/tau) + 2n - 2) - 1/tau."""
    views = 3 * torch.eye(4, dtype=torch.float64)
    assert float(nt_xent(views, views, 0.5)) == pytest.approx(log(exp(2) + 6) - 2, rel=1e-12)


def _half(rank: int, rendezvous: str, views: Tensor, found: Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mine = views[:, 3 * rank : 3 * rank + 3].clone().requires_grad_()
    loss = nt_xent(*mine, 0.5)
    loss.backward()
    found[rank, 0, 0, 0] = loss.detach()
    found[rank, 1:] = mine.grad
    torch.distributed.destroy_process_group()


def test_two_processes_share_their_views(tmp_path: Path) -> None:
    """The mean of both processes' losses, and of their gradients, are those of all images in one."""
    torch.manual_seed(0)
    views = torch.randn(2, 6, 5, dtype=torch.float64)
    found = torch.zeros(2, 3, 3, 5, dtype=torch.float64).share_memory_()
    torch.multiprocessing.start_processes(
        _half, (str(tmp_path / "rendezvous"), views, found), nprocs=2, start_method="forkserver"
    )
    whole = views.clone().requires_grad_()
    loss = nt_xent(*whole, 0.5)
    loss.backward()
    torch.testing.assert_close(found[:, 0, 0, 0].mean(), loss.detach())
    assert whole.grad is not None
    # each process's gradient is that of the sum of both means
    torch.testing.assert_close(torch.cat([*found[:, 1:]], 1) / 2, whole.grad)


def test_the_reconstruction_loss_is_the_papers() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 4 * PATCH, 4 * PATCH)
    masked = torch.tensor([[1, 16], [6, 3]])  # tokens; the first patch is token 1
    predicted = torch.randn(2, 2, 3 * PATCH**2)
    errors = []
    for image, tokens, guesses in zip(images, masked.tolist(), predicted, strict=True):
        for token, guess in zip(tokens, guesses, strict=True):
            top, left = (token - 1) // 4 * PATCH, (token - 1) % 4 * PATCH
            patch = image[:, top : top + PATCH, left : left + PATCH].flatten()
            target = (patch - patch.mean()) / (patch.var() + 1e-6) ** 0.5
            errors += ((guess - target) ** 2).tolist()
    assert float(reconstruction_loss(predicted, images, masked)) == pytest.approx(
        sum(errors) / len(errors), rel=1e-6
    )


def test_perfect_predictions_have_no_loss() -> None:
    images = torch.randn(1, 1, 2 * PATCH, 2 * PATCH)
    patch = images[0, 0, PATCH:, :PATCH]
    target = nn.functional.layer_norm(patch.flatten(), (PATCH**2,), eps=0) * (1 - PATCH**-2) ** 0.5
    assert float(reconstruction_loss(target[None, None], images, torch.tensor([[3]]))) < 1e-9
