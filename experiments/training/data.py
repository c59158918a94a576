"""Datasets that fit in memory: digits, MNIST, CIFAR, text, and what users bring.

What does not fit streams: :mod:`experiments.training.streaming`.
"""

import dataclasses
import importlib.util
import inspect
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.training.errors import UserError
from experiments.training.text import STDLIB, read_text

Batch = dict[str, Any]  # arrays "input" and "label", and "weight" to evaluate with
TFDS_NAMES = ("mnist", "cifar10", "cifar100")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, or texts labelled byte by byte; checked when the object is made.

    Raises:
      UserError: if an array has another dtype than stated here, the shapes do not fit
        together, a split is empty, a float pixel lies outside [0, 1] or a label outside
        [0, num_classes).
    """

    name: str
    # Images (n, height, width, channels), uint8 or float32 in [0, 1]; or texts (n,
    # length), uint8.
    train_inputs: np.ndarray
    train_labels: np.ndarray  # (n,) of images, (n, length) of texts; int32
    test_inputs: np.ndarray  # (m, ...), as train_inputs
    test_labels: np.ndarray  # (m, ...), int32
    num_classes: int  # of texts, the vocabulary

    def __post_init__(self):
        for split in ("train", "test"):
            inputs = getattr(self, f"{split}_inputs")
            labels = getattr(self, f"{split}_labels")
            if inputs.ndim == 2:
                _check_texts(f"{self.name}: {split} texts", inputs, self.num_classes)
            else:
                _check_images(f"{self.name}: {split}_images", inputs)
            shape = inputs.shape if inputs.ndim == 2 else inputs.shape[:1]
            name = f"{self.name}: {split}_labels"
            _check_labels(name, labels, shape, self.num_classes)
        train, test = self.train_inputs, self.test_inputs
        if test.shape[1:] != train.shape[1:] or test.dtype != train.dtype:
            raise UserError(
                f"{self.name}: test images must be like training images, "
                f"{train.shape[1:]} {train.dtype}: got {test.shape[1:]} {test.dtype}"
            )

    @property
    def num_examples(self) -> int:
        """Training images or texts."""
        return len(self.train_labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image; (length,) of a text."""
        return self.train_inputs.shape[1:]

    @property
    def label_shape(self) -> tuple[int, ...]:
        """() of an image; (length,) of a text."""
        return self.train_labels.shape[1:]

    def batches(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """The training inputs of an order, in batches; the last may be smaller."""
        for start in range(0, len(order), size):
            index = order[start : start + size]
            yield {"input": self.train_inputs[index], "label": self.train_labels[index]}

    def evaluation(self, split: str, size: int = 1024) -> Iterator[Batch]:
        """The inputs of a split, each with the weight 1, in batches of one size.

        The last is filled up with inputs of weight 0.
        """
        inputs = getattr(self, f"{split}_inputs")
        labels = getattr(self, f"{split}_labels")
        size = min(size, len(labels))
        for start in range(0, len(labels), size):
            index = np.arange(start, start + size)
            known = index < len(labels)
            index = np.minimum(index, len(labels) - 1)
            yield {
                "input": inputs[index],
                "label": labels[index],
                "weight": known.astype(np.float32),
            }


def load(name: str, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Reads a dataset into memory.

    Args:
      name: one of

        - ``"digits"``: scikit-learn's 1,797 images of 8x8 pixels, float32. The first
          1,437 of ``numpy.random.default_rng(0).permutation(1797)`` are for training,
          the other 360 for testing.
        - ``"mnist"``, ``"cifar10"`` or ``"cifar100"`` (fine labels), prepared by
          TensorFlow Datasets in array_record format. TensorFlow is not needed to read
          them.
        - a path that ends in ``.npz``: a file with the arrays ``train_images``,
          ``train_labels``, ``test_images`` and ``test_labels``, images as
          :class:`Dataset` has them and labels of any integer dtype. ``class_names``,
          one a class, is optional; without it, the largest training label is the last
          class.
        - ``"python-stdlib"`` or the path of a folder: bytes of its files, see
          :mod:`experiments.training.text`.
      data_dir: where TensorFlow Datasets looks; None means ``$TFDS_DATA_DIR``, or else
        ``~/tensorflow_datasets``. Others do not need it.

    Returns:
      The dataset.

    Raises:
      FileNotFoundError: if the data are not there. It says where they were expected
        and which command prepares them.
      UserError: if name is unknown, tensorflow-datasets is needed and not installed, or
        an ``.npz`` file lacks an array or does not make a valid :class:`Dataset`.
    """
    if name == "digits":
        return _load_digits()
    if name in TFDS_NAMES:
        return _load_tfds(name, data_dir)
    if name.endswith(".npz"):
        return _load_npz(Path(name))
    if name == STDLIB or Path(name).is_dir():
        return Dataset(name, **read_text(name), num_classes=256)
    raise UserError(
        f"name must be 'digits', {STDLIB!r}, one of {TFDS_NAMES}, a path that ends in "
        f".npz or that of a folder of text, got {name!r}"
    )


def tfds_source(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    decoders: Mapping[str, Any] | None = None,
) -> Sequence[dict[str, Any]]:
    """Opens one split of a dataset that TensorFlow Datasets prepared.

    Args:
      name: the dataset's name there, such as ``"cifar10"``.
      split: ``"train"``, for example.
      data_dir: as for :func:`load`.
      decoders: passed on to ``tfds.data_source``.

    Returns:
      A sequence with random access, of one dict an example.

    Raises:
      FileNotFoundError, UserError: as for :func:`load`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{name} is read with tensorflow-datasets: pip install "
            "tensorflow-datasets array_record (or bring an .npz file)"
        ) from error

    builder = tfds.builder(name, data_dir=data_dir)
    formats = set()
    if builder.is_prepared():
        formats = {known.value for known in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise FileNotFoundError(_how_to_prepare(builder, formats))
    try:
        return builder.as_data_source(
            split, decoders=decoders, file_format="array_record"
        )
    except ValueError as error:  # it has no such split
        raise UserError(f"{name}: {error}") from error


def _how_to_prepare(builder: Any, formats: set[str]) -> str:
    """What is wrong with the directory of a tfds builder, and how to mend it."""
    if formats:
        command = (
            f"tfds convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record"
        )
    else:
        command = (
            f"tfds build {builder.name} --data_dir={builder.data_dir_root} "
            "--file_format=array_record"
        )
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            manual = inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)
            command += f" --manual_dir=MANUAL_DIR\n{manual}"
    return (
        f"{builder.name}: {builder.data_dir} must hold dataset_info.json, "
        f"features.json and {builder.name}-*.array_record* files, found "
        f"{', '.join(sorted(formats)) or 'no dataset'}. This command, where TensorFlow "
        f"is installed, prepares them:\n{command}"
    )


def _load_digits() -> Dataset:
    # Importing scikit-learn would take longer than most runs: its file is enough.
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise UserError("digits come with scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, np.float32, delimiter=",")  # 64 pixels to 16, and a label
    images = (table[:, :64] / 16).reshape(-1, 8, 8, 1)
    labels = table[:, 64].astype(np.int32)
    train, test = np.split(np.random.default_rng(0).permutation(1797), [1437])
    return Dataset(
        "digits", images[train], labels[train], images[test], labels[test], 10
    )


def _load_tfds(name: str, data_dir: str | os.PathLike | None) -> Dataset:
    arrays = {}
    for split in ("train", "test"):
        source = tfds_source(name, split, data_dir)
        # One call for all records: half the time of one by one.
        examples = source.__getitems__(range(len(source)))
        arrays[f"{split}_inputs"] = np.stack([x["image"] for x in examples])
        arrays[f"{split}_labels"] = np.array([x["label"] for x in examples], np.int32)
    num_classes = source.dataset_info.features["label"].num_classes
    return Dataset(name, **arrays, num_classes=num_classes)


def _load_npz(path: Path) -> Dataset:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path.absolute()}. It should hold the arrays {', '.join(names)}; "
            f"write it with\n  numpy.savez({str(path)!r}, train_images=..., ...)"
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} must be an .npz file, a zip archive of arrays")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                name: file[name] for name in (*names, "class_names") if name in file
            }
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} must hold arrays of numbers: {error}") from error
    class_names = arrays.pop("class_names", None)
    if missing := [name for name in names if name not in arrays]:
        raise UserError(
            f"{path} must hold the arrays {', '.join(names)}: "
            f"{', '.join(missing)} missing, found {', '.join(arrays)}"
        )
    for name in ("train_labels", "test_labels"):
        if not np.issubdtype(arrays[name].dtype, np.integer):
            raise UserError(
                f"{path}: {name} must have an integer dtype, got {arrays[name].dtype}"
            )
    for split in ("train", "test"):
        images = arrays.pop(f"{split}_images")
        _check_images(f"{path}: {split}_images", images)
        arrays[f"{split}_inputs"] = images
    images = len(arrays["train_labels"])
    largest = int(arrays["train_labels"].max(initial=0))
    if class_names is None and largest >= images > 0:
        raise UserError(
            f"{path}: train_labels must be below their number, {images}, unless "
            f"class_names says how many classes there are: the largest is {largest}"
        )
    num_classes = largest + 1 if class_names is None else len(class_names)
    for name in ("train_labels", "test_labels"):
        # Before they become int32, in which larger ones would come round as others.
        _check_range(f"{path}: {name}", arrays[name], num_classes)
        arrays[name] = arrays[name].astype(np.int32)
    return Dataset(str(path), **arrays, num_classes=num_classes)


