"""Distilling once more while fine-tuning: a Trainer whose loss is TextBrewer's, from a fine-tuned teacher's logits and hidden states."""

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import nn
from training import SavingTrainer

PROJECTIONS = "distillation_projections"


class DistillingTrainer(SavingTrainer):
    """Trains on ``T^2 * KD + hard + matches``, all terms as in TextBrewer's ``GeneralDistiller.compute_loss``.

    KD is the cross-entropy of teacher and student at temperature T (for reading that of the start and that of the end logits,
    each over the real tokens, added up); T^2 keeps its gradient as large as the hard labels' (Hinton et al. 2015, section 2).
    ``hard`` is the model's own loss on the labels. ``matches`` compare hidden states or attentions at the real tokens.
    The projections of the matches are a part of the model while it trains, so the optimizer, clipping and checkpoints hold them.
    """

    def __init__(self, model, teacher, temperature: float, matches: list[dict], args, **kwargs):
        """
        Args:
            model, teacher: BertForSequenceClassification or BertForQuestionAnswering, both of the same kind.
            matches: TextBrewer's ``intermediate_matches``, from :func:`matches.get_matches`.
        """
        self.teacher = teacher.to(args.device).eval().requires_grad_(False)
        self.distiller = GeneralDistiller(
            TrainingConfig(output_dir=args.output_dir, device=args.device),
            DistillationConfig(
                temperature=temperature,
                kd_loss_weight=temperature**2,
                hard_label_weight=1,
                intermediate_matches=matches,
            ),
            teacher,
            model,
            adaptor_T=None,
            adaptor_S=None,
        )
        self.features = {match["feature"] for match in matches}
        model.add_module(PROJECTIONS, nn.ModuleList(proj for proj in self.distiller.projs if proj is not None))
        super().__init__(model, args, **kwargs)

    def get_decay_parameter_names(self, model) -> list[str]:
        """As the Trainer, but the projections are not decayed, as in the pretraining."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith(PROJECTIONS)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The distillation loss of one batch, a scalar."""
        wanted = {"output_hidden_states": "hidden" in self.features, "output_attentions": "attention" in self.features}
        asked = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        outputs = model(**inputs, **wanted)
        with torch.no_grad(), self.accelerator.autocast():
            teacher_outputs = self.teacher(**asked, **wanted)
        results_S = _results(outputs, inputs["attention_mask"], self.features)
        results_T = _results(teacher_outputs, inputs["attention_mask"], self.features)
        loss, _ = self.distiller.compute_loss({**results_S, "losses": [outputs.loss]}, results_T)
        return (loss, outputs) if return_outputs else loss

    def drop_projections(self) -> None:
        """Takes the projections out of the trained model."""
        delattr(self.model, PROJECTIONS)


def _results(outputs, attention_mask: torch.Tensor, features: set[str]) -> dict:
    """A model's outputs in the form TextBrewer's loss takes, in float32."""
    if "start_logits" in outputs:
        padding = attention_mask == 0
        logits = [outputs[name].float().masked_fill(padding, -1e4) for name in ("start_logits", "end_logits")]
    else:
        logits = [outputs.logits.float()]
    results = {"logits": logits, "inputs_mask": attention_mask}
    if "hidden" in features:
        results["hidden"] = [state.float() for state in outputs.hidden_states]
    if "attention" in features:
        results["attention"] = [attention.float() for attention in outputs.attentions]
    return results
