# %% [markdown]
# # A transformer behind Adam
#
# A decoder reads Python's standard library byte by byte. AdamW trains it densely; the
# dial, behind `scale_by_adam`, makes 80 % of its kernels' entries zero.

# %%
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from optax_grda import label_by_path, sparsity_ramp, sparsity_report, target_sparsity
from optax_grda.proximal import power

WIDTH, WINDOW, BATCH, STEPS = 48, 64, 16, 400
files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
text = np.int32(text[: text.size // (WINDOW + 1) * (WINDOW + 1)])
train, test = jnp.split(text.reshape(-1, WINDOW + 1), [text.size // WINDOW * 7 // 8])


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = (nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x += self.attention(self.norm1(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


embed, place = (nnx.Embed(n, WIDTH, rngs=nnx.Rngs(n)) for n in (256, WINDOW))
blocks = nnx.Sequential(Block(nnx.Rngs(0)), Block(nnx.Rngs(1)))
norm = nnx.RMSNorm(WIDTH, rngs=nnx.Rngs(0))
graph, initial = nnx.split(nnx.List([embed, place, blocks, norm]))


def loss(params, texts):
    embed, place, blocks, norm = nnx.merge(graph, params)
    x = blocks(embed(texts[:, :-1]) + place(jnp.arange(WINDOW)))
    wrong = optax.softmax_cross_entropy_with_integer_labels
    return jnp.mean(wrong(embed.attend(norm(x)), texts[:, 1:]))


def fit(optimizer):
    def step(carry, rows):
        params, state = carry
        gradients = jax.grad(loss)(params, train[rows])
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    rows = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, len(train))
    carry = initial, optimizer.init(initial)
    return jax.jit(lambda: jax.lax.scan(step, carry, rows))()[0][0]


rate, ramp = optax.cosine_decay_schedule(0.003, STEPS), sparsity_ramp(0.8, STEPS // 2)
dial = target_sparsity(rate, ramp, gain=0.1, proximal=power(3), weight_decay=0.1)
dense = optax.adamw(rate, weight_decay=0.1)
parts = {"sparse": optax.chain(optax.scale_by_adam(), dial), "dense": dense}
mixed = optax.partition(parts, label_by_path({"*kernel": "sparse", "*": "dense"}))
for name, params in (("AdamW", fit(dense)), ("the dial", sparse := fit(mixed))):
    print(f"{name}: {jax.jit(loss)(params, test[::16]) / np.log(2):.2f} bits a byte")

kernels = [leaf for leaf in sparsity_report(sparse).leaves if "kernel" in leaf.path]
nonzero = sum(k.nonzero for k in kernels) / sum(k.size for k in kernels)
print(f"{1 - nonzero:.1%} of the entries of kernels are zero")
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.barh([k.path[len("2/layers/") :] for k in kernels], [k.sparsity for k in kernels])
axis.set(xlabel="share of entries that are zero", xlim=(0, 1))
plt.show()
