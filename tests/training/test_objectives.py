"""The state of a training that is resumed."""

from typing import Any

import pytest
import torch

from difflens import DiffLensError
from difflens.training.objectives import check_alike


def states() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two equal states of an optimiser and its schedule."""
    made = []
    for _ in range(2):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, float)
        made.append({"optimizer": optimizer.state_dict(), "rates": rates.state_dict()})
    return made[0], made[1]


def test_flags_that_an_earlier_pytorch_did_not_have_may_be_missing() -> None:
    own, stored = states()
    del stored["optimizer"]["param_groups"][0]["decoupled_weight_decay"]
    del stored["optimizer"]["param_groups"][0]["fused"]
    del stored["rates"]["_is_initial"]
    check_alike(own, stored)


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("optimizer", "lr", r"optimizer\.param_groups\[0\] has no lr"),
        ("rates", "base_lrs", "rates has no base"),
    ],
)
def test_what_a_training_needs_may_not(part: str, key: str, message: str) -> None:
    own, stored = states()
    where = stored[part]["param_groups"][0] if part == "optimizer" else stored[part]
    del where[key]
    with pytest.raises(DiffLensError, match=message):
        check_alike(own, stored)
