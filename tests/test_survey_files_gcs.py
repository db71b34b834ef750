"""`survey.files` on gs:// through Google's client, against the emulator."""

import gc
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference import parts
from survey import detections, files, labels, storage
from survey.errors import InputError
from survey.geometry import Mosaic, Window
from survey.raster import Raster


@pytest.fixture
def folder(gcs, request):
    """A folder of the bucket for this test alone."""
    return f"gs://bkt/{request.node.name}"


def test_write_read_and_what_is_there(gcs, folder):
    path = f"{folder}/größe 1/a.json"
    assert not files.exists(path)
    assert files.names(folder) == []
    files.write_json(path, {"b": 1, "a": "é"})
    files.write_json(path, {"b": 2, "a": "é"})
    assert files.read(path).decode() == '{\n "b": 2,\n "a": "é"\n}\n'
    assert files.read_json(path, "x") == {"b": 2, "a": "é"}
    assert files.exists(path)
    assert not files.exists(f"{folder}/größe 1")  # a folder is no object
    assert files.size(path) == len(files.read(path))
    files.write(f"{folder}/b", b"1")
    assert files.names(folder) == files.names(f"{folder}/") == ["b", "größe 1"]
    assert files.read_all([f"{folder}/b", path, f"{folder}/b"]) == [b"1", files.read(path), b"1"]
    files.remove(f"{folder}/b")
    files.remove(f"{folder}/b")  # gone already is no error
    assert files.names(folder) == ["größe 1"]
    files.make_folder(f"{folder}/new")  # folders are parts of names: nothing to make
    files.remove_folder(folder)
    assert files.names(folder) == []


def test_what_is_missing(gcs, folder):
    with pytest.raises(FileNotFoundError, match=f"{folder}/none does not exist"):
        files.read(f"{folder}/none")
    for ask in (files.size, files.sha256, files.fingerprint, lambda path: storage.read_range(path, 0, 3)):
        with pytest.raises(FileNotFoundError, match="none does not exist"):
            ask(f"{folder}/none")
    with pytest.raises(InputError, match="none does not exist: a spec is expected"):
        files.read_json(f"{folder}/none", "a spec")
    with pytest.raises(InputError, match="does not exist: a label map"):
        labels.read(f"{folder}/none.pbtxt")
    assert files.intact(folder, {"none": "0"}) == set()


def test_ranges(gcs, folder):
    files.write(f"{folder}/a", b"0123456789")
    assert storage.read_range(f"{folder}/a", 2, 4) == b"234"
    assert storage.read_range(f"{folder}/a", 8, 100) == b"89"
    assert storage.read_range(f"{folder}/a", 10, 20) == b""


