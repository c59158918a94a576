# %% [markdown]
# # Flax NNX: convolutions and BatchNorm
#
# Digits, a convolutional network, 90 % of its kernels' entries zero. `nnx.Optimizer`
# hands over `nnx.Param` alone: no statistics of BatchNorm, no keys of dropout.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from optax_grda import label_by_path, proximal, sparsity, sparsity_ramp, target_sparsity

images, digits = load_digits(return_X_y=True)
images = jnp.asarray(images / 16, jnp.float32).reshape(-1, 8, 8, 1)
digits = jnp.asarray(digits)
train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(32 * 16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(x.reshape(len(x), -1))


EPOCHS, BATCHES = 12, 44  # of 32 images
steps = EPOCHS * BATCHES
rate = optax.cosine_decay_schedule(0.1, steps)
ramp = sparsity_ramp(0.9, steps // 2)
cubic = proximal.power(3)
dial = target_sparsity(rate, ramp, momentum=0.9, proximal=cubic, weight_decay=5e-4)
sparse = optax.chain(optax.clip_by_global_norm(1.0), dial)
dense = optax.sgd(rate, momentum=0.9)
labels = label_by_path({"*kernel": "sparse", "*": "dense"})
model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(
    model, optax.partition({"sparse": sparse, "dense": dense}, labels), wrt=nnx.Param
)


@nnx.jit
def step(model, optimizer, rows):
    def loss(model):
        wrong = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(wrong(model(images[rows]), digits[rows]))

    optimizer.update(model, nnx.grad(loss)(model))


rng = np.random.default_rng(1)
for _ in range(EPOCHS):
    for rows in rng.permutation(train)[: BATCHES * 32].reshape(BATCHES, 32):
        step(model, optimizer, rows)

# %% [markdown]
# Evaluated with BatchNorm's running statistics:

# %%
model.eval()
params = nnx.state(model, nnx.Param)
accuracy = jnp.mean(jnp.argmax(model(images[test]), -1) == digits[test])
kernels = [params[layer]["kernel"] for layer in ("conv1", "conv2", "head")]
print(f"zeros in kernels {sparsity(kernels):.2%}, test accuracy {accuracy:.1%}")
kernel = np.asarray(model.conv2.kernel[...]).transpose(2, 0, 3, 1)
figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
axis.imshow(kernel.reshape(16 * 3, 32 * 3), cmap="RdBu_r", vmin=-0.5, vmax=0.5)
axis.set(title="conv2: 16 x 32 kernels of 3 x 3, white is 0", xticks=[], yticks=[])
plt.show()
