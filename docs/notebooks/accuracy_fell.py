# %% [markdown]
# # Accuracy fell, now what
#
# This model has a fault that is common behind batch norms: some channels are far larger than the others. In float nobody
# notices. In int8 all channels share one range, and the small ones are left with a few integers.

# %%
import warnings

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
        layers.Conv2D(16, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(momentum=0.9, name="norm"),
        layers.ReLU(name="relu"),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.Conv2D(32, 1, activation="relu", name="pointwise"),
        layers.Flatten(name="flatten"),
        layers.Dense(10, name="digit"),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
model.fit(images[train], classes[train], batch_size=64, epochs=6, verbose=0)

gamma, beta, mean, variance = model.get_layer("norm").get_weights()
kernel, bias = model.get_layer("depthwise").get_weights()
gamma[:3], beta[:3], kernel[:, :, :3] = gamma[:3] * 400, beta[:3] * 400, kernel[:, :, :3] / 400
model.get_layer("norm").set_weights([gamma, beta, mean, variance])
model.get_layer("depthwise").set_weights([kernel, bias])


def right(model):
    """The share of test images that are right."""
    return 100 * (model.predict(images[test], verbose=0).argmax(1) == classes[test]).mean()


# %% [markdown]
# ## It is lost
#
# `calibrate` says so by a warning, which names the tensors that lose most:

# %%
q = intact.quantize_model(model)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    intact.calibrate(q, images[:100], verbose=0)
print(*(w.message for w in caught if w.category is intact.AccuracyWarning))
print(f"float {right(model):.1f} %, int8 {right(q):.1f} %")

# %% [markdown]
# ## Where
#
# No value differs between Keras and the file, so quantization is the cause. `bisect` finds the layer, and the channels
# of its output show why:

# %%
print(intact.bisect(q, model, images[test], classes[test], verbose=0))

# %%
largest = keras.Model(model.inputs, model.get_layer("relu").output).predict(images[test], verbose=0)
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.bar(range(16), largest.max((0, 1, 2)))
_ = axis.set(yscale="log", xlabel="channel of relu", ylabel="largest value")

# %% [markdown]
# ## What helps
#
# `recover` moves scales between layers, so that all channels fill the range alike. It needs no labels. Sixteen bits for that
# tensor and for the layer that reads it help as well. Training wins back most of it, and takes longest.

# %%
recovered = intact.recover(intact.quantize_model(model), images[:100], verbose=0)

# %%
fine = intact.TensorSpec(16, symmetric=True)
rules = [intact.Rule(name, activations=fine) for name in ("conv", "norm", "relu", "depthwise")]
wide = intact.quantize_model(model, intact.Scheme("finer", (*rules, intact.Rule())))
intact.calibrate(wide, images[:100], verbose=0)

q.compile(keras.optimizers.Adam(1e-3), loss)
before = right(q)
q.fit(images[train], classes[train], batch_size=64, epochs=3, verbose=0)

scores = {
    "float": right(model),
    "int8": before,
    "recover": right(recovered),
    "16 bits for two kernels": right(wide),
    "3 epochs of training": right(q),
}
assert scores["int8"] < scores["float"] - 5 < scores["recover"]
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = axis.barh(list(scores), list(scores.values()))
axis.bar_label(bars, fmt="%.1f %%")
axis.invert_yaxis()
_ = axis.set(xlabel="right, %", xlim=(0, 112))
