"""gradext.audit_inference on real architectures: tiny transformers configs with random weights.

    python benchmarks/audit_architectures.py [--out DIR] [--quick] [--only NAME ...]

No weights are loaded and nothing is downloaded: the code is the real one, the sizes are not. Each
row is one call of one model in eval mode, unless the row says otherwise. `--quick` runs three.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import nn

import gradext
from gradext.inference_audit import audit

Call = tuple[Any, dict[str, Any]]  # what is called, and its keyword arguments
QUICK = ("GPT-2", "BERT", "conv net")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row: a name, what makes (callable, inputs), and what is special about the call."""

    name: str
    make: Callable[[], Call]
    note: str = ""


def _tokens(vocabulary: int = 96, length: int = 12) -> torch.Tensor:
    return torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _text(ids: torch.Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _decoder(config: str, model: str, **sizes: Any) -> Callable[[], Call]:
    """A causal language model called with labels, so that its output has a loss."""

    def make() -> Call:
        import transformers

        torch.manual_seed(0)
        net = getattr(transformers, model)(getattr(transformers, config)(vocab_size=96, **sizes))
        ids = _tokens()
        return net.eval(), {**_text(ids), "labels": ids}

    return make


def _encoder(config: str, model: str, **sizes: Any) -> Callable[[], Call]:
    def make() -> Call:
        import transformers

        torch.manual_seed(0)
        net = getattr(transformers, model)(getattr(transformers, config)(vocab_size=96, **sizes))
        return net.eval(), _text(_tokens())

    return make


_ROTARY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_BERT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}


def _trained(make: Callable[[], Call]) -> Callable[[], Call]:
    def in_train_mode() -> Call:
        net, inputs = make()
        return net.train(), inputs

    return in_train_mode


def _generating(make: Callable[[], Call], length: int = 8, **how: Any) -> Callable[[], Call]:
    def generate() -> Call:
        net, inputs = make()
        inputs.pop("labels", None)
        return net.generate, {**inputs, "max_new_tokens": length, "do_sample": False, **how}

    return generate


def vit() -> Call:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(**_small(_BERT), image_size=32, patch_size=8)
    return ViTForImageClassification(config).eval(), {"pixel_values": _floats(2, 3, 32, 32)}


def _small(sizes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if key != "max_position_embeddings"}


def clip() -> Call:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {**_BERT, "vocab_size": 96, "bos_token_id": 0, "eos_token_id": 95, "pad_token_id": 1}
    vision = {**_small(_BERT), "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    inputs = {**_text(_tokens()), "pixel_values": _floats(2, 3, 32, 32), "return_loss": True}
    return CLIPModel(config).eval(), inputs


def t5() -> Call:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=96, decoder_start_token_id=0, **sizes)
    ids = _tokens()
    return T5ForConditionalGeneration(config).eval(), {**_text(ids), "labels": ids}


def whisper() -> Call:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=96,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=32,
        max_target_positions=32,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    inputs = {"input_features": _floats(2, 16, 64), "labels": _tokens()}
    return WhisperForConditionalGeneration(config).eval(), inputs


def _speech(config: str, model: str, **sizes: Any) -> Callable[[], Call]:
    """A wav2vec2 or a relative of it, on 800 samples."""

    def make() -> Call:
        import transformers

        torch.manual_seed(0)
        settings = getattr(transformers, config)(
            **_small(_BERT),
            conv_dim=(16, 16),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            **sizes,
        )
        return getattr(transformers, model)(settings).eval(), {"input_values": _floats(2, 800)}

    return make


def wav2vec2_bert() -> Call:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(
        **_small(_BERT), feature_projection_input_dim=16, position_embeddings_type="rotary"
    )
    return Wav2Vec2BertModel(config).eval(), {"input_features": _floats(2, 40, 16)}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            *(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1, bias=False)),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def conv_net() -> Call:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(Residual(16), Residual(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )
    return net.eval(), {"input": _floats(2, 3, 16, 16)}


GPT2 = _decoder("GPT2Config", "GPT2LMHeadModel", **_GPT2)
LLAMA = _decoder("LlamaConfig", "LlamaForCausalLM", **_ROTARY)
MAMBA = _decoder("MambaConfig", "MambaForCausalLM", **_MAMBA)
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 8,
}
_TINY_ROTARY = {**_ROTARY, "max_position_embeddings": 8}

