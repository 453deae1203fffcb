"""Choose the next token on the device: the most likely one, or one drawn with the request's random numbers.

Everything a request cannot change is a table by position: which tokens are banned there, which one is forced. So the
loop needs nothing from the host but the random numbers, and those are there before it begins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.rules import Rules, Sampling, TokenBan

__all__ = ["Choose", "sample_tokens"]


def sample_tokens(logits: Tensor, number: Tensor, sampling: Sampling) -> Tensor:
    """Returns tokens ``[batch]`` by the inverse of the cumulative distribution.

    Args:
        logits: ``[batch, vocabulary]``, float32; banned tokens are minus infinity.
        number: ``[batch]``, uniform in [0, 1).
        sampling: What narrows the distribution: the k most likely, then as many of those as hold the mass p.
    """
    logits = logits / sampling.temperature
    ids = None
    if sampling.top_k or sampling.top_p < 1:
        count = min(sampling.top_k or logits.shape[1], logits.shape[1])
        logits, ids = torch.topk(logits, count, dim=1)
    weights = torch.softmax(logits, 1)
    if sampling.top_p < 1:
        before = torch.cumsum(weights, 1) - weights
        weights = torch.where(before < sampling.top_p, weights, 0.0)
    mass = torch.cumsum(weights, 1)
    total = mass[:, -1:]
    # A product that rounds up to the total must not choose what comes after the last token with any weight.
    places = ((mass <= number[:, None] * total) & (mass < total)).sum(1, keepdim=True)
    return (places if ids is None else ids.gather(1, places))[:, 0]


class Choose(nn.Module):
    """Chooses by rules.

    Args:
        rules: How.
        vocabulary: Number of tokens.
    """

    forced_token: Tensor
    rows: Tensor
    bias: Tensor
    eos: Tensor

    def __init__(self, rules: Rules, vocabulary: int) -> None:
        super().__init__()
        self.pad = rules.pad
        self.prompt = len(rules.prompt)
        self.clean = rules.clean
        self.sampling = rules.sampling
        self.register_buffer("forced_token", torch.tensor(rules.forced_ids()), persistent=False)
        rows, bans = rules.ban_rows()
        # One row of biases for each kind of ban, and by position which row counts: few rows do for long sequences.
        bias = torch.zeros(len(bans), vocabulary)
        for row, ids in enumerate(bans):
            if ids.only:
                bias[row] = -torch.inf
                bias[row, list(ids.only)] = 0
            bias[row, [token for token in ids.never if 0 <= token < vocabulary]] = -torch.inf
        self.has_bans = bans != [TokenBan()]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("eos", torch.tensor(rules.eos, dtype=torch.int64), persistent=False)

    def forward(
        self, logits: Tensor, position: Tensor, is_finished: Tensor, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the next tokens ``[batch]`` and which rows are finished with them.

        Args:
            logits: ``[batch, vocabulary]``, float32.
            position: ``[1]``, int64, of the token before.
            is_finished: ``[batch]``, bool: rows that get nothing but padding.
            numbers: ``[steps, batch]``, uniform in [0, 1); needed where tokens are drawn.
        """
        # In the order of generate(): bans, then the choice, then what is forced over it, then the end of rows.
        if self.clean:
            most = torch.finfo(logits.dtype).max
            logits = logits.nan_to_num(nan=0.0, posinf=most, neginf=-most)
        if self.has_bans:
            bias = self.bias[self.rows[position]]
            logits = torch.where(bias == 0, logits, bias)
        token = logits.argmax(1)
        if self.sampling is not None and numbers is not None:
            token = sample_tokens(logits, numbers[position][0], self.sampling)
        forced_token = self.forced_token[position]
        token = torch.where(forced_token >= 0, forced_token, token)
        token = torch.where(is_finished, self.pad, token)
        ends = torch.eq(token[:, None], self.eos).any(1)
        if self.prompt:
            ends = ends & (position >= self.prompt)
        return token, is_finished | ends
