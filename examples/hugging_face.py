"""A Hugging Face language model, built from its configuration: nothing is downloaded.

A sequence is one example: its gradient is that of the mean loss over its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import fxperex


def sequence_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The model's own loss. It averages over the batch; the step takes it apart by example."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss


torch.manual_seed(0)
config = GPT2Config(vocab_size=101, n_positions=32, n_embd=32, n_layer=1, n_head=4,
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                    bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).train()
ids = torch.randint(0, config.vocab_size, (8, 24))

private = fxperex.transform(model, (ids,), forward=sequence_loss, clip=0.5, backend="eager")
print(private.plan)
tied = next(site for site in private.sites if "wte" in site.name)
print(f"{tied.name} is looked up and multiplied with: one site of {len(tied.parts)} uses")

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(5):
    optimizer.zero_grad()
    result = private.step(ids)  # the clipped SUM of 8 sequences; fewer or more rows run as well
    for p in private.parameters.values():  # PrivacyEngine does this with a secure generator
        p.grad = (p.grad + 0.5 * 0.1 * torch.randn_like(p)) / len(ids)
    optimizer.step()
    losses.append(result.losses.mean().item())
print("mean loss of each step", [round(loss, 3) for loss in losses])
print("norms before clipping", [round(n, 2) for n in result.norms.tolist()])
assert losses[-1] < losses[0]
