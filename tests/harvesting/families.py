"""Tiny random models of many families whose blocks add to the residual stream in different ways."""

from __future__ import annotations

import torch

VOCAB, WIDTH = 37, 24
SIZE = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
TEXT = dict(
    SIZE,
    vocab_size=VOCAB,
    max_position_embeddings=48,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
KV = dict(TEXT, num_key_value_heads=2)
HEAD = dict(KV, head_dim=6)
MOE = dict(num_experts_per_tok=2, moe_intermediate_size=16)
SHARED = dict(num_experts=4, shared_expert_intermediate_size=16)
GPT = dict(
    n_embd=WIDTH,
    n_layer=2,
    n_head=4,
    n_positions=48,
    vocab_size=VOCAB,
    bos_token_id=1,
    eos_token_id=2,
)
FALCON = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB)
MPT = dict(d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=48, vocab_size=VOCAB)
FALCON_NEW = dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)
OPT = dict(FALCON, ffn_dim=40, word_embed_proj_dim=WIDTH, max_position_embeddings=48)
ROBERTA = dict(TEXT, pad_token_id=1)
DEBERTA = dict(TEXT, type_vocab_size=0, relative_attention=True, pos_att_type="c2p|p2c")
DEBERTA_2 = dict(DEBERTA, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True)
CONVBERT = dict(TEXT, embedding_size=WIDTH, head_ratio=2, conv_kernel_size=3)
DISTILBERT = dict(dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=40, vocab_size=VOCAB)
T5 = dict(d_model=WIDTH, d_kv=6, d_ff=40, num_layers=2, num_heads=4, vocab_size=VOCAB)
BART = dict(d_model=WIDTH, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
decoder_attention_heads=4, encoder_ffn_dim=40,
            decoder_ffn_dim=40, vocab_size=VOCAB, max_position_embeddings=48)  # fmt: skip
IMAGE = dict(SIZE, image_size=12, patch_size=4)
MAMBA = dict(
    mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16
)