def test_a_shard_is_seen_whole_or_not_at_all(gcs, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = np.random.default_rng(0).bytes(9_000_000)  # more than the 8 MB from which the client uploads in steps
    digest = hashlib.sha256(content).hexdigest()
    path = f"{folder}/train.tfrecord"
    with files.scratch(path, beside=f"{folder}/unfinished") as temporary:
        Path(temporary).write_bytes(content)
        assert not files.exists(path)
        files.publish(temporary, path, digest)
    assert list(tmp_path.iterdir()) == []
    assert files.names(folder) == ["train.tfrecord"]
    assert files.sha256(path) == digest
    killed = files.scratch(path, beside=folder)
    Path(killed.__enter__()).write_bytes(b"half")
    killed.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list(tmp_path.iterdir()) == []
    assert files.sha256(path) == digest


def test_a_digest_is_recorded_and_goes_with_its_object(gcs, folder, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    files.publish(str(tmp_path / "a"), f"{folder}/a", digest)
    before = len(gcs.requests())
    assert files.intact(folder, {"a": digest, "b": digest}) == {"a"}
    assert files.intact(folder, {"a": "0"}) == set()
    assert all("alt=media" not in request.path for request in gcs.requests(since=before))  # nothing was downloaded
    gcs.upload(tmp_path / "a", f"{folder}/a")  # somebody else's copy, though of the same bytes
    assert files.intact(folder, {"a": digest}) == set()


def test_fingerprints_need_no_download(gcs, folder, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    for name in "ab":
        gcs.upload(tmp_path / "a", f"{folder}/{name}")
    files.write(f"{folder}/c", b"abd")
    before = len(gcs.requests())
    # RFC 1321, appendix A.5: MD5 of "abc".
    assert files.fingerprint(f"{folder}/a") == files.fingerprint(f"{folder}/b") == "gs-md5:900150983cd24fb0d6963f7d28e17f72"
    assert files.fingerprint(f"{folder}/c") != files.fingerprint(f"{folder}/a")
    assert all("alt=media" not in request.path for request in gcs.requests(since=before))
    assert files.fingerprint(str(tmp_path / "a")) == hashlib.sha256(b"abc").hexdigest()


def test_composed_objects_have_no_md5(monkeypatch):
    class Composed:
        md5_hash, crc32c, size = None, "NrcqGQ==", 3  # 0x36b72a19 big-endian

    monkeypatch.setattr(storage, "_existing", lambda url: Composed)
    assert storage.fingerprint("gs://bkt/a") == "gs-crc32c:36b72a19-3"


def test_of_several_that_create_one_succeeds(gcs, folder, tmp_path):
    assert files.create(str(tmp_path / "a"), b"1")
    assert not files.create(str(tmp_path / "a"), b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]

    before = len(gcs.requests())
    assert files.create(f"{folder}/a", b"1")
    assert "ifGenerationMatch=0" in gcs.requests("/upload/", since=before)[0].path
    gcs.fail(412, 1, "/upload/")  # what the real service answers where there is an object; the emulator writes over it
    assert not files.create(f"{folder}/a", b"2")
    assert files.read(f"{folder}/a") == b"1"


def test_the_digest_of_a_folder_does_not_depend_on_where_it_lies(gcs, folder, tmp_path):
    for name in ("saved_model.pb", "a/b/c", "a/b.x", "a.txt", "variables/v.index", "variables/v.data"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        files.write(f"{folder}/{name}", name.encode())
    assert files.sha256_of_folder(folder) == files.sha256_of_folder(str(tmp_path))


@pytest.mark.parametrize(
    "pattern",
    [
        "*.tif",
        "a/*.tif",
        "**/*.tif",
        "a/**/*.tif",
        "?.tif",
        "[ab].tif",
        "[!a].tif",
        "*/*",
        "a/**",
        "b.tif",
        "*",
        "**/b",
        "a b/x[[]1].tif",
    ],
)
def test_patterns_mean_what_they_mean_on_a_disk(gcs, tmp_path, pattern):
    names = [
        "a.tif",
        "b.tif",
        ".c.tif",
        "a/a.tif",
        "a/b/c.tif",
        "a/b/.d/e.tif",
        "a/b/d/b",
        "a b/x[1].tif",
        "a.tif.aux.xml",
        "é.tif",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        if not files.exists(f"gs://bkt/patterns/{name}"):
            files.write(f"gs://bkt/patterns/{name}", name.encode())
    expected = [os.path.relpath(path, tmp_path) for path in files.match(f"{tmp_path}/{pattern}", "mosaics")]
    assert files.match(f"gs://bkt/patterns/{pattern}", "mosaics") == [f"gs://bkt/patterns/{name}" for name in expected]


def test_a_pattern_lists_no_other_folder(gcs, folder):
    for name in ("2023/a.tif", "2024/a.tif", "2024/deep/b.tif"):
        files.write(f"{folder}/{name}", b"1")
    before = len(gcs.requests())
    assert files.match(f"{folder}/2024/*.tif", "mosaics") == [f"{folder}/2024/a.tif"]
    (listing,) = gcs.requests("/o?", since=before)
    assert "2024%2F" in listing.path
    assert "delimiter=%2F" in listing.path
    with pytest.raises(InputError, match=r"--mosaics='gs://bkt/none/\*' matches no object"):
        files.match("gs://bkt/none/*", "mosaics")


def test_the_emulator_waits_for_nobody(gcs, folder):
    """A process that has connected but not asked yet must not keep another from its answer, as it would not at Google."""
    with socket.create_connection(gcs.url.removeprefix("http://").split(":")):
        files.write(f"{folder}/one", b"1")
        assert files.read(f"{folder}/one") == b"1"


# The client drops the connection of a download that failed, and Python says so when it collects it.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(gcs, folder, status):
    gcs.fail(status, 1, "POST /upload/")
    files.write(f"{folder}/a", b"abc")
    gcs.fail(status, 1, "alt=media")
    assert files.read(f"{folder}/a") == b"abc"
    gcs.fail(status, 1, "GET /storage/v1/b/bkt/o")
    assert files.names(folder) == ["a"]
    gc.collect()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gs://", "'' is not the name of a bucket"),
        ("gs://Seals/a", "'Seals' is not the name of a bucket"),
        ("gs:///a", "must be gs://BUCKET/NAME"),
        ("gs://bkt//a", "with single slashes"),
        ("gs://bkt", "is a folder: must be gs://BUCKET/NAME"),
        ("gs://bkt/a/", "is a folder: must be gs://BUCKET/NAME"),
        ("s3://bkt/a", "must be a local path or a gs:// address; s3:// cannot be read or written"),
        ("https://example.org/a", "https:// cannot be read"),
    ],
)
def test_addresses_that_cannot_be(gcs, path, words):
    with pytest.raises(InputError, match=words):
        files.read(path)


def test_a_bucket_that_does_not_exist(gcs):
    words = "the bucket 'no-such-bucket' does not exist: check the name, or make it with gcloud storage buckets create"
    for ask in (files.read, files.sha256, files.names, lambda path: files.write(path, b""), lambda path: files.match(path, "x")):
        with pytest.raises(InputError, match=words):
            ask("gs://no-such-bucket/a")


def test_no_access(gcs, folder):
    gcs.fail(403, 100, "/b/bkt")
    try:
        for ask in (files.read, files.exists, files.names, lambda path: files.write(path, b"")):
            with pytest.raises(InputError, match=r"access denied \(.*\): ask for the role Storage Object User on the bucket"):
                ask(f"{folder}/a")
        gcs.fail(401, 1, "/b/bkt")
        with pytest.raises(InputError, match="no valid Google credentials: run gcloud auth application-default login"):
            files.names(folder)
    finally:
        gcs.fail(0, 0, "")


def test_no_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(InputError, match="gs://bkt/a: no valid Google credentials: run gcloud auth application-default login"):
        files.read("gs://bkt/a")


def test_local_work_never_loads_the_client():
    code = (
        "import sys\nfrom survey import files, raster\nfiles.exists('.')\nfiles.match('/*/*', 'x')\n"
        "print('google.cloud.storage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_gdal_finds_the_login_of_gcloud(monkeypatch, tmp_path):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GS_NO_SIGN_REQUEST"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert storage.gdal_path("gs://bkt/a b.tif") == "/vsigs/bkt/a b.tif"
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ
    login = tmp_path / "application_default_credentials.json"
    login.write_text("{}")
    storage.gdal_path("gs://bkt/a.tif")
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(login)


def test_a_window_of_a_tiled_raster_is_not_a_download(gcs, tmp_path, write_raster):
    # Noise does not compress: 3000 x 3000 x 3 bytes are 27 MB.
    image = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3)).astype(np.uint8)
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    local = write_raster(tmp_path / "big one.tif", image, **layout)
    whole = os.path.getsize(local)
    url = gcs.upload(local, "gs://bkt/ranges/big one.tif")
    before = len(gcs.requests())
    with Raster(url) as raster:
        assert (raster.info().height, raster.info().width) == (3000, 3000)
        headers = sum(request.sent for request in gcs.requests("big%20one", since=before))
        window = Window(1000, 1000, 1200, 1200)
        np.testing.assert_array_equal(raster.read(window), image[1000:1200, 1000:1200])
    served = sum(request.sent for request in gcs.requests(since=before))
    assert headers < whole / 50
    assert served < whole / 2, f"{served} of {whole} bytes were served"
    assert all(request.range for request in gcs.requests(since=before) if request.sent > 100_000)


def test_parquet_from_a_bucket(gcs, folder):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    files.write(f"{folder}/t.parquet", sink.getvalue().to_pybytes())
    assert files.read_table(f"{folder}/t.parquet").to_pydict() == {"a": [1, 2]}


def test_predictions_in_a_bucket(gcs, folder):
    one = detections.Detections(
        np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32), np.array([7], np.int64)
    )
    first, second = parts.Part("0" * 16, 0, 16), parts.Part("0" * 16, 16, 32)
    parts.write(folder, first, one, {"kept": 1})
    assert parts.patches_done(folder, [first, second]) == 16
    assert parts.missing(folder, [first, second]) == [second]
    found, counters = parts.read(folder, [first])
    assert (found.boxes_mosaic_px.tolist(), counters) == ([[1, 2, 3, 4]], {"kept": 1})
    mosaic = Mosaic(name="m", path="gs://bkt/m.tif", height=9, width=9, bands=3, crs=None, transform=None, gsd_m=None, sha256="0")
    manifest = detections.Manifest("model", "0", ("tern",), 0.5, (mosaic,), {"m": {"tern": 1}}, {}, {}, {})
    detections.write(folder, manifest, {"m": one})
    parts.clear(folder)
    assert files.names(folder) == ["detections.json", "detections.parquet"]
    again, read = detections.read(folder)
    assert again == manifest
    assert read["m"].patch_ids.tolist() == [7]
