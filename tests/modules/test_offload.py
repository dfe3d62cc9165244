"""Offloading: what computes is at work, nothing else is, and the video is the same."""

from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import small_checkpoints
import torch
from lora_files import lora_in, pairs, written
from PIL import Image
from torch import nn

from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline, modules, runtime
from skyreels_v2_infer.cli.arguments import parse_generate
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cost import Holding
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import LoraPlan, make_plan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.plan.story import Scene
from skyreels_v2_infer.run import jobs
from skyreels_v2_infer.run.placing import place_for
from skyreels_v2_infer.runtime import Offload, Placement, usual_dtype

OLD = {"diffusers": "0.36.0", "accelerate": "1.0"}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
SIZE = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 1, "output_type": "pt"}
LONG = SIZE | {"num_frames": 9, "base_num_frames": 5, "overlap_history": 1, "ar_step": 0, "image": PICTURE}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("offload")
    for task in ("df", "i2v"):
        small_checkpoints.write_original(folder / task, task)
    return folder


class Shift:
    """Stands in for `Offload.at_work`: notes what is at work, and who computes without being."""

    def __init__(self, parts: dict[str, nn.Module]):
        self.names = {id(layer): name for name, part in parts.items() for layer in part.modules()}
        self.working: list[nn.Module] = []
        self.log: list[str] = []
        self.faults: set[str] = set()
        self.most = 0
        for part in parts.values():
            for layer in part.modules():
                if next(layer.parameters(recurse=False), None) is not None:
                    layer.register_forward_pre_hook(self.computes)

    @contextmanager
    def at_work(self, module: nn.Module, memory=None):
        self.working.append(module)
        self.log.append(self.names[id(module)])
        self.most = max(self.most, len(self.working))
        yield
        self.working.remove(module)

    def computes(self, layer: nn.Module, args) -> None:
        if not any(layer is part for module in self.working for part in module.modules()):
            self.faults.add(self.names[id(layer)])


def parts_of(pipeline) -> dict[str, nn.Module]:
    names = ("text_encoder", "image_encoder", "vae")
    return {name: part for name in names if (part := getattr(pipeline, name)) is not None}


def test_encoders_and_vae_compute_only_while_they_are_at_work_and_one_at_a_time(checkpoints):
    pipeline = DiffusionForcingPipeline(checkpoints / "df", device="cpu")
    shift = Shift(parts_of(pipeline) | {"transformer": pipeline.transformer})
    pipeline.at_work = shift.at_work
    pipeline(prompt="a swan", end_image=PICTURE, **LONG)
    assert shift.most == 1 and not shift.working
    # Outside of `at_work` only the transformer computes, whose blocks the library's hooks bring.
    assert shift.faults == {"transformer"}
    parts = [name for name in shift.log if name != "transformer"]
    windows = ["vae", "vae"], ["vae", "vae", "vae"]  # image, decode; history, end image, decode
    assert parts == ["text_encoder", *windows[0], *windows[1]]

    pipeline = Image2VideoPipeline(checkpoints / "i2v", device="cpu")
    shift = Shift(parts_of(pipeline))
    shift.names |= {id(layer): "transformer" for layer in pipeline.transformer.modules()}
    pipeline.at_work = shift.at_work
    pipeline(PICTURE, "a swan", num_frames=5, **SIZE)
    assert (shift.most, shift.working, shift.faults) == (1, [], set())
    assert next(name for name in shift.log if name != "transformer") == "image_encoder"
    assert {"text_encoder", "vae"} < set(shift.log)


def test_on_a_cpu_nothing_changes(checkpoints, monkeypatch):
    given = []
    monkeypatch.setattr(Offload, "by_blocks", lambda offload, model: given.append(model))
    plain = DiffusionForcingPipeline(checkpoints / "df", device="cpu")
    offloaded = DiffusionForcingPipeline(checkpoints / "df", device="cpu", offload=True)
    assert torch.equal(plain(prompt="a swan", **LONG), offloaded(prompt="a swan", **LONG))
    assert given == [offloaded.transformer] and isinstance(offloaded.at_work.__self__, Offload)


@pytest.mark.parametrize("offload", [False, True])
def test_without_it_only_encoders_leave_the_device(checkpoints, monkeypatch, offload):
    """umT5 alone is 11 GB, which would else be there for the whole run; meta stands in for a GPU."""
    at_rest = {}
    for name in ("transformer", "vae", "text_encoder", "image_encoder"):
        real = getattr(modules, f"get_{name}")

        def get(checkpoint, device, *dtype, name=name, real=real):
            at_rest[name] = device.type
            return real(checkpoint, "cpu", *dtype)

        monkeypatch.setattr(modules, f"get_{name}", get)
    monkeypatch.setattr(Offload, "by_blocks", lambda *_: None)
    pipeline = Image2VideoPipeline(checkpoints / "i2v", device="meta", offload=offload)
    large = "cpu" if offload else "meta"
    assert at_rest == {"transformer": large, "vae": large, "text_encoder": "cpu", "image_encoder": "cpu"}
    assert pipeline.at_work.__self__.device.type == "meta" and pipeline.at_work.__name__ == "at_work"


