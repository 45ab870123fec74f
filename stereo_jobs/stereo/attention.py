"""Self-attention across the two views (StereoDiffusion, Sec. 3.3, Alg. 1)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Context = Callable[[str, Tensor], Tensor | None]
"""What a self-attention layer attends to, from its name and its input, batch,N,C: one context for each sample,
batch,M,C, or one that all views of a pair share, halves,B,M,C. None: the input itself."""


class ContextAttention:
    """Attention whose keys and values are made of a context, as a diffusers attention processor that wraps another.

    Args:
        inner: the processor that was installed before; it computes the attention.
        layer: name of the layer.
        context: gives the context.
    """

    def __init__(self, inner: Callable[..., Tensor], layer: str, context: Context) -> None:
        self.inner = inner
        self.layer = layer
        self.context = context

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the inner processor with keys and values from the context: batch,N,C -> batch,N,C.

        Where views share a context, their queries stand one behind the other, so that keys and values are computed
        once for all of them, and are not copied.
        """
        context = self.context(self.layer, hidden_states)
        if context is None or context.dim() == 3:
            return self.inner(attn, hidden_states, **kwargs | {"encoder_hidden_states": context})
        halves, pairs = context.shape[:2]
        tokens = hidden_states.shape[1:]
        views = hidden_states.reshape(halves, -1, pairs, *tokens)  # halves*V*B,N,C -> halves,V,B,N,C
        queries = views.transpose(1, 2).reshape(halves * pairs, -1, tokens[1])  # -> halves*B,V*N,C
        out = self.inner(attn, queries, **kwargs | {"encoder_hidden_states": context.flatten(0, 1)})
        return out.reshape(halves, pairs, -1, *tokens).transpose(1, 2).flatten(0, 2)


@contextmanager
def self_attention(unet: nn.Module, context: Context) -> Iterator[None]:
    """Give every self-attention layer a context; the old processors are restored even after an error.

    Args:
        unet: a diffusers U-Net; its self-attention layers are found by their name, `attn1`.
        context: gives the context of each layer at each call.
    """
    before: dict[str, Any] = dict(unet.attn_processors)  # type: ignore[arg-type]
    during = {
        name: ContextAttention(inner, name, context) if name.endswith("attn1.processor") else inner
        for name, inner in before.items()
    }
    unet.set_attn_processor(dict(during))  # type: ignore[operator]
    try:
        yield
    finally:
        unet.set_attn_processor(before)  # type: ignore[operator]


def pair_context(mode: Literal["uni", "bi"], pairs: int) -> Context:
    """Edit(M, M') of Alg. 1 (StereoDiffusion, Sec. 3.3), for a U-Net that is given both views.

    The dimensions of the batch are, from the outside in: the halves of classifier-free guidance, the views (left,
    right), the pairs.

    Args:
        mode: with `uni`, the queries of both views attend to the LEFT view only, so that the left is unchanged; with
            `bi`, both views attend to left and right together, so that the left changes, too.
        pairs: B, the number of pairs in the batch.
    """

    def context(layer: str, hidden_states: Tensor) -> Tensor:
        views = hidden_states.reshape(-1, 2, pairs, *hidden_states.shape[1:])  # halves*2*B,N,C -> halves,2,B,N,C
        left, right = views.unbind(1)
        return left if mode == "uni" else torch.cat([left, right], dim=-2)  # halves,B,N or 2N,C

    return context


@dataclass(frozen=True)
class KeptInputs:
    """What the self-attention layers were given when the left view was denoised alone.

    With `uni` this is all that the right view needs of the left one (StereoDiffusion, Sec. 3.3).

    Attributes:
        steps: the halves,B,N,C input of each layer, by step and by name of the layer, in the precision of the U-Net.
        rows: indices of B, the samples that are asked for. Inputs are selected when they are used: a copy of all
            steps would need their memory twice.
    """

    steps: Mapping[int, Mapping[str, Tensor]]
    rows: Tensor

    def take(self, rows: Tensor) -> "KeptInputs":
        """Those of some samples of the batch, by their indices."""
        return replace(self, rows=self.rows[rows])

    def at(self, i: int) -> dict[str, Tensor]:
        """The input of each layer in step i: halves*B,N,C."""
        return {layer: inputs[:, self.rows].flatten(0, 1) for layer, inputs in self.steps[i].items()}


class Keep(NamedTuple):
    """Which inputs of self-attention to keep of the left view.

    Attributes:
        first: index of the first step.
        halves: how many halves of classifier-free guidance the pair will use: 2, or 1 at guidance 1.
    """

    first: int
    halves: int


class InputRecorder:
    """A context that leaves attention as it is, and keeps what the layers are given.

    Args:
        samples: B int64, the indices of the samples in the batch.
        keep: what to keep; None: nothing.
    """

    def __init__(self, samples: Tensor, keep: Keep | None) -> None:
        self.samples = samples
        self.keep = keep
        self._steps: dict[int, dict[str, Tensor]] = {}
        self._inputs: dict[str, Tensor] | None = None
        """Where the inputs of the present step are put. A compiled U-Net must not meet the number of the step, which
        differs at each call."""

    def installed(self, unet: nn.Module) -> AbstractContextManager[None]:
        """Record what the layers of a U-Net are given."""
        return self_attention(unet, self) if self.keep else nullcontext()

    def begin(self, step: int) -> None:
        """Say at which step the U-Net is called next."""
        if self.keep and step >= self.keep.first:
            self._inputs = self._steps.setdefault(step, {})
        else:
            self._inputs = None

    def __call__(self, layer: str, hidden_states: Tensor) -> None:
        """Keep the input of one layer: halves*B,N,C."""
        if self.keep is None or self._inputs is None:
            return
        given = hidden_states.reshape(-1, len(self.samples), *hidden_states.shape[1:])  # halves*B,N,C -> halves,B,N,C
        if len(given) < self.keep.halves:
            raise ValueError(f"{self.keep.halves} halves of guidance cannot be kept: only {len(given)} is run")
        # The half with the prompt is the last. A part is copied, so that it does not hold the memory of the whole.
        kept = given if len(given) == self.keep.halves else given[-self.keep.halves :].clone()
        self._inputs[layer] = kept

    @property
    def kept(self) -> KeptInputs | None:
        """What was kept; None where nothing was asked for."""
        return KeptInputs(self._steps, self.samples) if self.keep else None
