"""compare_models.py, report.py and export.py: their numbers, their files, their one-line errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import compare_models
import export
import pytest
import report
import tiny
import torch
from modeling import read_config
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertModel
from utils import UserError

PRETRAINING = Path(__file__).resolve().parents[1] / "pretraining"
PNG = b"\x89PNG\r\n\x1a\n"
PARAMETERS = {
    "RoBERTa": (102_267_648, 85_645_056),
    "RBT6 (KD)": (59_740_416, 43_117_824),
    "RBT3": (38_476_800, 21_854_208),
    "RBT4-H312": (11_419_320, 4_666_392),
    "MiniRBT-H256": (10_345_216, 4_804_352),
    "MiniRBT-H288": (12_311_136, 6_077_664),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One call a turn and one round: what is timed does not matter here."""
    monkeypatch.setattr(compare_models, "TURN_SECONDS", 1e-9)
    for module in (report, export):
        monkeypatch.setattr(module, "ROUNDS", 1)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main with arguments in this process; returns what it printed."""

    def run(module, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def cells(text: str, first: str) -> list[str]:
    """The cells of the first table row that begins with ``first``."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return row.strip("| ").split(" | ")


# ---------------------------------------------------------------- compare_models.py


def published_configs() -> dict[str, BertConfig]:
    students = {name: read_config(path, "a student's config") for name, path in compare_models.STUDENTS.items()}
    return {"RoBERTa": BertConfig(vocab_size=21128), **students}


def test_parameters_are_within_a_tenth_of_a_million_of_the_published():
    configs = published_configs()
    assert {name: compare_models.parameter_counts(config) for name, config in configs.items()} == PARAMETERS
    assert set(configs) == set(compare_models.PUBLISHED)
    for name, counts in PARAMETERS.items():
        published = compare_models.PUBLISHED[name]
        for count, text in zip(counts, (published.parameters, published.without_embeddings)):
            assert count / 1e6 == pytest.approx(float(text.rstrip("M")), abs=0.1)
        config = configs[name]
        shape = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
        assert "/".join(map(str, shape)) == published.shape


def test_size_table_has_percentages_of_the_first_and_the_published_values():
    table = compare_models.size_table(published_configs())
    assert "| RoBERTa | 12 | 768 | 3072 | 12 | 102.27M (100.0%) | 85.65M (100.0%) | 12/768/3072/12 | 102.3M | 85.7M |" in table
    assert "| MiniRBT-H288 | 6 | 288 | 1152 | 8 | 12.31M (12.0%) | 6.08M (7.1%) | 6/288/1152/8 | 12.3M | 6.1M |" in table


def test_models_are_timed_in_turn_and_the_first_round_is_a_warm_up():
    calls = []
    seconds = compare_models.time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "test")
    assert calls == ["a", "b"] * 3
    assert list(seconds) == ["a", "b"] and all(value > 0 for value in seconds.values())
    assert compare_models.speedups({"a": 3.0, "b": 1.5, "c": 0.5}) == {"a": 1.0, "b": 2.0, "c": 6.0}


def test_speed_table_shows_speed_up_milliseconds_and_published():
    table = compare_models.speed_table({("cpu", 128): {"RoBERTa": 0.4, "RBT3": 0.1}, ("cuda", 512): {"RoBERTa": 0.02, "RBT3": 0.008}})
    assert table.splitlines()[0] == "| Model | CPU, 128 tokens | CUDA, 512 tokens | Published |"
    assert cells(table, "RBT3") == ["RBT3", "4.0× (100.0 ms)", "2.5× (8.0 ms)", "2.8×"]


