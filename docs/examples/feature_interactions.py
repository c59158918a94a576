# %% [markdown]
# # Feature interactions of a recommender
#
# AutoFIS ([Liu et al., KDD 2020](https://arxiv.org/abs/2003.11235)) gives every pair of
# fields of a factorization machine a gate, trains gates by gRDA and the rest by Adam,
# and trains again with the pairs left. Here 8 of 66 interact, in 4 of 10 categories.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from optax_grda import freeze_zeros, grda, proximal, sparsity_ramp, target_sparsity

FIELDS, SAMPLES, STEPS = np.arange(12), 20_000, 1500
start, adam = jnp.full(66, 0.6), optax.adam(0.01)
rng = np.random.default_rng(0)
first, second = np.triu_indices(12, 1)
interacts = np.isin(np.arange(66), rng.choice(66, 8, replace=False))
latent = rng.standard_normal((12, 10, 4)) * 1.2
latent[:, 4:] = 0
taste = rng.standard_normal((12, 10)) * 0.3


def interactions(vectors, rows):  # inner products, (pairs, samples)
    found = vectors[FIELDS[:, None], rows.T]
    return jnp.sum(found[first] * found[second], axis=-1)


rows = rng.integers(10, size=(2 * SAMPLES, 12))
truth = interacts @ interactions(latent, rows) + taste[FIELDS, rows].sum(1)
clicks = jnp.asarray(rng.random(2 * SAMPLES) < jax.nn.sigmoid(truth), jnp.float32)
rows, test = jnp.asarray(rows), np.arange(SAMPLES, 2 * SAMPLES)


def loss(params, at):  # pairs of unit scale, as in AutoFIS
    pairs = jax.nn.standardize(interactions(params["vectors"], rows[at]), axis=1)
    logits = params["gates"] @ pairs + params["bias"][FIELDS, rows[at]].sum(1)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, clicks[at]))


def fit(gates, gate_optimizer, vector_optimizer):
    vectors = 0.1 * jax.random.normal(jax.random.key(0), latent.shape)
    params = {"gates": gates, "vectors": vectors, "bias": jnp.zeros(taste.shape)}
    optimizers = {"gates": gate_optimizer, "vectors": vector_optimizer, "bias": adam}
    optimizer = optax.partition(optimizers, {name: name for name in params})

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (250,), 0, SAMPLES)
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["gates"]

    carry = params, optimizer.init(params)
    keys = jax.random.split(jax.random.key(1), STEPS)
    (params, _), gates = jax.jit(lambda: jax.lax.scan(step, carry, keys))()
    return params, gates


# %% [markdown]
# All gates start at 0.6. [AutoFIS's own
# settings](https://github.com/zhuchenxv/AutoFIS/blob/master/tf_main_autodeepfm.py) are
# for many more steps; "tuned" knows the truth. Blue are the gates of planted pairs.

# %%
searches = {
    "gRDA, as in AutoFIS": grda(1.0, c=0.0005, mu=0.8),
    "gRDA, tuned": grda(0.1, c=0.065, mu=0.8),
    "dial, 88 %": target_sparsity(0.3, sparsity_ramp(0.88, STEPS // 2)),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
for axis, (name, optimizer) in zip(axes, searches.items(), strict=True):
    params, path = fit(start, optimizer, adam)
    hits = np.sum((kept := np.asarray(params["gates"] != 0)) & interacts)
    again, _ = fit(jnp.where(kept, start, 0), freeze_zeros(adam), adam)
    print(
        f"{name:20} precision {hits / kept.sum():.0%} of {kept.sum()}, "
        f"recall {hits / 8:.0%}, test loss retrained {loss(again, test):.4f}"
    )
    axis.plot(path[:, ~interacts], "lightgrey")
    axis.plot(path[:, interacts], "C0")
    axis.set_title(name)
print(f"all 66 pairs: test loss {loss(fit(start, adam, adam)[0], test):.4f}")
plt.show()

# %% [markdown]
# With the dial's pairs: rows of the embedding, all or nothing, behind Adam's direction.

# %%
by_row = proximal.groups(lambda path, shape: ("categories", (0, 1)))
dial = target_sparsity(0.01, sparsity_ramp(0.7, STEPS // 2), proximal=by_row)
rows_dial = optax.chain(optax.scale_by_adam(), dial)
params, _ = fit(jnp.where(kept, start, 0), freeze_zeros(adam), rows_dial)
used = np.isin(FIELDS, [first[interacts], second[interacts]])[:, None] & latent.any(-1)
left = np.any(params["vectors"] != 0, axis=-1)
print(f"{left.sum()} of 120 rows; of {used.sum()} that count {np.sum(left & used)}")
