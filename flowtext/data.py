"""Small image sets, fetched once, and known by their content."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Generator, Tensor

from flowtext.tensors import Label, State, check_state

# Mirrors, and hashes of what their files hold: MD5 where no SHA-256 is published.
KNOWN = json.loads((Path(__file__).parent / "released" / "images.json").read_text())
# What a hash covers: all bytes of a file, or its unzipped bytes, or its arrays.
Content = list[bytes | np.ndarray]
# A draw of data, with labels or without.
Batches = Callable[[Generator | None], State | tuple[State, Label | None]]


@dataclass(frozen=True, eq=False)
class Images:
    """Images in [-1, 1] with labels; `name` is what their results must say."""

    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, " n"]
    name: str

    @property
    def classes(self) -> int:
        """The number of classes: one more than the largest label here."""
        return int(self.y.max()) + 1


def load(name: str, train: bool = True) -> Images:
    """A set by name ("digits", "mnist", "fashion", "cifar10"), or your own .npz file.

    A file is taken from the folder $FLOWTEXT_DATA, the cache, or the first good mirror.
    Yours holds `images` (uint8, (n, h, w) or (n, h, w, c)) and `labels`, and the same
    after `test_` for train=False; nobody verifies it. Raises ValueError for an unknown
    name or wrong content, ConnectionError if a file is nowhere to be had.
    """
    if name in SETS:
        return SETS[name](train)
    if name.endswith(".npz"):
        return _own(name, train)
    raise ValueError(f"got {name!r}, expected one of {[*SETS]} or an .npz file")


def minibatches(x: State, size: int, y: Label | None = None) -> Batches:
    """The draw of a batch, `batches(generator) -> (x1, y)`: uniform, with replacement.

    Nothing is remembered between draws: the generator's state is the whole state.
    Raises ValueError for no data, a size below 1, or labels of another length.
    """
    check_state(x)
    if not isinstance(size, int) or not len(x) or size < 1:
        size = size if isinstance(size, int) else type(size).__name__
        got = f"{len(x)} samples and batches of {size}"
        raise ValueError(f"got {got}, expected at least one of each")
    if y is not None and y.shape != x.shape[:1]:
        raise ValueError(f"got labels {tuple(y.shape)}, expected ({len(x)},)")

    def batches(generator: Generator | None) -> tuple[State, Label | None]:
        device = x.device if generator is None else generator.device
        rows = torch.randint(len(x), (size,), generator=generator, device=device)
        return x[rows.to(x.device)], None if y is None else y[rows.to(y.device)]

    return batches


def _find(name: str) -> Content:
    """A known file's content: the reader's, the cached, or the first good mirror's."""
    if path := _in_folder(name):
        return _read(path, name)
    cached = Path(pooch.os_cache("flowtext"), name)
    if cached.exists():
        with suppress(ValueError):
            return _read(cached, name)
        cached.unlink()
    failures = []
    for url in KNOWN[name]["urls"]:
        try:
            return _fetch(url, cached)
        except (OSError, ValueError) as error:
            wrong = isinstance(error, ValueError)
            why = "wrong content" if wrong else type(error).__name__
            failures.append(f"{url} ({why})")
    got = f"no good {name} from {', '.join(failures) or 'anywhere'}"
    hint = "the file in the folder that FLOWTEXT_DATA names, or a mirror that answers"
    raise ConnectionError(f"got {got}, expected {hint}")


def _fetch(url: str, cached: Path) -> Content:
    """A mirror's file; it reaches the cache only with the right content."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        draft = Path(folder, cached.name)
        pooch.HTTPDownloader(progressbar=True)(url, str(draft), None)
        content = _read(draft, cached.name)
        draft.replace(cached)
    return content


def _in_folder(name: str) -> Path | None:
    """The file of this name in the folder $FLOWTEXT_DATA, if both are there."""
    folder = os.environ.get("FLOWTEXT_DATA")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"got FLOWTEXT_DATA={folder}, expected an existing folder")
    return path if folder and (path := Path(folder, name)).exists() else None


def _read(path: Path, name: str) -> Content:
    """What a known file holds, verified."""
    with _legible(path):
        if name.endswith(".npz"):
            with np.load(path) as stored:
                content = [stored[key] for key in ("jpeg", "offsets", "labels")]
        else:
            raw = path.read_bytes()
            zipped = name.endswith("ubyte.gz") and raw[:3] != b"\0\0\x08"
            content = [gzip.decompress(raw) if zipped else raw]
    return _verified(content, name, path)


@contextmanager
def _legible(path: Path) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read, it is a ValueError."""
    try:
        yield
    except Exception as error:
        got = f"{path}, which cannot be read ({error!r})"
        raise ValueError(f"got {got}, expected a whole file of its kind") from error


