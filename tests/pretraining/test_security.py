"""A stranger's files must not run their code. (LTP directories: test_references.py; training states: test_resume.py.)"""

import ast
import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from finetuning import training
from finetuning.tasks import TASKS
from pretraining import my_datasets
from pretraining.corpus.files import TextAndRefs
from pretraining.corpus.shards import ShardSpec, load_shards
from pretraining.exporting.onnx_export import load_for_export
from pretraining.utils import UserError
from tests import tiny, workplace
from tests.workplace import command_line, run_here

TRAIN, TA = "train.py", "scripts/init_checkpoint_TA.py"
SOURCES = [
    path
    for folder in ("pretraining", "finetuning", "benchmarks", "experiments")
    for path in (workplace.PRETRAINING.parent / folder).rglob("*.py")
]


class Payload:
    """Whoever unpickles it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "the stranger's code ran"
    yield path
    assert not path.exists()


def test_the_payload_works(tmp_path):
    torch.save(Payload(tmp_path / "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()


# ---------------------------------------------------------------- weights


def as_torch_saves(path: Path, weights: dict, marker: Path) -> None:
    torch.save({**weights, "x": Payload(marker)}, path)


def as_old_torch_saved(path: Path, weights: dict, marker: Path) -> None:
    torch.save({**weights, "x": Payload(marker)}, path, _use_new_zipfile_serialization=False)


def as_a_plain_pickle(path: Path, weights: dict, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker)))


SAVED = [as_torch_saves, as_old_torch_saved, as_a_plain_pickle]


def assert_refused(ended, names: str, before: dict, work: Path) -> None:
    lines = ended.err.split("\n")
    assert ended.status == 2 and len(lines) == 2 and lines[0].startswith("error: ") and names in lines[0], ended.err
    assert "Traceback" not in ended.err + ended.out
    assert workplace.entries(work) == before


@pytest.fixture
def spoiled_teacher(work, marker):
    """``spoil(save, name)``: the teacher's weights are in a file that wants to run code."""

    def spoil(save, name: str = "pytorch_model.bin") -> None:
        weights = load_file(work / "teacher" / "model.safetensors")
        (work / "teacher" / "model.safetensors").unlink()
        save(work / "teacher" / name, weights, marker)
        if name.startswith("shard"):
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
            (work / "teacher" / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    return spoil


@pytest.mark.parametrize("name", ["pytorch_model.bin", "shard.bin", "model.safetensors"])
@pytest.mark.parametrize("save", SAVED)
def test_a_teacher_whose_weights_want_to_run_code(save, name, spoiled_teacher, work, capfd):
    spoiled_teacher(save, name)
    before = workplace.entries(work)
    assert_refused(run_here(TRAIN, command_line(TRAIN), work, capfd), "teacher", before, work)
    assert_refused(run_here(TA, command_line(TA), work, capfd), "teacher", before, work)


@pytest.mark.parametrize("save", SAVED)
@pytest.mark.parametrize("name", ["first.pth", "first.safetensors", "teacher"])
def test_first_weights_that_want_to_run_code(name, save, work, marker, spoiled_teacher, capfd):
    changes = {"student_pretrained_weights": name}
    if name == "teacher":
        spoiled_teacher(save)
        changes |= {"teacher_name_or_path": None, "matches": None, "student_config": "teacher/config.json"}
    else:
        save(work / name, {}, marker)
    before = workplace.entries(work)
    assert_refused(run_here(TRAIN, command_line(TRAIN, **changes), work, capfd), name, before, work)


@pytest.mark.parametrize("save", SAVED)
def test_a_checkpoint_whose_weights_want_to_run_code(save, work, marker, capfd):
    """Its checksums are right: a stranger can compute them too."""
    changes = {"resume_from_checkpoint": "latest"}
    assert run_here(TRAIN, command_line(TRAIN, **changes), work, capfd).status == 0
    checkpoint = work / "run" / "gs2"
    shutil.rmtree(work / "run" / "gs4")
    save(checkpoint / "pytorch_model.bin", load_file(checkpoint / "model.safetensors"), marker)
    (checkpoint / "model.safetensors").unlink()
    sums = {path.name: sha256(path) for path in checkpoint.iterdir() if path.name != "checksums.json"}
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    before = workplace.entries(work)
    assert_refused(run_here(TRAIN, command_line(TRAIN, **changes), work, capfd), "run/gs2", before, work)


@pytest.mark.parametrize("save", SAVED)
def test_finetuning_and_export_load_no_such_weights_either(save, spoiled_teacher, work):
    spoiled_teacher(save)
    with pytest.raises(UserError, match="the weights of the model cannot be loaded"):
        training.load_model(str(work / "teacher"), TASKS["ocnli"], ("a", "b"), "the model")
    with pytest.raises(UserError, match="the weights of the model to export cannot be loaded"):
        load_for_export(work / "teacher")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- configs that name code

EVIL = "from pathlib import Path\nPath({!r}).touch()\n"
MODEL_CODE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}, "trust_remote_code": True}
TOKENIZER_CODE = {
    "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    "tokenizer_class": "EvilTokenizer",
    "trust_remote_code": True,
}
KERNELS = {"_attn_implementation": "stranger/kernels", "attn_implementation": "stranger/kernels", "use_kernels": True}


