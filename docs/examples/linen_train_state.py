# %% [markdown]
# # Flax Linen: TrainState
#
# `TrainState.create(tx=...)` takes the optimizer as any other. The zeros that the dial
# asks for, and those it has, are in the state to be logged.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

from optax_grda import label_by_path, proximal, sparsity, sparsity_ramp, target_sparsity

images, digits = load_digits(return_X_y=True)
images, digits = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(128)(x))
        x = linen.relu(linen.Dense(64)(x))
        return linen.Dense(10)(x)


EPOCHS, BATCHES = 20, 44  # of 32 images
steps = EPOCHS * BATCHES
rate = optax.cosine_decay_schedule(0.1, steps)
ramp = sparsity_ramp(0.9, steps // 2)
cubic = proximal.power(3)
dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
dense = optax.sgd(rate, momentum=0.9)
labels = label_by_path({"*kernel": "sparse", "*": "dense"})
model = Network()
state = TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), images[:1])["params"],
    tx=optax.partition({"sparse": sparse, "dense": dense}, labels),
)


@jax.jit
def epoch(state, batches):
    def step(state, rows):
        def loss(params):
            logits = state.apply_fn({"params": params}, images[rows])
            wrong = optax.softmax_cross_entropy_with_integer_labels
            return jnp.mean(wrong(logits, digits[rows]))

        state = state.apply_gradients(grads=jax.grad(loss)(state.params))
        return state, optax.tree.get(state.opt_state, "reached")

    return jax.lax.scan(step, state, batches)


rng, reached = np.random.default_rng(1), []
for _ in range(EPOCHS):
    rows = rng.permutation(train)[: BATCHES * 32].reshape(BATCHES, 32)
    state, zeros = epoch(state, rows)
    reached.append(zeros)

logits = state.apply_fn({"params": state.params}, images[test])
accuracy = jnp.mean(jnp.argmax(logits, -1) == digits[test])
kernels = [layer["kernel"] for layer in state.params.values()]
print(f"zeros in kernels {sparsity(kernels):.2%}, test accuracy {accuracy:.1%}")
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(np.concatenate(reached), label="zeros in kernels")
axis.plot(ramp(np.arange(steps)), "k:", label="asked for")
axis.set(xlabel="step")
axis.legend()
plt.show()
