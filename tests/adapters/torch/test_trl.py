"""The callback in TRL's SFTTrainer, whose head makes no logits. Importing TRL takes seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from backends import require

torch = require("torch")
transformers = require("transformers")
require("accelerate")

from models import oracle
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from gwa_core import average_shares
from gwa_torch.transformers import GWACallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning"),
    # TRL 1.16 with Transformers 5.23.
    pytest.mark.filterwarnings("ignore:.*label_smoothing_factor. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning"),
]

ROWS, SIZE, LONGEST = 16, 4, 8
WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def texts(kind):
    """Sentences of several lengths, in two parts or in one."""
    from datasets import Dataset

    drawn = torch.randint(len(WORDS), (ROWS, LONGEST), generator=torch.Generator().manual_seed(0))
    rows = [[WORDS[i] for i in row[: 4 + n % 4]] for n, row in enumerate(drawn)]
    if kind == "completion":
        return Dataset.from_dict(
            {
                "prompt": [" ".join(row[:2]) for row in rows],
                "completion": [" " + " ".join(row[2:]) for row in rows],
            }
        )
    return Dataset.from_dict({"text": [" ".join(row) for row in rows]})


SIZES = {
    "vocab_size": len(WORDS) + 3,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "attention_dropout": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=0.2)),
    # A cap that bends every logit.
    "gemma": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.05, attn_implementation="eager")
    ),
}


def make(folder, tokenizer, kind="text", *, model="llama", lora=False, peft=None, **options):
    from trl import SFTConfig, SFTTrainer

    arguments = {
        "max_length": LONGEST,
        "per_device_train_batch_size": SIZE,
        "num_train_epochs": 1,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
    }
    torch.manual_seed(0)
    if lora:
        from peft import LoraConfig

        peft = LoraConfig(target_modules=["q_proj"], r=2, lora_dropout=0.2, task_type="CAUSAL_LM")
    return SFTTrainer(
        MODELS[model](),
        SFTConfig(str(folder), **(arguments | options)),
        train_dataset=texts(kind),
        processing_class=tokenizer,
        peft_config=peft,
    )


def watch(trainer, num_samples=None, **options):
    gwa = GWACallback(trainer, num_samples=num_samples, **options)
    trainer.add_callback(gwa)
    return gwa


def bare(trainer):
    return getattr(trainer.model, "get_base_model", lambda: trainer.model)()


class Recorder:
    """What went into the head in training, with the weights of that moment, and the batches."""

    def __init__(self, trainer):
        self.passes, self.batches, self.forwards = [], [], 0
        model = bare(trainer)
        self.head = model.get_output_embeddings()
        model.base_model.register_forward_hook(self.keep)
        model.register_forward_hook(self.count)
        collate = trainer.data_collator

        def collator(features):
            self.batches.append(collate(features))
            return dict(self.batches[-1])

        trainer.data_collator = collator

    def count(self, *_):
        self.forwards += 1

    def keep(self, body, inputs, output):
        if torch.is_grad_enabled():
            weight = self.head.weight.detach().clone()
            self.passes.append((output.last_hidden_state.detach(), weight))

    def scores(self, **options):
        """The oracle's score of each token that counts, in the order of training."""
        found = []
        for (latents, weight), batch in zip(self.passes, self.batches, strict=True):
            targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
            counted = targets != -100
            found.append(oracle(latents[counted], weight, None, targets[counted], **options))
        return torch.cat(found)


CASES = {
    "plain": {},
    "packing": {"packing": True, "packing_strategy": "wrapped"},
    "completion": {"kind": "completion"},
    "lora": {"lora": True},
    "padding free": {"padding_free": True, "max_length": None},
    "smoothed": {"label_smoothing_factor": 0.1},
    "dft": {"loss_type": "dft"},
    "accumulated": {"gradient_accumulation_steps": 2},
}


@pytest.mark.filterwarnings("ignore:.*[Pp]adding-free.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_training_is_the_same_with_and_without(case, tokenizer, tmp_path):
    trainers, forwards = [], []
    for watched in (False, True):
        trainer = make(tmp_path, tokenizer, **CASES[case])
        recorder = Recorder(trainer)
        gwa = watch(trainer) if watched else None
        trainer.train()
        trainers.append(trainer)
        forwards.append(recorder.forwards)
    plain, other = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(x, other[name]) for name, x in plain.items())
    assert forwards[0] == forwards[1]
    assert gwa.history[0].count > ROWS
    wanted = recorder.scores(label_smoothing=CASES[case].get("label_smoothing_factor", 0.0))
    assert gwa.history[0].count == len(wanted)
    assert_allclose(gwa.history[0].mean, wanted.mean(), atol=1e-6)


