# %% [markdown]
# # A transformer
#
# A digit is a sequence of eight rows. A small transformer reads them, and becomes a file of integers alone: attention,
# softmax, layer normalization and GELU included.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import intact

keras.utils.set_random_seed(0)
images, classes = load_digits(return_X_y=True)
rows = (images.reshape(-1, 8, 8) / 16).astype("float32")
order = np.random.default_rng(0).permutation(len(rows))
rows, classes = rows[order], classes[order]
train, test = slice(0, 1400), slice(1400, None)


class Positions(layers.Layer):
    """Adds a vector for each row; intact traces it without registration."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return x + self.table


inputs = keras.Input((8, 8), name="rows")
x = Positions(name="positions")(layers.Dense(32, name="embed")(inputs))
y = layers.MultiHeadAttention(4, 8, name="attention")(x, x)
x = layers.LayerNormalization(name="norm_1")(x + y)
y = layers.Dense(32, name="down")(layers.Dense(64, "gelu", name="up")(x))
x = layers.LayerNormalization(name="norm_2")(x + y)
x = layers.GlobalAveragePooling1D(name="mean")(x)
model = keras.Model(inputs, layers.Dense(10, name="digit")(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
model.fit(rows[train], classes[train], batch_size=100, epochs=10, verbose=0)
float_accuracy = model.evaluate(rows[test], classes[test], verbose=0)[1]
print(f"float: {100 * float_accuracy:.1f} % right")

# %% [markdown]
# ## Four schemes

# %%
results = {}
for scheme in ("int8", "int16x8", "dynamic_range", "weight_only_4"):
    q = intact.quantize_model(model, scheme)
    intact.calibrate(q, rows[:100], verbose=0)
    file = intact.export(q)
    outputs = intact.load_litert(file).predict(rows[test])
    results[scheme] = outputs
    accuracy = 100 * (outputs.argmax(1) == classes[test]).mean()
    print(f"{scheme:14} {accuracy:.1f} % right, {len(file):,} bytes")

# %%
real = model.predict(rows[test], verbose=0)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained", sharey=True)
for axis, (scheme, outputs) in zip(axes, results.items(), strict=True):
    axis.scatter(real, outputs, s=2)
    snr = 10 * np.log10((real**2).sum() / ((real - outputs) ** 2).sum())
    axis.set(title=f"{scheme}\n{snr:.0f} dB", xlabel="float")

# %% [markdown]
# ## Integers alone

# %%
q = intact.quantize_model(model)
intact.calibrate(q, rows[:100], verbose=0)
file = intact.export(q, "transformer.tflite", "int8", "int8", integer_only=True)
print(intact.compare(q, file, rows[test], float_model=model))

# %%
counts = intact.inspect(file).op_counts
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.barh(list(counts), list(counts.values()))
axis.invert_yaxis()
_ = axis.set_xlabel("ops in the file, all of them on integers")
