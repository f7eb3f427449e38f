"""Relation distillation: the loss and its gradient against the plain formula, against a case by hand, and in the training step."""

from math import exp, log, sqrt

import pytest
import torch
from textbrewer.presets import MATCH_LOSS_MAP

from pretraining.config import TrainingArguments
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.memory_trace import trace_step
from pretraining.distillation.modeling import half_dtype, prepare_models
from pretraining.distillation.relations import TokenStates, relation
from pretraining.distillation.upcoming import UpcomingStep
from pretraining.matches import get_matches
from pretraining.reporting.model_sizes import published_configs
from tests import tiny

CPU = torch.device("cpu")
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])


def plain_relation_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Row by row and head by head, with everything kept for the backward pass."""
    losses = []
    for row in range(len(student)):
        length = student.size(1) if mask is None else int(mask[row].sum())
        for own, other in zip(student[row, :length].chunk(heads, dim=-1), teacher[row, :length].chunk(heads, dim=-1)):
            log_S, log_T = ((states @ states.T / sqrt(states.size(1))).log_softmax(-1) for states in (own, other))
            losses.append((log_T.exp() * (log_T - log_S)).sum() / length)
    return torch.stack(losses).mean()


def states(dtype: torch.dtype, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, length, 12, dtype=dtype, requires_grad=True), torch.randn(2, length, 18, dtype=dtype)


def test_two_tokens_by_hand():
    """One head of size 1. Student states 1 and 2: scores 1, 2 and 2, 4; teacher states 0 and 3: scores 0, 0 and 0, 9."""
    student, teacher = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.0], [3.0]]])
    first = 0.5 * log(0.5 * (1 + exp(1))) + 0.5 * log(0.5 * (1 + exp(-1)))  # 1/2 and 1/2 against 1/(1+e) and e/(1+e)
    p, q = 1 / (1 + exp(9)), 1 / (1 + exp(2))
    second = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
    loss = MATCH_LOSS_MAP["relation1"](TokenStates(student, None), TokenStates(teacher, None), mask=None)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 2 * 7 * 7, 2**20], ids=["a head at a time", "two heads at a time", "all at once"])
@pytest.mark.parametrize("mask", [None, PADDED], ids=["full rows", "a short row"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradient_equal_the_plain_formula(dtype, tolerance, mask, chunk):
    student, teacher = states(dtype)
    loss, expected = relation(student, teacher, mask, 3, chunk)[0], plain_relation_loss(student, teacher, mask, 3)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    ours, theirs = (torch.autograd.grad(2 * each, student)[0] for each in (loss, expected))
    assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("mask", [None, PADDED], ids=["full rows", "a short row"])
def test_gradcheck(mask):
    student, teacher = states(torch.float64)
    assert torch.autograd.gradcheck(lambda own: relation(own, teacher, mask, 3, 2**20)[0], student)
    torch.library.opcheck(relation, (student, teacher, mask, 3, 2**20))


def test_padding_does_not_count():
    student, teacher = states(torch.float32)
    loss, gradient = (tensor.clone() for tensor in relation(student, teacher, PADDED, 3, 2**20))
    with torch.no_grad():
        student[1, 4:], teacher[1, 4:] = 100.0, -100.0
    again, other_gradient = relation(student, teacher, PADDED, 3, 2**20)
    assert torch.equal(loss, again) and torch.equal(gradient, other_gradient) and not gradient[1, 4:].any()


def test_equal_models_have_no_loss_and_width_does_not_matter():
    _, teacher = states(torch.float32)
    assert relation(teacher, teacher, None, 3, 2**20)[0].item() == 0
    wide = torch.cat([teacher.unflatten(-1, (3, 6))] * 4, dim=-1).flatten(2) / 2**0.5  # heads of size 24: the same scaled products
    assert relation(wide, teacher, None, 3, 2**20)[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = (40 * tensor.detach().to(dtype) for tensor in states(torch.float32))
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = relation(student, teacher, None, 3, 2**20)[0]
    loss.backward()
    expected = plain_relation_loss(student.float(), teacher.float(), None, 3)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.grad.dtype == dtype and student.grad.isfinite().all()


# ---------------------------------------------------------------- in the training step


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Three rows, the last of them short."""
    random = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(6, vocabulary, shape, generator=random) for shape in ((3, 16), (3, 2)))
    mask = torch.ones_like(ids)
    mask[2, 9:] = 0
    made = {"input_ids": ids, "labels": labels, "masked_positions": torch.tensor([[2, 5], [3, 4], [1, 6]]), "attention_mask": mask}
    UpcomingStep([made]).wait()
    return made


