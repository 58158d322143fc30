"""The head of real models is found, and what is not a linear head is refused."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from models import batch, network, oracle
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


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_distilled_models_of_timm_have_two_heads(name):
    model = on_meta(library("timm").create_model, name, pretrained=False, num_classes=7)
    with pytest.raises(
        ValueError, match=r"one layer that can be the head, got .* with head.*_dist"
    ):
        find_head(model)


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


def test_distilled_models_of_transformers_have_two_heads():
    transformers = library("transformers")
    model = on_meta(
        transformers.DeiTForImageClassificationWithTeacher,
        transformers.DeiTConfig(**SMALL, num_labels=7),
    )
    with pytest.raises(ValueError, match="with cls_classifier, distillation_classifier; pass the"):
        find_head(model)


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


class Attributes(nn.Module):
    """Layers by name, in this order."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def mlp(features=8, classes=3):
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, classes))


SEVERAL = {
    # Two classifiers, with names in use or without.
    "two names": (
        Attributes(body=nn.Linear(4, 8), classifier=nn.Linear(8, 3), head=nn.Linear(8, 3)),
        ["classifier", "head"],
    ),
    "distilled": (
        Attributes(head=nn.Linear(8, 3), head_dist=nn.Linear(8, 3)),
        ["head", "head_dist"],
    ),
    "any names": (
        Attributes(body=nn.Linear(4, 8), first=nn.Linear(8, 3), second=nn.Linear(8, 3)),
        ["first", "second"],
    ),
    "teacher": (
        Attributes(student=mlp(), teacher=mlp(), loss=nn.MSELoss()),
        ["student.2", "teacher.2"],
    ),
    "inside": (
        Attributes(model=Attributes(body=nn.Linear(4, 8), a=nn.Linear(8, 3), b=nn.Linear(8, 3))),
        ["model.a", "model.b"],
    ),
    # Tasks of different widths.
    "tasks": (
        Attributes(
            body=nn.Linear(4, 8),
            tasks=nn.ModuleDict({"colour": nn.Linear(8, 3), "shape": nn.Linear(8, 5)}),
        ),
        ["tasks.colour", "tasks.shape"],
    ),
    "titles": (
        Attributes(colour_head=nn.Linear(8, 3), shape_head=nn.Linear(8, 5)),
        ["colour_head", "shape_head"],
    ),
    # The leaves of a hierarchical softmax; branches whose logits are added.
    "leaves": (
        Attributes(root=nn.Linear(8, 2), leaves=nn.ModuleList([nn.Linear(8, 4) for _ in "ab"])),
        ["leaves.0", "leaves.1"],
    ),
    "branches": (
        Attributes(head=nn.ModuleList([nn.Linear(8, 3), mlp(16)])),
        ["head.0", "head.1.2"],
    ),
    # An auxiliary classifier of another width, defined last.
    "auxiliary": (
        Attributes(
            decode=Attributes(classifier=nn.Conv2d(8, 3, 1), lateral=nn.Conv2d(4, 8, 1)),
            auxiliary=Attributes(convs=nn.Conv2d(4, 4, 3), classifier=nn.Conv2d(4, 3, 1)),
        ),
        ["decode.classifier", "auxiliary.classifier"],
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_one_of_several_heads_is_not_guessed(name):
    model, names = SEVERAL[name]
    with pytest.raises(
        ValueError, match="one layer that can be the head, got Attributes with"
    ) as e:
        find_head(model)
    message = str(e.value)
    listed = message.partition("with ")[2].partition(";")[0].split(", ")
    assert set(listed) == set(names)
    # What the sentence says to do works.
    assert f"GWAMonitor({listed[0]!r}, model=model)" in message
    for one in names:
        assert resolve_head(one, model) is model.get_submodule(one)


def test_a_model_that_answers_with_several_heads():
    class Two(Attributes):
        def get_classifier(self):
            return self.a, self.b

    with pytest.raises(ValueError, match=r"got Two with a, b\.1; pass the one"):
        find_head(Two(a=nn.Linear(8, 3), b=nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))))
    one = nn.Linear(8, 3)
    assert find_head(Two(a=one, b=one)) is one