def test_comparison_of_own_models(call, corpus, tmp_path):
    out = call(
        compare_models,
        *("--models", f"big (12)={corpus.teacher}", f"RBT3={corpus.student_json}"),
        *("--sequence_lengths", 8, 64, "--batch_size", 1, "--rounds", 1, "--output_dir", tmp_path),
    )
    big, small = (compare_models.parameter_counts(read_config(path, "")) for path in (corpus.teacher / "config.json", corpus.student_json))
    row = cells(out, "RBT3")
    assert row[:5] == ["RBT3", "2", "16", "32", "2"]
    assert row[5:7] == [f"{s / 1e6:.2f}M ({s / b:.1%})" for s, b in zip(small, big)]
    assert row[7:] == ["3/768/3072/12", "38.5M", "21.9M"]
    assert cells(out, "big (12)")[7:] == ["–", "–", "–"]
    assert "CPU, 8 tokens | CPU, 64 tokens" in out and "2.8×" in out
    written = (tmp_path / "model_comparison.md").read_text(encoding="utf-8")
    assert all(line in written for line in out.splitlines() if line.startswith("|"))
    assert (tmp_path / "model_comparison.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_comparison.md", "model_comparison.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "{teacher}"], "write NAME=PATH"),
        (["--models", "a|b={teacher}"], "write NAME=PATH"),
        (["--models", "a={teacher}", "a={student}"], "the name a stands there twice"),
        (["--models", "a=/no/such/config.json"], "/no/such/config.json: no such file (the config of a)"),
        (["--models", "a={vocabulary}/vocab.txt"], "vocab.txt:1: the config of a is not valid JSON"),
        (["--models", "a={teacher}", "--sequence_lengths", "8", "65"], "--sequence_lengths 65: a has only 64 positions"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--output_dir", "{student}"], "is a file, not a directory"),
    ],
)
def test_comparison_errors(call, corpus, arguments, message):
    paths = {"teacher": corpus.teacher, "student": corpus.student_json, "vocabulary": corpus.vocabulary}
    with pytest.raises(UserError) as error:
        call(compare_models, *(argument.format(**paths) for argument in arguments))
    assert message in str(error.value)