@pytest.mark.parametrize("installed", [{"diffusers": "0.42.1"}, {"accelerate": "1.0"}, OLD])
def test_without_the_library_it_is_refused_before_weights_are_loaded(monkeypatch, installed):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError
        return installed[name]

    monkeypatch.setattr(runtime, "version", version)
    asked = replace(parse_generate(["--offload"]), device="meta")  # neither a CPU nor a GPU here
    with pytest.raises(InputError, match=r"--offload: needs accelerate and diffusers 0\.41 or later: pip install -U"):
        placed(asked)
    with pytest.raises(InputError, match="needs accelerate"):
        Offload(torch.device("meta")).by_blocks(nn.Linear(1, 1))
    assert placed(replace(asked, device="cpu")).dtype == torch.float32


def placed(settings) -> Placement:
    return place_for(settings, plan_of(settings, None))


def test_weights_go_to_the_device_and_come_back_without_a_copy(monkeypatch):
    layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    at_rest = {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()}
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: real(x, "cpu", copy=True))  # there is no GPU here
    offload = Offload(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="inside"), offload.at_work(layer):
        there = {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()}
        assert not set(there.values()) & set(at_rest.values())
        raise RuntimeError("inside")
    assert {name: tensor.data_ptr() for name, tensor in layer.state_dict().items()} == at_rest


def test_what_a_part_remembers_goes_along_and_comes_back_as_it_then_is(monkeypatch):
    layer, other = nn.Linear(4, 3), nn.Linear(3, 2)
    memory = {layer: torch.zeros(2), other: torch.zeros(3)}
    real, moved = torch.Tensor.to, []

    def to(x, device):  # there is no GPU here
        moved.append((device.type, tuple(x.shape)))
        return real(x, "cpu", copy=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with Offload(torch.device("cuda")).at_work(layer, memory):
        assert moved[-2:] == [("cuda", (2,)), ("cuda", (3,))]
        memory[other] = torch.ones(5)
    assert moved[-2:] == [("cpu", (2,)), ("cpu", (5,))]
    assert memory[other].tolist() == [1] * 5


def test_layer_by_layer_each_is_there_while_it_computes(monkeypatch):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 4)
            self.inner = nn.Module()
            self.inner.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
            self.inner.norm = nn.LayerNorm(4)

        def forward(self, ids):
            x = self.words(ids)
            for block in self.inner.blocks:
                x = block(x)
            return self.inner.norm(x)

    encoder, ids = Encoder(), torch.tensor([[1, 4]])
    expected, at_rest = encoder(ids), {name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()}
    monkeypatch.setattr(runtime, "LARGE", encoder.words.weight.nbytes)
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device: real(x, "cpu", copy=True))  # there is no GPU here

    def there() -> set[str]:
        return {name for name, tensor in encoder.state_dict().items() if tensor.data_ptr() != at_rest[name]}

    seen = []
    for layer in (encoder.words, *encoder.inner.blocks):
        layer.register_forward_pre_hook(lambda *_: seen.append(there()))
    norm = {"inner.norm.weight", "inner.norm.bias"}
    with Offload(torch.device("cuda")).at_work_by_layers(encoder):
        seen.clear()
        for block in (encoder.words, *encoder.inner.blocks):  # after the hooks that bring layers
            block._forward_pre_hooks.move_to_end(next(iter(block._forward_pre_hooks)))
        assert torch.equal(encoder(ids), expected)
        assert there() == norm
        encoder.inner.blocks[1][0].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoder(ids)
        assert there() == norm
    assert [found - norm for found in seen[:4]] == [
        {"words.weight"},
        *({f"inner.blocks.{i}.0.weight", f"inner.blocks.{i}.0.bias"} for i in range(3)),
    ]
    assert all(norm <= found for found in seen) and there() == set()
    assert not any(layer._forward_hooks for layer in (encoder.words, *encoder.inner.blocks))