def _verified(content: Content, name: str, source: Path | str) -> Content:
    """The content, if its hash is the known one; else a ValueError."""
    algorithm, wanted = KNOWN[name]["hash"].split(":")
    found = hashlib.new(algorithm, usedforsecurity=False)
    for part in content:
        found.update(part)
    if found.hexdigest() != wanted:
        got = f"{source} with content of {algorithm} {found.hexdigest()}"
        raise ValueError(f"got {got}, expected {wanted}")
    return content


def _images(images: np.ndarray, labels: np.ndarray, name: str, top=255) -> Images:
    """The door for every set: values from 0 to top become -1 to 1, channels first."""
    channels = images.shape[3:] or (1,)
    shaped = images.ndim in (3, 4) and images.size and channels[0] <= 4
    paired = labels.shape == images.shape[:1] and labels.dtype.kind in "iu"
    if not shaped or images.dtype != np.uint8 or not paired or labels.min() < 0:
        kinds = f"{images.dtype} and labels {labels.shape} of {labels.dtype}"
        need = "(n, h, w) or (n, h, w, c) of uint8 and (n,) of whole numbers from 0"
        got = f"images {images.shape} of {kinds} in {name}"
        raise ValueError(f"got {got}, expected {need}")
    x = torch.tensor(images.reshape(*images.shape[:3], *channels))
    x = x.permute(0, 3, 1, 2).contiguous().float().div_(top / 2).sub_(1)
    return Images(x, torch.tensor(labels.astype(np.int64)), name)


def _digits(train: bool) -> Images:
    """scikit-learn's 8 x 8 digits: 1,400 to train on and 397 to test on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.RandomState(0).permutation(1797)  # NumPy keeps this stream
    content = [part[order].astype(np.uint8) for part in (found.images, found.target)]
    _verified(content, "digits", "digits from scikit-learn")
    images, labels = (part[:1400] if train else part[1400:] for part in content)
    return _images(images, labels, "digits", top=16)


def _like_mnist(kind: str, name: str, train: bool) -> Images:
    part = f"{kind}-train" if train else f"{kind}-t10k"
    images = _idx(f"{part}-images-idx3-ubyte.gz")
    return _images(images, _idx(f"{part}-labels-idx1-ubyte.gz"), name)


def _idx(name: str) -> np.ndarray:
    """The array in an IDX file: three bytes, the rank, the shape, the values."""
    (content,) = _find(name)
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">i4")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar10(train: bool) -> Images:
    """The official archive, unless FLOWTEXT_DATA has JPEG shards and no archive."""
    archive = "cifar-10-binary.tar.gz"
    shards = [name for name in KNOWN if "jpeg" in name]
    if _in_folder(archive) or not any(map(_in_folder, shards)):
        return _images(*_rows(*_find(archive), train), "CIFAR-10")
    wanted = shards[:-1] if train else shards[-1:]
    images, labels = zip(*(_jpegs(name) for name in wanted), strict=True)
    return _images(np.concatenate(images), np.concatenate(labels), "CIFAR-10 (JPEG)")


def _rows(archive: bytes, train: bool) -> list[np.ndarray]:
    """Images and labels of the binary version: rows of a label and three planes."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        files = [tar.extractfile(f"cifar-10-batches-bin/{name}.bin") for name in names]
        rows = np.frombuffer(b"".join(file.read() for file in files), np.uint8)
    rows = rows.reshape(-1, 1 + 3 * 32 * 32)
    return [rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]]


def _jpegs(name: str) -> list[np.ndarray]:
    """Images and labels of a shard: JPEG files end to end, and where each starts."""
    jpeg, offsets, labels = _find(name)
    files = map(io.BytesIO, np.split(jpeg, offsets[1:-1]))
    return [np.stack([np.asarray(Image.open(file)) for file in files]), labels]


def _own(name: str, train: bool) -> Images:
    path = _in_folder(name) or Path(name).expanduser()
    with _legible(path), np.load(path) as stored:
        arrays = dict(stored)
    wanted = ["images", "labels"] if train else ["test_images", "test_labels"]
    if not set(wanted) <= arrays.keys():
        raise ValueError(f"got arrays {[*arrays]} in {path}, expected {wanted}")
    return _images(*(arrays[key] for key in wanted), f"{path.name} (unverified)")


SETS = {
    "digits": _digits,
    "mnist": lambda train: _like_mnist("mnist", "MNIST", train),
    "fashion": lambda train: _like_mnist("fashion", "Fashion-MNIST", train),
    "cifar10": _cifar10,
}
