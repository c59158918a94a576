# %% [markdown]
# # Eight devices, sharded state
#
# Batches are split over four, hidden units over two. The state is sharded as the
# parameters are, and zeros are counted over whole arrays.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

from optax_grda import label_by_path, proximal, sparsity_ramp, target_sparsity

jax.config.update("jax_num_cpu_devices", 8)  # not where there are devices
mesh = jax.make_mesh((4, 2), ("data", "units"))  # Explicit axes, JAX's default
jax.set_mesh(mesh)
images, digits = load_digits(return_X_y=True)
images = np.asarray(images / 16, np.float32)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])

STEPS = 600
rate = optax.cosine_decay_schedule(0.1, STEPS)
ramp = sparsity_ramp(0.9, STEPS // 2)
cubic = proximal.power(3)
dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
dense = optax.sgd(rate, momentum=0.9)
labels = label_by_path({"*kernel": "sparse", "*": "dense"})
optimizer = optax.partition({"sparse": sparse, "dense": dense}, labels)

specs = {
    "hidden": {"kernel": P(None, "units"), "bias": P("units")},
    "head": {"kernel": P("units", None), "bias": P()},
}
normal = jax.nn.initializers.he_normal()
hidden, head = jax.random.split(jax.random.key(0))
params = {
    "hidden": {"kernel": normal(hidden, (64, 128)), "bias": jnp.zeros(128)},
    "head": {"kernel": normal(head, (128, 10)), "bias": jnp.zeros(10)},
}
params = jax.tree.map(jax.device_put, params, specs)
state = jax.jit(optimizer.init)(params)


def logits(params, x):
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    x = jnp.matmul(x, params["head"]["kernel"], out_sharding=P("data"))
    return x + params["head"]["bias"]


def step(params, state, x, y):
    def loss(params):
        wrong = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(wrong(logits(params, x), y))

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


step = jax.jit(step, donate_argnums=(0, 1))
for n in range(STEPS):
    rows = np.random.default_rng(n).choice(train, 32)
    batch = jax.device_put((images[rows], digits[rows]), P("data"))
    params, state = step(params, state, *batch)

right = jnp.argmax(logits(params, jax.device_put(images[test], P("data"))), -1)
print(f"test accuracy {np.mean(np.asarray(right) == digits[test]):.1%}")
print(jax.typeof(optax.tree.get(state, "accumulator")["hidden"]["kernel"]))
print(f"zeros {optax.tree.get(state, 'reached'):.2%}")
kernel = params["hidden"]["kernel"]
figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for axis, shard in zip(axes, kernel.addressable_shards[:2], strict=True):
    axis.spy(shard.data)
    axis.set(title=f"{shard.device}: {np.mean(np.asarray(shard.data) == 0):.0%} zeros")
plt.show()
