# %% [markdown]
# # With training
#
# Weights of 2 bits take four values. Calibration alone cannot make up for that; training can. The quantized
# model trains with plain `compile` and `fit`.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import intact

keras.utils.set_random_seed(0)
images, classes = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
order = np.random.default_rng(0).permutation(len(images))
images, classes = images[order], classes[order]
train, test = slice(0, 1400), slice(1400, None)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, activation="relu", name="conv_1"),
        layers.Conv2D(32, 3, activation="relu", name="conv_2"),
        layers.Flatten(name="flatten"),
        layers.Dense(10, name="digit"),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
model.fit(images[train], classes[train], batch_size=64, epochs=6, verbose=0)
float_accuracy = model.evaluate(images[test], classes[test], verbose=0)[1]
print(f"float: {100 * float_accuracy:.1f} % right")

# %% [markdown]
# ## 2 bits, with a learned scale
#
# LSQ learns the scale of each channel with the weights.

# %%
two_bits = intact.TensorSpec(2, symmetric=True, per_axis=True, quantizer="lsq")
scheme = intact.Scheme("two bits", (intact.Rule(weights=two_bits),))
print(intact.explain(model, scheme))

# %%
q = intact.quantize_model(model, scheme)
intact.calibrate(q, images[:100], verbose=0)
q.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
curve = [q.evaluate(images[test], classes[test], verbose=0)[1]]
for _ in range(6):
    q.fit(images[train], classes[train], batch_size=64, verbose=0)
    curve.append(q.evaluate(images[test], classes[test], verbose=0)[1])

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.axhline(100 * float_accuracy, color="gray", label="float")
axis.plot(100 * np.array(curve), marker="o", label="2-bit weights")
axis.set(xlabel="epochs of training with quantization", ylabel="right, %")
_ = axis.legend()

# %% [markdown]
# ## The weights
#
# In float they are anywhere. Trained with 2 bits, they are whole multiples of the scale of their channel:

# %%
integers, scales = q.get_layer("conv_2").quantized_weights()["kernel"]
kernel = keras.ops.convert_to_numpy(model.get_layer("conv_2").kernel)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].hist(kernel.ravel(), 60)
axes[0].set_title("float weights")
axes[1].hist(keras.ops.convert_to_numpy(integers).ravel(), np.arange(-3.5, 3.6, 0.1))
_ = axes[1].set_title("whole numbers of the 2-bit weights")

# %% [markdown]
# ## The file equals the model

# %%
file = intact.export(q, "two_bits.tflite")
print(intact.compare(q, file, images[test]))
print(f"{len(file):,} bytes, {len(intact.export(model)):,} in float")