def _check_images(name: str, images: np.ndarray) -> None:
    if images.dtype not in (np.uint8, np.float32):
        raise UserError(f"{name} must be uint8 or float32, got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(
            f"{name} must have the shape (n, height, width, channels) with no axis of "
            f"length 0, got {images.shape}"
        )
    # Written so that NaN fails.
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"{name} must lie in [0, 1], got values from {images.min()} to "
            f"{images.max()}"
        )


def _check_texts(name: str, texts: np.ndarray, num_classes: int) -> None:
    if texts.dtype != np.uint8 or 0 in texts.shape:
        raise UserError(
            f"{name} must be uint8 of shape (n, length) with no axis of length 0, got "
            f"{texts.dtype} {texts.shape}"
        )
    _check_range(name, texts, num_classes)


def _check_labels(
    name: str, labels: np.ndarray, shape: tuple[int, ...], num_classes: int
) -> None:
    if labels.dtype != np.int32:
        raise UserError(f"{name} must be int32, got {labels.dtype}")
    if labels.shape != shape:
        raise UserError(
            f"{name} must have the shape {shape}, one label an image or a byte of "
            f"text, got {labels.shape}"
        )
    _check_range(name, labels, num_classes)


def _check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{name} must lie in [0, {num_classes}), got values from {low} to {high}"
        )
