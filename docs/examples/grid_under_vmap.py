# %% [markdown]
# # A grid of settings, one program
#
# Rates and sparsities may be traced, as c and mu of `grda` may: `vmap` trains a grid.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_grda import label_by_path, proximal, sparsity_ramp, target_sparsity

images, digits = load_digits(return_X_y=True)
images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])
EPOCHS, BATCHES = 10, 44  # of 32 images


def logits(params, x):
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, rows):
    wrong = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(wrong(logits(params, images[rows]), digits[rows]))


def test_accuracy(learning_rate, wanted):
    steps = EPOCHS * BATCHES
    falling = optax.cosine_decay_schedule(1.0, steps)
    ramp = sparsity_ramp(wanted, steps // 2)

    def rate(n):
        return learning_rate * falling(n)

    cubic = proximal.power(3)
    dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
    sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
    dense = optax.sgd(rate, momentum=0.9)
    labels = label_by_path({"*kernel": "sparse", "*": "dense"})
    optimizer = optax.partition({"sparse": sparse, "dense": dense}, labels)

    def step(carry, rows):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    normal = jax.nn.initializers.he_normal()
    hidden, head = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"kernel": normal(hidden, (64, 64)), "bias": jnp.zeros(64)},
        "head": {"kernel": normal(head, (64, 10)), "bias": jnp.zeros(10)},
    }
    shuffle = jax.vmap(lambda key: jax.random.permutation(key, train)[: BATCHES * 32])
    rows = shuffle(jax.random.split(jax.random.key(1), EPOCHS)).reshape(-1, 32)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), rows)
    return jnp.mean(jnp.argmax(logits(params, images[test]), -1) == digits[test])


# %%
rates = jnp.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])
sparsities = jnp.array([0.5, 0.8, 0.9, 0.95, 0.97, 0.98])
grid = jax.vmap(jax.vmap(test_accuracy, (0, None)), (None, 0))
accuracies = jax.jit(grid)(rates, sparsities)
for wanted, row in zip(sparsities, accuracies, strict=True):
    print(f"{wanted:.0%} zeros: best {row.max():.1%}, at {rates[row.argmax()]:.2f}")

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
picture = axis.imshow(accuracies, vmin=0.8, cmap="viridis")
figure.colorbar(picture, label="test accuracy", extend="min")
axis.set_xticks(range(6), [f"{rate:.2f}" for rate in rates])
axis.set_yticks(range(6), [f"{wanted:.0%}" for wanted in sparsities])
axis.set(xlabel="learning rate", ylabel="zeros in kernels")
plt.show()
