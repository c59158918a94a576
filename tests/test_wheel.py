"""The wheel: what it holds, and that jax and optax are all it needs."""

import importlib.metadata
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow

PROGRAM = """
import importlib, importlib.util, pkgutil, sys
import jax, jax.numpy as jnp, optax, optax_grda

for module in pkgutil.walk_packages(optax_grda.__path__, "optax_grda."):
    importlib.import_module(module.name)
for name in "flax", "equinox", "safetensors", "pytest", "models", "experiments":
    assert importlib.util.find_spec(name) is None, name

optimizer = optax_grda.grda(0.1, c=0.5)
params = {"kernel": jnp.array([1.0, 0.01]), "bias": jnp.zeros(2)}
state = optimizer.init(params)
updates, state = optimizer.update(params, state, params)
params = optax.apply_updates(params, updates)
assert optax_grda.sparsity_report(params).nonzero == 1
print(optax_grda.__file__)
"""


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    run(*build, "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def needed_distributions(requirements):
    """Installed distributions that the requirements lead to, without any extra."""
    found, open_names = {}, list(requirements)
    while open_names:
        requirement = Requirement(open_names.pop())
        name = canonicalize_name(requirement.name)
        wanted = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found:
            found[name] = importlib.metadata.distribution(name)
            open_names += found[name].requires or []
    return found


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (n for n in archive.namelist() if n.endswith("dist-info/METADATA"))
        return importlib.metadata.PathDistribution(zipfile.Path(wheel, path).parent)


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "optax_grda"
    assert names == {
        path.relative_to(ROOT).as_posix()
        for path in (*package.rglob("*.py"), package / "py.typed")
    }


def test_wheel_works_where_only_jax_and_optax_are_installed(wheel, tmp_path):
    requirements = metadata_of(wheel).requires
    direct = {Requirement(line).name for line in requirements if "extra ==" not in line}
    assert direct == {"jax", "optax"}

    packages = tmp_path / "packages"
    packages.mkdir()
    for distribution in needed_distributions(requirements).values():
        for top in {pathlib.Path(file).parts[0] for file in distribution.files}:
            source = pathlib.Path(distribution.locate_file(top))
            if top not in ("..", "__pycache__") and source.exists():
                (packages / top).symlink_to(source)

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", "--disable-pip-version-check", wheel)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{packages}\n")

    where = run(python, "-I", "-W", "error", "-c", PROGRAM, cwd=tmp_path)
    assert pathlib.Path(where.strip()).is_relative_to(site_packages)