def make_distiller(tmp_path, names: list[str], compiled: bool = False, **changes) -> Distiller:
    student, teacher = tiny.model(tiny.config(50, 2, 24, 2, dropout=0), seed=1), tiny.model(tiny.config(50, 4, 36, 3), seed=2)
    args = TrainingArguments(student_config="", output_dir=str(tmp_path), teacher_name_or_path="", **changes)
    prepare_models(student, teacher, device=CPU, half=half_dtype(args), compiled=compiled)
    torch.manual_seed(3)
    return Distiller(args, student, teacher, get_matches(names, student.config, teacher.config), CPU, compiled=compiled)


def test_the_step_compares_the_queries_keys_and_values_of_the_named_layers(tmp_path):
    """Against attention inputs computed from the hidden states, which transformers returns."""
    own = make_distiller(tmp_path, ["L2h24_L4h36_relation_T3_R6"])
    made = batch(50)
    loss, terms = own.loss(made)
    expected = {}
    layers = []
    for model, layer in ((own.model_S, 1), (own.model_T, 2)):
        hidden = model.bert(made["input_ids"], attention_mask=made["attention_mask"], output_hidden_states=True).hidden_states[layer]
        layers.append((hidden, model.bert.encoder.layer[layer].attention.self))
    for name in ("query", "key", "value"):
        own_states, teacher_states = (getattr(attention, name)(hidden) for hidden, attention in layers)
        expected[f"unweighted_{name}_relation6_1_2"] = plain_relation_loss(own_states, teacher_states, made["attention_mask"], 6)
    assert terms.keys() == {"unweighted_kd_loss", *expected}
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)


def test_it_adds_to_hidden_matches_and_reaches_the_query_of_the_student(tmp_path):
    hidden, both = (make_distiller(tmp_path, ["L2h24_L4h36_hidden_mse", *more]) for more in ([], ["L2h24_L4h36_relation"]))
    gradients = []
    for own in (hidden, both):
        _, terms = own.loss(batch(50))
        sum(term for name, term in terms.items() if name.startswith(("unweighted_hidden", "unweighted_query"))).backward()
        gradients.append(own.model_S.bert.encoder.layer[1].attention.self.query.weight.grad)
    assert len(both.projs) == 3 + 3 and len(both.module.projections) == 3
    assert not torch.equal(*gradients)


def test_no_states_are_kept_after_the_step_and_attention_stays_fused(tmp_path):
    own = make_distiller(tmp_path, ["L2h24_L4h36_relation"], cpu_kernels=False)
    own.loss(batch(50))
    assert not any(own.module.student_states.kept.values()) and not any(own.module.teacher_states.kept.values())
    assert own.model_S.config._attn_implementation != "eager"


@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_it_is_one_graph(bf16, tmp_path, monkeypatch):
    compile_module = torch.nn.Module.compile
    tracing = {"backend": "eager", "fullgraph": True}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compile_module(module, **tracing, **options))
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        own = make_distiller(tmp_path, ["L2h24_L4h36_relation", "L2h24_L4h36_hidden_cos"], compiled, bf16=bf16)
        loss, terms = own.loss(batch(50))
        loss.backward()
        found.append((loss.item(), own.model_S.bert.encoder.layer[1].attention.self.value.weight.grad))
        with torch._dynamo.config.patch(error_on_recompile=True):
            own.loss(batch(50))
    (loss, gradient), (compiled_loss, compiled_gradient) = found
    assert compiled_loss == pytest.approx(loss, rel=1e-2 if bf16 else 1e-5)
    assert float((compiled_gradient - gradient).norm()) <= (0.05 if bf16 else 1e-4) * float(gradient.norm())


def test_a_step_with_relations_needs_little_more_memory():
    """At 512 tokens; the issue asks for less than 1.3 times."""
    configs = published_configs()
    student, teacher = configs["MiniRBT-H256"], configs["RBT6 (KD)"]
    args = TrainingArguments(student_config="", output_dir="", max_seq_length=512, bf16=True)
    matches = get_matches(["L6h256_rbt6_relation"], student, teacher)
    without, peak = (trace_step(args, student, teacher, found, 32).peak for found in ([], matches))
    assert peak < 1.1 * without
