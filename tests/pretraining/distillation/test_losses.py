"""The loss and its gradients are stock TextBrewer's: its GeneralDistiller over full logits against this project's distiller."""

import copy

import numpy as np
import pytest
import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from textbrewer.losses import fsp_loss
from textbrewer.presets import MATCH_LOSS_MAP

from pretraining.config import TrainingArguments
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import read_data_json
from pretraining.corpus.masking import WholeWordMasker
from pretraining.corpus.shards import ShardSpec, load_shards
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.modeling import half_dtype, prepare_models
from pretraining.distillation.upcoming import UpcomingStep
from tests import tiny

LENGTH = 32
CPU = torch.device("cpu")


def match(loss: str, pairs: list, feature: str = "hidden", proj: tuple | None = None) -> list[dict]:
    return [
        {"layer_S": s, "layer_T": t, "feature": feature, "loss": loss, "weight": w, **({"proj": ["linear", *proj]} if proj else {})}
        for s, t, w in pairs
    ]


ENDS, TWICE = [(0, 0, 1), (1, 2, 1), (2, 4, 0.5)], [([0, 0], [0, 0], 1), ([2, 2], [4, 4], 0.5)]
MATCHES = {
    "logits alone": (16, []),
    "hidden_mse": (32, match("hidden_mse", ENDS)),
    "hidden_mse with projection": (16, match("hidden_mse", ENDS, proj=(16, 32))),
    "mmd": (16, match("mmd", TWICE)),
    "cos": (32, match("cos", ENDS)),
    "cos with projection": (16, match("cos", ENDS, proj=(16, 32))),
    "gram": (32, match("gram", TWICE)),
    "gram with projection": (16, match("gram", TWICE, proj=(16, 32))),
    **{loss: (16, match(loss, [(0, 1, 1), (1, 3, 2)], "attention")) for loss in ("attention_mse", "attention_ce")},
    **{loss: (16, match(loss, [(0, 1, 1), (1, 3, 2)], "attention")) for loss in ("attention_mse_sum", "attention_ce_mean")},
    "hidden and attention": (16, match("hidden_mse", ENDS, proj=(16, 32)) + match("attention_mse", [(0, 1, 3)], "attention")),
}


@pytest.fixture(scope="module")
def batches(corpus, tmp_path_factory) -> dict[str, dict]:
    """Masked batches of full rows and of rows one of which is shorter than the others."""
    files = read_data_json(corpus.data_json)["train"]
    spec = ShardSpec(tmp_path_factory.mktemp("shards"), LENGTH, corpus.tokenizer)
    dataset = load_shards(files, spec, progress=False, fill_last_row=False)
    masker = WholeWordMasker(corpus.tokenizer, LENGTH, 0.15, seed=7)
    lengths = np.array([len(row) for row in tiny.all_rows(dataset)["input_ids"]])
    full, short = np.flatnonzero(lengths == LENGTH - 2), np.flatnonzero(lengths < LENGTH - 2)
    endless = TrainingBatches(dataset, masker, seed=7, train_batch_size=4)
    found = {}
    for name, rows in (("full rows", full[:4]), ("a short row", np.append(full[:3], short[0]))):
        endless.examples = lambda start, count, rows=rows: (np.zeros(4, dtype=np.int64), rows)
        found[name] = endless[0]
    assert "attention_mask" not in found["full rows"] and "attention_mask" in found["a short row"]
    assert len(set(tiny.masked_tokens(found["a short row"]).tolist())) > 1
    return found


def prepared_distiller(args: TrainingArguments, student, teacher, intermediate_matches: list[dict], compiled: bool = False) -> Distiller:
    """As training.train makes it."""
    kernels = args.cpu_kernels and not any(match["feature"] == "attention" for match in intermediate_matches)
    prepare_models(student, teacher, device=CPU, half=half_dtype(args), compiled=compiled, cpu_kernels=kernels)
    return Distiller(args, student, teacher, intermediate_matches, CPU, compiled=compiled)


