"""NEFTune: noise on the embeddings of training rows.

    E ← E + α / √(L D) · ε        ε ~ U(-1, 1);  L real tokens of the row, D width

Jain et al. 2023, arXiv 2310.05914. L counts real tokens; some code counts padding too.
"""

import torch


class Neftune:
    """A hook on the model's input embeddings that adds noise in the one forward after each `arm`."""

    def __init__(self, embeddings: torch.nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self._armed = False
        self._live: torch.Tensor | None = None
        self._handle = embeddings.register_forward_hook(self._add) if alpha else None

    def arm(self, mask: torch.Tensor | None) -> None:
        """Add noise in the next forward.

        mask: (B, T), or (B, 1, T, T) when packed; None if every token is real.
        """
        # A packed row's token is real when it may see itself.
        self._live = mask.diagonal(dim1=-2, dim2=-1)[:, 0] if mask is not None and mask.ndim == 4 else mask
        self._armed = True

    def _add(
        self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the embeddings (B, T, D) with noise, or None to leave them as they are."""
        if not self._armed:
            return None
        # A T5 decoder uses the same table later in the forward: only what the encoder reads gets noise.
        self._armed = False
        if self._live is None:
            length = torch.full((len(out),), out.shape[1], device=out.device)
        else:
            length = self._live.sum(1)
        size = self.alpha / (length * out.shape[-1]).clamp(min=1).sqrt()
        noise = torch.empty_like(out, dtype=torch.float32).uniform_(-1, 1)
        return out + (size[:, None, None] * noise).to(out.dtype)

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
