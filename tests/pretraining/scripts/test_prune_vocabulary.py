"""prune_vocabulary.py: the pruned models compute what the whole ones do, the counts, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertModel, BertTokenizer

from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.corpus.vocabulary import choose_tokens
from pretraining.scripts import prune_vocabulary
from pretraining.utils import UserError
from tests import tiny
from tests.pretraining.scripts.helpers import cells

TEXTS = [tiny.SENTENCES[0], tiny.SENTENCES[3], "model token train", "training"]
ABSENT = tiny.SENTENCES[2]  # has characters that TEXTS have not


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{line}\n" for line in [*TEXTS, *TEXTS]), encoding="utf-8")
    return path


def save_model(model_class, directory: Path, **changes) -> Path:
    tokenizer = tiny.write_vocabulary(directory)
    torch.manual_seed(5)
    values = {**tiny.config(len(tokenizer), 2, 32, 4), "initializer_range": 0.2, **changes}
    model_class(BertConfig(**values)).save_pretrained(str(directory))
    return directory


def tokens_of(directory: Path) -> list[str]:
    return (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()


def outputs(model_class, directory: Path) -> tuple:
    batch = BertTokenizer.from_pretrained(str(directory))(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return batch, model_class.from_pretrained(str(directory)).eval()(**batch, output_hidden_states=True)


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForSequenceClassification, BertForQuestionAnswering, BertModel])
def test_outputs_are_equal_bit_for_bit_where_all_tokens_were_kept(call, text, tmp_path, model_class):
    directory = save_model(model_class, tmp_path / "model")
    call(prune_vocabulary, directory, "--texts", text, "--min_count", "1")
    pruned = tmp_path / "model-pruned"
    kept = tokens_of(pruned)
    assert len(kept) < len(tokens_of(directory)) and set(tiny.SPECIAL) - {"[unused1]"} <= set(kept)
    whole_batch, whole = outputs(model_class, directory)
    batch, small = outputs(model_class, pruned)
    whole_tokens = load_tokenizer(directory).convert_ids_to_tokens(whole_batch["input_ids"].flatten().tolist())
    assert load_tokenizer(pruned).convert_ids_to_tokens(batch["input_ids"].flatten().tolist()) == whole_tokens
    for left, right in zip(whole.hidden_states, small.hidden_states, strict=True):
        assert torch.equal(left, right)
    for name in {"start_logits", "end_logits", "pooler_output"} & set(whole):
        assert torch.equal(whole[name], small[name])
    if model_class is BertForSequenceClassification:
        assert torch.equal(whole.logits, small.logits)
    if model_class is BertForMaskedLM:
        position = {token: number for number, token in enumerate(tokens_of(directory))}
        torch.testing.assert_close(small.logits, whole.logits[..., [position[token] for token in kept]], rtol=0, atol=1e-6)


def test_tables_have_exact_figures(call, text, tmp_path):
    directory = save_model(BertForMaskedLM, tmp_path / "model")
    other = tmp_path / "other.txt"
    other.write_text(f"{ABSENT}\nabc\n", encoding="utf-8")
    out = call(prune_vocabulary, directory, "--texts", text, other, "--keep", "12")
    whole, pruned = load_tokenizer(directory), load_tokenizer(tmp_path / "model-pruned")
    for path in (text, other):
        lines = path.read_text(encoding="utf-8").splitlines()
        expected = []
        for tokenizer in (whole, pruned):
            ids = [number for line in lines for number in tokenizer(line, add_special_tokens=False)["input_ids"]]
            expected.append((len(ids), ids.count(tokenizer.unk_token_id)))
        (before, unknown_before), (after, unknown_after) = expected
        row = cells(out, path.name)
        assert row[1:] == [f"{before}", f"{after}", f"{unknown_before / before:.3%}", f"{unknown_after / after:.3%}"]
        assert unknown_after > unknown_before
    assert f"kept: 12 of {len(whole)} tokens, 5 of them needed at any count" in out
    before, after = (
        sum(tensor.numel() for tensor in load_file(tmp_path / name / "model.safetensors").values()) for name in ("model", "model-pruned")
    )
    assert before - after == (len(whole) - 12) * 33  # an embedding of 32 and the bias of the masked-LM head
    assert cells(out, str(directory))[1:3] == [f"{before / 1e6:.2f}M", f"{after / 1e6:.2f}M ({after / before:.1%})"]


def test_the_most_frequent_tokens_stay_in_their_order():
    counts = np.array([0, 9, 0, 3, 5, 3, 0, 1])
    assert choose_tokens(counts, {0, 2}, 5, 1).tolist() == [0, 1, 2, 3, 4]  # of 3 and 5, equally frequent, the first
    assert choose_tokens(counts, {0, 2}, None, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert choose_tokens(counts, {0, 2}, 8, 1).tolist() == [0, 1, 2, 3, 4, 5, 7]  # token 6 does not occur


def test_words_without_their_token_become_pieces(call, text, tmp_path):
    directory = save_model(BertModel, tmp_path / "model")
    tiny.write_vocabulary(directory, extra=["training"])
    values = json.loads((directory / "config.json").read_text())
    BertModel(BertConfig(**{**values, "vocab_size": values["vocab_size"] + 1})).save_pretrained(str(directory))
    text.write_text("tokening train\n" * 2 + "training\n", encoding="utf-8")
    assert load_tokenizer(directory).tokenize("training") == ["training"]
    out = call(prune_vocabulary, directory, "--texts", text, "--min_count", "2")
    pruned = load_tokenizer(tmp_path / "model-pruned")
    assert set(pruned.get_vocab()) == {*tiny.SPECIAL, "token", "train", "##ing"} - {"[unused1]"}
    assert pruned.tokenize("Training") == ["train", "##ing"]
    assert cells(out, "text.txt")[1:] == ["7", "8", "0.000%", "0.000%"]


def test_teacher_student_and_config_are_pruned_together(corpus, call, text, tmp_path):
    teacher, student_json = shutil.copytree(corpus.teacher, tmp_path / "teacher"), tmp_path / "student.json"
    first = save_model(BertForMaskedLM, tmp_path / "first", hidden_size=16, num_attention_heads=2, intermediate_size=32)
    shutil.copy(corpus.student_json, student_json)
    call(prune_vocabulary, teacher, first, student_json, "--texts", text, *corpus.texts, "--keep", "40")
    pruned = tmp_path / "student-pruned.json"
    assert tokens_of(tmp_path / "teacher-pruned") == tokens_of(tmp_path / "first-pruned")
    assert json.loads(pruned.read_text()) == {**json.loads(student_json.read_text()), "vocab_size": 40}
    tiny.write_text(tmp_path / "train.txt", TEXTS * 20, load_tokenizer(tmp_path / "teacher-pruned"))
    tiny.write_data_json(tmp_path / "data.json", [tmp_path / "train.txt"], [])
    changes = {
        "teacher_name_or_path": tmp_path / "teacher-pruned",
        "student_config": pruned,
        "student_pretrained_weights": tmp_path / "first-pruned",
        "data_files_json": tmp_path / "data.json",
        "data_cache_dir": tmp_path / "shards",
        "num_train_steps": 2,
    }
    tiny.run_train(corpus.arguments(tmp_path / "run", **changes))
    assert tokens_of(tmp_path / "run" / "gs2") == tokens_of(tmp_path / "teacher-pruned")


def test_older_files_lose_nothing_but_tokens(call, text, tmp_path):
    """A torch file with the tied weights in it, [PAD] that is not token 0, settings of the tokenizer, 16-bit numbers, more rows than tokens."""
    directory = tmp_path / "old"
    tokenizer = tiny.write_vocabulary(directory)
    tokens = ["[unused1]", "[PAD]", *[token for token in tokens_of(directory) if token not in ("[PAD]", "[unused1]")]]
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    position = {token: number for number, token in enumerate(tokens)}
    tokenizer = BertTokenizer.from_pretrained(str(directory), do_lower_case=False, extra_special_tokens=["[unused1]"])
    tokenizer.save_pretrained(str(directory))
    model = BertForMaskedLM(BertConfig(**{**tiny.config(len(tokenizer) + 4, 2, 32, 4), "pad_token_id": 1})).half()
    model.config.save_pretrained(str(directory))
    torch.save({**model.state_dict(), "cls.seq_relationship.bias": torch.zeros(2)}, directory / "pytorch_model.bin")

    call(prune_vocabulary, directory, "--texts", text, "--keep", "20")
    pruned = tmp_path / "old-pruned"
    state = load_file(pruned / "model.safetensors")
    assert set(model.state_dict()) - set(state) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16, torch.float32}
    assert "cls.seq_relationship.bias" in state
    values = json.loads((pruned / "config.json").read_text())
    assert tokens_of(pruned)[values["pad_token_id"]] == "[PAD]" and values["vocab_size"] == 20
    kept = [position[token] for token in tokens_of(pruned)]
    assert torch.equal(state["bert.embeddings.word_embeddings.weight"], model.bert.embeddings.word_embeddings.weight[kept])
    assert torch.equal(state["cls.predictions.bias"], model.cls.predictions.bias[kept])
    for encoded in (
        load_tokenizer(pruned)("今天", "天[unused1]TRAIN train")["input_ids"],
        Tokenizer.from_file(str(pruned / "tokenizer.json")).encode("今天", "天[unused1]TRAIN train").ids,
    ):
        assert [tokens_of(pruned)[number] for number in encoded] == "[CLS] 今 天 [SEP] 天 [unused1] [UNK] train [SEP]".split()


def test_only_results_of_its_own_are_replaced(call, text, tmp_path):
    directory, target = save_model(BertModel, tmp_path / "model"), tmp_path / "model-pruned"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(UserError, match="model-pruned: exists already and is no result of this command"):
        call(prune_vocabulary, directory, "--texts", text, "--keep", "20")
    shutil.rmtree(target)
    call(prune_vocabulary, directory, "--texts", text, "--keep", "20")
    call(prune_vocabulary, directory, "--texts", text, "--keep", "10")
    first = tiny.snapshot(target)
    assert len(tokens_of(target)) == 10
    (directory / "task.json").write_text("{}")
    call(prune_vocabulary, directory, "--texts", text, "--keep", "10")
    assert tiny.snapshot(target) == {**first, "task.json": b"{}"}


def test_errors(call, corpus, text, tmp_path):
    directory = save_model(BertForMaskedLM, tmp_path / "model")
    student = tmp_path / "student.json"
    student.write_text(json.dumps({**json.loads(corpus.student_json.read_text()), "vocab_size": 7}))

    def error(*arguments) -> str:
        with pytest.raises(UserError) as caught:
            call(prune_vocabulary, *arguments)
        return str(caught.value)

    few = ["--texts", text, "--keep", "20"]
    assert "one of the arguments --keep --min_count is required" in error(directory, "--texts", text)
    assert "not allowed with argument" in error(directory, *few, "--min_count", "2")
    assert "--keep 5: must be more than the 5 tokens that are always kept" in error(directory, "--texts", text, "--keep", "5")
    assert "no such file (a text that shows" in error(directory, "--texts", tmp_path / "none.txt", "--keep", "20")
    assert "name a model directory too" in error(student, *few)
    assert "student.json: vocab_size is not" in error(directory, student, *few)
    assert "2 places for 1 models" in error(directory, *few, "--output_dir", tmp_path / "a", tmp_path / "b")
    assert "is named twice" in error(directory, *few, "--output_dir", directory)
    assert "is named twice" in error(directory, directory, *few)
    text.write_text("", encoding="utf-8")
    assert "text.txt: has no text" in error(directory, *few)
    text.write_bytes("今天\n".encode("gbk"))
    assert "text.txt:1: not valid UTF-8" in error(directory, *few)
    text.write_text("".join(tokens + "\n" for tokens in tokens_of(directory)), encoding="utf-8")

    other = shutil.copytree(directory, tmp_path / "other")
    tiny.write_vocabulary(other, extra=["更"])
    assert "other: splits text into other tokens than" in error(directory, other, *few)
    assert "the model " in error(other, *few)
    (other / "model.safetensors").rename(other / "model.safetensors.index.json")
    assert "are in several files" in error(other, *few)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**values, "vocab_size": values["vocab_size"] + 1}))
    assert "has no row for each of the" in error(directory, *few)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other", "student.json", "text.txt"]
