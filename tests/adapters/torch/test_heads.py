"""The head of real models is found, and what is not a linear head is refused."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F  # noqa: N812
from zoo import library

from gwa_core import JLSketch
from gwa_torch import GWAMonitor, JLHead, find_head, head_scores
from gwa_torch.heads import head_sketch, resolve_head

TIMM = {
    "resnet18": "fc",
    "vit_tiny_patch16_224": "head",
    "efficientnet_lite0": "classifier",
    "convnextv2_pico": "head.fc",
    "mobilenetv3_small_100": "classifier",  # a subclass of nn.Linear with a forward of its own
    "deit_tiny_distilled_patch16_224": "head",  # answers with two heads
    "dpn68": "classifier",  # a 1×1 convolution
}

TORCHVISION = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "vgg11": "classifier.6",
    "googlenet": "fc",  # and not one of its two auxiliary classifiers
    "vit_b_16": "heads.head",
    "swin_t": "head",
}

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TRANSFORMERS = {
    "BertForSequenceClassification": (SMALL, "classifier"),
    "RobertaForSequenceClassification": (SMALL, "classifier.out_proj"),
    "DistilBertForSequenceClassification": (
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
        "classifier",
    ),
    "GPT2LMHeadModel": ({"n_embd": 16, "n_layer": 1, "n_head": 2}, "lm_head"),
    "LlamaForCausalLM": (SMALL, "lm_head"),
    "LlamaForSequenceClassification": (SMALL, "score"),
    "ViTForImageClassification": (SMALL, "classifier"),
}


def on_meta(make, *args, **options):
    """Build a model without memory for its weights."""
    with torch.device("meta"), warnings.catch_warnings():
        # Words of the libraries about initial weights.
        warnings.simplefilter("ignore")
        return make(*args, **options)


def found(model):
    """The name of the head that is found."""
    head = find_head(model)
    return next(name for name, module in model.named_modules() if module is head)


@pytest.mark.parametrize("name", TIMM)
def test_the_head_of_timm_models(name):
    timm = library("timm")
    model = on_meta(timm.create_model, name, pretrained=False, num_classes=7)
    assert found(model) == TIMM[name]
    assert find_head(model).weight.shape[0] == 7
    # What is found is what the model itself calls its head, and can be asked for by name.
    assert resolve_head(TIMM[name], model) is find_head(model)


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_head_of_torchvision_models(name):
    models = library("torchvision").models
    options = {"aux_logits": True} if name == "googlenet" else {}
    model = on_meta(getattr(models, name), weights=None, num_classes=7, **options)
    assert found(model) == TORCHVISION[name]
    assert find_head(model).weight.shape[0] == 7


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_head_of_transformers_models(name):
    transformers = library("transformers")
    options, expected = TRANSFORMERS[name]
    model = getattr(transformers, name)
    model = on_meta(model, model.config_class(**options, num_labels=7, pad_token_id=0))
    assert found(model) == expected
    if expected != "lm_head":
        assert find_head(model).weight.shape[0] == 7


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224"])
def test_a_model_without_a_head_is_not_given_another(name):
    model = on_meta(library("timm").create_model, name, pretrained=False, num_classes=0)
    with pytest.raises(ValueError, match=r"must have a linear head, got Identity from .*classifie"):
        find_head(model)


def test_a_head_that_was_taken_out_is_not_given_another():
    model = on_meta(library("torchvision").models.resnet50, weights=None)
    model.fc = nn.Identity()
    with pytest.raises(ValueError, match=r"must have a linear head, got Identity from ResNet.fc"):
        find_head(model)


def test_the_linear_layer_of_timm_computes_what_is_measured():
    library("timm")
    from timm.layers import Linear

    torch.manual_seed(0)
    head = Linear(8, 3)
    x, y = torch.randn(6, 8), torch.arange(6) % 3
    with GWAMonitor(head, num_samples=6) as monitor:
        head(x)
        monitor.update(y, ids=torch.arange(6))
        arrays = {"weight": head.weight.detach(), "bias": head.bias.detach()}
        expected = head_scores(latents=x, targets=y, **arrays)
        assert torch.allclose(monitor.scores, expected, atol=1e-6)


class Own(nn.Module):
    """The last layer that is defined is not the head."""

    def __init__(self, **layers):
        super().__init__()
        self.body = nn.Linear(4, 8)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.projector = nn.Linear(8, 2)


def test_your_own_model():
    head = nn.Linear(8, 3)
    assert find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), head, nn.LogSoftmax(1))) is head
    for name in ("fc", "classifier", "head", "heads", "score"):
        assert find_head(Own(**{name: head})) is head
        assert find_head(Own(**{name: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), head)})) is head
    assert find_head(Own(fc=head, head=nn.Identity())) is head
    assert found(Own()) == "projector"
    assert find_head(head) is head
    sketched = JLHead(8, 3, 4)
    assert find_head(Own(head=sketched)) is sketched.linear


def test_no_linear_layer_at_all():
    with pytest.raises(
        ValueError, match=r"`model` must have a linear layer .* got Sequential with"
    ):
        find_head(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["DataParallel", "compile", "both"],
)
def test_wrappers_are_taken_off(wrap):
    model = Own(fc=nn.Linear(8, 3))
    wrapped = wrap(model)
    assert find_head(wrapped) is model.fc
    assert resolve_head("fc", wrapped) is model.fc
    assert resolve_head(None, wrapped) is model.fc


def test_distributed_wrappers_are_taken_off(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    model = Own(fc=nn.Linear(8, 3))
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert find_head(wrapped) is model.fc
        assert find_head(torch.compile(wrapped, backend="eager")) is model.fc
        assert resolve_head("fc", wrapped) is model.fc
    finally:
        dist.destroy_process_group()


class Overridden(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


def test_a_module_of_that_name_is_no_wrapper():
    # Only the wrappers of PyTorch are looked into by their attribute.
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 3)
            self.fc = nn.Linear(3, 2)

    model = Holder()
    assert find_head(model) is model.fc
    assert resolve_head("module", model) is model.module


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        Overridden(8, 3),
        nn.Conv2d(8, 3, 3),
        nn.Conv2d(8, 4, 1, stride=2),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Conv2d(8, 4, 1, padding=1),
        nn.ConvTranspose2d(8, 4, 1),
        nn.Bilinear(4, 4, 3),
        nn.Embedding(8, 3),
        nn.Sequential(nn.Linear(8, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_not_a_linear_head_is_refused(layer):
    words = rf"`head` must be an nn.Linear or a 1×1 convolution .* got {type(layer).__name__};"
    with pytest.raises(ValueError, match=words):
        resolve_head(layer)
    with pytest.raises(ValueError, match=words):
        resolve_head("head", Own(head=layer))
    with pytest.raises(ValueError, match=words):
        GWAMonitor(layer)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 3, bias=False),
        nn.Conv1d(8, 3, 1),
        nn.Conv2d(8, 3, 1, padding="same"),
        nn.Conv3d(8, 3, 1),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_is_a_linear_head(layer):
    assert resolve_head(layer) is layer
    assert find_head(nn.Sequential(nn.Linear(4, 8), layer)) is layer


def test_an_unknown_name_shows_the_near_ones():
    model = Own(classifier=nn.Sequential(nn.ReLU(), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"module of Own, got 'clasifier.1'; .*: classifier.1$"):
        resolve_head("clasifier.1", model)
    with pytest.raises(ValueError, match=r"got 'x'; .*: body, classifier.1, projector$"):
        resolve_head("x", model)
    with pytest.raises(ValueError, match="linear layers in it: none"):
        resolve_head("x", nn.ReLU())


def test_a_name_needs_a_model():
    for head in ("fc", None):
        with pytest.raises(ValueError, match=f"`model` must be given .* got head={head!r}"):
            resolve_head(head)
    with pytest.raises(TypeError, match="`head` must be a module or its name, got Parameter"):
        resolve_head(nn.Linear(4, 3).weight)


def test_the_sketch_of_a_head():
    head = nn.Conv2d(16, 3, 1)
    assert head_sketch(None, head) is None
    assert head_sketch(4, head) == JLSketch(16, 4)
    assert head_sketch(JLSketch(16, 4, seed=2), head).seed == 2
    with pytest.raises(ValueError, match="`sketch` must be made for D = 16 features, got 8"):
        head_sketch(JLSketch(8, 4), head)