@pytest.mark.parametrize("script", ["compare_models.py", "report.py", "export.py"])
def test_wrong_arguments_end_in_one_line(script):
    result = subprocess.run([sys.executable, f"scripts/{script}", "--nonsense"], cwd=PRETRAINING, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ") and script in result.stderr


# ---------------------------------------------------------------- report.py


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    """A finished distillation of eight steps, evaluated."""
    directory = tmp_path_factory.mktemp("run") / "student"
    tiny.run_train(corpus.arguments(directory, do_eval="true"))
    return directory


def report_arguments(corpus, run: Path, output_dir: Path) -> list:
    return [
        *("--models", f"teacher={corpus.teacher}", f"MiniRBT (KD)={run / 'gs8'}", "--runs", f"MiniRBT (KD)={run}"),
        *("--data_files_json", corpus.data_json, "--data_cache_dir", corpus.directory / "shards", "--max_seq_length", 32),
        *("--output_dir", output_dir),
    ]


def test_report(call, corpus, run, tmp_path):
    out = call(report, *report_arguments(corpus, run, tmp_path))
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    evaluated = json.loads((run / "eval.json").read_text())

    teacher, student = (read_config(path, "a config") for path in (corpus.teacher / "config.json", corpus.student_json))
    for name, key, config in (("teacher", "teacher", teacher), ("MiniRBT (KD)", "student", student)):
        row = cells(out, name)
        assert row[1:4] == [str(config.num_hidden_layers), str(config.hidden_size), str(config.num_attention_heads)]
        assert row[4:6] == compare_models.size_cells(config, teacher)
        assert row[6:8] == [f"{evaluated[key]['loss']:.4f}", f"{evaluated[key]['accuracy']:.2%}"]  # train.py --do_eval's numbers
    assert cells(out, "teacher")[8].startswith("1.0× (")
    assert f"{evaluated['student']['masked_tokens']} masked tokens of dev.txt" in out

    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert all(line in written for line in tables)
    for sentence in report.SENTENCES:
        assert f"| {sentence} | 1 | 2 | 3 | 4 | 5 |" in tables
    assert out.count("| MiniRBT (KD) |") == 1 + len(report.SENTENCES) == 4

    assert "](<training_MiniRBT (KD).png>)" in written
    assert (tmp_path / "training_MiniRBT (KD).png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "training_MiniRBT (KD).png"]
    assert out.splitlines()[-2:] == [f"report: {tmp_path / 'report.md'}", f"final model: {run / 'gs8'}"]


def test_fills_are_those_of_the_full_model(corpus):
    model = BertForMaskedLM.from_pretrained(str(corpus.teacher)).eval()
    sentence = "今天天气很[MASK]，我们去公园。"
    batch = corpus.tokenizer(sentence, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits[0, batch["input_ids"][0].tolist().index(corpus.tokenizer.mask_token_id)].softmax(-1)
    fills = report.top_fills(model, corpus.tokenizer, sentence)
    assert [token for token, _ in fills] == corpus.tokenizer.convert_ids_to_tokens(expected.argsort(descending=True)[:5].tolist())
    assert [share for _, share in fills] == pytest.approx(expected.sort(descending=True).values[:5].tolist(), rel=1e-5)


def test_scalars_of_a_run_have_every_step(run):
    scalars = report.read_scalars(run)
    assert set(scalars) >= {"total_loss", "kd_loss", "learning_rate"}
    assert any(name.startswith("hidden_hidden_mse_") for name in scalars)
    assert all(steps == list(range(1, 9)) for steps, _ in scalars.values())
    titles = [axes.get_title() for axes in report.training_figure("x", scalars).axes]
    assert titles == ["Total loss", "Loss on the matched layers", "Loss on the predictions", "Learning rate"]
    without = {name: values for name, values in scalars.items() if not name.startswith("hidden")}
    titles = [axes.get_title() for axes in report.training_figure("x", without).axes]
    assert titles == ["Total loss", "Loss on the predictions", "Learning rate"]


def test_markdown_signs_in_tokens_are_escaped():
    assert report.markdown_text("a|b*_<c>`[MASK]") == "a\\|b\\*\\_\\<c\\>\\`[MASK]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--runs", "a={teacher}"], "no TensorBoard events in it"),
        (["--runs", "a=/no/such/run"], "/no/such/run: no TensorBoard events in it"),
        (["--models", "a=/no/such/model"], "/no/such/model: no such directory"),
        (["--models", "a={vocabulary}"], "config.json: no such file"),
        (["--models", "a={teacher}", "b={other}"], "its vocabulary differs from that of"),
        (["--sentences", "今天天气"], "--sentences 今天天气: must hold [MASK] exactly once"),
        (["--sentences", "[MASK]天[MASK]"], "must hold [MASK] exactly once"),
        (["--sentences", "天" * 31 + "[MASK]"], "is longer than --max_seq_length 32"),
        (["--max_seq_length", "65"], "has only 64 positions"),
        (["--data_files_json", "{no_dev}"], 'the report needs text files under "dev"'),
        (["--output_dir", "{data}"], "is a file, not a directory"),
    ],
)
def test_report_errors(call, corpus, run, tmp_path, changes, message):
    other, no_dev = tmp_path / "other", tmp_path / "no_dev.json"
    shutil.copytree(corpus.teacher, other)
    tiny.write_vocabulary(other, extra=["additional"])
    tiny.write_data_json(no_dev, corpus.texts, [])
    paths = {
        **{"teacher": corpus.teacher, "other": other, "vocabulary": corpus.vocabulary},
        **{"data": corpus.data_json, "no_dev": no_dev},
    }
    with pytest.raises(UserError) as error:
        call(report, *report_arguments(corpus, run, tmp_path / "out"), *(change.format(**paths) for change in changes))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- export.py


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="pip install -r pretraining/requirements-export.txt")
    return pytest.importorskip("onnxruntime", reason="pip install -r pretraining/requirements-export.txt")