def both_distillers(
    student, teacher, intermediate_matches: list[dict], output_dir, kd_weight: float = 1.0, hard_label_weight: float = 0.0
) -> tuple[GeneralDistiller, Distiller]:
    """Stock and own distiller with copies of the same student and the same projections."""
    weights = {"kd_weight": kd_weight, "hard_label_weight": hard_label_weight}
    stock = GeneralDistiller(
        TrainingConfig(output_dir=str(output_dir), device=CPU),
        DistillationConfig(
            temperature=8,
            intermediate_matches=copy.deepcopy(intermediate_matches),
            kd_loss_weight=kd_weight,
            hard_label_weight=hard_label_weight,
        ),
        teacher,
        copy.deepcopy(student),
        tiny.stock_adaptor,
        (lambda batch, outputs: {**tiny.stock_adaptor(batch, outputs), "losses": [outputs.loss]})
        if hard_label_weight
        else tiny.stock_adaptor,
    )
    args = TrainingArguments(student_config="", output_dir=str(output_dir), teacher_name_or_path="", temperature=8, **weights)
    own = prepared_distiller(args, copy.deepcopy(student), teacher, copy.deepcopy(intermediate_matches))
    for theirs, ours in zip(stock.projs, own.projs):
        if theirs is not None:
            torch.nn.init.normal_(theirs.bias)
            ours.load_state_dict(theirs.state_dict())
    return stock, own


def gradients(distiller) -> dict[str, torch.Tensor]:
    named = dict(distiller.model_S.named_parameters())
    for number, projection in enumerate(distiller.projs):
        named |= {f"projection {number} {name}": value for name, value in projection.named_parameters()} if projection is not None else {}
    return {name: parameter.grad for name, parameter in named.items()}


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Each tensor's difference under 1e-5 of its norm; a gradient that is zero but for rounding (a key's bias) counts as zero."""
    assert ours.keys() == theirs.keys()
    rounding = 1e-7 * max(float(gradient.norm()) for gradient in theirs.values())
    for name, expected in theirs.items():
        difference = float((ours[name] - expected).norm())
        assert difference <= 1e-5 * float(expected.norm()) + rounding, name


@pytest.mark.parametrize("rows", ["full rows", "a short row"])
@pytest.mark.parametrize("name", MATCHES)
def test_loss_and_gradients_equal_stock_textbrewer(name, rows, batches, corpus, tmp_path):
    hidden, intermediate_matches = MATCHES[name]
    attentions = "attention" in name
    vocabulary = len(corpus.tokenizer)
    teacher = tiny.model(tiny.config(vocabulary, 4, 32, 4), seed=1, attentions=attentions)
    student = tiny.model(tiny.config(vocabulary, 2, hidden, 4), seed=2, attentions=attentions)
    stock, own = both_distillers(student, teacher, intermediate_matches, tmp_path)
    outputs = {"output_hidden_states": True, "output_attentions": attentions}
    expected, expected_terms = stock.train_on_batch(tiny.full_batch(batches[rows]), outputs)
    expected.backward()

    batch = dict(batches[rows])
    UpcomingStep([batch]).wait()
    loss, terms = own.loss(batch)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.keys() == expected_terms.keys()
    assert len(terms) == 1 + len(intermediate_matches)
    for term, value in expected_terms.items():
        assert terms[term].item() == pytest.approx(value.item(), rel=1e-5), term
    assert_same_gradients(gradients(own), gradients(stock))
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("rows", ["full rows", "a short row"])
@pytest.mark.parametrize(("kd_weight", "hard_label_weight"), [(1.0, 2.0), (5.0, 0.5), (0.5, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_weights_of_soft_and_hard_labels_equal_stock_textbrewer(kd_weight, hard_label_weight, rows, batches, corpus, tmp_path):
    """A term of weight 0 is not computed; stock TextBrewer computes the soft labels and multiplies them by 0."""
    hidden, intermediate_matches = MATCHES["hidden_mse with projection"]
    teacher = tiny.model(tiny.config(len(corpus.tokenizer), 4, 32, 4), seed=1)
    student = tiny.model(tiny.config(len(corpus.tokenizer), 2, hidden, 4), seed=2)
    stock, own = both_distillers(student, teacher, intermediate_matches, tmp_path, kd_weight, hard_label_weight)
    expected, expected_terms = stock.train_on_batch(tiny.full_batch(batches[rows]), {"output_hidden_states": True})
    expected.backward()
    batch = dict(batches[rows])
    UpcomingStep([batch]).wait()
    loss, terms = own.loss(batch)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name for name in expected_terms if kd_weight or name != "unweighted_kd_loss"}
    assert terms.keys() == wanted and ("unweighted_hard_label_loss" in terms) == (hard_label_weight > 0)
    for term in wanted:
        assert terms[term].item() == pytest.approx(expected_terms[term].item(), rel=1e-5), term
    ours = {name: torch.zeros(()) if gradient is None else gradient for name, gradient in gradients(own).items()}
    assert_same_gradients(ours, gradients(stock))


@pytest.mark.parametrize("rows", ["full rows", "a short row"])
def test_without_a_teacher_the_loss_is_masked_lm(rows, batches, corpus, tmp_path):
    student = tiny.model(tiny.config(len(corpus.tokenizer), 2, 16, 2), seed=2)
    own = prepared_distiller(TrainingArguments(student_config="", output_dir=str(tmp_path)), copy.deepcopy(student), None, [])
    batch = dict(batches[rows])
    UpcomingStep([batch]).wait()
    loss, terms = own.loss(batch)
    loss.backward()
    expected = student(**tiny.full_batch(batches[rows])).loss
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["unweighted_hard_label_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(own), {name: parameter.grad for name, parameter in student.named_parameters()})


def test_a_row_without_masked_tokens_adds_nothing(batches, corpus, tmp_path):
    """A row whose only word is longer than its budget has no label at all; the mean is over the other rows' tokens."""
    batch = {name: tensor.clone() for name, tensor in batches["full rows"].items()}
    batch["labels"][1:] = -100
    student = tiny.model(tiny.config(len(corpus.tokenizer), 2, 16, 2), seed=2)
    own = prepared_distiller(TrainingArguments(student_config="", output_dir=str(tmp_path)), copy.deepcopy(student), None, [])
    UpcomingStep([batch]).wait()
    assert own.loss(batch)[0].item() == pytest.approx(student(**tiny.full_batch(batch)).loss.item(), rel=1e-5)

    batch["labels"][:] = -100
    UpcomingStep([batch]).wait()
    assert own.loss(batch)[0].item() == 0


