"""The network of DiT, SiT and REPA, written independently of its conversion."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Dit:
    """The authors' network from its hyperparameters: parameter shapes, and the forward pass.

    Written independently of the conversion, in the authors' names and in the dtype of the weights.
    """

    width: int = 32
    depth: int = 3
    heads: int = 4
    patch: int = 2
    side: int = 8
    channels: int = 4
    classes: int = 5
    learn_sigma: bool = True

    @property
    def grid(self) -> int:
        return self.side // self.patch

    @property
    def out_channels(self) -> int:
        return self.channels * (2 if self.learn_sigma else 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name to shape."""
        width = self.width
        layers = {
            "x_embedder.proj": (width, self.channels, self.patch, self.patch),
            "t_embedder.mlp.0": (width, 256),
            "t_embedder.mlp.2": (width, width),
            "final_layer.linear": (self.out_channels * self.patch**2, width),
            "final_layer.adaLN_modulation.1": (2 * width, width),
        }
        for block in range(self.depth):
            layers |= {
                f"blocks.{block}.attn.qkv": (3 * width, width),
                f"blocks.{block}.attn.proj": (width, width),
                f"blocks.{block}.mlp.fc1": (4 * width, width),
                f"blocks.{block}.mlp.fc2": (width, 4 * width),
                f"blocks.{block}.adaLN_modulation.1": (6 * width, width),
            }
        return {
            "pos_embed": (1, self.grid**2, width),
            "y_embedder.embedding_table.weight": (self.classes + 1, width),
        } | {
            f"{name}.{leaf}": shape if leaf == "weight" else shape[:1]
            for name, shape in layers.items()
            for leaf in ("weight", "bias")
        }

    def meta_state(self) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes().items()}

    def random_state(self, seed: int = 0) -> dict[str, Tensor]:
        """Random weights; the table of positions is random too, and so differs from the formula."""
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            values = torch.randn(shape, generator=generator)
            if name.endswith(".weight") and not name.startswith("y_embedder"):
                return values / torch.Size(shape[1:]).numel() ** 0.5
            return 0.2 * values if name.endswith(".bias") else values

        return {name: draw(name, shape) for name, shape in self.shapes().items()}

    def positions(self) -> Tensor:
        """The fixed table in float64, (1, tokens, width).

        The first half of a token stands for its column, the second for its row. Each half is the sines, then
        the cosines, of place * 10000^(-k / n) for k = 0 .. n - 1.
        """
        n = self.width // 4
        rates = [10000 ** (-k / n) for k in range(n)]
        rows = []
        for row in range(self.grid):
            for column in range(self.grid):
                angles = [torch.tensor([place * rate for rate in rates]).double() for place in (column, row)]
                rows.append(torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())]))
        return torch.stack(rows)[None]

    def forward(
        self, state: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output (images, channels, side, side) and each block's (images, tokens, width)."""

        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

        def norm(x: Tensor) -> Tensor:
            centred = x - x.mean(dim=-1, keepdim=True)
            return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

        def modulation(name: str, parts: int) -> Tensor:
            return linear(f"{name}.adaLN_modulation.1", F.silu(condition)).unflatten(1, (parts, 1, -1))

        def attend(name: str, x: Tensor) -> Tensor:
            # (images, tokens, 3, heads, channels of a head)
            qkv = linear(f"{name}.qkv", x).unflatten(2, (3, self.heads, -1))
            q, k, v = qkv.unbind(dim=2)
            scores = torch.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1] ** 0.5
            return linear(
                f"{name}.proj", torch.einsum("bhqk,bkhc->bqhc", scores.softmax(dim=-1), v).flatten(2)
            )

        def feed_forward(name: str, x: Tensor) -> Tensor:
            x = linear(f"{name}.fc1", x)
            inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
            return linear(f"{name}.fc2", 0.5 * x * (1 + inner.tanh()))

        # the authors compute angles in float32, whatever the dtype of the weights
        rates = torch.exp(torch.arange(128, dtype=torch.float32) * -torch.log(torch.tensor(1e4)) / 128)
        angles = t.float()[:, None] * rates
        time = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time)))
        condition = time + state["y_embedder.embedding_table.weight"][labels]

        patches = F.conv2d(
            x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=self.patch
        )
        tokens = patches.flatten(2).mT + state["pos_embed"]
        blocks = []
        for block in range(self.depth):
            name = f"blocks.{block}"
            shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation(name, 6).unbind(dim=1)
            tokens = tokens + gate * attend(f"{name}.attn", norm(tokens) * (1 + scale) + shift)
            tokens = tokens + ff_gate * feed_forward(f"{name}.mlp", norm(tokens) * (1 + ff_scale) + ff_shift)
            blocks.append(tokens)
        shift, scale = modulation("final_layer", 2).unbind(dim=1)
        pixels = linear("final_layer.linear", norm(tokens) * (1 + scale) + shift)
        # a token holds its patch as (row, column, channel)
        pixels = pixels.unflatten(2, (self.patch**2, self.out_channels)).mT.flatten(1, 2)
        pixels = pixels.view(len(x), self.grid**2, self.out_channels * self.patch**2).mT
        return F.fold(pixels, self.side, self.patch, stride=self.patch), blocks


XL_256 = Dit(width=1152, depth=28, heads=16, side=32, classes=1000)
XL_512 = Dit(width=1152, depth=28, heads=16, side=64, classes=1000)
