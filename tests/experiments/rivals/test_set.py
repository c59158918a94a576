import jax
import jax.numpy as jnp
import numpy as np

from experiments.rivals.set_ import set_


def test_the_smallest_are_replaced_at_random(make_task, trajectory):
    """100 steps: the mask changes at 4, 8, ..., 72; of 100 weights 40 are held."""
    rng = np.random.default_rng(0)
    params = {"a": jnp.float32(rng.normal(size=(10, 10)))}
    gradients = {"a": jnp.float32(rng.normal(size=(100, 10, 10)))}

    found = trajectory(set_(make_task(100, 0.6)), params, gradients)["a"]

    @jax.jit
    def start(seed):
        task = make_task(100, 0.6, key=jax.random.key(seed))
        return set_(task).init(params).mask["a"]

    assert not np.array_equal(found[1] != 0, start(1))

    grown = np.zeros((10, 10), int)
    for n in range(1, 100):
        held, holds = found[n] != 0, found[n + 1] != 0
        assert np.sum(holds) == 40
        if n % 4 or n >= 75:
            assert np.array_equal(held, holds)
            continue
        size = np.abs(found[n])
        assert np.all(holds[size > np.sort(size[held])[11]])  # 0.3 * 40 are dropped
        new = holds & ~held
        assert 0 < np.sum(new) <= 12  # some grow back
        gradient = gradients["a"][n]
        np.testing.assert_allclose(found[n + 1][new], -0.1 * gradient[new], rtol=1e-4)
        grown += new
    assert np.sum(grown > 0) > 70  # 18 times 12 of 72: none is out of reach
