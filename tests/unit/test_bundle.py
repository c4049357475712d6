"""A bundle: whole or not there, every mistake one clear line, reading neither unpickles nor writes."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.bundle import read_bundle
from pipeline.errors import BundleError, EngineError
from pipeline.export.folder import describe_file, finish, write_manifest, writing
from pipeline.export.register import figures
from pipeline.export.table import describe_bundle
from serving.engines.registry import load_engine
from tests.unit.bundles import HEADS, known_bundle, known_graph


@pytest.fixture
def bundle(tmp_path):
    return known_bundle(tmp_path / "bundle")


def edit(folder: Path, change) -> None:
    plain = json.loads((folder / "bundle.json").read_text())
    change(plain)
    (folder / "bundle.json").write_text(json.dumps(plain))


def replace_file(folder: Path, name: str, data: bytes, file_format: str = "onnx") -> None:
    """Puts other bytes in place of a file, with a checksum that fits."""
    (folder / name).write_bytes(data)
    spec = describe_file(folder / name, file_format, "fp32")
    row = {"sha256": spec.sha256, "bytes": spec.bytes, "format": file_format, "precision": "fp32"}
    edit(folder, lambda plain: plain["files"].update({name: row}))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_what_is_written_is_read_again_and_reading_writes_nothing(bundle):
    before = snapshot(bundle)
    found = read_bundle(bundle)
    found.verify()
    load_engine(found, "onnxruntime").warm_up()
    assert found.manifest.heads == HEADS
    assert found.manifest.input.size == (32, 32)
    assert found.manifest.outputs == [name for head in HEADS.values() for name in head.outputs]
    assert snapshot(bundle) == before


def test_a_failed_export_leaves_the_former_bundle_and_no_rubbish(bundle):
    before = snapshot(bundle)
    with pytest.raises(RuntimeError), writing(bundle) as part:
        (part / "model.onnx").write_bytes(b"half")
        raise RuntimeError
    assert snapshot(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_is_replaced_but_nothing_else_is(bundle, tmp_path):
    known_bundle(bundle, "second")
    assert read_bundle(bundle).manifest.name == "second"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(BundleError, match="is no bundle; name another folder"), writing(tmp_path / "mine"):
        pytest.fail("the folder must not be touched")


def test_a_missing_folder_or_manifest(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"is no bundle.*lightning export"):
        read_bundle(tmp_path / "nowhere")
    for content in (b"{", b"\x80\x02}q\x00.", b"[" * 100_000, b"[]", b""):
        (bundle / "bundle.json").write_bytes(content)
        with pytest.raises(BundleError, match=r"bundle.json is broken") as told:
            read_bundle(bundle)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.update(schema=99), "has schema 99; this version reads up to 1: update"),
        (lambda plain: plain["heads"]["colour"].update(kind="sound"), "head 'colour' is of unknown kind 'sound'"),
        (lambda plain: plain.pop("input"), "bundle.json is incomplete"),
        (lambda plain: plain["heads"]["colour"].pop("classes"), "bundle.json is incomplete"),
        (lambda plain: plain.update(files=["model.onnx"]), "bundle.json is incomplete"),
        (lambda plain: plain["files"].update({"../other/model.onnx": plain["files"]["model.onnx"]}), "outside the bundle"),
        (lambda plain: plain.update(schema=float("inf")), "bundle.json is broken"),
        (lambda plain: plain["heads"]["colour"].update(classes="rgb"), "bundle.json is incomplete"),
        (lambda plain: plain["heads"]["colour"].update(classes=[1, 2]), "head 'colour' has no list of classes"),
        (lambda plain: plain["heads"]["colour"].update(classes=["red", "red"]), "class names must differ"),
        (lambda plain: plain["heads"]["colour"].update(threshold="half"), "head 'colour' counts from 'half'"),
        (lambda plain: plain["heads"]["things"]["outputs"].pop(), r"head 'things' \(boxes\) answers things.boxes, things.s"),
        (lambda plain: plain["heads"]["ground"].update(outputs=["sky.mask"]), r"head 'ground' \(mask\) answers sky.mask"),
        (lambda plain: plain["input"].update(height="32"), "an input of '32' x 32"),
        (lambda plain: plain["input"].update(width=0), "an input of 32 x 0"),
        (lambda plain: plain["input"].update(width=True), "an input of 32 x True"),
        (lambda plain: plain["input"].update(name=["images"]), r"makes no sense: input.name is \['images'\]"),
        (lambda plain: plain["heads"]["colour"].update(kind=[]), r"makes no sense: heads.colour.kind is \[\]"),
        (lambda plain: plain["heads"]["colour"].update(outputs=["a\nb"]), r"head 'colour' \(classes\) answers a b;"),
        (lambda plain: plain["files"]["model.onnx"].update(bytes="a\nb"), r"files.model.onnx.bytes is 'a\\nb'"),
        (lambda plain: plain.update(provenance=["run"]), r"makes no sense: provenance is \['run'\]"),
        (lambda plain: plain.update(provenance={"data": {"train": 3}}), "makes no sense: provenance.data.train is 3"),
        (lambda plain: plain.update(checks="passed"), "makes no sense: checks is 'passed'"),
        (lambda plain: plain.update(checks={"eager": {"metrics": {"colour": {"F1": "1"}}}}), "colour.F1 is '1'"),
        (lambda plain: plain.update(checks={"eager": {"failures": [None]}}), "checks.eager.failures.0 is None"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_one_line(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(BundleError, match=message) as told:
        read_bundle(bundle)
    assert "\n" not in str(told.value)


def test_a_manifest_that_tells_little_is_described_all_the_same(bundle):
    edit(bundle, lambda plain: plain.update(provenance={"data": {"val": {}}}, checks={"eager": {}}))
    found = read_bundle(bundle)
    assert "val: ? images" in describe_bundle(found)
    assert figures(found) == {}


def test_keys_of_a_later_version_of_the_same_schema_are_left_out(bundle):
    edit(bundle, lambda plain: (plain.update(later=1), plain["input"].update(colour="linear")))
    assert read_bundle(bundle).manifest.name == "known"


def test_a_missing_or_altered_file(bundle):
    data = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(data[:-1])
    with pytest.raises(BundleError, match=r"model.onnx has .* bytes instead of"):
        read_bundle(bundle)
    (bundle / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model.onnx was altered"):
        load_engine(read_bundle(bundle), "onnxruntime")
    with pytest.raises(BundleError, match=r"model.onnx was altered"):
        read_bundle(bundle).verify()
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model.onnx is missing"):
        read_bundle(bundle)
    (bundle / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model.onnx is no file"):
        read_bundle(bundle)


def test_a_link_that_leads_to_other_bytes_is_an_altered_file(bundle, tmp_path):
    data = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").unlink()
    (tmp_path / "kept.onnx").write_bytes(data)
    (bundle / "model.onnx").symlink_to(tmp_path / "kept.onnx")  # how some stores and mounts keep files
    read_bundle(bundle).verify()
    (tmp_path / "kept.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model.onnx was altered"):
        read_bundle(bundle).verify()


@pytest.mark.parametrize(
    ("where", "place"),
    [
        *((w, p) for w in ("initializer", "constant") for p in ("/etc/hostname", "../other/model.data", "model.data")),
        *((w, "model.data") for w in ("branch", "function", "sparse", "list")),
    ],
)
def test_onnx_files_whose_tensors_lie_elsewhere_are_refused(bundle, place, where):
    model = known_graph()
    tensor = next(t for t in model.graph.initializer if t.name == "boxes")
    outside = TensorProto(name="boxes", data_type=TensorProto.FLOAT, dims=[1, 2, 4])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=place)
    model.graph.initializer.remove(tensor)
    if where == "initializer":
        model.graph.initializer.append(outside)
    elif where == "branch":
        inner = helper.make_graph([helper.make_node("Constant", [], ["boxes"], value=outside)], "then", [], [])
        model.graph.node.insert(0, helper.make_node("If", ["yes"], ["boxes"], then_branch=inner, else_branch=inner))
    elif where == "function":
        node = helper.make_node("Constant", [], ["boxes"], value=outside)
        model.functions.append(helper.make_function("own", "f", [], ["boxes"], [node], model.opset_import))
    elif where == "sparse":
        model.graph.sparse_initializer.add(values=outside, indices=tensor, dims=[1, 2, 4])
    elif where == "list":
        model.graph.node.insert(0, helper.make_node("Own", [], ["boxes"], domain="own", all=[outside]))
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["boxes"], value=outside))
    replace_file(bundle, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="keeps its weights in another file"):
        load_engine(read_bundle(bundle), "onnxruntime")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_in_place_of_weights_is_not_read(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"bomb": Bomb()}, tmp_path / "saved.pt")
    for data in (pickle.dumps(Bomb()), (tmp_path / "saved.pt").read_bytes(), b"", bytes(100)):
        replace_file(bundle, "model.onnx", data)
        with pytest.raises(BundleError, match="is not an ONNX model"):
            load_engine(read_bundle(bundle), "onnxruntime")
        replace_file(bundle, "model.ts.pt", data, "torchscript")
        with pytest.raises(BundleError, match="is not a TorchScript file"):
            load_engine(read_bundle(bundle), "torchscript")
    np.save(tmp_path / "bomb.npy", np.asarray([Bomb()], dtype=object), allow_pickle=True)
    assert not (tmp_path / "exploded").exists()


def test_a_selftest_that_is_a_pickle_is_not_read(bundle, tmp_path, monkeypatch):
    from serving.engines.compare import read_selftest

    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "bomb.npz", images=np.asarray([Bomb()], dtype=object))
    replace_file(bundle, "selftest.npz", (tmp_path / "bomb.npz").read_bytes(), "selftest")
    edit(bundle, lambda plain: plain["files"]["selftest.npz"].update(precision=""))
    with pytest.raises(BundleError, match="is no self-test"):
        read_selftest(read_bundle(bundle))
    assert not (tmp_path / "exploded").exists()


def test_a_model_that_is_onnx_but_broken(bundle):
    model = known_graph()
    model.graph.node[0].op_type = "NoSuchOperator"
    replace_file(bundle, "model.onnx", model.SerializeToString())
    with pytest.raises(EngineError, match="ONNX Runtime cannot load it"):
        load_engine(read_bundle(bundle), "onnxruntime")


def test_a_file_of_another_bundle(bundle, tmp_path):
    other = known_bundle(tmp_path / "other")
    model = onnx.load(str(other / "model.onnx"))
    model.graph.name = "known_"
    (other / "model.onnx").write_bytes(model.SerializeToString())
    shutil.copy(other / "model.onnx", bundle / "model.onnx")
    with pytest.raises(BundleError, match=r"model.onnx (has \d+ bytes|was altered)"):
        load_engine(read_bundle(bundle), "onnxruntime")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_of_another_bundle_whose_checksum_was_made_to_fit(bundle, engine):
    pytest.importorskip(engine)
    model = known_graph()
    for node in model.graph.node:
        node.output[:] = [name.replace("things.", "persons.") for name in node.output]
    for output in model.graph.output:
        output.name = output.name.replace("things.", "persons.")
    replace_file(bundle, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match=r"model.onnx knows no things.boxes, things.scores, .*of another bundle"):
        load_engine(read_bundle(bundle), engine)


def test_openvinos_file_without_its_weights(bundle):
    pytest.importorskip("openvino")
    (bundle / "model.int8.xml").write_text("<net/>")
    spec = describe_file(bundle / "model.int8.xml", "openvino", "int8")
    row = {"sha256": spec.sha256, "bytes": spec.bytes, "format": "openvino", "precision": "int8"}
    edit(bundle, lambda plain: plain["files"].update({"model.int8.xml": row}))
    with pytest.raises(BundleError, match=r"model.int8.xml has no model.int8.bin beside it"):
        load_engine(read_bundle(bundle), "openvino:int8")


def test_a_copied_bundle_works_anywhere(bundle, tmp_path):
    moved = tmp_path / "elsewhere" / "ö name"
    shutil.copytree(bundle, moved)
    shutil.rmtree(bundle)
    load_engine(read_bundle(moved), "onnxruntime").warm_up(3)


def test_folders_that_cannot_be_written_or_replaced(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle)
    for target in (Path(), bundle, tmp_path):
        with pytest.raises(BundleError, match=r"is in use as a folder|is no bundle"), writing(target):
            pytest.fail("the folder must not be touched")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"), writing(tmp_path / "file" / "bundle"):
        pytest.fail("there is no such folder")
    with pytest.raises(BundleError, match=r"new cannot be written \(No space left"), writing(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "file"]


def test_where_a_bundle_cannot_take_its_name_the_former_one_stays(bundle, monkeypatch):
    before, rename = snapshot(bundle), Path.rename

    def refusing(self, target):
        if self.name.endswith(".part"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(BundleError, match="Device or resource busy"):
        known_bundle(bundle, "second")
    assert snapshot(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_link_in_a_bundles_place_is_replaced_alone(bundle, tmp_path):
    (tmp_path / "latest").symlink_to(bundle)
    known_bundle(tmp_path / "latest", "second")
    assert read_bundle(tmp_path / "latest").manifest.name == "second"
    assert read_bundle(bundle).manifest.name == "known"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "latest"]


def test_finish_needs_no_former_bundle(tmp_path):
    target = tmp_path / "new" / "bundle"
    with writing(target) as part:
        write_manifest(part, read_bundle(known_bundle(tmp_path / "old")).manifest)
        shutil.copy(tmp_path / "old" / "model.onnx", part / "model.onnx")
        finish(part, target)
    assert target.stat().st_mode & 0o777 == 0o755
    read_bundle(target).verify()
