"""The models of the step benchmark, at the sizes each device can run: `cpu()` and `cuda()` give
them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from workloads import Batch, Recurrent, group_norm, images, toy


@dataclass(frozen=True)
class Step:
    """`make()` gives the model, `batch(rows)` its inputs and targets; `aim` is the ratio to the
    ordinary step to reach, `peer` the best ratio of another library measured elsewhere (CPU, two
    threads, torch 2.15), None where none is known."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    rows: int
    aim: float
    peer: float | None = None


def numbers(*shape: int) -> Callable[[int], Batch]:
    return lambda rows: (torch.randn(rows, *shape), torch.randint(0, 10, (rows,)))


def tokens(length: int, vocabulary: int, *, each: bool) -> Callable[[int], Batch]:
    """Token ids `[rows, length]`; a target for each of them, or one of two classes."""
    def make(rows: int) -> Batch:
        shape = (rows, length)
        return torch.randint(
            0, vocabulary,
            shape), torch.randint(0, vocabulary, shape) if each else torch.randint(0, 2, (rows, ))

    return make


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                         nn.Linear(1024, 10))


class Encoder(nn.Module):
    """Four pre-norm encoder layers of width 256, classified by the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


class Logits(nn.Module):
    """A `transformers` model as one from ids to logits `[B, classes]`, or `[B, classes, T]` where
    each token has its own.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.model(input_ids=ids, **self.options).logits
        return logits.transpose(1, 2) if logits.dim() == 3 else logits


def gpt2_small() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                     use_cache=False, attn_implementation="sdpa")
    return Logits(transformers.GPT2LMHeadModel(config), use_cache=False)


def bert_base() -> nn.Module:
    import transformers

    config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                                     attn_implementation="sdpa")
    return Logits(transformers.BertForSequenceClassification(config))


def lora_llama() -> nn.Module:
    """LoRA of rank 16 on the attention of a Llama-shaped model of 1.1 billion parameters."""
    import peft
    import transformers

    config = transformers.LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632,
                                      num_hidden_layers=22, num_attention_heads=32,
                                      num_key_value_heads=4, use_cache=False,
                                      attn_implementation="sdpa")
    adapter = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0,
                              target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return Logits(peft.get_peft_model(transformers.LlamaForCausalLM(config), adapter),
                  use_cache=False)


def cpu() -> dict[str, Step]:
    from torchvision import models

    def resnet() -> nn.Module:
        return models.resnet18(norm_layer=group_norm, num_classes=10)

    return {
        "mlp": Step(mlp, numbers(784), 128, 1.05, 1.29),
        "encoder": Step(Encoder, numbers(64, 256), 16, 1.15, 1.35),
        "resnet18_32px": Step(resnet, images(32), 16, 1.3, 1.65),
        "resnet18_64px": Step(resnet, images(64), 16, 1.3, 1.69),
        "alexnet_64px": Step(lambda: models.alexnet(dropout=0.0), images(64, 1000), 8, 1.05, 1.00),
        "vgg16_32px": Step(lambda: models.vgg16(dropout=0.0, num_classes=10), images(32), 8, 1.05,
                           1.12),
        "toy_r1.5_l3_k3_32px": Step(lambda: toy(3, 1.5, 3, 32), images(32), 16, 1.15, 1.24),
        "toy_r2_l4_k5_32px": Step(lambda: toy(4, 2.0, 5, 32), images(32), 16, 1.15, 1.56),
        "toy_r1_l3_k3_256px": Step(lambda: toy(3, 1.0, 3, 256), images(256), 8, 1.15, 1.09),
        "lstm": Step(
            Recurrent, lambda rows:
            (torch.randint(0, 1000, (rows, 16)), torch.randint(0, 10, (rows, ))), 32, 1.15),
    }


def cuda() -> dict[str, Step]:
    from torchvision import models

    def resnet(make: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
        return lambda: make(norm_layer=group_norm)

    return {
        "alexnet_256px": Step(lambda: models.alexnet(dropout=0.0), images(256, 1000), 16, 1.10),
        "vgg16_256px": Step(lambda: models.vgg16(dropout=0.0), images(256, 1000), 8, 1.10),
        "resnet18_224px": Step(resnet(models.resnet18), images(224, 1000), 64, 1.10),
        "resnet50_224px": Step(resnet(models.resnet50), images(224, 1000), 64, 1.10),
        "convnext_tiny_224px": Step(lambda: models.convnext_tiny(stochastic_depth_prob=0.0),
                                    images(224, 1000), 64, 1.10),
        "vit_b_16_224px": Step(models.vit_b_16, images(224, 1000), 64, 1.10),
        "gpt2_small_t1024": Step(gpt2_small, tokens(1024, 50257, each=True), 16, 1.10),
        "bert_base_t512": Step(bert_base, tokens(512, 30522, each=False), 32, 1.10),
        "lstm": Step(
            Recurrent, lambda rows:
            (torch.randint(0, 1000, (rows, 16)), torch.randint(0, 10, (rows, ))), 256, 1.15),
        "lora_llama_1b_t512": Step(lora_llama, tokens(512, 32000, each=True), 4, 1.15),
        "toy_r1.5_l3_k3_256px": Step(lambda: toy(3, 1.5, 3, 256), images(256), 32, 1.15),
    }
