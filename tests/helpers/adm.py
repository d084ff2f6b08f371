"""guided-diffusion's network, written independently of its conversion."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Adm:
    """guided-diffusion's `UNetModel` from its hyperparameters: parameter shapes, and the forward pass.

    Written independently of the conversion, in ADM's own names and order.
    """

    model_channels: int = 32
    multipliers: tuple[float, ...] = (1, 2, 2)
    layers: int = 1
    attention_rates: tuple[int, ...] = (2, 4)
    head_channels: int = 16
    scale_shift: bool = True
    resblock_updown: bool = True
    num_heads: int | None = None
    new_order: bool = False
    classes: int | None = None

    def modules(self) -> list[tuple[str, list[tuple[str, int, int]]]]:
        """(block, [(kind, channels in, channels out)]) in execution order."""

        def attention(width: int) -> list[tuple[str, int, int]]:
            return [("attention", width, width)] if rate in self.attention_rates else []

        kind = "res" if self.resblock_updown else "conv"
        widths = [int(multiplier * self.model_channels) for multiplier in self.multipliers]
        encoder, decoder, skips, rate = [[("conv", 3, widths[0])]], [], [widths[0]], 1
        for level, width in enumerate(widths):
            for _ in range(self.layers):
                encoder.append([("res", skips[-1], width), *attention(width)])
                skips.append(width)
            if level < len(widths) - 1:
                encoder.append([(f"{kind}_down", width, width)])
                skips.append(width)
                rate *= 2
        current = widths[-1]
        middle = [("res", current, current), ("attention", current, current), ("res", current, current)]
        for level, width in reversed(list(enumerate(widths))):
            for layer in range(self.layers + 1):
                decoder.append([("res", current + skips.pop(), width), *attention(width)])
                current = width
                if level and layer == self.layers:
                    decoder[-1].append((f"{kind}_up", width, width))
                    rate //= 2
        return [
            *((f"input_blocks.{i}", block) for i, block in enumerate(encoder)),
            ("middle_block", middle),
            *((f"output_blocks.{i}", block) for i, block in enumerate(decoder)),
        ]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name to shape."""
        width, time = int(self.multipliers[0] * self.model_channels), 4 * self.model_channels
        layers = {
            "time_embed.0": (time, self.model_channels),
            "time_embed.2": (time, time),
            "out.0": (width,),
            "out.2": (6, width, 3, 3),
        }
        for block, modules in self.modules():
            for i, (kind, fan_in, fan_out) in enumerate(modules):
                name = f"{block}.{i}"
                if kind.startswith("res"):
                    layers |= {
                        f"{name}.in_layers.0": (fan_in,),
                        f"{name}.in_layers.2": (fan_out, fan_in, 3, 3),
                        f"{name}.emb_layers.1": ((1 + self.scale_shift) * fan_out, time),
                        f"{name}.out_layers.0": (fan_out,),
                        f"{name}.out_layers.3": (fan_out, fan_out, 3, 3),
                    }
                    if fan_in != fan_out:
                        layers[f"{name}.skip_connection"] = (fan_out, fan_in, 1, 1)
                elif kind == "attention":
                    layers |= {
                        f"{name}.norm": (fan_in,),
                        f"{name}.qkv": (3 * fan_in, fan_in, 1),
                        f"{name}.proj_out": (fan_in, fan_in, 1),
                    }
                else:
                    layer = {"conv": "", "conv_down": ".op", "conv_up": ".conv"}[kind]
                    layers[name + layer] = (fan_out, fan_in, 3, 3)
        labels = {} if self.classes is None else {"label_emb.weight": (self.classes, time)}
        return labels | {
            f"{name}.{leaf}": shape if leaf == "weight" else shape[:1]
            for name, shape in layers.items()
            for leaf in ("weight", "bias")
        }

    def meta_state(self) -> dict[str, Tensor]:
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes().items()}

    def random_state(self, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def draw(name: str, shape: tuple[int, ...]) -> Tensor:
            values = torch.randn(shape, generator=generator)
            if name.endswith("weight") and len(shape) > 1:
                return values / torch.Size(shape[1:]).numel() ** 0.5
            return 0.2 * values + name.endswith("weight")

        return {name: draw(name, shape) for name, shape in self.shapes().items()}

    def forward(self, state: dict[str, Tensor], x: Tensor, t: Tensor, label: int | None = None) -> Tensor:
        def params(name: str) -> tuple[Tensor, Tensor]:
            return state[f"{name}.weight"].float(), state[f"{name}.bias"].float()

        def norm(name: str, x: Tensor) -> Tensor:
            return F.group_norm(x, 32, *params(name), eps=1e-5)

        def res(name: str, kind: str, x: Tensor) -> Tensor:
            hidden = F.silu(norm(f"{name}.in_layers.0", x))
            if kind == "res_down":
                x, hidden = F.avg_pool2d(x, 2), F.avg_pool2d(hidden, 2)
            elif kind == "res_up":
                x, hidden = F.interpolate(x, scale_factor=2), F.interpolate(hidden, scale_factor=2)
            hidden = F.conv2d(hidden, *params(f"{name}.in_layers.2"), padding=1)
            added = F.linear(F.silu(embedding), *params(f"{name}.emb_layers.1"))[:, :, None, None]
            if self.scale_shift:
                scale, shift = added.chunk(2, dim=1)
                hidden = norm(f"{name}.out_layers.0", hidden) * (1 + scale) + shift
            else:
                hidden = norm(f"{name}.out_layers.0", hidden + added)
            if f"{name}.skip_connection.weight" in state:
                x = F.conv2d(x, *params(f"{name}.skip_connection"))
            return x + F.conv2d(F.silu(hidden), *params(f"{name}.out_layers.3"), padding=1)

        def attend(name: str, x: Tensor) -> Tensor:
            qkv = F.conv1d(norm(f"{name}.norm", x).flatten(2), *params(f"{name}.qkv"))
            width = self.head_channels if self.num_heads is None else x.shape[1] // self.num_heads
            if self.new_order:
                queries, keys, values = qkv.unflatten(1, (3, -1, width)).unbind(1)
            else:
                queries, keys, values = qkv.unflatten(1, (-1, 3, width)).unbind(2)
            scores = torch.einsum("bhcq,bhck->bhqk", queries, keys)
            weights = (scores / width**0.5).softmax(dim=-1)
            mixed = torch.einsum("bhqk,bhck->bhcq", weights, values).flatten(1, 2)
            return x + F.conv1d(mixed, *params(f"{name}.proj_out")).view_as(x)

        half = self.model_channels // 2
        angles = t[:, None] * 10000.0 ** (-torch.arange(half) / half)
        embedding = F.linear(torch.cat([angles.cos(), angles.sin()], dim=1), *params("time_embed.0"))
        embedding = F.linear(F.silu(embedding), *params("time_embed.2"))
        if label is not None:
            embedding = embedding + state["label_emb.weight"][label]
        skips = []
        for block, modules in self.modules():
            if block.startswith("output"):
                x = torch.cat([x, skips.pop()], dim=1)
            for i, (kind, _, _) in enumerate(modules):
                name = f"{block}.{i}"
                if kind.startswith("res"):
                    x = res(name, kind, x)
                elif kind == "attention":
                    x = attend(name, x)
                elif kind == "conv":
                    x = F.conv2d(x, *params(name), padding=1)
                elif kind == "conv_down":
                    x = F.conv2d(x, *params(f"{name}.op"), stride=2, padding=1)
                else:
                    x = F.conv2d(F.interpolate(x, scale_factor=2), *params(f"{name}.conv"), padding=1)
            if block.startswith("input"):
                skips.append(x)
        return F.conv2d(F.silu(norm("out.0", x)), *params("out.2"), padding=1)


ADM_256 = Adm(256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), head_channels=64)
