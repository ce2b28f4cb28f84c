# %% [markdown]
# # After training
#
# A small CNN reads handwritten digits. We quantize it with 100 images and no labels, write it as an integer file, and look
# at what happened to weights, activations and outputs.

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

figure, axes = plt.subplots(1, 8, figsize=(8, 1.3))
for axis, image, label in zip(axes, images, classes, strict=False):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set_title(label)
    axis.axis("off")

# %%
model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv"),
        layers.BatchNormalization(momentum=0.9, name="norm"),
        layers.ReLU(name="relu"),
        layers.MaxPooling2D(name="pool"),
        layers.Conv2D(32, 3, activation="relu", name="conv_2"),
        layers.Flatten(name="flatten"),
        layers.Dense(10, name="digit"),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
model.fit(images[train], classes[train], batch_size=64, epochs=6, verbose=0)
print(f"float: {100 * model.evaluate(images[test], classes[test], verbose=0)[1]:.1f} % right")

# %% [markdown]
# ## Quantize
#
# `explain` says what becomes of each layer. `calibrate` finds the range of each activation.

# %%
print(intact.explain(model))

# %%
q = intact.quantize_model(model)
intact.calibrate(q, images[:100], verbose=0)
file = intact.export(q, "digits.tflite", input_dtype="int8", output_dtype="int8")
on_litert = intact.load_litert(file).predict(images[test])
print(f"int8 on LiteRT: {100 * (on_litert.argmax(1) == classes[test]).mean():.1f} % right")
print(f"{len(file):,} bytes, {len(intact.export(model)):,} in float")

# %% [markdown]
# ## What the file computes
#
# The quantized model is a Keras model. Its outputs are those of the file, and near those of the float model:

# %%
in_keras = q.predict(images[test], verbose=0)
real = model.predict(images[test], verbose=0)
print("values that differ between Keras and LiteRT:", (in_keras != on_litert).sum())

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
axes[0].scatter(in_keras, on_litert, s=4)
axes[0].set(xlabel="quantized, in Keras", ylabel="the file, on LiteRT", title="equal")
axes[1].scatter(real, on_litert, s=4)
_ = axes[1].set(xlabel="float, in Keras", title="near")

# %% [markdown]
# ## What a layer loses
#
# The comparison has each tensor's signal-to-noise ratio against float: by itself, and with all layers before it quantized.

# %%
comparison = intact.compare(q, file, images[test], float_model=model)
tensors = [tensor for tensor in comparison.layers if tensor.snr is not None]
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
places = np.arange(len(tensors))
axis.barh(places + 0.2, [t.local_snr or 0 for t in tensors], 0.4, label="the layer alone")
axis.barh(places - 0.2, [t.snr for t in tensors], 0.4, label="with all before it")
axis.set_yticks(places, [t.name for t in tensors])
axis.invert_yaxis()
axis.set_xlabel("signal to noise, dB")
_ = axis.legend()

# %% [markdown]
# `comparison.to_html("page.html")` writes this as a page, with distributions and with what to try.