def test_many_names_are_cut_short():
    model = Attributes(leaves=nn.ModuleList([nn.Linear(8, 4) for _ in range(20)]))
    with pytest.raises(ValueError, match=r"leaves.7 and 12 more; pass"):
        find_head(model)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # Bodies of equal widths, whatever holds them.
        (Attributes(a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)), "c"),
        (Attributes(a=nn.Linear(8, 8), b=nn.Linear(8, 8)), "b"),
        (
            Attributes(
                up=nn.Linear(3, 8), down=nn.Linear(8, 3), to=nn.Linear(3, 8), out=nn.Linear(8, 3)
            ),
            "out",
        ),
        (
            Attributes(layers=nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)])),
            "layers.2",
        ),
        (
            Attributes(layers=nn.ModuleList([nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 3)])),
            "layers.2",
        ),
        (nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), "3"),
        # A name in use is clear where others have another size, or are auxiliary classifiers.
        (Attributes(fc=nn.Linear(8, 3), aux=mlp(), box_head=nn.Linear(8, 4)), "fc"),
        (Attributes(head=nn.Linear(8, 3), aux_head=mlp()), "head"),
        # A model inside another has its own answer.
        (Attributes(model=Attributes(fc=nn.Linear(8, 3), projector=nn.Linear(8, 2))), "model.fc"),
    ],
)
def test_bodies_and_clear_names_are_not_refused(model, expected):
    assert found(model) == expected


def test_the_tail_of_an_adaptive_softmax_is_no_head():
    loss = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], div_value=2.0)
    for model, name in ((Attributes(body=nn.Linear(4, 8), loss=loss), "loss"), (loss, "")):
        what = "loss (AdaptiveLogSoftmaxWithLoss)" if name else "AdaptiveLogSoftmaxWithLoss"
        with pytest.raises(ValueError, match="must give logits of all classes, got") as e:
            find_head(model)
        assert f"got {what}, whose classes are split" in str(e.value)
    assert resolve_head("loss.head", Attributes(loss=loss)) is loss.head