@pytest.mark.parametrize("code", [MODEL_CODE, KERNELS], ids=["auto_map", "kernels"])
def test_a_config_that_names_code_runs_none(code, work, marker, capfd):
    """It trains as though those keys were not there, or is refused; the code lies beside the config, ready to be imported."""
    for name in ("teacher/config.json", "student.json"):
        (work / name).write_text(json.dumps({**json.loads((work / name).read_text()), **code}))
    (work / "teacher" / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CODE))
    for folder in (work, work / "teacher"):
        (folder / "evil.py").write_text(EVIL.format(str(marker)))
    ended = run_here(TRAIN, command_line(TRAIN), work, capfd)
    assert ended.status in (0, 2) and "Traceback" not in ended.err
    if ended.status == 0:
        saved = (work / "run" / "gs4" / "config.json").read_text()
        assert "evil" not in saved and "stranger" not in saved
    assert "evil" not in sys.modules


# ---------------------------------------------------------------- cached shards


class Pickled(pa.ExtensionType):
    """An arrow type whose description is a pickle, as pyarrow's own PyExtensionType was (CVE-2023-47248)."""

    def __init__(self, marker: Path):
        self.marker = marker
        super().__init__(pa.list_(pa.uint8()), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Payload(self.marker))

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise NotImplementedError


def rewrite(data: Path, change) -> None:
    """Puts another table into a shard; ``change`` gets the columns' arrays and returns schema and arrays."""
    with pa.OSFile(str(data)) as source:
        table = pa.ipc.open_stream(source).read_all()
    schema, arrays = change(table.schema, [column.combine_chunks() for column in table.columns])
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def with_a_pickled_type(data: Path, marker: Path) -> None:
    kind = Pickled(marker)

    def change(schema, arrays):
        ids = pa.ExtensionArray.from_storage(kind, arrays[0])
        return pa.schema([("input_ids", kind), schema.field(1)]), [ids, arrays[1]]

    rewrite(data, change)


