"""Image sets on trial: only the right content passes, whatever brought it."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refuses
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from flowtext import data
from flowtext.data import load, minibatches

REAL = os.environ.get("FLOWTEXT_DATA", "")  # where somebody keeps the real files


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A reader with an empty cache, no folder of files, and no way out."""
    monkeypatch.delenv("FLOWTEXT_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    known = {name: {**entry, "urls": []} for name, entry in data.KNOWN.items()}
    monkeypatch.setattr(data, "KNOWN", known)
    return tmp_path / "cache" / "flowtext"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The folder that FLOWTEXT_DATA names."""
    monkeypatch.setenv("FLOWTEXT_DATA", str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def made(n, shape, seed):
    """n random images, the label of each written into its first value."""
    rng = np.random.RandomState(seed)
    images = rng.randint(256, size=(n, *shape)).astype(np.uint8)
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    images.reshape(n, -1)[:, 0] = 20 * labels
    return images, labels


def paired(found):
    """Whether every image still has the label that is written into it."""
    return grey(found)[:, 0, 0, 0].tolist() == (20 * found.y).tolist()


def grey(found):
    """The values as they were stored, channels first."""
    return ((found.x + 1) * 127.5).round().to(torch.uint8).numpy()


def idx(array, magic=(0, 0, 8)):
    shape = np.array(array.shape, ">i4").tobytes()
    return bytes([*magic, array.ndim]) + shape + array.tobytes()


def register(name, content, algorithm="sha256", urls=()):
    digest = hashlib.new(algorithm, content).hexdigest()
    data.KNOWN[name] = {"hash": f"{algorithm}:{digest}", "urls": [*urls]}


def idx_set(kind, algorithm="sha256"):
    """A made set of 12 training and 10 test images: file names and bytes, zipped."""
    files = {}
    for part, n, seed in (("train", 12, 0), ("t10k", 10, 1)):
        images, labels = made(n, (5, 3), seed)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            name, content = f"{kind}-{part}-{what}-ubyte.gz", idx(array)
            register(name, content, algorithm)
            files[name] = gzip.compress(content)
    return files


@pytest.fixture
def mnist():
    return idx_set("mnist")


def put(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


class Mirrors(http.server.BaseHTTPRequestHandler):
    """Serves what `server.pages` holds: bytes, half of promised bytes, or an error."""

    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        whole, sent = page if isinstance(page, tuple) else (page or b"", None)
        self.send_header("Content-Length", str(len(whole)))
        for header in self.server.headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(whole[:sent])

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    """Two mirrors, a and b, on this machine's own address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirrors)
    server.pages, server.asked, server.headers = {}, [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def publish(web, files, mirrors="ab"):
    """Give every file its addresses, and serve it from these mirrors."""
    for name, content in files.items():
        data.KNOWN[name]["urls"] = [f"{web.address}/{each}/{name}" for each in "ab"]
        web.pages |= {f"/{each}/{name}": content for each in mirrors}


def stored(cache):
    return {path.name for path in cache.rglob("*")} if cache.exists() else set()


# Digits


def test_digits_are_scikit_learns_every_one_once_with_its_label():
    parts = load("digits"), load("digits", train=False)
    assert [len(part.x) for part in parts] == [1400, 397]
    images = torch.cat([part.x for part in parts]) * 8 + 8
    ours = torch.cat([images.flatten(1), torch.cat([p.y for p in parts])[:, None]], 1)
    truth = load_digits()
    theirs = np.column_stack([truth.data, truth.target])
    rows = [np.unique(table, axis=0) for table in (ours.numpy(), theirs)]
    assert np.array_equal(*rows)
    counts = np.bincount(truth.target).tolist()
    assert torch.cat([part.y for part in parts]).bincount().tolist() == counts


def test_digits_span_minus_one_to_one_and_say_what_they_are():
    found = load("digits")
    assert (found.x.dtype, found.y.dtype) == (torch.float32, torch.int64)
    assert (float(found.x.min()), float(found.x.max())) == (-1, 1)
    assert found.x.shape[1:] == (1, 8, 8)
    assert (found.name, found.classes) == ("digits", 10)


def test_digits_to_train_on_teach_those_to_test_on():
    parts = load("digits"), load("digits", train=False)
    (x, y), (new_x, new_y) = [(part.x.flatten(1), part.y) for part in parts]
    assert KNeighborsClassifier(3).fit(x, y).score(new_x, new_y) > 0.97


def test_other_digits_in_scikit_learn_are_refused(monkeypatch):
    changed = load_digits()
    changed.images[100, 3, 3] += 1
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: changed)
    with refuses("got digits from scikit-learn with content of sha256"):
        load("digits")


# Sets in the format of MNIST


def test_a_set_in_the_format_of_mnist_is_read_as_it_was_written(folder, mnist):
    put(folder, mnist)
    for train, n, seed in ((True, 12, 0), (False, 10, 1)):
        found, (images, labels) = load("mnist", train), made(n, (5, 3), seed)
        assert np.array_equal(grey(found)[:, 0], images)
        assert found.y.tolist() == labels.tolist()
        assert found.x.shape == (n, 1, 5, 3)
        assert found.name == "MNIST"
        assert paired(found)


def test_black_is_minus_one_and_white_is_one(folder, mnist):
    images, labels = made(10, (5, 3), 2)
    images[:, 1], images[:, 2] = 0, 255
    for what, array in (("images-idx3", images), ("labels-idx1", labels)):
        name = f"mnist-train-{what}-ubyte.gz"
        register(name, idx(array))
        put(folder, {name: gzip.compress(idx(array))})
    found = load("mnist").x
    assert (found[:, :, 1] == -1).all()
    assert (found[:, :, 2] == 1).all()


def test_fashion_has_its_own_files_and_name(folder):
    put(folder, idx_set("fashion", "md5"))
    found = load("fashion")
    assert found.name == "Fashion-MNIST"
    assert np.array_equal(grey(found)[:, 0], made(12, (5, 3), 0)[0])
    with pytest.raises(ConnectionError, match="mnist-train-images"):
        load("mnist")


def test_another_packaging_of_the_same_content_passes(folder, mnist):
    name = "mnist-train-images-idx3-ubyte.gz"
    content = gzip.decompress(mnist[name])
    for packed in (gzip.compress(content, 1, mtime=7), content):
        put(folder, mnist | {name: packed})
        assert paired(load("mnist"))


def test_no_flipped_byte_passes_unless_the_content_stays(folder, mnist):
    name = "mnist-train-images-idx3-ubyte.gz"
    put(folder, mnist)
    truth, passed = load("mnist").x, 0
    for place in range(len(mnist[name])):
        flipped = bytearray(mnist[name])
        flipped[place] ^= 16
        (folder / name).write_bytes(flipped)
        with contextlib.suppress(ValueError):
            assert torch.equal(load("mnist").x, truth)
            passed += 1
    assert passed <= 7  # the clock (4), level and system of the zip, one flag


BAD = {
    "one value changed": lambda content: gzip.compress(
        content[:-1] + bytes([content[-1] ^ 1])
    ),
    "truncated": lambda content: gzip.compress(content)[:-20],
    "cut before zipping": lambda content: gzip.compress(content[:-1]),
    "one value more": lambda content: gzip.compress(content + b"\0"),
    "another magic": lambda content: gzip.compress(b"\0\0\x0d" + content[3:]),
    "another shape": lambda content: gzip.compress(
        content[:8] + content[12:16] + content[8:12] + content[16:]
    ),
    "empty": lambda content: b"",
    "a page of a web site": lambda content: b"<html>404</html>",
    "labels for images": lambda content: gzip.compress(idx(made(12, (), 0)[1])),
}


@pytest.mark.parametrize("harm", BAD.values(), ids=BAD.keys())
def test_a_wrong_file_in_the_folder_is_named_and_not_replaced(folder, web, mnist, harm):
    name = "mnist-train-images-idx3-ubyte.gz"
    wrong = harm(gzip.decompress(mnist[name]))
    put(folder, mnist | {name: wrong})
    publish(web, mnist)
    with refuses(f"got {folder / name}"):
        load("mnist")
    assert (folder / name).read_bytes() == wrong
    assert not web.asked


def test_a_folder_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWTEXT_DATA", str(tmp_path / "typo"))
    with refuses("typo, expected an existing folder"):
        load("mnist")


# Mirrors and the cache


def test_a_set_is_fetched_once_and_then_read_without_a_network(web, mnist, cache):
    publish(web, mnist)
    first = load("mnist")
    assert paired(first)
    assert stored(cache) == {name for name in mnist if "train" in name}
    assert len(web.asked) == 2
    web.pages.clear()
    assert torch.equal(load("mnist").x, first.x)
    assert len(web.asked) == 2


def test_the_folder_comes_before_cache_and_mirrors(web, mnist, cache, folder):
    publish(web, mnist)
    put(folder, mnist)
    assert paired(load("mnist"))
    assert not web.asked
    assert not stored(cache)
    (folder / "mnist-train-labels-idx1-ubyte.gz").unlink()
    assert paired(load("mnist"))
    assert web.asked == ["/a/mnist-train-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("first", ["down", "wrong", "cut short", "half a file"])
def test_a_bad_mirror_sends_us_to_the_next(web, mnist, cache, first):
    publish(web, mnist, "b")
    for name, content in mnist.items():
        wrong = {
            "wrong": gzip.compress(b"\0\0\x08 another set"),
            "cut short": (content, len(content) // 2),  # ends before its promised end
            "half a file": content[: len(content) // 2],
        }
        if first in wrong:
            web.pages[f"/a/{name}"] = wrong[first]
    assert paired(load("mnist"))
    assert [path[:3] for path in web.asked] == ["/a/", "/b/"] * 2
    assert stored(cache) == {name for name in mnist if "train" in name}


def test_a_mirror_that_refuses_to_connect_sends_us_to_the_next(web, mnist):
    publish(web, mnist)
    web.pages = {path: page for path, page in web.pages.items() if "/b/" in path}
    for name in mnist:
        data.KNOWN[name]["urls"][0] = f"http://127.0.0.1:1/{name}"
    assert paired(load("mnist"))


def test_a_mirror_that_lets_the_browser_unzip_is_a_good_one(web, mnist):
    publish(web, mnist)
    web.headers = [("Content-Encoding", "gzip")]
    assert paired(load("mnist"))


def test_without_any_good_mirror_the_error_names_them_all(web, mnist, cache):
    publish(web, mnist, "")
    web.pages["/b/mnist-train-images-idx3-ubyte.gz"] = b"<html>moved</html>"
    with pytest.raises(ConnectionError) as caught:
        load("mnist")
    for part in (
        "got no good mnist-train-images-idx3-ubyte.gz",
        f"{web.address}/a/mnist-train-images-idx3-ubyte.gz (HTTPError)",
        f"{web.address}/b/mnist-train-images-idx3-ubyte.gz (wrong content)",
        "FLOWTEXT_DATA",
    ):
        assert part in str(caught.value)
    assert not stored(cache)


def test_a_damaged_file_in_the_cache_is_fetched_again(web, mnist, cache):
    publish(web, mnist)
    load("mnist")
    name = "mnist-train-images-idx3-ubyte.gz"
    (cache / name).write_bytes(mnist[name][:-9])
    assert paired(load("mnist"))
    assert (cache / name).read_bytes() == mnist[name]


def test_a_damaged_file_does_not_stay_in_the_cache(web, mnist, cache):
    publish(web, mnist)
    load("mnist")
    web.pages.clear()
    name = "mnist-train-images-idx3-ubyte.gz"
    (cache / name).write_bytes(mnist[name][:-9])
    with pytest.raises(ConnectionError):
        load("mnist")
    assert name not in stored(cache)


def test_an_interrupted_download_leaves_nothing(monkeypatch, web, mnist, cache):
    publish(web, mnist)

    def interrupted(self, url, file, _):
        Path(file).write_bytes(b"half")
        assert stored(cache) > {Path(file).name}
        raise KeyboardInterrupt

    monkeypatch.setattr(data.pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert not stored(cache)


def test_every_published_file_has_a_full_hash_and_an_address():
    file = Path(data.__file__).parent / "released" / "images.json"
    known = json.loads(file.read_text())
    for name, entry in known.items():
        assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", entry["hash"])
        assert all(re.match(r"https?://[\w.-]+/.*[^/]$", url) for url in entry["urls"])
        lone = name == "digits" or name.startswith("cifar10-jpeg")
        hosts = {url.split("/")[2] for url in entry["urls"]}
        assert not hosts if lone else len(hosts) >= 3
        assert all(name.endswith(url.split("/")[-1]) for url in entry["urls"])


# CIFAR-10


def binary(n, seed):
    """A made batch of the binary version: its bytes, its images, its labels."""
    images, labels = made(n, (3, 32, 32), seed)
    rows = np.column_stack([labels, images.reshape(n, -1)])
    return rows.tobytes(), images, labels


@pytest.fixture
def archive():
    """A made archive of five batches of four and a test batch of ten."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    parts = {name: binary(4 + 6 * (name[0] == "t"), i) for i, name in enumerate(names)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in sorted(names, key=hash):  # the order in an archive means nothing
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(parts[name][0])
            tar.addfile(member, io.BytesIO(parts[name][0]))
    register("cifar-10-binary.tar.gz", packed.getvalue())
    return packed.getvalue(), parts


def test_the_official_archive_is_read_as_it_was_written(folder, archive):
    packed, parts = archive
    put(folder, {"cifar-10-binary.tar.gz": packed})
    found, test = load("cifar10"), load("cifar10", train=False)
    *batches, truth = parts.values()
    assert np.array_equal(grey(found), np.concatenate([part[1] for part in batches]))
    assert np.array_equal(grey(test), truth[1])
    assert test.y.tolist() == truth[2].tolist()
    assert paired(found)
    assert found.name == test.name == "CIFAR-10"
    assert found.x.is_contiguous()


def test_the_official_archive_is_fetched_and_verified(web, archive, cache):
    name = "cifar-10-binary.tar.gz"
    publish(web, {name: archive[0]})
    web.pages[f"/a/{name}"] = archive[0][:-1] + b"\1"
    assert paired(load("cifar10"))
    assert web.asked == [f"/a/{name}", f"/b/{name}"]
    assert stored(cache) == {name}


def shard(n, seed, **changes):
    """A made shard of flat colours, its file's bytes and what it should hold."""
    rng = np.random.RandomState(seed)
    colours = rng.randint(256, size=(n, 3)).astype(np.uint8)
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    files = []
    for colour in colours:
        file = io.BytesIO()
        flat = np.broadcast_to(colour, (32, 32, 3))
        Image.fromarray(np.ascontiguousarray(flat)).save(file, "JPEG", quality=95)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"jpeg": np.concatenate(files), "offsets": offsets, "labels": labels}
    return packed(**arrays | changes), colours, labels


def packed(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.fixture
def shards(folder):
    """Five made shards of three images and one of ten to test on, in the folder."""
    names = [*(f"train-{i}" for i in range(5)), "test"]
    found = {}
    for seed, part in enumerate(names):
        content, colours, labels = shard(10 if part == "test" else 3, seed)
        with np.load(io.BytesIO(content)) as arrays:
            whole = b"".join(arrays[key].tobytes() for key in arrays)
        register(f"cifar10-jpeg-{part}.npz", whole)
        put(folder, {f"cifar10-jpeg-{part}.npz": content})
        found[part] = colours, labels
    return found


def test_jpeg_shards_give_their_colours_and_labels_and_say_so(shards):
    found, test = load("cifar10"), load("cifar10", train=False)
    *training, truth = shards.values()
    for images, parts in ((found, training), (test, [truth])):
        colours = np.concatenate([part[0] for part in parts]).astype(int)
        near = np.abs(grey(images).astype(int) - colours[:, :, None, None])
        assert near.max() <= 3  # JPEG turns colours into luma and chroma and back
        assert images.y.tolist() == np.concatenate([p[1] for p in parts]).tolist()
        assert images.name == "CIFAR-10 (JPEG)"


def test_the_exact_archive_goes_before_the_shards(folder, shards, archive):
    put(folder, {"cifar-10-binary.tar.gz": archive[0]})
    assert load("cifar10").name == "CIFAR-10"


def test_one_shard_of_another_content_or_none_is_an_error(folder, shards):
    name = "cifar10-jpeg-train-3.npz"
    put(folder, {name: shard(3, 99)[0]})
    with refuses(f"got {folder / name} with content of sha256"):
        load("cifar10")
    put(folder, {name: shard(3, 3, labels=np.zeros(3, int))[0]})
    with refuses(f"got {folder / name} with content of sha256"):
        load("cifar10")
    put(folder, {name: packed(labels=np.zeros(3))})
    with refuses(f"got {folder / name}, which cannot be read"):
        load("cifar10")
    (folder / name).unlink()
    with pytest.raises(ConnectionError, match=f"got no good {name} from anywhere"):
        load("cifar10")


# A reader's own set


def own(folder, **arrays):
    images, labels = made(10, (6, 5), 0)
    arrays = {"images": images, "labels": labels} | arrays
    kept = {key: value for key, value in arrays.items() if value is not None}
    (folder / "mine.npz").write_bytes(packed(**kept))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)])
def test_a_readers_own_set_is_read_as_it_was_written(folder, shape):
    images, labels = made(10, shape, 0)
    own(folder, images=images, labels=labels.astype(np.int32))
    for name in ("mine.npz", str(folder / "mine.npz")):
        found = load(name)
        first = images.reshape(10, 6, 5, -1).transpose(0, 3, 1, 2)
        assert np.array_equal(grey(found), first)
        assert found.y.tolist() == labels.tolist()
        assert found.y.dtype == torch.int64
        assert found.name == "mine.npz (unverified)"
        assert found.classes == 10


def test_a_readers_own_set_may_be_here_or_at_home(monkeypatch, tmp_path):
    own(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("mine.npz", "~/mine.npz"):
        assert paired(load(name))


def test_a_readers_own_set_is_tested_on_what_it_holds_for_that(folder):
    images, labels = made(20, (6, 5), 1)
    own(folder, test_images=images, test_labels=labels)
    assert np.array_equal(grey(load("mine.npz", train=False))[:, 0], images)
    assert len(load("mine.npz").x) == 10
    own(folder)
    with refuses("mine.npz, expected ['test_images', 'test_labels']"):
        load("mine.npz", train=False)


OWN = {
    "floats": ({"images": np.zeros((10, 6, 5))}, "images (10, 6, 5) of float64"),
    "flat": ({"images": np.zeros((10, 30), np.uint8)}, "images (10, 30) of uint8"),
    "channels first": (
        {"images": np.zeros((10, 3, 32, 32), np.uint8)},
        "images (10, 3, 32, 32) of uint8",
    ),
    "no images": ({"images": None}, "got arrays ['labels']"),
    "no labels": ({"labels": None}, "got arrays ['images']"),
    "too few labels": ({"labels": np.zeros(9, int)}, "labels (9,) of int64"),
    "one-hot": ({"labels": np.eye(10, dtype=int)}, "labels (10, 10) of int64"),
    "real labels": ({"labels": np.zeros(10)}, "labels (10,) of float64"),
    "labels below 0": ({"labels": np.arange(10) - 1}, "whole numbers from 0"),
    "words": ({"labels": np.array(["cat"] * 10)}, "labels (10,) of <U3"),
    "nothing": (
        {"images": np.zeros((0, 6, 5), np.uint8), "labels": np.zeros(0, int)},
        "images (0, 6, 5) of uint8",
    ),
    "objects": ({"labels": np.array([{}] * 10)}, "which cannot be read"),
}


@pytest.mark.parametrize(("change", "message"), OWN.values(), ids=OWN.keys())
def test_a_readers_own_set_of_another_form_is_refused(folder, change, message):
    own(folder, **change)
    with refuses(message) as caught:
        load("mine.npz")
    assert "mine.npz" in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_readers_own_file_that_is_no_npz_or_not_there(folder):
    with refuses("which cannot be read (FileNotFoundError"):
        load("mine.npz")
    own(folder)
    (folder / "mine.npz").write_bytes((folder / "mine.npz").read_bytes()[:-30])
    with refuses("mine.npz, which cannot be read"):
        load("mine.npz")


def test_an_unknown_name_lists_the_known_ones():
    message = "got 'MNIST', expected one of ['digits', 'mnist', 'fashion', 'cifar10']"
    with refuses(message):
        load("MNIST")


# The real files, where somebody has them


def real(monkeypatch, *names):
    """Whether these files are at hand; if so, FLOWTEXT_DATA names their folder."""
    if all(Path(REAL, name).is_file() for name in names) and REAL:
        monkeypatch.setenv("FLOWTEXT_DATA", REAL)
    return "FLOWTEXT_DATA" in os.environ


def test_known_facts_of_mnist(monkeypatch):
    names = [name for name in data.KNOWN if name.startswith("mnist")]
    if real(monkeypatch, *names):
        found, test = load("mnist"), load("mnist", train=False)
        assert found.x.shape == (60_000, 1, 28, 28)
        assert found.y[:5].tolist() == [5, 0, 4, 1, 9]
        assert test.y[:5].tolist() == [7, 2, 1, 0, 4]
        assert test.y.bincount().tolist() == (
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        )
        assert float((found.x + 1).mean() / 2) == pytest.approx(0.1307, abs=5e-5)
        assert float((found.x / 2).std()) == pytest.approx(0.3081, abs=5e-5)


def test_known_facts_of_cifar10_in_jpeg(monkeypatch):
    if real(monkeypatch, "cifar10-jpeg-test.npz"):
        found = load("cifar10", train=False)
        assert found.x.shape == (10_000, 3, 32, 32)
        assert found.y.bincount().tolist() == [1000] * 10
        means = (found.x + 1).mean((0, 2, 3)) / 2  # near the exact set's
        assert torch.allclose(means, torch.tensor([0.494, 0.485, 0.450]), atol=2e-3)


# Batches


@pytest.fixture
def numbered():
    """A hundred states that hold their own number, with it as label."""
    return torch.arange(100.0).reshape(100, 1, 1).expand(100, 2, 3), torch.arange(100)


def test_every_sample_is_drawn_equally_often_with_its_label(numbered, generator):
    x, y = numbered
    batches, counts = minibatches(x, 1000, y), torch.zeros(100)
    for _ in range(100):
        x1, label = batches(generator)
        assert x1.shape == (1000, 2, 3)
        assert torch.equal(x1[:, 0, 0], label.float())
        assert torch.equal(x1[:, 1, 2], label.float())
        counts += label.bincount(minlength=100)
    excess = ((counts - 1000) ** 2 / 1000).sum()  # chi-squared with 99 degrees
    assert 50 < excess < 170


def test_the_generator_decides_and_nothing_else(numbered, generator):
    x, y = numbered
    batches, state = minibatches(x, 16, y), generator.get_state()
    first = [batches(generator)[1] for _ in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generator.set_state(state)
    other = minibatches(x, 16, y)
    again = [other(generator)[1] for _ in range(3)]
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_is_of_the_datas_kind(numbered, generator):
    x, y = numbered
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x1, label = minibatches(x.to(dtype), 4)(generator)
        assert x1.dtype == dtype
        assert label is None
    assert minibatches(x, 4, y.int())(generator)[1].dtype == torch.int32


def test_a_draw_does_not_touch_the_data(numbered, generator):
    x, _ = numbered
    x = x.clone()
    minibatches(x, 4)(generator)[0].zero_()
    assert torch.equal(x, numbered[0])


def test_a_generator_on_the_cpu_serves_data_anywhere(numbered):
    x, y = numbered
    seeded = torch.Generator().manual_seed
    here = minibatches(x, 64, y)(seeded(3))[1]
    for device in ["cpu", *["cuda"] * torch.cuda.is_available()]:
        x1, label = minibatches(x.to(device), 64, y.to(device))(seeded(3))
        assert x1.device.type == label.device.type == device
        assert torch.equal(label.cpu(), here)
        assert torch.equal(x1[:, 0, 0], label.float())


@pytest.mark.usefixtures("no_type_checker")
def test_bad_batches_are_refused_at_the_door(numbered):
    x, y = numbered
    with refuses("got 0 samples and batches of 4, expected at least one of each"):
        minibatches(x[:0], 4)
    for size in (0, -1):
        with refuses(f"got 100 samples and batches of {size}"):
            minibatches(x, size)
    with refuses("got labels (99,), expected (100,)"):
        minibatches(x, 4, y[1:])
    with refuses("got labels (100, 1), expected (100,)"):
        minibatches(x, 4, y[:, None])
    with refuses("got a state of torch.uint8"):
        minibatches(x.byte(), 4)
