"""report.py: its numbers, its files, its one-line errors; and the scalars that its figures draw."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import BertForMaskedLM

from pretraining.distillation.modeling import read_config
from pretraining.reporting import plots
from pretraining.reporting.model_quality import top_fills
from pretraining.reporting.model_sizes import size_cells
from pretraining.reporting.plots import read_curves, training_figure
from pretraining.reporting.scalars import read_scalars
from pretraining.scripts import report
from pretraining.utils import UserError
from tests import tiny
from tests.pretraining.scripts.helpers import PNG, cells


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
        assert row[4:6] == size_cells(config, teacher)
        assert row[6:8] == [f"{evaluated[key]['loss']:.4f}", f"{evaluated[key]['accuracy']:.2%}"]  # train.py --do_eval's numbers
    assert cells(out, "teacher")[8].startswith("1.0× (")
    assert f"{evaluated['student']['masked_tokens']} masked tokens of dev.txt" in out

    tables = [line for line in out.splitlines() if line.startswith("|")]
    assert all(line in written for line in tables)
    for sentence in report.SENTENCES:
        assert f"| {sentence} | 1 | 2 | 3 | 4 | 5 |" in tables
    assert out.count("| MiniRBT (KD) |") == 1 + len(report.SENTENCES) == 4

    assert "](training_MiniRBT_KD.png)" in written
    assert (tmp_path / "training_MiniRBT_KD.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "training_MiniRBT_KD.png"]
    assert out.splitlines()[-2:] == [f"report: {tmp_path / 'report.md'}", f"final model: {run / 'gs8'}"]


def test_fills_are_those_of_the_full_model(corpus):
    model = BertForMaskedLM.from_pretrained(str(corpus.teacher)).eval()
    sentence = "今天天气很[MASK]，我们去公园。"
    batch = corpus.tokenizer(sentence, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits[0, batch["input_ids"][0].tolist().index(corpus.tokenizer.mask_token_id)].softmax(-1)
    fills = top_fills(model, corpus.tokenizer, sentence)
    assert [token for token, _ in fills] == corpus.tokenizer.convert_ids_to_tokens(expected.argsort(descending=True)[:5].tolist())
    assert [share for _, share in fills] == pytest.approx(expected.sort(descending=True).values[:5].tolist(), rel=1e-5)


def test_scalars_of_a_run_have_every_step(run):
    curves = read_curves(run)
    assert set(curves) >= {"total_loss", "kd_loss", "learning_rate"}
    assert any(name.startswith("hidden_hidden_mse_") for name in curves)
    assert all(curve.steps == list(range(1, 9)) for curve in curves.values())
    assert all(len(curve.values) == len(curve.wall_times) == 8 for curve in curves.values())
    assert {"scalar/total_loss", "scalar/unweighted_kd_loss"} <= set(read_scalars(run))
    titles = [axes.get_title() for axes in training_figure("x", curves).axes]
    assert titles == ["Total loss", "Loss on the matched layers", "Loss on the predictions", "Learning rate"]
    related = {**curves, "query_relation32_5_11": curves["kd_loss"], "hard_label_loss": curves["kd_loss"]}
    legends = [text.get_text() for axes in training_figure("x", related).axes if axes.get_legend() for text in axes.get_legend().texts]
    assert {"query relation32 5 ← 11", "hidden_mse 0 ← 0", "kd_loss", "hard_label_loss"} <= set(legends)
    without = {name: values for name, values in curves.items() if not name.startswith("hidden")}
    titles = [axes.get_title() for axes in training_figure("x", without).axes]
    assert titles == ["Total loss = kd_loss", "Learning rate"]  # one loss is the total: not drawn twice
    two = {**without, "mlm_loss": without["kd_loss"]}
    assert [axes.get_title() for axes in training_figure("x", two).axes] == ["Total loss", "Loss on the predictions", "Learning rate"]


def test_small_models_have_labels_that_differ():
    assert [plots.millions(count) for count in (102.268, 59.76, 10.4, 1.553, 0.1311, 0.0983)] == [
        *("102.3M", "59.8M", "10.4M", "1.55M", "0.131M", "0.0983M")
    ]


def test_scalars_of_a_long_run_are_not_sampled(tmp_path):
    steps = list(range(10_050))
    with SummaryWriter(str(tmp_path)) as writer:
        for step in steps:
            writer.add_scalar("scalar/total_loss", step / 2, step)
    (scalars,) = read_scalars(tmp_path).values()
    assert scalars.steps == steps and scalars.values[-1] == steps[-1] / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--runs", "a={teacher}"], "no TensorBoard events in it"),
        (["--runs", "a=/no/such/run"], "/no/such/run: no TensorBoard events in it"),
        (["--runs", "a={other_events}"], "its TensorBoard events hold no losses of train.py"),
        (["--runs", "a b={run}", "a_b={run}"], "--runs a b=…: a_b would have the same file, training_a_b.png; choose another name"),
        (["--models", "a=/no/such/model"], "/no/such/model: no such directory"),
        (["--models", "a={vocabulary}"], "config.json: no such file"),
        (["--models", "a={teacher}", "b={other}"], "its vocabulary differs from that of"),
        (["--sentences", "今天天气"], "--sentences 今天天气: must hold [MASK] exactly once"),
        (["--sentences", "[MASK]天[MASK]"], "must hold [MASK] exactly once"),
        (["--sentences", "天" * 31 + "[MASK]"], "is longer than --max_seq_length 32"),
        (["--max_seq_length", "65"], "has only 64 positions"),
        (["--max_seq_length", "3"], "--max_seq_length 3: must be a whole number, 4 or above"),
        (["--data_files_json", "{no_dev}"], 'the report needs text files under "dev"'),
        (["--output_dir", "{data}"], "is a file, not a directory"),
    ],
)
def test_report_errors(call, corpus, run, tmp_path, changes, message):
    other, no_dev, other_events = tmp_path / "other", tmp_path / "no_dev.json", tmp_path / "other_events"
    shutil.copytree(corpus.teacher, other)
    tiny.write_vocabulary(other, extra=["additional"])
    tiny.write_data_json(no_dev, corpus.texts, [])
    with SummaryWriter(str(other_events)) as writer:
        writer.add_scalar("something", 1.0, 1)
    paths = {
        **{"teacher": corpus.teacher, "other": other, "vocabulary": corpus.vocabulary},
        **{"data": corpus.data_json, "no_dev": no_dev, "other_events": other_events, "run": run},
    }
    with pytest.raises(UserError) as error:
        call(report, *report_arguments(corpus, run, tmp_path / "out"), *(change.format(**paths) for change in changes))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