def with_features(data: Path, marker: Path) -> None:
    """What the datasets library reads out of a file about how to decode it."""
    features = {"input_ids": {"_type": "Image", "decode": True}, "continues": {"_type": "Audio", "decode": True}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    rewrite(data, lambda schema, arrays: (schema.with_metadata(noted), arrays))


def with_offsets_outside(data: Path, marker: Path) -> None:
    """A row that would end far beyond the file's end."""
    with pa.OSFile(str(data)) as source:
        offsets = np.array(pa.ipc.open_stream(source).read_all()["input_ids"].chunk(0).offsets)
    content, true = data.read_bytes(), offsets.tobytes()
    assert content.count(true) == 2  # of both columns
    offsets[1] = 2**31 - 1
    data.write_bytes(content.replace(true, offsets.tobytes()))


def of_other_columns(data: Path, marker: Path) -> None:
    rewrite(data, lambda schema, arrays: (pa.schema([("script", pa.string())]), [pa.array(["import os"] * len(arrays[0]))]))


def with_other_rows(data: Path, change) -> None:
    """``change`` gets the lists of both columns and spoils them."""

    def changed(schema, arrays):
        columns = [array.to_pylist() for array in arrays]
        change(*columns)
        return schema, [pa.array(column, field.type) for column, field in zip(columns, schema)]

    rewrite(data, changed)


def with_ids_beyond_the_vocabulary(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: ids[3].__setitem__(5, 255))


def with_a_null_row(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: continues.__setitem__(3, None))


def with_a_null_token(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: ids[3].__setitem__(5, None))


def with_a_short_row(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: (ids[3].pop(), continues[3].pop()))


def with_a_long_row(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: (ids[3].append(7), continues[3].append(False)))


def with_an_empty_row(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: (ids.append([]), continues.append([])))


def with_columns_of_different_rows(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: continues[-1].append(False))


def with_a_short_row_before_others(data: Path, marker: Path) -> None:
    """Each record batch is right by itself."""
    with pa.OSFile(str(data)) as source:
        batches = list(pa.ipc.open_stream(source))
    assert len(batches[-1]["input_ids"][-1]) < 30
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in [*batches, *batches]:
            writer.write_batch(batch)


def that_continues_a_word_of_another_file(data: Path, marker: Path) -> None:
    with_other_rows(data, lambda ids, continues: continues[0].__setitem__(0, True))


def of_garbage(data: Path, marker: Path) -> None:
    data.write_bytes(b"\xa5" * data.stat().st_size)


def of_a_pickle(data: Path, marker: Path) -> None:
    payload = pickle.dumps(Payload(marker))
    data.write_bytes(payload + bytes(data.stat().st_size - len(payload)))


OTHER_ROWS = [
    with_ids_beyond_the_vocabulary,
    with_a_null_row,
    with_a_null_token,
    with_a_short_row,
    with_a_long_row,
    with_an_empty_row,
    with_columns_of_different_rows,
    with_a_short_row_before_others,
    that_continues_a_word_of_another_file,
]


@pytest.mark.parametrize("knows_the_checksum", [False, True])
@pytest.mark.parametrize(
    "spoil", [with_a_pickled_type, with_features, with_offsets_outside, of_other_columns, of_garbage, of_a_pickle, *OTHER_ROWS]
)
def test_a_malicious_cached_shard_is_rebuilt(spoil, knows_the_checksum, tiny_tokenizer, tmp_path, marker):
    """Its shard.json says the right fingerprint and size; with ``knows_the_checksum`` all of it fits."""
    tiny.write_text(tmp_path / "text.txt", tiny.paragraphs(20, seed=1), tiny_tokenizer)
    files = [TextAndRefs(tmp_path / "text.txt", tmp_path / "text.refs")]
    spec = ShardSpec(tmp_path / "cache", 32, tiny_tokenizer)
    expected = tiny.all_rows(load_shards(files, spec, progress=False))
    directory = tmp_path / "cache" / "text"
    honest = tiny.snapshot(directory)

    spoil(directory / "data.arrow", marker)
    noted = json.loads((directory / "shard.json").read_text())
    noted["bytes"] = (directory / "data.arrow").stat().st_size
    if knows_the_checksum:
        noted["sha256"] = sha256(directory / "data.arrow")
    (directory / "shard.json").write_text(json.dumps(noted))
    again = load_shards(files, spec, progress=False)
    assert tiny.snapshot(directory) == honest
    assert tiny.all_rows(again) == expected


# ---------------------------------------------------------------- the source


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_call_that_runs_what_it_reads(path):
    """No pickle, no eval, no shell, no remote code; torch.load of weights alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name not in ("eval", "exec", "os.system", "os.popen", "torch.hub.load", "yaml.load"), f"{path}:{node.lineno}"
            assert name != "torch.load" or keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
            for forbidden in ("trust_remote_code", "allow_pickle", "shell"):
                assert keywords.get(forbidden, "False") == "False", f"{path}:{node.lineno}"


def test_the_source_is_looked_at():
    assert Path(my_datasets.__file__) in SOURCES and len(SOURCES) > 15