def capped(logits):
    return 0.05 * torch.tanh(logits / 0.05)


@pytest.mark.parametrize(
    ("model", "change"), [("granite", lambda logits: 5 * logits), ("gemma", capped)]
)
def test_logits_that_are_scaled_or_capped(model, change, tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer, model=model)
    recorder = Recorder(trainer)
    gwa = watch(trainer)
    trainer.train()
    scores = []
    for (latents, weight), batch in zip(recorder.passes, recorder.batches, strict=True):
        weight = weight.double().requires_grad_()
        targets = batch["labels"][:, 1:]
        for z, t in zip(latents[:, :-1][targets != -100], targets[targets != -100], strict=True):
            loss = F.cross_entropy(change(F.linear(z.double(), weight)), t)
            (gradient,) = torch.autograd.grad(loss, weight)
            scores.append(F.cosine_similarity(-gradient.flatten(), weight.flatten(), dim=0))
    plain = recorder.scores().mean()
    assert_allclose(gwa.history[0].mean, torch.stack(scores).mean().detach(), atol=1e-5)
    assert abs(float(plain) - gwa.history[0].mean) > 1e-4


def test_tokens_are_numbered_by_row_and_place(tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer, "completion")
    recorder = Recorder(trainer)
    gwa = watch(trainer, ROWS * LONGEST, run_folder=tmp_path / "run")
    trainer.train()
    scores, wanted = gwa.scores.view(ROWS, LONGEST), recorder.scores()
    for i, row in enumerate(trainer.train_dataset):
        counted = F.pad(
            torch.tensor(row["labels"])[1:] != -100, (0, 1 + LONGEST - len(row["labels"]))
        )
        assert torch.equal(scores[i].isfinite(), counted)
    found = scores[scores.isfinite()]
    assert_allclose(found.sort().values, wanted.sort().values, atol=1e-5)
    # One row by hand.
    batch, (latents, weight) = recorder.batches[0], recorder.passes[0]
    row = next(
        i
        for i, row in enumerate(trainer.train_dataset)
        if row["input_ids"] == batch["input_ids"][0][: len(row["input_ids"])].tolist()
    )
    size = len(trainer.train_dataset[row]["input_ids"])
    alone = oracle(latents[0, : size - 1], weight, None, batch["input_ids"][0, 1:size])
    mine = scores[row, : size - 1]
    assert_allclose(mine[mine.isfinite()], alone[mine.isfinite()], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*[Pp]adding-free.*:UserWarning")
def test_rows_one_behind_the_other_have_the_same_numbers(tokenizer, tmp_path):
    found = []
    for free in (False, True):
        options = {"padding_free": True, "max_length": None} if free else {}
        trainer = make(tmp_path, tokenizer, learning_rate=0.0, **options)
        bare(trainer).config.attention_dropout = 0.0
        for layer in bare(trainer).base_model.layers:
            layer.self_attn.attention_dropout = 0.0
        gwa = watch(trainer, ROWS * LONGEST)
        trainer.train()
        found.append(gwa.scores)
    assert torch.equal(found[0].isfinite(), found[1].isfinite())


def test_packed_rows_have_no_numbers(tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer, packing=True, packing_strategy="wrapped")
    watch(trainer, ROWS * LONGEST)
    with pytest.raises(ValueError, match="`num_samples` must be None with packing=True, got 128"):
        trainer.train()


class Rows:
    """What the rows of a data set have to do with the passes that a recorder saw."""

    def __init__(self, trainer, recorder):
        numbers = {
            tuple(row["input_ids"]): number for number, row in enumerate(trainer.train_dataset)
        }
        self.parts = []
        for (latents, weight), batch in zip(recorder.passes, recorder.batches, strict=True):
            joined = len(batch["input_ids"]) == 1 and "position_ids" in batch
            for b, tokens in enumerate(batch["input_ids"]):
                starts = (batch["position_ids"][b] == 0).nonzero().flatten() if joined else [0]
                for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
                    row = tokens[start:stop]
                    row = row[row != 0]  # padding
                    z = latents[b, start : start + len(row) - 1]
                    t = batch["labels"][b, start + 1 : start + len(row)]
                    counted = t != -100
                    number = numbers[tuple(row.tolist())]
                    self.parts.append((number, z[counted], weight, t[counted]))

    def scores(self, reduce):
        found = torch.full((ROWS,), torch.nan, dtype=torch.float64)
        for number, z, weight, t in self.parts:
            if reduce == "mean":
                found[number] = oracle(z, weight, None, t).mean()
                continue
            w = weight.double().requires_grad_()
            loss = F.cross_entropy(F.linear(z.double(), w), t, reduction="sum")
            (g,) = torch.autograd.grad(loss, w)
            found[number] = F.cosine_similarity(-g.flatten(), w.flatten(), dim=0).detach()
        return found


@pytest.mark.filterwarnings("ignore:.*[Pp]adding-free.*:UserWarning")
@pytest.mark.parametrize("reduce", ["mean", "gradient"])
@pytest.mark.parametrize("case", ["plain", "completion", "lora", "padding free", "accumulated"])
def test_a_row_is_one_sample(case, reduce, tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer, **CASES[case])
    recorder = Recorder(trainer)
    gwa = watch(trainer, ROWS, reduce=reduce)
    trainer.train()
    plain = make(tmp_path, tokenizer, **CASES[case])
    other = Recorder(plain)
    plain.train()
    assert recorder.forwards == other.forwards
    assert gwa.history[0].count == ROWS
    assert_allclose(gwa.scores, Rows(trainer, recorder).scores(reduce), rtol=2e-4, atol=2e-6)


def test_rows_that_were_packed_with_their_numbers(tokenizer, tmp_path):
    import trl

    def numbered(row, number):
        tokens = tokenizer(row["text"])["input_ids"]
        return {"input_ids": tokens, "ids": [number] * len(tokens)}

    tokens = texts("text").map(numbered, with_indices=True, remove_columns="text")
    packed = trl.pack_dataset(tokens, 2 * LONGEST)
    assert len(packed) < ROWS
    arguments = {"max_length": 2 * LONGEST, "num_train_epochs": 1, "report_to": [], "bf16": False}
    arguments |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    torch.manual_seed(0)
    trainer = trl.SFTTrainer(
        MODELS["llama"](),
        trl.SFTConfig(str(tmp_path), per_device_train_batch_size=SIZE, **arguments),
        train_dataset=packed,
        processing_class=tokenizer,
    )
    gwa = watch(trainer, ROWS, reduce="min")
    trainer.train()
    assert gwa.history[0].count == ROWS


def test_signals_have_no_logits(tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer)
    watch(trainer, signals="margin")
    with pytest.raises(ValueError, match="`signals` must be left out here, got margin"):
        trainer.train()


def test_a_head_with_another_factor_is_refused(tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer, model="granite")
    watch(trainer)
    # What the fused head goes by is read when the trainer is made.
    bare(trainer).config.logits_scaling = 1.0
    with pytest.raises(ValueError, match="got log-probabilities that differ by up to"):
        trainer.train()


def test_a_sketch(tokenizer, tmp_path):
    found = []
    for options in ({}, {"sketch": 8}):
        trainer = make(tmp_path, tokenizer)
        gwa = watch(trainer, ROWS * LONGEST, **options)
        trainer.train()
        found.append(gwa.scores[gwa.scores.isfinite()])
    assert 0.3 < float(torch.corrcoef(torch.stack(found))[0, 1]) < 0.999
    trainer = make(tmp_path, tokenizer, model="granite")
    watch(trainer, sketch=8)
    with pytest.raises(ValueError, match="`sketch` must be left out here"):
        trainer.train()


def test_the_average_of_adapters(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    layers = ["v_proj", "o_proj", "gate_proj", "down_proj"]
    lora = peft.LoraConfig(target_modules=layers, r=4, task_type="CAUSAL_LM")
    own = {"num_train_epochs": 6, "save_strategy": "epoch", "learning_rate": 0.1}
    trainer = make(tmp_path, tokenizer, peft=lora, **own)
    kept = []

    class Weights(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            kept.append({name: x.clone() for name, x in model.state_dict().items()})

    trainer.add_callback(Weights())
    gwa = watch(trainer, keep="average")
    trainer.train()
    shares = average_shares(gwa.history)
    for name, parameter in trainer.model.named_parameters():
        wanted = sum(s * one[name].double() for s, one in zip(shares, kept, strict=True))
        assert_allclose(parameter.detach(), wanted, rtol=1e-6, atol=1e-7)
    saved = load_file(Path(gwa.averaged_model_path) / "adapter_model.safetensors")
    state = trainer.model.state_dict()
    assert len(saved) == 2 * len(layers)
    for name, x in saved.items():
        assert torch.equal(x, state[name.replace(".weight", ".default.weight")])


def test_every(tokenizer, tmp_path):
    trainer = make(tmp_path, tokenizer)
    recorder = Recorder(trainer)
    gwa = watch(trainer, every=2)
    trainer.train()
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in recorder.batches]
    assert gwa.history[0].count == sum(itertools.islice(counts, 0, None, 2))