def save_model(model_class, corpus, directory: Path, **changes) -> Path:
    """A model of 2 layers whose weights are large enough for its outputs to depend on every token."""
    torch.manual_seed(5)
    values = {**tiny.config(len(corpus.tokenizer), 2, 32, 4), "initializer_range": 0.2, "max_position_embeddings": 160, **changes}
    model_class(BertConfig(**values)).save_pretrained(str(directory))
    tiny.write_vocabulary(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "loaded", "changes", "outputs"),
    [
        (BertForMaskedLM, BertModel, {}, ["last_hidden_state"]),
        (BertForSequenceClassification, BertForSequenceClassification, {"num_labels": 3}, ["logits"]),
        (BertForQuestionAnswering, BertForQuestionAnswering, {}, ["start_logits", "end_logits"]),
    ],
)
def test_export_equals_pytorch(call, corpus, tmp_path, onnxruntime, saved, loaded, changes, outputs):
    directory = save_model(saved, corpus, tmp_path / "model", **changes)
    out = call(export, directory, "--format", "onnx", "--int8")
    exported = tmp_path / "model-onnx"
    assert out.splitlines()[-1] == f"written: {exported}"
    assert {"model.onnx", "model_int8.onnx", "config.json", "vocab.txt", "tokenizer.json"} <= {path.name for path in exported.iterdir()}
    assert (exported / "vocab.txt").read_bytes() == (directory / "vocab.txt").read_bytes()
    assert (exported / "model_int8.onnx").stat().st_size < 0.6 * (exported / "model.onnx").stat().st_size
    row = cells(out, "onnxruntime float32")
    assert row[1] == "model.onnx" and float(row[3]) < 1e-4
    assert float(cells(out, "onnxruntime int8")[3]) > float(row[3])
    assert str(PRETRAINING).encode() not in (exported / "model.onnx").read_bytes()

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in session.get_outputs()] == outputs
    model = loaded.from_pretrained(str(directory)).eval()
    for texts, pairs in (
        (["今天"], None),
        (["他明白", "老师说学校的图书馆早上八点开门。"] * 4, None),
        (tiny.SENTENCES[:3], tiny.SENTENCES[3:6]),
    ):
        batch = corpus.tokenizer(texts, pairs, padding=True, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**batch)
        got = session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
        for name, array in zip(outputs, got):
            torch.testing.assert_close(torch.from_numpy(array), expected[name], rtol=0, atol=1e-4)


def test_pooler_is_exported_only_if_it_was_trained(corpus, tmp_path):
    with_pooler, outputs = export.load_model(save_model(BertModel, corpus, tmp_path / "encoder"))
    assert outputs == ("last_hidden_state", "pooler_output") and with_pooler.pooler is not None
    without_pooler, outputs = export.load_model(save_model(BertForMaskedLM, corpus, tmp_path / "masked_lm"))
    assert outputs == ("last_hidden_state",) and without_pooler.pooler is None


def test_missing_packages_are_named(call, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.chdir(PRETRAINING)
    with pytest.raises(UserError, match="export.py needs onnx,.* onnxruntime; run: pip install -r requirements-export.txt$"):
        call(export, corpus.teacher)


def test_export_errors(call, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name)  # these errors come before the packages are used

    def error(directory: Path, *arguments) -> str:
        with pytest.raises(UserError) as caught:
            call(export, directory, *arguments)
        return str(caught.value)

    assert "no such directory" in error(tmp_path / "nothing")
    assert "is already there" in error(corpus.teacher, "--output_dir", corpus.vocabulary)
    assert "argument --format" in error(corpus.teacher, "--format", "tflite")
    assert "config.json: no such file" in error(corpus.vocabulary, "--output_dir", tmp_path / "x")

    other = shutil.copytree(corpus.teacher, tmp_path / "other")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "architectures": ["BertForTokenClassification"]}))
    assert "is a BertForTokenClassification; export.py knows" in error(other)
    (other / "config.json").write_text(json.dumps({**values, "architectures": ["BertForSequenceClassification"]}))
    assert "the weights lack 4 tensors of BertForSequenceClassification, first bert.pooler.dense.bias" in error(other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "the weights cannot be loaded" in error(other)
    assert not (tmp_path / "other-onnx").exists() and not (tmp_path / "x").exists()
