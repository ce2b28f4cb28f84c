# %% [markdown]
# # A microcontroller
#
# From a Keras model to a C array for TFLite Micro, with the arena's size, checked by TFLite Micro itself.

# %%
from pathlib import Path

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

image = keras.Input((8, 8, 1), name="image")
x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
x = layers.DepthwiseConv2D(3, strides=2, padding="same", activation="relu", name="depthwise")(x)
x = layers.Conv2D(16, 1, activation="relu", name="pointwise")(x)
x = layers.Flatten(name="flatten")(x)
model = keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x))
model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[train], classes[train], batch_size=64, epochs=12, verbose=0)
print(f"float: {100 * model.evaluate(images[test], classes[test], verbose=0)[1]:.1f} % right")

# %% [markdown]
# ## Quantize for the target
#
# `target=` refuses now what TFLite Micro does not have. The bytes of the camera are known, so they fix the input's scale:
# a pixel of 0 to 16 becomes 0 to 1.

# %%
q = intact.quantize_model(model, target="tflite-micro", input_stats={"image": (0, 16)})
intact.calibrate(q, images[:200], verbose=0)
file = intact.export(q, "digits.tflite", "int8", "int8", target="tflite-micro")
print(intact.inspect(file))

# %% [markdown]
# ## Check it
#
# TFLite Micro runs the file, and is compared with LiteRT's reference kernels:

# %%
print(intact.check(file, "tflite-micro", images[test][:100]))

# %% [markdown]
# An Ethos-U beside the processor would run these ops, as the Vela compiler says:

# %%
print(intact.check(file, "ethos-u55-128"))

# %% [markdown]
# ## The C array

# %%
intact.write_c_array(file, "digits.c")
print(Path("digits.h").read_text())

# %% [markdown]
# In the firmware, an input byte is the pixel itself, less 128. The output's scale turns integers into probabilities:
#
# ```c
# input->data.int8[i] = pixel[i] - 128;
# float p = DIGITS_OUTPUT_0_SCALE * (output->data.int8[k] - DIGITS_OUTPUT_0_ZERO_POINT);
# ```
#
# ## What it says

# %%
outputs = intact.load_litert(file).predict(images[test])
figure, axes = plt.subplots(2, 8, figsize=(9, 2.8), layout="constrained")
for axis, picture, output, label in zip(
    axes.flat, images[test], outputs, classes[test], strict=False
):
    axis.imshow(picture[..., 0], cmap="gray_r")
    said = output.argmax()
    axis.set_title(
        f"{said} ({100 * output.max():.0f} %)", fontsize=8, color="k" if said == label else "r"
    )
    axis.axis("off")
print(f"int8: {100 * (outputs.argmax(1) == classes[test]).mean():.1f} % right")
