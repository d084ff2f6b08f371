"""The attention head and DifFormer, the same head on several blocks and noise steps (paper section 3.2).

1. For each block: pool to at most 16x16, LayerNorm over (C, H, W), 1x1 convolution to `width` channels. These
   layers are shared between noise steps.
2. For each noise step: a CLS token and the tokens of all blocks, in block order, go through pre-norm
   transformer blocks, which are shared too.
3. The CLS outputs of all noise steps are concatenated, and one linear layer classifies them.

There is no positional embedding: the affine parameters of LayerNorm differ between positions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from difflens.backbones.maps import MapShape, Place, pool_to, pooled_shape
from difflens.errors import DiffLensError
from difflens.heads.base import Head
from difflens.processes.base import Level


class DifFormerHead(Head):
    """Transformer fusion over blocks and noise steps; with one of each, it is the paper's attention head.

    Parameters for 1000 classes on ADM-256: attention 27,786,216, DifFormer 31,802,344 (paper section 4).

    Args:
        shapes: (C, H, W) of the maps, by place; all combinations of the blocks and the noise steps.
        num_classes: number of logits.
        width: width of the tokens.
        heads: attention heads of a transformer block.
        depth: number of transformer blocks.
        mlp_ratio: width of the MLP's hidden layer divided by `width`.
        pool: the side that larger maps are pooled to.
        dropout: probability in [0, 1), on the output of each residual branch; the paper has none.

    Raises:
        DiffLensError: a combination of block and noise step is missing, or `heads` does not divide `width`.
    """

    def __init__(
        self,
        shapes: Mapping[Place, MapShape],
        num_classes: int,
        width: int = 1024,
        heads: int = 8,
        depth: int = 2,
        mlp_ratio: int = 4,
        pool: int | None = 16,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pool = pool
        self.blocks = sorted({block for block, _ in shapes})
        self.noise_steps = sorted({t for _, t in shapes})
        missing = {(b, t) for b in self.blocks for t in self.noise_steps} - set(shapes)
        if missing:
            raise DiffLensError(
                f"DifFormer needs every block at every noise step; missing are {sorted(missing)}"
            )
        entry = {}
        for block in self.blocks:
            shape = pooled_shape(shapes[block, self.noise_steps[0]], pool)
            entry[str(block)] = nn.Sequential(nn.LayerNorm(shape), nn.Conv2d(shape[0], width, 1))
        self.entry = nn.ModuleDict(entry)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.transformer = nn.ModuleList(
            TransformerBlock(width, heads, mlp_ratio, dropout) for _ in range(depth)
        )
        self.classifier = nn.Linear(width * len(self.noise_steps), num_classes)

    def forward(self, features: Mapping[Place, Tensor]) -> Tensor:
        return self.classifier(torch.cat([self._read(features, t) for t in self.noise_steps], dim=1))

    def attention(self, features: Mapping[Place, Tensor]) -> tuple[Tensor, dict[Place, Tensor]]:
        """Return the attention weights of CLS in the last transformer block, averaged over attention heads.

        Returns:
            The weights on CLS itself, (B, T), and on the tokens of each map, (B, H, W) by place. For each
            image, the weights of one noise step sum to 1.
        """
        own, maps = [], {}
        for t in self.noise_steps:
            weights = self.transformer[-1].weights(self._before_last(features, t))[:, :, 0].mean(1)  # type: ignore[operator]
            own.append(weights[:, 0])
            start = 1
            for block in self.blocks:
                height, width = pooled_shape(tuple(features[block, t].shape[1:]), self.pool)[1:]  # type: ignore[arg-type]
                end = start + height * width
                maps[block, t] = weights[:, start:end].unflatten(1, (height, width))
                start = end
        return torch.stack(own, dim=1), maps

    def logits_by_noise_step(self, features: Mapping[Place, Tensor]) -> Tensor:
        """Return the summand of each noise step, (T, B, num_classes).

        The logits are the sum of the summands and the classifier's bias.
        """
        weights = self.classifier.get_parameter("weight").chunk(len(self.noise_steps), dim=1)
        return torch.stack(
            [self._read(features, t) @ weight.T for t, weight in zip(self.noise_steps, weights, strict=True)]
        )

    def _read(self, features: Mapping[Place, Tensor], t: Level) -> Tensor:
        # only the CLS token is classified, so the last block computes no other
        return self.transformer[-1](self._before_last(features, t), outputs=1)[:, 0]

    def _before_last(self, features: Mapping[Place, Tensor], t: Level) -> Tensor:
        """Return the input of the last transformer block: CLS and the tokens of all blocks, (B, N, width)."""
        tokens = []
        for block in self.blocks:
            entered = self.entry[str(block)](pool_to(features[block, t].float(), self.pool))
            tokens.append(entered.flatten(2).transpose(1, 2))
        return before_last(self.transformer, self.cls_token, *tokens)


def before_last(blocks: nn.ModuleList, cls_token: Tensor, *tokens: Tensor) -> Tensor:
    """Return the input of the last of some transformer blocks: CLS and the tokens, (B, 1 + N, width).

    Args:
        cls_token: (1, 1, width).
        tokens: (B, N_i, width) each, together the N tokens that enter the first block with CLS.
    """
    x = torch.cat([cls_token.expand(tokens[0].shape[0], -1, -1), *tokens], dim=1)
    for block in blocks[:-1]:
        x = block(x)
    return x


class TransformerBlock(nn.Module):
    """Pre-norm self-attention (no qkv bias) and a GELU MLP, each with a residual connection.

    Raises:
        DiffLensError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise DiffLensError(f"head width {width} is not a multiple of its {heads} attention heads")
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Return the output, (B, outputs, width), of tokens (B, N, width).

        Args:
            outputs: compute the first tokens only, which still attend to all; None: all tokens.
        """
        y = x[:, :outputs]
        y = y + self.dropout(self.projection(self._attend(self.norm1(x), outputs)))
        return y + self.dropout(self.mlp(self.norm2(y)))

    def weights(self, x: Tensor, outputs: int | None = 1) -> Tensor:
        """Return the attention weights of the first `outputs` tokens on all tokens, (B, heads, outputs, N).

        Args:
            x: tokens (B, N, width).
        """
        q, k, _ = self._queries_keys_values(self.norm1(x), outputs)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)

    def _attend(self, x: Tensor, outputs: int | None) -> Tensor:
        q, k, v = self._queries_keys_values(x, outputs)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _queries_keys_values(self, x: Tensor, outputs: int | None) -> list[Tensor]:
        """Return queries, keys and values, (B, heads, N, width / heads) each.

        The queries are those of the first `outputs` tokens.
        """
        width = x.shape[-1]
        q = nn.functional.linear(x[:, :outputs], self.qkv.weight[:width])
        k, v = nn.functional.linear(x, self.qkv.weight[width:]).chunk(2, dim=-1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v)]