@pytest.mark.parametrize("holding", [Holding("parts"), Holding("none", True), Holding("parts", True, True)])
def test_the_video_is_the_same_however_parts_are_held(checkpoints, monkeypatch, holding):
    log = []

    def note(name: str) -> None:
        real = getattr(Offload, name)

        def at_work(offload, module, *memory):
            log.append((name, module))
            return real(offload, module, *memory)

        monkeypatch.setattr(Offload, name, at_work)

    note("at_work")
    note("at_work_by_layers")
    plain = DiffusionForcingPipeline(checkpoints / "df", device="cpu")
    held = DiffusionForcingPipeline(checkpoints / "df", device="cpu", offload=holding)
    expected = plain(prompt="a swan", **LONG)
    made = held(prompt="a swan", **LONG)
    assert torch.equal(made, expected) or holding.tiled
    assert torch.allclose(made, expected, atol=1e-4)
    times = sum(module is held.transformer for _, module in log)
    assert times == (2 if holding.offload == "parts" else 0)  # once for each window
    assert [name for name, module in log if module is held.text_encoder] == [
        "at_work_by_layers" if holding.layers else "at_work"
    ]


def test_windows_that_go_on_from_latents_say_what_the_decoder_remembers(checkpoints):
    """Else it would fill the device while the next window is denoised."""
    pipeline = DiffusionForcingPipeline(checkpoints / "df", device="cpu")
    seen = []

    @contextmanager
    def at_work(module, memory=None):
        if module is pipeline.vae and memory is not None:
            seen.append(len(memory))
            yield
            seen.append(len(memory))
        else:
            yield

    pipeline.at_work = at_work
    pipeline(prompt="a swan", history="latent", **LONG)
    before, after, then, at_last = seen
    assert before == 0 < after == then == at_last


def test_the_transformer_has_one_block_at_a_time(checkpoints, monkeypatch):
    """The library's hooks, on the CPU: a block is brought before it computes and sent away after it."""
    import diffusers.hooks.group_offloading as library

    pipeline = DiffusionForcingPipeline(checkpoints / "df", device="cpu")
    expected = pipeline(prompt="a swan", **LONG)
    here, most, brought, blocks = set(), 0, 0, set(pipeline.transformer.blocks)
    bring, send = library.ModuleGroup.onload_, library.ModuleGroup.offload_

    def onload(group):
        nonlocal most, brought
        if group.onload_leader in blocks:
            brought += 1
            here.add(id(group))
        most = max(most, len(here))
        bring(group)

    def offload(group):
        here.discard(id(group))
        send(group)

    monkeypatch.setattr(library.ModuleGroup, "onload_", onload)
    monkeypatch.setattr(library.ModuleGroup, "offload_", offload)
    apply = library.apply_group_offloading

    def on_cpu(model, onload_device, **settings):
        apply(model, onload_device=torch.device("cpu"), **settings)

    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", on_cpu)
    Offload(torch.device("meta")).by_blocks(pipeline.transformer)
    here.clear()
    most = brought = 0
    made = pipeline(prompt="a swan", **LONG)
    assert torch.equal(made, expected)
    assert most == 1
    forwards = 2 * 2  # windows, steps; both passes are one batch
    assert brought == forwards * small_checkpoints.LAYERS


def test_weights_are_written_to_those_at_rest(monkeypatch):
    """Also while a block has been transferred ahead, as is the first one when a cache skips all of a forward pass."""

    def rest(model, **settings):  # with a stream the library keeps pinned copies
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()

    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", rest)
    model = nn.BatchNorm1d(2)
    offload = Offload(torch.device("cuda"))
    offload.by_blocks(model)
    at_rest = model.weight.data, model.running_mean.data
    for tensor in (model.weight, model.running_mean):
        tensor.data = tensor.data.clone()  # the copy on the device
    offload.settle()
    with torch.no_grad():
        model.weight.fill_(3), model.running_mean.fill_(4)
    assert all((data == value).all() for data, value in zip(at_rest, (3, 4), strict=True))


