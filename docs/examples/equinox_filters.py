# %% [markdown]
# # Equinox: filters
#
# An Equinox module holds functions beside arrays: `init`, `update` and reports take
# what `eqx.filter` leaves. Where it is forgotten, the error says so.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_grda import (
    label_by_path,
    proximal,
    sparsity_ramp,
    sparsity_report,
    target_sparsity,
)

images, digits = load_digits(return_X_y=True)
images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])

EPOCHS, BATCHES = 20, 44  # of 32 images
steps = EPOCHS * BATCHES
rate = optax.cosine_decay_schedule(0.1, steps)
ramp = sparsity_ramp(0.9, steps // 2)
cubic = proximal.power(3)
dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
dense = optax.sgd(rate, momentum=0.9)
labels = label_by_path({"*weight": "sparse", "*": "dense"})
optimizer = optax.partition({"sparse": sparse, "dense": dense}, labels)
model = eqx.nn.MLP(64, 10, 128, depth=2, key=jax.random.key(0))
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def step(model, state, rows):
    def loss(model):
        wrong = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(wrong(jax.vmap(model)(images[rows]), digits[rows]))

    params = eqx.filter(model, eqx.is_inexact_array)
    updates, state = optimizer.update(eqx.filter_grad(loss)(model), state, params)
    return eqx.apply_updates(model, updates), state


rng = np.random.default_rng(1)
for _ in range(EPOCHS):
    for rows in rng.permutation(train)[: BATCHES * 32].reshape(BATCHES, 32):
        model, state = step(model, state, rows)

right = jnp.argmax(jax.vmap(model)(images[test]), -1) == digits[test]
print(f"test accuracy {jnp.mean(right):.1%}")
print(sparsity_report(eqx.filter(model, eqx.is_inexact_array)))
try:
    sparsity_report(model)
except TypeError as error:
    print(error)

# %% [markdown]
# How many hidden units of the first layer read each pixel:

# %%
figure, axis = plt.subplots(figsize=(4, 3), layout="constrained")
readers = jnp.count_nonzero(model.layers[0].weight, axis=0).reshape(8, 8)
figure.colorbar(axis.imshow(readers, cmap="Greys"), label="units of 128")
axis.set(xticks=[], yticks=[])
plt.show()
