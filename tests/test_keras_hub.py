"""Models of KerasHub, one of each kind; `benchmarks/hub.py` has all."""

import warnings

import keras
import numpy as np
import pytest

import intact

with warnings.catch_warnings():
    # Its own dependencies warn as they are imported.
    warnings.simplefilter("ignore")
    hub = pytest.importorskip("keras_hub", exc_type=ImportError).models

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH, VOCABULARY = 6, 20
TEXT = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
SHORT = TEXT | {"max_sequence_length": LENGTH}
LLAMA = {k: v for k, v in TEXT.items() if k != "num_heads"} | {
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = LLAMA | {"num_experts": 3, "top_k": 2, "sliding_window": 3}
SPEECH = TEXT | {"max_encoder_sequence_length": 2 * LENGTH, "max_decoder_sequence_length": LENGTH}
SWIN = {
    "image_shape": (16, 16, 3),
    "embed_dim": 8,
    "depths": (2,),
    "num_heads": (2,),
    "window_size": 2,
}
MODELS = {
    "text classifier": lambda: hub.BertTextClassifier(hub.BertBackbone(**SHORT), num_classes=3),
    "masked language model": lambda: hub.BertMaskedLM(hub.BertBackbone(**SHORT)),
    "causal language model": lambda: hub.GPT2CausalLM(hub.GPT2Backbone(**SHORT)),
    "rotary embedding": lambda: hub.LlamaCausalLM(hub.LlamaBackbone(**LLAMA)),
    "mixture of experts": lambda: hub.MixtralBackbone(**EXPERTS),
    "encoder and decoder": lambda: hub.T5Backbone(**TEXT),
    "windows": lambda: hub.SwinTransformerBackbone(**SWIN),
    "speech": lambda: hub.WhisperBackbone(num_mels=4, **SPEECH),
}


def like(tensor, rng):
    """Random data for an input, whose unknown sizes become `LENGTH`."""
    shape = (8, *(size or LENGTH for size in tensor.shape[1:]))
    if "float" in tensor.dtype:
        return rng.normal(size=shape).astype("float32")
    if "padding_mask" in tensor.name:
        return (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (8, 1))).astype(tensor.dtype)
    bound = {"segment_ids": 2, "mask_positions": LENGTH}.get(tensor.name, VOCABULARY)
    return rng.integers(0, bound, shape).astype(tensor.dtype)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_becomes_a_file_of_integers(name, rng):
    model = MODELS[name]()
    data = keras.tree.map_structure(lambda tensor: like(tensor, rng), model.input)

    def of_size(tensor, values):
        return keras.Input(values.shape[1:], dtype=tensor.dtype, name=tensor.name)

    inputs = keras.tree.map_structure(of_size, model.input, data)
    q = intact.quantize_model(keras.Model(inputs, model(inputs)))
    intact.calibrate(q, data, verbose=0)
    content = intact.export(q, integer_only=True)
    assert intact.compare(q, content, data, per_layer=False).different == 0
