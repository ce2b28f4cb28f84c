"""Small models of KerasHub: what `keras_hub.py` measures.

Two layers, a width of 16 to 32, a vocabulary of 50, images of 32 to 64 pixels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_hub

hub = keras_hub.models

LENGTH = 12
VOCABULARY = 50
"""What the unknown sizes of inputs become."""

TEXT = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
SHORT = TEXT | {"max_sequence_length": 16}
HEADS = {k: v for k, v in TEXT.items() if k != "num_heads"} | {
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}
GEMMA = HEADS | {"head_dim": 4}
EXPERTS = {"num_experts": 4, "top_k": 2}
QWEN_MOE = HEADS | EXPERTS | {"moe_intermediate_dim": 16}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 0.5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
VIT = {
    "image_shape": (32, 32, 3),
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
}
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 16, 24],
    "stackwise_num_blocks": [1, 1, 1],
    "stackwise_num_strides": [1, 2, 2],
    "block_type": "basic_block",
    "image_shape": (64, 64, 3),
}
RESNET18 = RESNET | {
    "stackwise_num_filters": [64, 16, 24, 32],
    "stackwise_num_blocks": [1, 1, 1, 1],
    "stackwise_num_strides": [1, 2, 2, 2],
}
RESNET_V2 = RESNET | {"block_type": "bottleneck_block", "use_pre_activation": True}
MIT = {
    "layerwise_depths": [1, 1],
    "image_shape": (32, 32, 3),
    "hidden_dims": [8, 16],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [4, 2],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
}
VIT_DET = {
    "hidden_size": 16,
    "num_layers": 2,
    "intermediate_dim": 32,
    "num_heads": 2,
    "global_attention_layer_indices": [1],
    "image_shape": (32, 32, 3),
    "patch_size": 4,
    "num_output_channels": 8,
    "window_size": 3,
}
MOBILE_BLOCKS = {
    "stackwise_expansion": [[16, 24], [32, 48]],
    "stackwise_num_blocks": [2, 2],
    "stackwise_num_filters": [[16, 16], [24, 24]],
    "stackwise_kernel_size": [[3, 3], [5, 5]],
    "stackwise_num_strides": [[2, 1], [2, 1]],
    "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
    "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
    "stackwise_padding": [[1, 1], [2, 2]],
    "output_num_filters": 32,
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "last_layer_filter": 48,
    "squeeze_and_excite": 0.5,
    "image_shape": (32, 32, 3),
}
MOBILE_V5 = {
    "stackwise_block_types": [["er"], ["uir", "mqa"]],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_filters": [[16], [24, 24]],
    "stackwise_strides": [[2], [2, 1]],
    "stackwise_act_layers": [["relu"], ["relu", "relu"]],
    "stackwise_exp_ratios": [[4.0], [4.0, 1.0]],
    "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
    "stackwise_dw_kernel_sizes": [[0], [5, 3]],
    "stackwise_dw_start_kernel_sizes": [[0], [0, 0]],
    "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
    "stackwise_exp_kernel_sizes": [[3], [0, 0]],
    "stackwise_pw_kernel_sizes": [[1], [0, 0]],
    "stackwise_num_heads": [[0], [0, 2]],
    "stackwise_key_dims": [[0], [0, 8]],
    "stackwise_value_dims": [[0], [0, 8]],
    "stackwise_kv_strides": [[0], [0, 1]],
    "stackwise_use_cpe": [[False], [False, False]],
    "image_shape": (32, 32, 3),
    "use_msfa": False,
    "num_features": 32,
}
EFFICIENT = {
    "stackwise_kernel_sizes": [3, 5],
    "stackwise_num_repeats": [1, 2],
    "stackwise_input_filters": [16, 16],
    "stackwise_output_filters": [16, 24],
    "stackwise_expansion_ratios": [1, 4],
    "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
    "stackwise_strides": [1, 2],
    "stackwise_force_input_filters": [0, 0],
    "stackwise_nores_option": [False, False],
    "stackwise_width_coefficients": [1.0, 1.0],
    "stackwise_depth_coefficients": [1.0, 1.0],
    "input_shape": (32, 32, 3),
    "num_features": 32,
}
CSP = {
    "stem_filters": 16,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stackwise_depth": [1, 2],
    "stackwise_strides": 2,
    "stackwise_num_filters": [16, 24],
    "block_type": "dark_block",
    "stage_type": "csp",
    "bottle_ratio": (0.5, 1.0),
    "block_ratio": (1.0, 0.5),
    "expand_ratio": (2.0, 1.0),
    "down_growth": True,
    "stem_padding": "same",
    "image_shape": (32, 32, 3),
}
HG_NET = {
    "depths": [1, 1],
    "embedding_size": 16,
    "hidden_sizes": [16, 24],
    "stem_channels": [3, 8, 16],
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "stackwise_stage_filters": [[16, 8, 16, 1, 1, 3], [16, 8, 24, 1, 1, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, True],
    "image_shape": (64, 64, 3),
}
DINO = VIT | {"intermediate_dim": 32, "num_register_tokens": 2}
MOONSHINE = {
    "vocabulary_size": VOCABULARY,
    "filter_dim": 16,
    "encoder_num_layers": 2,
    "decoder_num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "encoder_num_heads": 2,
    "decoder_num_heads": 2,
}
T5_GEMMA = {
    "vocabulary_size": VOCABULARY,
    "encoder_layer_types": ["sliding_attention", "full_attention"],
    "decoder_layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "cross_attention_hidden_size": 16,
    "attn_logit_softcapping": 50.0,
} | {
    f"{part}_{key}": value
    for part in ("encoder", "decoder")
    for key, value in {
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }.items()
}
GEMMA3N = {
    "text_vocab_size": VOCABULARY,
    "text_hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": [32, 32],
    "hidden_activation": "gelu_approximate",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "rope_theta": 10000.0,
    "max_position_embeddings": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
}
SMOL = {
    "vocabulary_size": VOCABULARY,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["attention", "attention"],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 16,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
RWKV = {
    "vocabulary_size": VOCABULARY,
    "hidden_size": 16,
    "num_layers": 2,
    "head_size": 8,
    "intermediate_dim": 32,
    "gate_lora": 8,
    "mv_lora": 8,
    "aaa_lora": 8,
    "decay_lora": 8,
}
WHISPER = TEXT | {"max_encoder_sequence_length": 24, "max_decoder_sequence_length": 12}
VISION_TOWER = {
    "patch_size": 8,
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 32,
    "image_shape": (32, 32, 3),
}
TEXT_TOWER = TEXT | {"embedding_dim": 16, "max_sequence_length": LENGTH}
PALI_GEMMA = GEMMA | {
    "image_size": 16,
    "vit_patch_size": 4,
    "vit_num_layers": 2,
    "vit_num_heads": 2,
    "vit_hidden_dim": 16,
    "vit_intermediate_dim": 32,
}
VIDEO_PRISM = {
    "image_shape": (16, 16, 3),
    "num_frames": 4,
    "patch_size": 4,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_heads": 2,
    "num_spatial_layers": 1,
    "num_temporal_layers": 1,
    "num_auxiliary_layers": 1,
}
CLASSES = {"num_classes": 3}

# By class, its settings; a string in the place of a model is a model of this table.
BACKBONES: dict[str, dict[str, Any]] = {
    "AlbertBackbone": SHORT | {"embedding_dim": 8},
    "BartBackbone": SHORT,
    "BertBackbone": SHORT,
    "BloomBackbone": TEXT,
    "CLIPBackbone": {
        "vision_encoder": "CLIPVisionEncoder",
        "text_encoder": "CLIPTextEncoder",
        "projection_dim": 16,
    },
    "CLIPTextEncoder": TEXT_TOWER,
    "CLIPVisionEncoder": VISION_TOWER,
    "CSPNetBackbone": CSP,
    "DebertaV3Backbone": SHORT | {"bucket_size": 8},
    "DeepLabV3Backbone": {
        "image_encoder": "ResNetBackbone",
        "low_level_feature_key": "P2",
        "spatial_pyramid_pooling_key": "P4",
        "dilation_rates": [2, 4],
        "upsampling_size": 4,
        "projection_filters": 8,
        "image_shape": (64, 64, 3),
    },
    "DeiTBackbone": VIT | {"intermediate_dim": 32},
    "DenseNetBackbone": {
        "stackwise_num_repeats": [2, 2],
        "growth_rate": 8,
        "image_shape": (32, 32, 3),
    },
    "DepthAnythingBackbone": {
        "image_encoder": "DINOV2Features",
        "reassemble_factors": [2, 1],
        "neck_hidden_dims": [8, 16],
        "fusion_hidden_dim": 16,
        "head_hidden_dim": 8,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2"],
    },
    "DINOV2Backbone": DINO | {"position_embedding_shape": (40, 40, 3)},
    "DINOV3Backbone": DINO,
    "DistilBertBackbone": SHORT,
    "EdRecBackbone": {
        "vocab_size": VOCABULARY,
        "num_layers_enc": 2,
        "num_layers_dec": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
    },
    "EfficientNetBackbone": EFFICIENT | {"stackwise_block_types": ["fused", "unfused"]},
    "ElectraBackbone": {k: v for k, v in SHORT.items() if k != "vocabulary_size"}
    | {"vocab_size": VOCABULARY, "embedding_dim": 8},
    "ESM2Backbone": SHORT,
    "ESMBackbone": SHORT | {"position_embedding_type": "absolute"},
    "FalconBackbone": {k: v for k, v in TEXT.items() if k != "num_heads"}
    | {"num_attention_heads": 2},
    "FNetBackbone": {k: v for k, v in SHORT.items() if k != "num_heads"},
    "Gemma3Backbone": GEMMA
    | {"image_size": 16, "use_sliding_window_attention": True, "sliding_window_size": 4},
    "Gemma3nBackbone": GEMMA3N,
    "Gemma4Backbone": GEMMA | {"image_size": 16, "sliding_window_size": 4},
    "GemmaBackbone": GEMMA,
    "GPT2Backbone": SHORT,
    "GPTNeoXBackbone": SHORT,
    "GptOssBackbone": HEADS | EXPERTS | {"sliding_window": 4},
    "HGNetV2Backbone": HG_NET,
    "Llama3Backbone": HEADS,
    "LlamaBackbone": HEADS,
    "MetaCLIP2Backbone": {
        "vision_encoder": "MetaCLIP2VisionEncoder",
        "text_encoder": "MetaCLIP2TextEncoder",
        "projection_dim": 16,
    },
    "MetaCLIP2TextEncoder": TEXT_TOWER,
    "MetaCLIP2VisionEncoder": VISION_TOWER,
    "MistralBackbone": HEADS | {"sliding_window": 4},
    "MiTBackbone": MIT,
    "MixtralBackbone": HEADS | EXPERTS | {"sliding_window": 4},
    "MobileNetBackbone": MOBILE_BLOCKS,
    "MobileNetV5Backbone": MOBILE_V5,
    "MoonshineBackbone": MOONSHINE,
    "OPTBackbone": SHORT,
    "PaliGemmaBackbone": PALI_GEMMA,
    "PARSeqBackbone": {
        "image_encoder": "ViTEncoder",
        "vocabulary_size": VOCABULARY,
        "max_label_length": LENGTH,
        "decoder_hidden_dim": 16,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 32,
    },
    "Phi3Backbone": HEADS,
    "Qwen2Backbone": HEADS,
    "Qwen3Backbone": GEMMA,
    "Qwen3MoeBackbone": QWEN_MOE | {"head_dim": 4},
    "Qwen3_5Backbone": GEMMA | {"head_dim": 8} | LINEAR_ATTENTION,
    "QwenMoeBackbone": QWEN_MOE | {"shared_expert_intermediate_dim": 16},
    "ResNetBackbone": RESNET,
    "RetinaNetBackbone": {
        "image_encoder": "ResNet18",
        "min_level": 3,
        "max_level": 5,
        "use_p5": True,
        "image_shape": (64, 64, 3),
    },
    "RobertaBackbone": SHORT,
    "RoformerV2Backbone": TEXT | {"head_size": 8},
    "RWKV7Backbone": RWKV,
    "SAMBackbone": {
        "image_encoder": "ViTDetBackbone",
        "prompt_encoder": "SAMPromptEncoder",
        "mask_decoder": "SAMMaskDecoder",
    },
    "SegFormerBackbone": {"image_encoder": "MiTBackbone", "projection_filters": 16},
    "SigLIPBackbone": {
        "vision_encoder": "SigLIPVisionEncoder",
        "text_encoder": "SigLIPTextEncoder",
    },
    "SigLIPTextEncoder": TEXT_TOWER,
    "SigLIPVisionEncoder": VISION_TOWER,
    "SmolLM3Backbone": SMOL,
    "SwinTransformerBackbone": {
        "image_shape": (32, 32, 3),
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
    },
    "T5Backbone": TEXT,
    "T5GemmaBackbone": T5_GEMMA,
    "T5Gemma2Backbone": T5_GEMMA,
    "VGGBackbone": {
        "stackwise_num_repeats": [1, 2],
        "stackwise_num_filters": [8, 16],
        "image_shape": (32, 32, 3),
    },
    "VideoPrismBackbone": VIDEO_PRISM,
    "ViTBackbone": VIT | {"mlp_dim": 32},
    "ViTDetBackbone": VIT_DET,
    "WhisperBackbone": WHISPER,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 16], [24, 24], [32, 32]],
        "stackwise_pooling": [False, True, False],
        "image_shape": (64, 64, 3),
    },
    "XLMRobertaBackbone": SHORT,
    "XLNetBackbone": TEXT,
}
# Other configurations of a class, by a name of ours.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOV2Features": (
        "DINOV2Backbone",
        DINO | {"num_register_tokens": 0, "apply_layernorm": True},
    ),
    "ResNet18": ("ResNetBackbone", RESNET18),
    "ResNetBackbone v2": ("ResNetBackbone", RESNET_V2),
    "ViTEncoder": ("ViTBackbone", VIT | {"mlp_dim": 32, "use_class_token": False}),
    "GemmaBackbone 2": (
        "GemmaBackbone",
        GEMMA
        | {
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "attention_logit_soft_cap": 50,
            "final_logit_soft_cap": 30,
            "use_sliding_window_attention": True,
            "sliding_window_size": 4,
        },
    ),
}
# By class, the backbone (of either table) and the other settings.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "AlbertTextClassifier": ("AlbertBackbone", CLASSES),
    "BertTextClassifier": ("BertBackbone", CLASSES),
    "BertTextEmbedder": ("BertBackbone", {}),
    "DebertaV3TextClassifier": ("DebertaV3Backbone", CLASSES),
    "DistilBertTextClassifier": ("DistilBertBackbone", CLASSES),
    "ESMProteinClassifier": ("ESM2Backbone", CLASSES),
    "FNetTextClassifier": ("FNetBackbone", CLASSES),
    "RobertaTextClassifier": ("RobertaBackbone", CLASSES),
    "RoformerV2TextClassifier": ("RoformerV2Backbone", CLASSES),
    "XLMRobertaTextClassifier": ("XLMRobertaBackbone", CLASSES),
    "AlbertMaskedLM": ("AlbertBackbone", {}),
    "BertMaskedLM": ("BertBackbone", {}),
    "DebertaV3MaskedLM": ("DebertaV3Backbone", {}),
    "DistilBertMaskedLM": ("DistilBertBackbone", {}),
    "ESM2MaskedPLM": ("ESM2Backbone", {}),
    "FNetMaskedLM": ("FNetBackbone", {}),
    "RobertaMaskedLM": ("RobertaBackbone", {}),
    "RoformerV2MaskedLM": ("RoformerV2Backbone", {}),
    "XLMRobertaMaskedLM": ("XLMRobertaBackbone", {}),
    "BloomCausalLM": ("BloomBackbone", {}),
    "FalconCausalLM": ("FalconBackbone", {}),
    "GemmaCausalLM": ("GemmaBackbone 2", {}),
    "Gemma3CausalLM": ("Gemma3Backbone", {}),
    "Gemma3nCausalLM": ("Gemma3nBackbone", {}),
    "Gemma4CausalLM": ("Gemma4Backbone", {}),
    "GPT2CausalLM": ("GPT2Backbone", {}),
    "GPTNeoXCausalLM": ("GPTNeoXBackbone", {}),
    "GptOssCausalLM": ("GptOssBackbone", {}),
    "LlamaCausalLM": ("LlamaBackbone", {}),
    "Llama3CausalLM": ("Llama3Backbone", {}),
    "MistralCausalLM": ("MistralBackbone", {}),
    "MixtralCausalLM": ("MixtralBackbone", {}),
    "OPTCausalLM": ("OPTBackbone", {}),
    "PaliGemmaCausalLM": ("PaliGemmaBackbone", {}),
    "Phi3CausalLM": ("Phi3Backbone", {}),
    "Qwen2CausalLM": ("Qwen2Backbone", {}),
    "Qwen3CausalLM": ("Qwen3Backbone", {}),
    "Qwen3MoeCausalLM": ("Qwen3MoeBackbone", {}),
    "Qwen3_5CausalLM": ("Qwen3_5Backbone", {}),
    "QwenMoeCausalLM": ("QwenMoeBackbone", {}),
    "RWKV7CausalLM": ("RWKV7Backbone", {}),
    "SmolLM3CausalLM": ("SmolLM3Backbone", {}),
    "BartSeq2SeqLM": ("BartBackbone", {}),
    "EdRecSeq2SeqLM": ("EdRecBackbone", {}),
    "T5Seq2SeqLM": ("T5Backbone", {}),
    "T5GemmaSeq2SeqLM": ("T5GemmaBackbone", {}),
    "T5Gemma2Seq2SeqLM": ("T5Gemma2Backbone", {}),
    "MoonshineAudioToText": ("MoonshineBackbone", {}),
    "CSPNetImageClassifier": ("CSPNetBackbone", CLASSES),
    "DeepLabV3ImageSegmenter": ("DeepLabV3Backbone", CLASSES),
    "DeiTImageClassifier": ("DeiTBackbone", CLASSES),
    "DenseNetImageClassifier": ("DenseNetBackbone", CLASSES),
    "DepthAnythingDepthEstimator": ("DepthAnythingBackbone", {"depth_estimation_type": "relative"}),
    "EfficientNetImageClassifier": ("EfficientNetBackbone", CLASSES),
    "HGNetV2ImageClassifier": ("HGNetV2Backbone", CLASSES),
    "MiTImageClassifier": ("MiTBackbone", CLASSES),
    "MobileNetImageClassifier": ("MobileNetBackbone", CLASSES | {"num_features": 32}),
    "MobileNetV5ImageClassifier": ("MobileNetV5Backbone", CLASSES | {"head_hidden_size": 32}),
    "ResNetImageClassifier": ("ResNetBackbone", CLASSES),
    "RetinaNetObjectDetector": (
        "RetinaNetBackbone",
        CLASSES | {"bounding_box_format": "xywh", "pre_logits_num_conv_layers": 1},
    ),
    "SAMImageSegmenter": ("SAMBackbone", {}),
    "SegFormerImageSegmenter": ("SegFormerBackbone", CLASSES),
    "SwinTransformerImageClassifier": ("SwinTransformerBackbone", CLASSES),
    "VGGImageClassifier": ("VGGBackbone", CLASSES | {"pooling_hidden_dim": 16}),
    "ViTImageClassifier": ("ViTBackbone", CLASSES),
    "XceptionImageClassifier": ("XceptionBackbone", CLASSES),
}
PARTS: dict[str, Callable[[], Any]] = {
    "SAMPromptEncoder": lambda: keras_hub.layers.SAMPromptEncoder(
        hidden_size=8,
        image_embedding_size=(8, 8),
        input_image_size=(32, 32),
        mask_in_channels=16,
    ),
    "SAMMaskDecoder": lambda: keras_hub.layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=8,
        intermediate_dim=32,
        num_heads=2,
        embedding_dim=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
    ),
}
NAMES = (*BACKBONES, *TASKS)
"""All that are measured."""

# The sizes that the inputs of a model have, where they are unknown and not a length.
SIZES: dict[str, dict[str, tuple[int | None, ...]]] = {
    "Moonshine": {"encoder_input_values": (1000, 1), "encoder_padding_mask": (1000,)},
    "Whisper": {"encoder_features": (24, 80)},
    "SAM": {"points": (2, 2), "labels": (2,), "boxes": (1, 2, 2), "masks": (1, 32, 32, 1)},
}

SINGLE = ("XLNet",)
"""Models whose `call` mixes the samples of a batch, so that they are right for one sample alone."""


def build(name: str) -> Any:
    """A small model with random weights, by a name of the tables."""
    if name in PARTS:
        return PARTS[name]()
    if name in TASKS:
        backbone, settings = TASKS[name]
        task = getattr(hub, name)
        return task(backbone=build(backbone), preprocessor=None, **settings)
    kind, settings = VARIANTS.get(name) or (name, BACKBONES[name])
    models = {**VARIANTS, **BACKBONES, **PARTS}
    return getattr(hub, kind)(
        **{
            key: build(value) if isinstance(value, str) and value in models else value
            for key, value in settings.items()
        }
    )


def fixed_sizes(model: Any, name: str) -> keras.Model:
    """The model, called with inputs whose sizes are known."""
    sizes: Mapping[str, tuple[int | None, ...]] = next(
        (own for start, own in SIZES.items() if name.startswith(start)), {}
    )

    def new_input(tensor: Any) -> Any:
        known = tuple(LENGTH if size is None else size for size in tensor.shape[1:])
        shape = sizes.get(tensor.name, known)
        return keras.Input(shape, batch, dtype=tensor.dtype, name=tensor.name)

    batch = 1 if name.startswith(SINGLE) else None
    inputs = keras.tree.map_structure(new_input, model.input)
    return keras.Model(inputs, model(inputs), name=name)
