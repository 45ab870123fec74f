"""Self-attention across the two views (StereoDiffusion, Sec. 3.3, Alg. 1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn


class PairAttention:
    """Edit(M, M') of Alg. 1 (StereoDiffusion, Sec. 3.3), as a diffusers attention processor that wraps another.

    The dimensions of the batch are, from the outside in: the halves of classifier-free guidance, the views (left,
    right), the pairs.

    Args:
        inner: the processor that was installed before; it computes the attention.
        mode: with `uni`, the queries of both views attend to the LEFT view only, so that the left is unchanged; with
            `bi`, both views attend to left and right together, so that the left changes, too.
        pairs: B, the number of pairs in the batch.
    """

    def __init__(self, inner: Callable[..., Tensor], mode: Literal["uni", "bi"], pairs: int) -> None:
        self.inner = inner
        self.mode = mode
        self.pairs = pairs

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the inner processor with keys and values from both views: halves*2*B,N,C -> halves*2*B,N,C."""
        tokens = hidden_states.shape[1:]
        views = hidden_states.reshape(-1, 2, self.pairs, *tokens)  # halves*2*B,N,C -> halves,2,B,N,C
        left, right = views.unbind(1)
        context = left if self.mode == "uni" else torch.cat([left, right], dim=-2)
        context = torch.stack([context, context], dim=1).flatten(0, 2)  # halves*2*B,N or 2N,C
        kwargs["encoder_hidden_states"] = context
        return self.inner(attn, hidden_states, **kwargs)


@contextmanager
def pair_attention(unet: nn.Module, mode: Literal["off", "uni", "bi"], pairs: int) -> Iterator[None]:
    """Install the attention of Alg. 1 in every self-attention layer; the old one is restored even after an error.

    Args:
        unet: a diffusers U-Net; its self-attention layers are found by their name, `attn1`.
        mode: `uni` or `bi`, see `PairAttention`; `off` installs nothing.
        pairs: B, the number of pairs in each batch that the U-Net is given.
    """
    if mode == "off":
        yield
        return
    before: dict[str, Any] = dict(unet.attn_processors)  # type: ignore[arg-type]
    during = {
        name: PairAttention(inner, mode, pairs) if name.endswith("attn1.processor") else inner
        for name, inner in before.items()
    }
    unet.set_attn_processor(dict(during))  # type: ignore[operator]
    try:
        yield
    finally:
        unet.set_attn_processor(before)  # type: ignore[operator]
