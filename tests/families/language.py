"""`transformers` architectures from their configurations, random weights, the model's own loss;
`peft` LoRA on two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zoo import Case, family

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH, ROWS = 47, 16, 2, 2, 7, 3


def _labelled(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def _with_target(model: nn.Module, ids: Tensor, target: Tensor) -> Tensor:
    return model(input_ids=ids, labels=target).loss


def _ids() -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH))


def _model(config: str, head: str, **options: Any) -> nn.Module:
    import transformers

    return getattr(transformers, head)(getattr(transformers, config)(**options)).train()


def _llama_like(config: str, head: str, **options: Any) -> nn.Module:
    return _model(config, head, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24,
                  num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=1,
                  max_position_embeddings=32, use_cache=False, **options)


def gpt2_model() -> nn.Module:
    return _model("GPT2Config", "GPT2LMHeadModel", vocab_size=VOCABULARY, n_positions=16,
                  n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0,
                  attn_pdrop=0.0, use_cache=False)


@family("GPT-2", "language", "transformers")
def gpt2() -> Case:
    return Case(gpt2_model(), (_ids(),), _labelled)


@family("GPT-2, position_ids [1, T]", "language", "transformers")
def gpt2_positions() -> Case:
    def forward(model: nn.Module, ids: Tensor) -> Tensor:
        return model(input_ids=ids, position_ids=torch.arange(LENGTH)[None], labels=ids).loss

    return Case(gpt2_model(), (_ids(),), forward)


@family("BERT, classification with padding mask", "language", "transformers")
def bert() -> Case:
    model = _model("BertConfig", "BertForSequenceClassification", vocab_size=VOCABULARY,
                   hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                   intermediate_size=24, max_position_embeddings=16, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0, num_labels=3)
    mask = (torch.arange(LENGTH) < torch.tensor([[4], [LENGTH], [5]])).long()

    def forward(model: nn.Module, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, labels=target).loss

    return Case(model, (_ids(), mask, torch.randint(0, 3, (ROWS,))), forward)


@family("BERT, masked language model", "language", "transformers")
def bert_masked() -> Case:
    model = _model("BertConfig", "BertForMaskedLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
                   num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=24,
                   max_position_embeddings=16, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)
    return Case(model, (_ids(), _ids()), _with_target)


@family("RoBERTa", "language", "transformers")
def roberta() -> Case:
    model = _model("RobertaConfig", "RobertaForMaskedLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
                   num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=24,
                   max_position_embeddings=16, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)
    return Case(model, (_ids(), _ids()), _with_target)


@family("ViT", "language", "transformers")
def vit() -> Case:
    model = _model("ViTConfig", "ViTForImageClassification", image_size=16, patch_size=8,
                   hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                   intermediate_size=24, num_labels=4, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)

    def forward(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return model(pixel_values=x, labels=target).loss

    return Case(model, (torch.randn(ROWS, 3, 16, 16), torch.randint(0, 4, (ROWS,))), forward)


@family("Llama", "language", "transformers")
def llama() -> Case:
    return Case(_llama_like("LlamaConfig", "LlamaForCausalLM"), (_ids(),), _labelled)


@family("Llama, tied embedding", "language", "transformers")
def llama_tied() -> Case:
    return Case(_llama_like("LlamaConfig", "LlamaForCausalLM", tie_word_embeddings=True),
                (_ids(), ), _labelled)


@family("Mistral, sliding window", "language", "transformers")
def mistral() -> Case:
    return Case(_llama_like("MistralConfig", "MistralForCausalLM", sliding_window=3), (_ids(), ),
                _labelled)


@family("Qwen2", "language", "transformers")
def qwen2() -> Case:
    return Case(_llama_like("Qwen2Config", "Qwen2ForCausalLM"), (_ids(),), _labelled)


@family("OPT", "language", "transformers")
def opt() -> Case:
    return Case(
        _model("OPTConfig", "OPTForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
               num_hidden_layers=LAYERS, ffn_dim=24, num_attention_heads=HEADS,
               max_position_embeddings=16, word_embed_proj_dim=WIDTH, dropout=0.0, use_cache=False),
        (_ids(), ), _labelled)


@family("T5", "language", "transformers")
def t5() -> Case:
    model = _model("T5Config", "T5ForConditionalGeneration", vocab_size=VOCABULARY, d_model=WIDTH,
                   d_kv=8, d_ff=24, num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0,
                   use_cache=False, decoder_start_token_id=0, pad_token_id=0)
    return Case(model, (_ids(), torch.randint(3, VOCABULARY, (ROWS, 5))), _with_target)


@family("Whisper", "language", "transformers")
def whisper() -> Case:
    model = _model("WhisperConfig", "WhisperForConditionalGeneration", vocab_size=VOCABULARY,
                   num_mel_bins=8, d_model=WIDTH, encoder_layers=1, decoder_layers=1,
                   encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=24,
                   decoder_ffn_dim=24, max_source_positions=10, max_target_positions=16,
                   dropout=0.0, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                   decoder_start_token_id=1)

    def forward(model: nn.Module, features: Tensor, target: Tensor) -> Tensor:
        return model(input_features=features, labels=target).loss

    return Case(model, (torch.randn(ROWS, 8, 20), torch.randint(3, VOCABULARY, (ROWS, 5))), forward)


def _lora(model: nn.Module, targets: list[str], *, transposed: bool = False) -> nn.Module:
    import peft

    # GPT-2's `Conv1D` keeps its weight as [inputs, outputs].
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.0,
                             fan_in_fan_out=transposed)
    return peft.get_peft_model(model, config)


@family("LoRA on Llama", "language", "peft")
def lora_llama() -> Case:
    return Case(
        _lora(_llama_like("LlamaConfig", "LlamaForCausalLM"), ["q_proj", "v_proj", "down_proj"]),
        (_ids(), ), _labelled)


@family("LoRA on GPT-2", "language", "peft")
def lora_gpt2() -> Case:
    return Case(_lora(gpt2_model(), ["c_attn"], transposed=True), (_ids(),), _labelled)