# name: (model class, config class, config, where attn leads, where mlp leads); None: refused
CAUSAL = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT, "attn", "mlp"),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT, "attn", "mlp"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, "attention", "mlp"),
    "gpt_neox, sequential": ("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(TEXT,
    use_parallel_residual=False), "attention", "mlp"),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", dict(GPT, rotary_dim=4), "attn", "mlp"),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", dict(GPT, rotary_dim=4), "attn", "mlp"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", KV, "self_attn", "mlp"),
    "mistral": ("MistralForCausalLM", "MistralConfig", KV, "self_attn", "mlp"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", dict(KV, num_local_experts=4), "self_attn",
    "mlp"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", KV, "self_attn", "mlp"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEAD, "self_attn", "mlp"),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", dict(KV, **MOE, **SHARED), "self_attn",
    "mlp"),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", dict(HEAD, **MOE, num_experts=4),
    "self_attn", "mlp"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", HEAD, "self_attn", "mlp"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", HEAD, "post_attention_layernorm",
    "post_feedforward_layernorm"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", HEAD, "post_attention_layernorm",
    "post_feedforward_layernorm"),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", TEXT, "self_attn", "mlp"),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", TEXT, "post_attention_layernorm",
    "post_feedforward_layernorm"),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", TEXT, "post_attention_layernorm",
    "post_feedforward_layernorm"),
    "glm": ("GlmForCausalLM", "GlmConfig", HEAD, "self_attn", "mlp"),
    "glm4": ("Glm4ForCausalLM", "Glm4Config", HEAD, "post_self_attn_layernorm",
    "post_mlp_layernorm"),
    "exaone4": ("Exaone4ForCausalLM", "Exaone4Config", HEAD, "post_attention_layernorm",
    "post_feedforward_layernorm"),
    "granite": ("GraniteForCausalLM", "GraniteConfig", dict(KV, residual_multiplier=0.3), None,
    None),
    "granite, multiplier 1": ("GraniteForCausalLM", "GraniteConfig", KV, "self_attn", "mlp"),
    "minimax": ("MiniMaxForCausalLM", "MiniMaxConfig", dict(HEAD, num_local_experts=4,
    mlp_alpha_factor=2.0, full_attn_alpha_factor=2.0,
                                                            linear_attn_alpha_factor=2.0), None,
                                                            None),
    "phi": ("PhiForCausalLM", "PhiConfig", dict(TEXT, num_attention_heads=3), "self_attn", "mlp"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", KV, "self_attn", "mlp"),
    "cohere": ("CohereForCausalLM", "CohereConfig", TEXT, "self_attn", "mlp"),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", KV, "self_attn", "mlp"),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON, "self_attention", "mlp"),
    "falcon, sequential": ("FalconForCausalLM", "FalconConfig", dict(FALCON, parallel_attn=False),
    "self_attention", "mlp"),
    "falcon, new": ("FalconForCausalLM", "FalconConfig", FALCON_NEW, "self_attention", "mlp"),
    "bloom": ("BloomForCausalLM", "BloomConfig", dict(hidden_size=WIDTH, n_layer=2, n_head=4,
    vocab_size=VOCAB), "self_attention.dense",
              "mlp.dense_4h_to_h"),
    "mpt": ("MptForCausalLM", "MptConfig", MPT, "attn", "ffn.down_proj"),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT, "self_attn", None),
    "opt, post norm": ("OPTForCausalLM", "OPTConfig", dict(OPT, do_layer_norm_before=False),
    "self_attn", None),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", KV, "self_attn", "mlp"),
    "stablelm, parallel": ("StableLmForCausalLM", "StableLmConfig", dict(KV,
    use_parallel_residual=True), "self_attn", "mlp"),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", KV, "self_attn", "mlp"),
    "ctrl": ("CTRLLMHeadModel", "CTRLConfig", dict(n_embd=WIDTH, n_layer=2, n_head=4, dff=40,
    n_positions=48, vocab_size=VOCAB),
             "multi_head_attention", "ffn"),
    "biogpt": ("BioGptForCausalLM", "BioGptConfig", TEXT, "self_attn", "fc2"),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", KV, "self_attn", "mlp"),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", KV, "self_attn", "mlp"),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", dict(HEAD, num_local_experts=4,
    num_experts_per_tok=2), "self_attn", "mlp"),
    "apertus": ("ApertusForCausalLM", "ApertusConfig", KV, "self_attn", "mlp"),
    "mamba": ("MambaForCausalLM", "MambaConfig", dict(hidden_size=WIDTH, num_hidden_layers=2,
    vocab_size=VOCAB, state_size=4), None, None),
    "bamba": ("BambaForCausalLM", "BambaConfig", dict(KV, **MAMBA, attn_layer_indices=[0, 1]),
    "self_attn", "feed_forward"),
}  # fmt: skip
BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
BERT_PARTS = ("attention.output.dense", "output.dense")
# The same, and the two norms after the residual sums if there are any.
ENCODERS = {
    "bert": ("BertModel", "BertConfig", TEXT, *BERT_PARTS, BERT_NORMS),
    "roberta": ("RobertaModel", "RobertaConfig", ROBERTA, *BERT_PARTS, BERT_NORMS),
    "roberta, norm before": ("RobertaPreLayerNormModel", "RobertaPreLayerNormConfig", ROBERTA,
    *BERT_PARTS, None),
    "electra": ("ElectraModel", "ElectraConfig", dict(TEXT, embedding_size=12), *BERT_PARTS,
    BERT_NORMS),
    "deberta": ("DebertaModel", "DebertaConfig", DEBERTA, *BERT_PARTS, BERT_NORMS),
    "deberta2": ("DebertaV2Model", "DebertaV2Config", DEBERTA_2, *BERT_PARTS, BERT_NORMS),
    "rembert": ("RemBertModel", "RemBertConfig", dict(TEXT, input_embedding_size=12), *BERT_PARTS,
    BERT_NORMS),
    "convbert": ("ConvBertModel", "ConvBertConfig", CONVBERT, *BERT_PARTS, BERT_NORMS),
    "esm": ("EsmModel", "EsmConfig", dict(TEXT, mask_token_id=5, position_embedding_type="rotary"),
    *BERT_PARTS, None),
    "mpnet": ("MPNetModel", "MPNetConfig", ROBERTA, "attention.attn", "output.dense",
    ("attention.LayerNorm", "output.LayerNorm")),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTILBERT, "attention",
                   "ffn", ("sa_layer_norm", "output_layer_norm")),
    "modernbert": ("ModernBertModel", "ModernBertConfig", dict(TEXT, cls_token_id=1,
    sep_token_id=2), "attn", "mlp", None),
    "nomic_bert": ("NomicBertModel", "NomicBertConfig", TEXT, "self_attn", "mlp",
    ("post_attention_layernorm", "post_mlp_layernorm")),
    "fnet": ("FNetModel", "FNetConfig", TEXT, None, "output.dense", (None, "output.LayerNorm")),
    "mobilebert": ("MobileBertModel", "MobileBertConfig", dict(TEXT, embedding_size=12,
    intra_bottleneck_size=12), None, None, None),
    "t5": ("T5Model", "T5Config", T5, "layer.0.SelfAttention", "layer.1.DenseReluDense", None),
    "t5, gated": ("T5Model", "T5Config", dict(T5, feed_forward_proj="gated-gelu"),
    "layer.0.SelfAttention", "layer.1.DenseReluDense", None),
    "bart": ("BartModel", "BartConfig", BART, "self_attn", "fc2", ("self_attn_layer_norm",
    "final_layer_norm")),
    "pegasus": ("PegasusModel", "PegasusConfig", BART, "self_attn", "fc2", None),
}  # fmt: skip
VISION = {
    "vit": ("ViTModel", "ViTConfig", IMAGE, "attention", "mlp"),
    "deit": ("DeiTModel", "DeiTConfig", IMAGE, "attention", "mlp"),
    "vit_msn": ("ViTMSNModel", "ViTMSNConfig", IMAGE, "attention", "mlp"),
    "clip": ("CLIPModel", "CLIPConfig", dict(vision_config=IMAGE, text_config=TEXT), "self_attn",
    "mlp"),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", IMAGE, "self_attn", "mlp"),
    "dinov2": ("Dinov2Model", "Dinov2Config", dict(IMAGE, layerscale_value=0.3), "layer_scale1",
    "layer_scale2"),
    "dinov2, registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", dict(IMAGE,
    num_register_tokens=2),
                          "layer_scale1", "layer_scale2"),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", dict(IMAGE, num_attention_heads=3),
    "layer_scale1", "layer_scale2"),
    "beit": ("BeitModel", "BeitConfig", dict(IMAGE, layer_scale_init_value=0.2), None, None),
    "beit, no scale": ("BeitModel", "BeitConfig", dict(IMAGE, layer_scale_init_value=0.0),
    "attention", "mlp"),
    "aimv2": ("Aimv2VisionModel", "Aimv2VisionConfig", IMAGE, "attention", "ffn"),
    "ijepa": ("IJepaModel", "IJepaConfig", IMAGE, "attention", "mlp"),
}  # fmt: skip


def model_of(entry: tuple, seed: int = 0) -> torch.nn.Module:
    """With weights so large, and norms so far from 1, that every part of a block matters."""
    import transformers

    model_class, config_class, config = entry[:3]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            mean, std = (0.0, 0.15) if parameter.ndim > 1 else (0.7, 0.2)
            parameter.normal_(mean, std)
    return model
