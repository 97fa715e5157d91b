"""Our trainers against a stock DPOTrainer, on tiny random models of many architectures.

Prints a row of a Markdown table for each architecture as it goes; names of architectures as
arguments run those alone. Both sides train for 20 steps on the same rows from the same seed.
`equal` and `DIFFERENT` come with the largest difference of a step's loss, of a held-out
completion's log-prob under the exported model, and of its rise above the reference as the session
reports it (both in nats per token). `equal` means that all three stay within 1e-4.
"""

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(ROOT))

import transformers as T  # noqa: E402

from dpo_train.errors import one_line  # noqa: E402
from tests.helpers.architectures import (  # noqa: E402
    COMMON,
    GPT_SIZES,
    IDS,
    RUNS,
    SIZES,
    WINDOW_TOKENS,
    Result,
    Verdict,
    compare,
    make,
    ours,
    stock,
)

PAIRS, EPOCHS = 40, 2
"""20 steps of 4 pairs."""
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW: dict[str, Any] = {"sliding_window": WINDOW_TOKENS}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    """Return the parameters of a plain RoPE."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


def longrope(original: int) -> T.PretrainedConfig:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return T.Phi3Config(
        **SIZES,
        original_max_position_embeddings=original,
        **rope("longrope", **factors, original_max_position_embeddings=original),
    )


def llama(most_tokens: int = 512, **values: Any) -> T.PretrainedConfig:
    return T.LlamaConfig(**SIZES | {"max_position_embeddings": most_tokens}, **values)


def deepseek(kind: Any, **values: Any) -> T.PretrainedConfig:
    return kind(
        **SIZES | {"num_key_value_heads": 4}, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, n_shared_experts=1, moe_intermediate_size=16, first_k_dense_replace=1,
        **values,
    )  # fmt: skip


def falcon(**values: Any) -> T.PretrainedConfig:
    return T.FalconConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        attention_dropout=0.1, hidden_dropout=0.1, **values, **IDS,
    )  # fmt: skip


def granite_experts(**values: Any) -> T.PretrainedConfig:
    return T.GraniteMoeConfig(
        **SIZES, **EXPERTS, logits_scaling=4.0, attention_multiplier=0.2, **values
    )


MORE: dict[str, Callable[[], T.PretrainedConfig]] = {
    "llama_tied": lambda: llama(tie_word_embeddings=True),
    "llama_llama3_rope": lambda: llama(
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=64)
    ),
    "llama_yarn": lambda: llama(**rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama_dynamic_below": lambda: llama(**rope("dynamic", factor=4.0)),
    "llama_dynamic_past": lambda: llama(64, **rope("dynamic", factor=4.0)),
    "mixtral_no_router_loss": lambda: T.MixtralConfig(
        **SIZES, **EXPERTS, router_aux_loss_coef=0.0
    ),
    "mixtral_jitter": lambda: T.MixtralConfig(**SIZES, **EXPERTS, router_jitter_noise=0.1),
    "qwen2": lambda: T.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2_window": lambda: T.Qwen2Config(
        **SIZES, **WINDOW, use_sliding_window=True, max_window_layers=1
    ),
    "qwen2_moe": lambda: T.Qwen2MoeConfig(
        **SIZES, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, decoder_sparse_step=1,
    ),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(
        **SIZES, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
    "gemma": lambda: T.GemmaConfig(**SIZES, head_dim=8),
    "gemma3_text": lambda: T.Gemma3TextConfig(
        **SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=512
    ),
    "gemma3_window": lambda: T.Gemma3TextConfig(
        **SIZES, **WINDOW, head_dim=8, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": lambda: T.PhiConfig(
        **SIZES, partial_rotary_factor=0.5, resid_pdrop=0.1, embd_pdrop=0.1
    ),
    "phi3_longrope_below": lambda: longrope(256),
    "phi3_longrope_past": lambda: longrope(64),
    "phimoe": lambda: T.PhimoeConfig(**SIZES, **EXPERTS, **WINDOW),
    "phimoe_no_router_loss": lambda: T.PhimoeConfig(
        **SIZES, **EXPERTS, **WINDOW, router_aux_loss_coef=0.0
    ),
    "granitemoe": lambda: granite_experts(),
    "granitemoe_no_router_loss": lambda: granite_experts(router_aux_loss_coef=0.0),
    "granitemoehybrid": lambda: T.GraniteMoeHybridConfig(
        **SIZES, **EXPERTS, layer_types=["mamba", "attention"], shared_intermediate_size=32,
        mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        router_aux_loss_coef=0.0,
    ),
    "starcoder2": lambda: T.Starcoder2Config(
        **SIZES, sliding_window=None, residual_dropout=0.1, embedding_dropout=0.1
    ),
    "olmo": lambda: T.OlmoConfig(**SIZES, clip_qkv=8.0),
    "olmo2": lambda: T.Olmo2Config(**SIZES),
    "olmo3": lambda: T.Olmo3Config(
        **SIZES, **WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmoe": lambda: T.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "smollm3": lambda: T.SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "stablelm": lambda: T.StableLmConfig(**SIZES, partial_rotary_factor=0.25, hidden_dropout=0.1),
    "falcon_rotary": lambda: falcon(alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_alibi": lambda: falcon(alibi=True, multi_query=False),
    "mpt": lambda: T.MptConfig(
        vocab_size=260, d_model=32, n_layers=2, n_heads=4, max_seq_len=512, resid_pdrop=0.1,
        emb_pdrop=0.1, **IDS,
    ),
    "gpt_neo": lambda: T.GPTNeoConfig(
        vocab_size=260, hidden_size=32, num_layers=2, num_heads=4, window_size=WINDOW_TOKENS,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=512,
        attention_dropout=0.1, resid_dropout=0.1, embed_dropout=0.1, **IDS,
    ),
    "gptj": lambda: T.GPTJConfig(**GPT_SIZES, rotary_dim=4, attn_pdrop=0.1, resid_pdrop=0.1),
    "gpt_neox": lambda: T.GPTNeoXConfig(**SIZES, rotary_pct=0.25, hidden_dropout=0.1),
    "gpt_bigcode": lambda: T.GPTBigCodeConfig(**GPT_SIZES, multi_query=True),
    "codegen": lambda: T.CodeGenConfig(**GPT_SIZES, rotary_dim=4, attn_pdrop=0.1),
    "opt_layerdrop": lambda: T.OPTConfig(
        **SIZES, ffn_dim=64, word_embed_proj_dim=32, layerdrop=0.5
    ),
    "biogpt": lambda: T.BioGptConfig(**SIZES),
    "xglm": lambda: T.XGLMConfig(
        vocab_size=260, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4,
        max_position_embeddings=512, **IDS,
    ),
    "persimmon": lambda: T.PersimmonConfig(**SIZES, hidden_dropout=0.1),
    "cohere2": lambda: T.Cohere2Config(
        **SIZES, **WINDOW, logit_scale=0.25, layer_types=["sliding_attention", "full_attention"]
    ),
    "nemotron": lambda: T.NemotronConfig(**SIZES),
    "deepseek_v2": lambda: deepseek(T.DeepseekV2Config, q_lora_rank=None, topk_method="greedy"),
    "deepseek_v3": lambda: deepseek(T.DeepseekV3Config, q_lora_rank=16),
    "glm": lambda: T.GlmConfig(**SIZES, head_dim=8),
    "glm4": lambda: T.Glm4Config(**SIZES, head_dim=8),
    "exaone4": lambda: T.Exaone4Config(
        **SIZES, **WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "ernie4_5": lambda: T.Ernie4_5Config(**SIZES, head_dim=8),
    "helium": lambda: T.HeliumConfig(**SIZES, head_dim=8),
    "llama4_text": lambda: T.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=64, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        interleave_moe_layer_step=2, attention_chunk_size=64,
    ),
    "gpt_oss": lambda: T.GptOssConfig(**SIZES, **EXPERTS, **WINDOW, head_dim=8),
    "dbrx": lambda: T.DbrxConfig(
        vocab_size=260, d_model=32, n_layers=2, n_heads=4, max_seq_len=512, resid_pdrop=0.1,
        attn_config={"attn_pdrop": 0.1, "kv_n_heads": 2, "clip_qkv": 8.0,
                     "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}, **IDS,
    ),
    "jetmoe": lambda: T.JetMoeConfig(**SIZES, **EXPERTS, kv_channels=8),
    "mamba": lambda: T.MambaConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=8, **IDS
    ),
    "mamba2": lambda: T.Mamba2Config(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=8, head_dim=8, num_heads=8,
        n_groups=1, chunk_size=32, **IDS,
    ),
    "recurrent_gemma": lambda: T.RecurrentGemmaConfig(
        **SIZES, lru_width=32, block_types=["recurrent", "attention"],
        attention_window_size=WINDOW_TOKENS,
    ),
    "bamba": lambda: T.BambaConfig(
        **SIZES, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        attn_layer_indices=[1],
    ),
    "falcon_h1": lambda: T.FalconH1Config(
        **SIZES, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, lm_head_multiplier=0.5,
    ),
    "lfm2": lambda: T.Lfm2Config(
        **SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
    "gemma3n_text": lambda: T.Gemma3nTextConfig(
        **SIZES, head_dim=8, vocab_size_per_layer_input=260, hidden_size_per_layer_input=8,
        altup_num_inputs=2, num_kv_shared_layers=0, laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.0],
    ),
    "seed_oss": lambda: T.SeedOssConfig(**SIZES, head_dim=8, residual_dropout=0.1),
    "hunyuan_v1_dense": lambda: T.HunYuanDenseV1Config(**SIZES, head_dim=8),
    "diffllama": lambda: T.DiffLlamaConfig(**SIZES | {"attention_dropout": 0.0}),
    "nanochat": lambda: T.NanoChatConfig(**SIZES, final_logit_softcapping=5.0),
    "xlstm": lambda: T.xLSTMConfig(
        vocab_size=260, hidden_size=64, num_hidden_layers=2, num_heads=2, chunk_size=16, **IDS
    ),
    "minicpm3": lambda: T.MiniCPM3Config(
        **SIZES | {"num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16,
    ),
    "hyperclovax": lambda: T.HyperCLOVAXConfig(**SIZES, logits_scaling=0.5),
    "vaultgemma": lambda: T.VaultGemmaConfig(
        **SIZES, **WINDOW, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0
    ),
    "rwkv": lambda: T.RwkvConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, context_length=512, **IDS
    ),
}  # fmt: skip


def compare_runs(name: str, folder: Path) -> tuple[float, list[Verdict]]:
    """Return how far the stock trainer moved the held-out log-probs, in nats per token, in the run
    that moved them least, and a verdict for each of our runs."""
    config = COMMON[name] if name in COMMON else MORE[name]()
    case = make(config, folder, PAIRS, EPOCHS)
    layers = list(dict.fromkeys(run.adapted for run in RUNS.values()))
    theirs = stock([case], layers)[0]
    moved = [
        mean(map(abs, chain(*each.shifts))) for each in theirs.values() if isinstance(each, Result)
    ]
    scratch = folder / "scratch"
    scratch.mkdir()
    verdicts = [compare(ours(case, run, scratch), theirs[run.adapted]) for run in RUNS.values()]
    return min(moved, default=0.0), verdicts


def row(name: str, moved: float, verdicts: list[Verdict]) -> str:
    """Format a row of the table."""
    cells = [f"{each.kind}: {each.text}" for each in verdicts]
    return " | ".join((f"| {name}", f"{moved:.3f}", *cells)) + " |"


def main(names: list[str]) -> None:
    known = [*COMMON, *MORE]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    libraries = ("torch", "transformers", "trl", "peft")
    print(", ".join(f"{library} {version(library)}" for library in libraries), end="\n\n")
    titles = ["architecture", "moved", *RUNS]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    counts: Counter[str] = Counter()
    for name in names or known:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with redirect_stdout(sys.stderr):  # transformers prints when a training ends
                    moved, verdicts = compare_runs(name, Path(folder, name))
            except Exception as error:  # the library lacks the class, or can't make a tiny one
                reason = f"{type(error).__name__}: {one_line(error)}"
                moved, verdicts = 0.0, [Verdict("not made", reason)] * len(RUNS)
        counts.update(verdict.kind for verdict in verdicts)
        print(row(name, moved, verdicts).replace(f"{folder}/", ""), flush=True)
    print("\n" + ", ".join(f"{kind}: {count}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