@pytest.mark.parametrize("rows", ["full rows", "a short row"])
@pytest.mark.parametrize("distils", [True, False], ids=["with a teacher", "without one"])
def test_compiled_the_loss_is_one_graph(rows, distils, batches, corpus, tmp_path, monkeypatch):
    """The compiler only traces here and runs what it traced; where a graph would break it raises an error."""
    compile_module = torch.nn.Module.compile
    tracing = {"backend": "eager", "fullgraph": True}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compile_module(module, **tracing, **options))
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        teacher = tiny.model(tiny.config(len(corpus.tokenizer), 4, 32, 4), seed=1) if distils else None
        student = tiny.model(tiny.config(len(corpus.tokenizer), 2, 16, 4), seed=2)
        args = TrainingArguments(student_config="", output_dir=str(tmp_path), teacher_name_or_path="", bf16=True)
        torch.manual_seed(3)
        own = prepared_distiller(args, student, teacher, match("hidden_mse", ENDS, proj=(16, 32)) if distils else [], compiled)
        batch = dict(batches[rows])
        UpcomingStep([batch]).wait()
        loss, _ = own.loss(batch)
        loss.backward()
        found.append((loss, gradients(own)))
        with torch._dynamo.config.patch(error_on_recompile=True):
            own.loss(batch)
    (loss, expected), (compiled_loss, compiled_gradients) = found
    assert compiled_loss.item() == pytest.approx(loss.item(), rel=1e-2)
    largest = max(float(gradient.norm()) for gradient in expected.values())
    assert all(float((compiled_gradients[name] - gradient).norm()) < 0.03 * largest for name, gradient in expected.items())


def test_gram_in_float16_takes_hidden_states_that_a_large_teacher_has():
    """The sum over 512 positions of 12² exceeds float16, whose largest number is 65504; TextBrewer's own ``gram`` is infinite."""
    torch.manual_seed(0)
    student, teacher = (torch.nn.functional.layer_norm(torch.randn(2, 512, 48), (48,)).half() for _ in range(2))
    teacher[..., 7] = 12
    student.requires_grad_()
    with torch.autocast("cpu", torch.float16):
        assert fsp_loss([student] * 2, [teacher] * 2).isinf()
        loss = MATCH_LOSS_MAP["gram"]([student] * 2, [teacher] * 2)
    loss.backward()
    expected = fsp_loss([student.detach().float()] * 2, [teacher.float()] * 2)
    assert loss.item() == expected.item() and student.grad.isfinite().all()
