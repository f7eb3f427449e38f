"""make_demo_models.py: a vocabulary that knows every character, configs that can be built, a data.json that can be read."""

import json

from pretraining.corpus.files import read_data_json
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.distillation.modeling import read_config
from pretraining.scripts import make_demo_models


def test_the_demos_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("老师说，学校。\n\n老师 Bb2\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text("图书馆\n", encoding="utf-8")
    data = {
        "train": {"train_files": ["a.txt"], "train_ref_files": ["a.refs"]},
        "dev": {"dev_files": ["dev.txt"], "dev_ref_files": ["dev.refs"]},
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    make_demo_models.main(["--data_files_json", "data.json", "--output_dir", "demo"])

    tokens = (tmp_path / "demo/vocabulary/vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[5:] == ["b", "师", "老", "2", "。", "学", "校", "说", "，", "##b", "##2"]  # by frequency, then by code point
    assert load_tokenizer("demo/vocabulary").tokenize("老师Bb2") == ["老", "师", "b", "##b", "##2"]
    assert capsys.readouterr().out.startswith(f"demo: a vocabulary of {len(tokens)} tokens, configs of shallow, teacher, rbt6, minirbt")

    for name, (layers, hidden) in {"shallow": (2, 96), "teacher": (12, 96), "rbt6": (6, 96), "minirbt": (6, 64)}.items():
        config = read_config(f"demo/configs/{name}.json", name)
        assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (layers, hidden, len(tokens))
    splits = read_data_json("demo/data.json")
    assert [str(file.refs) for files in splits.values() for file in files] == ["demo/ref_files/a_ref.txt", "demo/ref_files/dev_ref.txt"]
