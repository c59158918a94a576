# %% [markdown]
# # Fine-tuning a trained network to 90 %
#
# The dial starts at the weights that it is given, and needs a tenth of their training.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_grda import label_by_rank, proximal, sparsity, sparsity_ramp, target_sparsity

images, digits = load_digits(return_X_y=True)
images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])


def logits(params, x):
    *hidden, head = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ head["kernel"] + head["bias"]


def loss(params, rows):
    wrong = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(wrong(logits(params, images[rows]), digits[rows]))


def accuracy(params):
    return jnp.mean(jnp.argmax(logits(params, images[test]), -1) == digits[test])


def fit(optimizer, params, epochs):
    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        rows = jax.random.permutation(key, train)[: 44 * 32].reshape(44, 32)
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, accuracy(carry[0])

    keys = jax.random.split(jax.random.key(1), epochs)
    carry = params, optimizer.init(params)
    (params, _), history = jax.jit(lambda: jax.lax.scan(epoch, carry, keys))()
    return params, history


keys = jax.random.split(jax.random.key(0), 3)
params = [
    {"kernel": jax.nn.initializers.he_normal()(key, shape), "bias": jnp.zeros(shape[1])}
    for key, shape in zip(keys, [(64, 128), (128, 64), (64, 10)], strict=True)
]
momentum = optax.sgd(optax.cosine_decay_schedule(0.05, 40 * 44), momentum=0.9)
trained, history = fit(momentum, params, 40)
print(f"dense, 40 epochs: test accuracy {accuracy(trained):.1%}")

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(range(1, 41), history, "k", label="dense")
for wanted in (0.8, 0.9, 0.95, 0.98):
    rate = optax.cosine_decay_schedule(0.1, 4 * 44)  # the largest that trains densely
    ramp = sparsity_ramp(wanted, 2 * 44)
    cubic = proximal.power(3)
    dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
    sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
    optimizers = {"sparse": sparse, "dense": optax.sgd(rate, momentum=0.9)}
    optimizer = optax.partition(optimizers, label_by_rank({0: "dense", 2: "sparse"}))
    params, history = fit(optimizer, trained, 4)
    zeros = sparsity([layer["kernel"] for layer in params])
    print(f"4 more: {zeros:.1%} zeros, test accuracy {accuracy(params):.1%}")
    axis.plot(range(40, 45), [accuracy(trained), *history], label=f"{wanted:.0%} zeros")
axis.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.85, 1))
axis.legend()
plt.show()
