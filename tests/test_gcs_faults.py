"""Each kind of fault, for `survey.storage` and `survey.raster`: what is asked for arrives whole, or an error says why."""

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from gcs_emulator import Emulator
from gcs_faults import KINDS, OF_BODIES, Plan, tally
from gcs_tls_proxy import Proxy
from google.cloud.storage.retry import DEFAULT_RETRY

from survey import byte_ranges, files, gdal, storage
from survey.annotations import vector
from survey.annotations.reading import ReadOptions
from survey.errors import InputError
from survey.geometry import Window
from survey.raster import Raster, RasterInfo
from tpu_train import export

# The client drops the connection of a download that failed, and Python says so when it collects it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client waits a second before it tries again, these tests 20 ms."""
    monkeypatch.setattr(DEFAULT_RETRY, "_initial", 0.02)
    monkeypatch.setattr(gdal, "RETRY_S", 0.02)
    yield
    gc.collect()


@pytest.fixture
def folder(faulty: Proxy, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for this test alone."""
    return f"gs://bkt/{request.node.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_objects_arrive_whole(kind: str, faulty: Proxy, folder: str, tmp_path: Path) -> None:
    """Whole in every way there is to read them, which is asked right after every way there is to write them."""
    content = np.random.default_rng(0).bytes(200_000)
    digest = hashlib.sha256(content).hexdigest()
    large = np.random.default_rng(1).bytes(9_000_000)  # more than the 8 MB from which the client uploads in steps
    (tmp_path / "large").write_bytes(large)
    begun = faulty.plan(Plan(kinds=(kind,), each=100, clients=("google",)))  # every request fails once or twice
    files.write(f"{folder}/a", content)
    assert files.create(f"{folder}/b", content)  # also where the answer is lost, and the second try finds the object there
    assert not files.create(f"{folder}/b", b"other")
    files.publish(str(tmp_path / "large"), f"{folder}/large", hashlib.sha256(large).hexdigest())
    for name in "ab":
        assert files.read(f"{folder}/{name}") == content
        assert files.sha256(f"{folder}/{name}") == digest
    assert files.read(f"{folder}/large") == large
    assert files.read_range(f"{folder}/a", 1000, 150_000) == content[1000:151_000]
    assert files.read_range(f"{folder}/a", 199_990, 100) == content[199_990:]
    with byte_ranges.open_stream(f"{folder}/large") as stream:
        assert stream.read() == large
    storage.download(f"{folder}/a", str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == content
    assert files.size(f"{folder}/a") == len(content)
    assert files.names(folder) == ["a", "b", "large"]
    assert files.intact(folder, {"a": digest, "b": digest}) == {"a", "b"}
    files.remove(f"{folder}/a")
    files.remove_folder(folder)
    assert files.names(folder) == []
    met = faulty.faults(begun)
    assert {fault.kind for fault in met} == {kind}
    asked = {"GET"} if kind in OF_BODIES else {"GET", "POST", "PUT", "DELETE"}
    assert {fault.method for fault in met} == asked


def seen(path: str) -> tuple[RasterInfo, np.ndarray, np.ndarray]:
    """All of a raster."""
    with Raster(path) as opened:
        info = opened.info()
        whole = Window(0, 0, info.height, info.width)
        return info, opened.read(whole), opened.read_valid(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_rasters_are_whole_and_keep_their_place(
    kind: str, gcs: Emulator, faulty: Proxy, folder: str, tmp_path: Path, write_raster: object
) -> None:
    """Also a PNG, of which GDAL makes pixels when half of it comes, and a world file, which GDAL overlooks then."""
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    write_raster(tmp_path / "tiled.tif", image, driver="GTiff", nodata=7, **tiled)  # type: ignore[operator]
    write_raster(tmp_path / "planes.tif", image, driver="GTiff", compress="deflate", interleave="band")  # type: ignore[operator]
    write_raster(tmp_path / "photo.png", image, driver="PNG")  # type: ignore[operator]
    write_raster(tmp_path / "photo2.jpg", image, driver="JPEG")  # type: ignore[operator]
    for name in ("photo.pgw", "photo2.jgw"):
        (tmp_path / name).write_text("0.5000000\n0.0000000\n0.0000000\n-0.5000000\n500000.25\n4000000.25\n")
    for path in tmp_path.iterdir():
        gcs.upload(path, f"{folder}/{path.name}")
    begun = faulty.plan(Plan(kinds=(kind,), each=100, burst=1, clients=("gdal", "google")))
    for name in ("tiled.tif", "planes.tif", "photo.png", "photo2.jpg"):
        (info, pixels, valid), (expected, *arrays) = seen(f"{folder}/{name}"), seen(str(tmp_path / name))
        assert info == expected
        assert (info.transform is not None) == name.startswith("photo")
        np.testing.assert_array_equal(pixels, arrays[0])
        np.testing.assert_array_equal(valid, arrays[1])
    met = tally(faulty.faults(begun))
    assert all(met[client][kind] >= 4 for client in ("gdal", "google"))


def test_what_is_no_image_is_still_refused(faulty: Proxy, gcs: Emulator, folder: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"no image" * 100)
    url = gcs.upload(tmp_path / "a.tif", f"{folder}/a.tif")
    with pytest.raises(InputError, match=r"a.tif cannot be read as an image: .*convert it to GeoTIFF, PNG or JPEG"):
        Raster(url)


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_the_service_forgot_begins_anew(status: int, gcs: Emulator, folder: str, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(9_000_000)
    (tmp_path / "a").write_bytes(content)
    gcs.fail(status, 1, "PUT /upload")
    files.publish(str(tmp_path / "a"), f"{folder}/a", hashlib.sha256(content).hexdigest())
    assert files.read(f"{folder}/a") == content


def test_an_outage_is_named(gcs: Emulator, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEFAULT_RETRY, "_timeout", 0.2)
    gcs.fail(503, 1000, "/b/bkt")
    try:
        for ask in (files.read, files.exists, files.names, lambda path: files.write(path, b"")):
            with pytest.raises(ConnectionError, match=r"/a: Cloud Storage did not answer for two minutes \(.*same command again"):
                ask(f"{folder}/a")
    finally:
        gcs.fail(0, 0, "")


def test_a_folder_is_complete_when_its_last_file_is_there(gcs: Emulator, folder: str, tmp_path: Path) -> None:
    for name in ("model.json", "saved_model/a", "saved_model/variables/b"):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    before = len(gcs.requests())
    files.publish_folder(str(tmp_path / "model"), folder, last="model.json")
    sent = [request.path for request in gcs.requests(since=before) if request.method == "POST"]
    assert len(sent) == 3
    assert storage.below(folder) == ["model.json", "saved_model/a", "saved_model/variables/b"]
    assert files.sha256_of_folder(folder) == files.sha256_of_folder(str(tmp_path / "model"))
    times = {name: storage._existing(f"{folder}/{name}").updated for name in storage.below(folder)}
    assert max(times, key=lambda name: times[name]) == "model.json"


def test_an_export_that_was_cut_short_begins_anew(gcs: Emulator, folder: str, tmp_path: Path) -> None:
    options = export.Options(model_dir="run", output=folder)
    assert not export.already_exported(options, {}, "")
    files.write(f"{folder}/saved_model/saved_model.pb", b"ours")
    assert not export.already_exported(options, {}, "")
    (tmp_path / "a").write_bytes(b"somebody else's")
    gcs.upload(tmp_path / "a", f"{folder}/saved_model/a")
    with pytest.raises(InputError, match="holds something else: name a new folder, or remove it"):
        export.already_exported(options, {}, "")


@pytest.mark.parametrize("ending", ["gpkg", "shp"])
def test_map_layers_are_whole(ending: str, faulty: Proxy, gcs: Emulator, folder: str, tmp_path: Path) -> None:
    """GDAL would take half a file for a file; so each part of a layer comes through Google's client, with its checksum."""
    squares = [shapely.box(1000 + 10 * i, 2000, 1005 + 10 * i, 2005) for i in range(500)]
    path = str(tmp_path / f"a b.{ending}")
    names = np.array([f"class {i % 7}" for i in range(500)], object)
    pyogrio.raw.write(path, shapely.to_wkb(squares), [names], ["species"], geometry_type="Polygon", crs="EPSG:32617")
    for part in tmp_path.iterdir():
        gcs.upload(part, f"{folder}/{part.name}")
    gcs.upload(path, f"{folder}/a b.txt")  # of the same name, and no part of it
    begun = faulty.plan(Plan(each=100))
    found = vector.read(f"{folder}/a b.{ending}", ReadOptions())
    assert [(each.class_name, each.box) for each in found.annotations] == [
        (names[i], (2000.0, 1000.0 + 10 * i, 2005.0, 1005.0 + 10 * i)) for i in range(500)
    ]
    met = faulty.faults(begun)
    assert {fault.client for fault in met} == {"google"}
    assert not any("txt" in fault.path for fault in met)
