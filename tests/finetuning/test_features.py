"""Examples become batches of tensors."""

from finetuning.features import collate, sentence_features
from finetuning.tasks import Example


def test_batches_are_padded_and_the_second_segment_is_marked(tiny_tokenizer):
    examples = [Example("1", ("今天", "天气很好"), 1), Example("2", ("火车", "慢"), 0)]
    batch = collate(sentence_features(examples, tiny_tokenizer, 8, with_labels=True))
    assert tiny_tokenizer.batch_decode(batch["input_ids"]) == ["[CLS] 今 天 [SEP] 天 气 很 [SEP]", "[CLS] 火 车 [SEP] 慢 [SEP] [PAD] [PAD]"]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert batch["labels"].tolist() == [1, 0]