ARCHITECTURES = [
    Architecture("GPT-2", GPT2),
    Architecture("GPT-2", _trained(GPT2), "train mode"),
    Architecture("GPT-2", _generating(GPT2), "generate()"),
    Architecture("Llama", LLAMA),
    Architecture("Llama", _generating(LLAMA), "generate()"),
    Architecture(
        "Llama", _generating(LLAMA, cache_implementation="static"), "generate(), static cache"
    ),
    Architecture(
        "Llama",
        _decoder("LlamaConfig", "LlamaForCausalLM", **_TINY_ROTARY, **DYNAMIC),
        "dynamic RoPE, past its length",
    ),
    Architecture(
        "Phi-3",
        _decoder(
            "Phi3Config",
            "Phi3ForCausalLM",
            **{**_ROTARY, "original_max_position_embeddings": 8, "pad_token_id": 0},
            rope_parameters=LONG,
        ),
        "longrope, past its length",
    ),
    Architecture("Mistral", _decoder("MistralConfig", "MistralForCausalLM", **_ROTARY)),
    Architecture("Qwen2", _decoder("Qwen2Config", "Qwen2ForCausalLM", **_ROTARY)),
    Architecture(
        "Mixtral",
        _decoder("MixtralConfig", "MixtralForCausalLM", **_ROTARY, num_local_experts=4),
        "mixture of experts",
    ),
    Architecture("Mamba", MAMBA),
    Architecture("Mamba", _generating(MAMBA), "generate()"),
    Architecture(
        "BLOOM", _decoder("BloomConfig", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4)
    ),
    Architecture(
        "Falcon",
        _decoder(
            *("FalconConfig", "FalconForCausalLM"),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
    ),
    Architecture(
        "OPT",
        _decoder(
            *("OPTConfig", "OPTForCausalLM"),
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        ),
    ),
    Architecture(
        "XGLM",
        _decoder(
            *("XGLMConfig", "XGLMForCausalLM"),
            d_model=32,
            ffn_dim=64,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=8,
        ),
        "past its table of positions",
    ),
    Architecture(
        "RecurrentGemma",
        _decoder(
            *("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM"),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            head_dim=8,
            lru_width=32,
            attention_window_size=16,
        ),
    ),
    Architecture("BERT", _encoder("BertConfig", "BertForSequenceClassification", **_BERT)),
    Architecture(
        "DistilBERT",
        _encoder(
            *("DistilBertConfig", "DistilBertForSequenceClassification"),
            dim=32,
            hidden_dim=64,
            n_layers=2,
            n_heads=4,
        ),
    ),
    Architecture("RoBERTa", _encoder("RobertaConfig", "RobertaForSequenceClassification", **_BERT)),
    Architecture(
        "DeBERTa v2",
        _encoder(
            *("DebertaV2Config", "DebertaV2Model"),
            **_BERT,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
        ),
    ),
    Architecture("T5", t5),
    Architecture("T5", _generating(t5), "generate()"),
    Architecture("Whisper", whisper),
    Architecture("ViT", vit),
    Architecture("CLIP", clip),
    Architecture("wav2vec2", _speech("Wav2Vec2Config", "Wav2Vec2Model")),
    Architecture(
        "Wav2Vec2-Conformer",
        _speech(
            *("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel"),
            position_embeddings_type="rotary",
        ),
        "rotary positions",
    ),
    Architecture(
        "Wav2Vec2-Conformer",
        _speech(
            *("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel"),
            position_embeddings_type="relative",
            max_source_positions=16,
        ),
        "relative positions, past its table",
    ),
    Architecture("Wav2Vec2-BERT", wav2vec2_bert, "rotary positions"),
    Architecture("conv net", conv_net, "residual, batch norm"),
    Architecture("conv net", _trained(conv_net), "train mode"),
]


def row(architecture: Architecture) -> dict[str, Any]:
    """One audit as a row of the table; the reports' own words go along."""
    value, inputs = architecture.make()
    owner = getattr(value, "__self__", value)
    begin = time.perf_counter()
    report = audit.audit(value, (), inputs)
    seconds = time.perf_counter() - begin

    def named(status: str) -> str:
        return ", ".join(check.name for check in report.checks if check.status == status)

    return {
        "architecture": architecture.name,
        "call": architecture.note or "forward",
        "parameters": sum(p.numel() for p in owner.parameters()),
        "fails": named("fail"),
        "warns": named("warn"),
        "skipped": named("skipped"),
        "verdict": report.verdict,
        "details": {
            check.name: {
                "message": check.message,
                "paths": list(check.paths),
                "lines": [
                    f"{_short(site.frame.file)}:{site.frame.line} {site.frame.code}"
                    for site in check.sites
                ],
            }
            for check in report.checks
            if check.status in {"fail", "warn"}
        },
        "not checked": list(report.not_checked),
        "isolation": report.isolation,
        "seconds": seconds,
    }


def _short(file: str) -> str:
    """The file from its package on: no folder of this machine goes into a result."""
    for mark in ("/site-packages/", "/dist-packages/", "/benchmarks/"):
        _before, found, after = file.replace("\\", "/").rpartition(mark)
        if found:
            return after if mark != "/benchmarks/" else f"benchmarks/{after}"
    return file.rpartition("/")[2]


COLUMNS = ("architecture", "call", "parameters", "fails", "warns", "verdict", "seconds")


def versions() -> str:
    import transformers

    return f"transformers {transformers.__version__}, gradext {gradext.__version__}"


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--only", nargs="+", metavar="NAME", help="architectures of these names")
    args = ask.parse_args()
    wanted = args.only or (QUICK if args.quick else None)
    known = {architecture.name for architecture in ARCHITECTURES}
    unknown = sorted(set(wanted or ()) - known)
    if unknown:
        common.refuse(f"no architecture {unknown[0]!r}; there are {', '.join(sorted(known))}")
    rows = []
    for architecture in ARCHITECTURES:
        if wanted is None or architecture.name in wanted:
            if args.quick and architecture.note not in {"", "residual, batch norm"}:
                continue
            print(f"{architecture.name} {architecture.note}".rstrip(), file=sys.stderr)
            rows.append({**row(architecture), "versions": versions()})
    common.record("audit", rows, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
