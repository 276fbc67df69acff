"""Fine-tune the adapters of a model (LoRA, by peft) privately: frozen weights cost nothing."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxperex


def sequence_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


torch.manual_seed(0)
config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
base = LlamaForCausalLM(config).train()
model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"],
                                        lora_dropout=0.0, task_type="CAUSAL_LM"))
ids = torch.randint(0, config.vocab_size, (8, 16))

private = fxperex.transform(model, (ids,), forward=sequence_loss, clip=1.0, backend="eager")
trained = sum(p.numel() for p in private.parameters.values())
total = sum(p.numel() for p in model.parameters())
print(f"{trained} of {total} parameters are trained; {len(private.sites)} sites, "
      f"{len(private.plan.frozen)} frozen parameters")
print(private.plan)

frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
optimizer = torch.optim.AdamW(private.parameters.values(), lr=1e-2)
for _ in range(3):
    optimizer.zero_grad()
    result = private.step(ids)
    for p in private.parameters.values():  # PrivacyEngine does this with a secure generator
        p.grad = (p.grad + 0.1 * torch.randn_like(p)) / len(ids)
    optimizer.step()
print("mean loss", result.losses.mean().item(), "norms", result.norms[:3].tolist())
assert all(p.equal(frozen[n]) for n, p in model.named_parameters() if n in frozen)