def test_strengths_change_though_a_block_was_transferred_ahead(checkpoints, monkeypatch, tmp_path):
    """As the library does: when a forward pass begins, the first block is copied from the host; it may stay there."""

    def apply(model, **settings):
        first = [*model.blocks[0].parameters(), *model.blocks[0].buffers()]
        for tensor in first:
            tensor.data = tensor.data.clone()
        at_rest = [tensor.data for tensor in first]

        def bring(*_):
            for tensor, data in zip(first, at_rest, strict=True):
                tensor.data = data.clone()

        model.register_forward_pre_hook(bring)

    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", apply)
    made = pairs(DiffusionForcingPipeline(checkpoints / "df", device="cpu").transformer, ["blocks.0.self_attn.q"])
    lora = lora_in(tmp_path, written("kijai", made)).path
    story = [Scene(0, "a swan"), Scene(5, "a swan", lora={lora.stem: 2.0})]
    plan = make_plan(
        *(9, 2, 3.0),
        height=32,
        width=32,
        seed=1,
        base_num_frames=5,
        overlap_history=1,
        story=story,
        loras=[LoraPlan(lora, 0.0)],
    )

    def latents(offloaded: bool) -> list[torch.Tensor]:
        pipeline = DiffusionForcingPipeline(checkpoints / "df", device="cpu", loras=[(lora, 0.0)], loras_change=True)
        if offloaded:
            pipeline._offloading = Offload(torch.device("cuda"))
            pipeline._offloading.by_blocks(pipeline.transformer)
        return [part.latents for part in pipeline.execute(plan, Inputs())]

    expected, found = latents(False), latents(True)
    assert len(expected) == 2
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_a_gpu_copies_beside_and_has_no_more_blocks_than_it_computes(monkeypatch):
    """`record_stream` would let the host queue block after block, all of them in memory."""
    asked = {}
    monkeypatch.setattr("diffusers.hooks.apply_group_offloading", lambda model, **settings: asked.update(settings))
    Offload(torch.device("cuda")).by_blocks(nn.Linear(1, 1))
    assert asked["use_stream"] and not asked["record_stream"]
    assert (asked["offload_type"], asked["num_blocks_per_group"]) == ("block_level", 1)


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [1]), ("cuda", [])])
def test_the_gpu_that_is_asked_for_is_the_current_one(monkeypatch, name, current):
    """New streams and memory statistics belong to the current one."""
    seen = []
    monkeypatch.setattr(Placement, "choose", lambda *asked: Placement(torch.device(name), torch.float32))
    # As the real one takes devices: it raises for one without a number.
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: seen.append(torch.cuda._utils._get_device_index(device))
    )
    placed(parse_generate(["--model_id", "some/one", "--device", name]))
    assert seen == current


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [("cpu", None, "float32"), ("cuda", (7, 5), "float16"), ("cuda:1", (8, 0), "bfloat16"), ("mps", None, "bfloat16")],
)
def test_the_usual_precision_is_one_that_the_device_is_made_for(monkeypatch, device, capability, dtype):
    """Before Ampere attention in bfloat16 is done by way of all pairs of tokens in float32, which no memory holds."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert usual_dtype(torch.device(device)) == getattr(torch, dtype)


def test_a_ring_that_has_no_kernel_is_refused_before_weights_are_loaded(monkeypatch):
    """The precision may be that of the run that is resumed, and the GPU's capability is known late."""
    settings = parse_generate(["--model_id", "some/one", "--device", "cuda"])
    plan = plan_of(settings, None).with_sharing(Layout(1, 1, 3))
    for dtype, capability, flag in (("float32", (9, 0), "dtype"), ("float16", (7, 5), "use_usp")):
        place = Placement(torch.device("cuda:0"), torch.bfloat16)
        monkeypatch.setattr(Placement, "choose", lambda *asked, place=place: place)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with pytest.raises(InputError) as refused:
            place_for(settings, plan, dtype=dtype)
        assert refused.value.name == flag


@pytest.mark.parametrize(
    ("flags", "named"), [(["--device", "cuda"], "--device cuda: cannot be used"), (["--offload"], "--offload: needs")]
)
def test_what_this_machine_cannot_do_is_refused_before_a_download(checkpoints, monkeypatch, flags, named):
    asked = []
    stub = lambda *_, allow_patterns, **__: asked.append(allow_patterns) or str(checkpoints / "df")  # noqa: E731
    monkeypatch.setattr("huggingface_hub.snapshot_download", stub)
    if flags == ["--offload"]:
        monkeypatch.setattr(runtime, "version", lambda name: OLD[name])
        monkeypatch.setattr(Placement, "choose", lambda *asked: Placement(torch.device("cuda"), torch.float32))
    elif torch.cuda.is_available():
        pytest.skip("it can, here")
    with pytest.raises(InputError, match=named):
        settings = parse_generate(["--model_id", "owner/name", "--height", "64", "--width", "64", *flags])
        jobs.Job("generate_video.py", settings, lambda: None).run(Team())
    assert [name for names in asked for name in names if not name.endswith(".json")] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_latents_are_the_same_in_less_memory(checkpoints):
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    latents, peaks = [], []
    for offload in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        pipeline = DiffusionForcingPipeline(checkpoints / "df", device="cuda", offload=offload)
        latents.append(pipeline(prompt="a swan", **LONG | {"output_type": "latent"}).cpu())
        peaks.append(torch.cuda.max_memory_allocated())
        del pipeline
    assert torch.equal(*latents)
    assert peaks[1] < peaks[0]
