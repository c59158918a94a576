# %% [markdown]
# # Forward gradients
#
# gRDA takes any direction, also one that was found without backpropagation: along a
# random u, one forward pass gives the slope of the loss, and slope times u is the
# gradient on average ([Baydin et al., 2022](https://arxiv.org/abs/2202.08587)). Its
# variance grows with the number of parameters ([Ren et al.,
# 2023](https://arxiv.org/abs/2210.03310), reduce it), so this averages 32 of them, on a
# small model: softmax regression of digits, 650 parameters.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from optax_grda import label_by_path, sparsity_ramp, target_sparsity

images, digits = load_digits(return_X_y=True)
images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])
STEPS, DIRECTIONS = 3000, 32


def loss(params, rows):
    wrong = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(
        wrong(images[rows] @ params["kernel"] + params["bias"], digits[rows])
    )


def backward(params, rows, key):
    return jax.grad(loss)(params, rows)


def forward(params, rows, key):
    def along(key):
        u = optax.tree.random_like(key, params)
        _, slope = jax.jvp(lambda params: loss(params, rows), (params,), (u,))
        return jax.tree.map(lambda leaf: slope * leaf, u)

    sampled = jax.vmap(along)(jax.random.split(key, DIRECTIONS))
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), sampled)


def fit(gradient, learning_rate):
    rate = optax.cosine_decay_schedule(learning_rate, STEPS)
    sparse = target_sparsity(rate, sparsity_ramp(0.7, STEPS // 2))
    labels = label_by_path({"kernel": "sparse", "bias": "dense"})
    optimizer = optax.partition({"sparse": sparse, "dense": optax.sgd(rate)}, labels)
    params = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, train, (32,))
        updates, state = optimizer.update(gradient(params, rows, key), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), loss(params, train)

    keys = jax.random.split(jax.random.key(1), STEPS)
    carry = params, optimizer.init(params)
    (params, _), losses = jax.jit(lambda: jax.lax.scan(step, carry, keys))()
    return params, losses


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for gradient, learning_rate in {forward: 0.02, backward: 0.2}.items():
    params, losses = fit(gradient, learning_rate)
    scores = images[test] @ params["kernel"] + params["bias"]
    print(
        f"{gradient.__name__:8} zeros {jnp.mean(params['kernel'] == 0):.1%}, "
        f"test accuracy {jnp.mean(jnp.argmax(scores, -1) == digits[test]):.1%}"
    )
    axis.semilogy(losses, label=gradient.__name__)
axis.set(xlabel="step", ylabel="training loss")
axis.legend()
plt.show()
