"""Scores of the rows of language models, in the Trainer of Hugging Face."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_sequences import REDUCED
from test_transformers import COLLATORS, LENGTH, ROWS, SIZE, WORDS, gpt, make, ragged, t5, watch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import GPT2LMHeadModel, Trainer
from transformers.modeling_outputs import CausalLMOutput

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using .DataCollatorWithFlattening.:UserWarning"),
]
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def score_of(latents, weight, targets):
    """The alignment of the gradient of these tokens together, by autograd in float64."""
    weight = weight.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(latents.detach().double(), weight), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, weight)
    return F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0).detach()


def expected(model, rows, reduce):
    """One score a row, which is passed alone; the weights must be those of the training."""
    model.eval()
    found = []
    for row in rows:
        x, y = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        head, seen = model.get_output_embeddings(), []
        if model.config.is_encoder_decoder:
            hook = head.register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0]))
            model(input_ids=x, labels=y[None])
            hook.remove()
            latents = seen[0][0]
        else:
            latents, y = model.base_model(input_ids=x).last_hidden_state[0, :-1], y[1:]
        weight, counted = head.weight, y != -100
        latents, y = latents[counted], y[counted]
        if reduce == "gradient":
            found.append(score_of(latents, weight, y))
        else:
            single = [score_of(z[None], weight, t[None]) for z, t in zip(latents, y, strict=True)]
            found.append(REDUCED[reduce](torch.stack(single)))
    return torch.stack(found)


class Fused(GPT2LMHeadModel):
    """A model whose head is never called, as Liger's kernel has it."""

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **more):
        latents = self.transformer(input_ids=input_ids, **more).last_hidden_state
        flat = latents[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        kind = "mean" if num_items_in_batch is None else "sum"
        loss = F.cross_entropy(F.linear(flat[0], self.lm_head.weight), flat[1], reduction=kind)
        return CausalLMOutput(loss=loss / (1 if kind == "mean" else num_items_in_batch))


def run(folder, model, rows, collate, reduce, **options):
    """A training in which nothing moves, and the number of passes of the model."""
    args = make(folder, "causal", num_train_epochs=1, learning_rate=0.0, **options).args
    trainer = Trainer(model, args, train_dataset=rows, data_collator=collate)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    gwa = None if reduce is None else watch(trainer, ROWS, reduce=reduce)
    trainer.train()
    return SimpleNamespace(gwa=gwa, passes=passes)


@pytest.mark.parametrize("reduce", ["mean", "min", "gradient"])
@pytest.mark.parametrize("case", COLLATORS)
def test_a_row_is_one_sample(case, reduce, tmp_path):
    rows = ragged(causal=case != "seq2seq")
    model = t5() if case == "seq2seq" else gpt(GPT2LMHeadModel, n_positions=SIZE * LENGTH, **STILL)
    if case == "seq2seq":
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
    else:
        # The place of a token depends on the padding of its row, which predicts its first token.
        nn.init.zeros_(model.transformer.wpe.weight)
        rows = [row | {"labels": [-100, *row["labels"][1:]]} for row in rows]
    ran = run(tmp_path, model, rows, COLLATORS[case](), reduce)
    torch.testing.assert_close(
        ran.gwa.scores.double(), expected(model, rows, reduce), rtol=2e-4, atol=2e-6
    )
    assert ran.gwa.history[0].count == ROWS


@pytest.mark.parametrize("reduce", ["mean", "gradient"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_head_that_is_never_called(accumulated, reduce, tmp_path):
    rows, options = ragged(causal=True), {"gradient_accumulation_steps": accumulated}
    collate = COLLATORS["padding"]
    model = gpt(Fused, **STILL)
    ran = run(tmp_path, model, rows, collate(), reduce, **options)
    torch.testing.assert_close(
        ran.gwa.scores.double(), expected(model, rows, reduce), rtol=2e-4, atol=2e-6
    )
    plain = run(tmp_path, gpt(Fused, **STILL), rows, collate(), None, **options)
    assert len(ran.passes) == len(plain.passes) == ROWS // SIZE


def test_a_fused_loss_of_another_kind_is_refused(tmp_path):
    class Smoothed(Fused):
        def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **more):
            outputs = super().forward(input_ids, labels, num_items_in_batch, **more)
            return CausalLMOutput(loss=1.1 * outputs.loss)

    with pytest.raises(ValueError, match="`head` must make what the loss is computed of, got a l"):
        run(tmp_path, gpt(Smoothed), ragged(causal=True), COLLATORS["padding"](), "mean")


def test_rows_that_were_packed_with_their_numbers(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = ragged(causal=True)
    for number, row in enumerate(rows):
        row["ids"] = [number] * len(row["input_ids"])
        row["labels"] = [-100, *row["labels"][1:]]
    table = datasets.Dataset.from_list(rows)
    packed = trl.pack_dataset(table, 2 * LENGTH, "bfd").remove_columns("seq_lengths")
    assert len(packed) < ROWS

    def collate(features):
        width = max(len(row["input_ids"]) for row in features)
        pad = lambda row, name, value: row[name] + [value] * (width - len(row[name]))  # noqa: E731
        batch = {"input_ids": 0, "labels": -100}
        return {k: torch.tensor([pad(row, k, v) for row in features]) for k, v in batch.items()}

    model = gpt(GPT2LMHeadModel, n_positions=2 * LENGTH, **STILL)
    args = make(tmp_path, "causal", num_train_epochs=1, learning_rate=0.0).args
    args.remove_unused_columns = True
    trainer = Trainer(model, args, train_dataset=packed, data_collator=collate)
    gwa = watch(trainer, ROWS, reduce="gradient")
    trainer.train()
    # Without a mask by row a token sees the row before its own.
    model.eval()
    for pack in packed:
        latents = model.transformer(torch.tensor([pack["input_ids"]])).last_hidden_state[0, :-1]
        targets, numbers = torch.tensor(pack["labels"])[1:], torch.tensor(pack["ids"])[:-1]
        for number in set(pack["ids"]):
            mine = (targets != -100) & (numbers == number)
            want = score_of(latents[mine], model.lm_head.weight, targets[mine])
            torch.testing.assert_close(gwa.scores[number].double(), want, rtol=2e-4, atol=2e-6)


def test_garbled_answers_are_found(tmp_path):
    """What the scores are for: rows whose answer is noise have the lowest."""
    torch.manual_seed(0)
    rows = []
    for i in range(ROWS):
        start = 3 + i % 8
        answer = [start, start + 1, start + 2]
        if i % 10 == 0:
            answer = torch.randint(3, WORDS, (3,)).tolist()
        rows.append({"input_ids": [start, *answer], "labels": [-100, *answer]})
    model = gpt(GPT2LMHeadModel, n_embd=32, **STILL)
    args = make(tmp_path, "causal", num_train_epochs=12, learning_rate=3e-3).args
    trainer = Trainer(model, args, train_dataset=rows, data_collator=COLLATORS["padding"]())
    gwa = watch(trainer, ROWS, reduce="gradient")
    trainer.train()
    lowest = gwa.label_quality.argsort()[:4]
    assert sum(int(i) % 10 == 0 for i in lowest) >= 3