class Overridden(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Cosine(nn.Module):
    """No subclass of a linear layer, but in the place of one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 8))


@pytest.mark.parametrize(
    "layer", [Overridden(8, 3), Cosine()], ids=lambda layer: type(layer).__name__
)
def test_what_stands_in_the_place_of_the_head_is_not_passed_over(layer):
    # A guess would find the body.
    for model, name in (
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), layer), "2"),
        (Attributes(fc=layer, body=nn.Linear(4, 8)), "fc"),
        (
            Attributes(body=nn.Linear(4, 8), classifier=nn.Sequential(nn.Linear(8, 8), layer)),
            "classifier.1",
        ),
    ):
        with pytest.raises(
            ValueError, match=rf"`head` must be .*, got {name} \({type(layer).__name__}\)"
        ):
            find_head(model)


def llama(kind="LlamaForCausalLM", **options):
    transformers = library("transformers")
    size = {**SMALL, "num_key_value_heads": 2, "vocab_size": 12, "pad_token_id": 0, "num_labels": 3}
    return getattr(transformers, kind)(transformers.LlamaConfig(**size, **options))


def adapted(*args):
    """Put an adapter on a model."""
    with warnings.catch_warnings():
        # Words of the library about its own names.
        warnings.simplefilter("ignore", FutureWarning)
        return library("peft").get_peft_model(*args)


def test_an_adapter_on_the_head_is_refused():
    peft = library("peft")
    words = r"a layer without an adapter, got .*base layer's plus the adapter's.*`modules_to_save`"
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"])
    model = adapted(llama(), lora)
    path = "base_model.model.lm_head"
    with pytest.raises(ValueError, match=rf"got {path} \(Linear\): its weight is the base"):
        find_head(model)
    with pytest.raises(ValueError, match=words):
        resolve_head(model.get_submodule(path))
    for part in ("", ".base_layer", ".lora_A.default", ".lora_B.default"):
        with pytest.raises(ValueError, match=words):
            resolve_head(path + part, model)
    # What the sentence says to do works.
    assert find_head(model.merge_and_unload()).weight.shape == (12, 16)
    tokens = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[1, 2]
    )
    with pytest.raises(ValueError, match=words):
        find_head(adapted(llama(tie_word_embeddings=True), tokens))


def test_a_head_beside_adapters_is_found():
    peft = library("peft")
    lora = {"target_modules": ["q_proj", "down_proj"]}
    model = adapted(llama(), peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    assert find_head(model) is model.base_model.model.lm_head
    # The copy that is trained, and not the module that it was made from.
    for kind, name in (
        ("LlamaForCausalLM", "lm_head"),
        ("LlamaForSequenceClassification", "score"),
    ):
        saved = peft.LoraConfig(modules_to_save=[name], **lora)
        model = adapted(llama(kind), saved)
        wrapper = model.get_submodule(f"base_model.model.{name}")
        trained = wrapper.modules_to_save["default"]
        assert trained.weight.requires_grad
        assert find_head(model) is trained
        assert resolve_head(wrapper) is trained
        assert resolve_head(f"base_model.model.{name}", model) is trained
        # A model inside another.
        assert find_head(Attributes(model=model)) is trained


def test_the_copy_that_peft_trains_is_measured():
    peft = library("peft")
    lora = peft.LoraConfig(target_modules=["body.0"], modules_to_save=["head"])
    model = adapted(network(), lora)
    x, y = batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with GWAMonitor(num_samples=len(y), model=model) as monitor:
        for _ in range(2):
            with torch.no_grad():
                latents = model.base_model.model.body(x)
            head = model.base_model.model.head.modules_to_save["default"]
            expected = oracle(latents, head.weight, head.bias, y)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            monitor.update(y, ids=torch.arange(len(y)))
            optimizer.step()
            monitor.end_epoch()
            assert torch.allclose(monitor.scores.double(), expected, atol=1e-5)


def test_an_adapter_of_your_own():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)
            self.lora_a, self.lora_b = nn.Linear(8, 2), nn.Linear(2, 3)

    with pytest.raises(ValueError, match=r"without an adapter, got head \(Adapted\)"):
        find_head(Attributes(body=nn.Linear(4, 8), head=Adapted()))


class Coded(torch.Tensor):
    """A weight as torchao has it: a subclass that computes by itself."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(func)


def test_quantised_weights_are_refused_before_anything_runs():
    head = nn.Linear(8, 3)
    head.weight = nn.Parameter(Coded(torch.ones(3, 8)))
    integer = nn.Linear(8, 3)
    integer.weight = nn.Parameter(torch.ones(3, 8, dtype=torch.int8), requires_grad=False)
    eight = nn.Linear(8, 3)
    eight.weight = nn.Parameter(torch.ones(3, 8).to(torch.float8_e4m3fn), requires_grad=False)
    for layer, words in (
        (head, r"plain tensor, got a Coded; .* leave the head out of the quantisation"),
        (integer, r"a floating weight of 16 bits or more, got torch.int8"),
        (eight, r"a floating weight of 16 bits or more, got torch.float8_e4m3fn"),
    ):
        with pytest.raises(ValueError, match=words):
            GWAMonitor(layer)
        with pytest.raises(ValueError, match=words):
            GWAMonitor(None, model=nn.Sequential(nn.Linear(4, 8), layer))
        assert not layer._forward_hooks


def test_quantised_layers_are_refused():
    from torch.ao.nn import quantized

    with warnings.catch_warnings():
        # Words of PyTorch about its own future.
        warnings.simplefilter("ignore")
        layer = quantized.Linear(8, 3)
    with pytest.raises(ValueError, match=r"got Linear, which is quantised; leave the head out"):
        resolve_head(layer)
    with pytest.raises(ValueError, match=r"got 1 \(Linear\), which is quantised"):
        find_head(nn.Sequential(nn.Linear(4, 8), layer))


def test_a_distributed_weight_is_none_of_those(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        head = nn.Linear(8, 3)
        mesh = init_device_mesh("cpu", (1,))
        head.weight = nn.Parameter(distribute_tensor(head.weight.detach(), mesh))
        assert resolve_head(head) is head
    finally:
        dist.destroy_process_group()


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
