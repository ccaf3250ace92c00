"""Which model? The one door to transformers' models and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lezo.model.compatibility import write_for_version_4
from lezo.model.hashes import weights_hash
from lezo.model.home import Home, home_of
from lezo.model.layout import decoder, decoder_blocks
from lezo.model.place import Place
from lezo.model.placement import Placement, follow
from lezo.model.quantised import (
    kept_bits,
    loading_options,
    quantised_layers,
    refuse_apart,
    refuse_quantising,
    scales,
    use_dequantised,
)
from lezo.model.tensor_stream import holders, outline
from lezo.model.weights import ModelError as ModelError
from lezo.model.weights import (
    WeightFiles,
    find_weights,
    is_gguf,
    place_of,
    quantised,
    read_weights,
    reading,
    reason,
    refuse_packed,
    refuse_quantised,
    shapes,
    stored_as,
)
from lezo.noise import directions, seeds
from lezo.records.files import replaced_folder

TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Source:
    """Where a model is: a folder, a GGUF file or a hub id with a revision, and, without a download, its published shape.

    ``quantization``: a key of `lezo.model.quantised.BITS`, where its plain weights are quantised as they are read.
    """

    path: str
    revision: str | None = None
    shape: Mapping[str, Any] | None = None
    random_weights: bool = False
    quantization: str | None = None


def load_config(source: Source) -> Any:
    """The model's transformers configuration; of a model that also sees or hears, its language model's where that stands alone.

    Raises ModelError where it cannot be read, is of another kind, or its weights are quantised and stay so.
    """
    if source.random_weights and source.shape is not None:
        with reading("the shape of", source.path):
            config = transformers.AutoConfig.for_model(**{"model_type": "opt", **source.shape})
            _refuse_other_kinds(source.path, config)
            return config
    _quiet()
    _refuse_adapter(Path(source.path))
    with reading("the configuration of", source.path), place_of(source.path) as (path, options):
        config = transformers.AutoConfig.from_pretrained(
            path, revision=source.revision, trust_remote_code=False, **options
        )
        _refuse_other_kinds(source.path, config)
        _refuse_kernels(source.path, config)
    if not source.random_weights:
        refuse_quantising(source.path, source.quantization, config)
        refuse_quantised(source.path, config)
    return _language_model(config)


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder, a GGUF file or a hub id. Raises ModelError where it cannot be read."""
    _quiet()
    path = os.path.expanduser(path)
    more = "; model.tokenizer=DIR names another folder with a tokenizer"
    with reading("a tokenizer of", path, more), place_of(path) as (place, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=False, **options
        )
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes of no files
            raise ValueError("no vocabulary")
    return tokenizer


def _language_model(config: Any) -> Any:
    """Of a model that also sees or hears, what its causal language model is made of: the text's configuration, or all."""
    text = config.get_text_config()
    if (getattr(text, "pad_token_id", None) or 0) >= text.vocab_size:
        # It was added, has no row and is not read; no model would be built with it.
        text.pad_token_id = None
    alone = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].config_class is type(text)
    if text is config or not alone:
        return config
    if (settings := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = settings
    return text


def dequantised(source: Source, config: Any) -> str | None:
    """How the weights were stored that become plain ones as they are read, "gguf Q8_0" or "fp8"; None: they are plain."""
    if source.random_weights:
        return None
    if is_gguf(source.path):
        with reading("the weights of", source.path):
            return f"gguf {stored_as(source.path)}"
    return None if kept_bits(None, config) else quantised(config)


def load(source: Source, config: Any, *, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """The model in eval mode on ``device``. Of safetensors, pickles (tensors alone), or a GGUF file: see `find_weights`.

    Random weights are drawn under ``seed``, the same on every device. Raises ModelError where the weights are
    not those of the configuration, or not all finite.
    """
    return load_hashed(source, config, dtype=dtype, placement=Placement((device,)), seed=seed)[0]


def load_hashed(
    source: Source,
    config: Any,
    *,
    dtype: torch.dtype,
    placement: Placement,
    seed: int,
    place: Place = Place(),  # noqa: B008 - frozen
) -> tuple[Any, Mapping[Tensor, str]]:
    """As `load`, on the devices of ``placement``, which forwards follow; and the hash of each parameter that was read from
    safetensors, one at a time (see `weights_hash`).

    ``place``: where the blocks live, to which each tensor is read, or drawn, straight.
    """
    _quiet()
    if source.random_weights:
        model = _random(config, dtype, placement, seed, place)
        follow(model, placement)
        return model, {}
    with reading("the weights of", source.path):
        files = _files(source, config)
        try:
            model, info, hashed, home = _read(files, source, config, dtype, placement, place)
        except (RuntimeError, NotImplementedError):
            _refuse_shapes(source.path, files, config)
            raise
    _refuse_other_weights(source.path, model, info)
    _tie(source.path, model, config)
    _freeze_other_senses(model)
    (home or place.home(model, placement)).take(model.eval())
    follow(model, placement)
    _refuse_non_finite(source.path, model, dtype)
    return model, {theta: hashed[theta] for theta in model.parameters() if theta in hashed}


def _files(source: Source, config: Any) -> WeightFiles:
    return find_weights(source.path, source.revision, getattr(config, "transformers_weights", None))


def _read(
    files: WeightFiles,
    source: Source,
    config: Any,
    dtype: torch.dtype,
    placement: Placement,
    place: Place,
) -> tuple[Any, Mapping[str, Any], Mapping[Tensor, str], Home | None]:
    """Tensor by tensor where that is all there is to it; else through host memory, as transformers does it."""
    if kept_bits(source.quantization, config) is not None:
        refuse_apart(source.path, len(placement.devices), place.kind)
        model, info = read_weights(
            files, config, dtype, loading_options(source.quantization, dtype, placement.home)
        )
        use_dequantised(model, source.path)
        return model, info, {}, None
    if (outlined := outline(files, config, dtype)) is None:
        return *read_weights(files, config, dtype), {}, None
    home = place.home(outlined.model, placement)
    return outlined.model, outlined.info, outlined.load(home), home


def _tie(path: str, model: Any, config: Any) -> None:
    """Where the files hold a tied head twice it becomes one tensor again. Raises ModelError where the two differ."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is words.weight or not config.get_text_config().tie_word_embeddings:
        return
    bones = skeleton(config, head.weight.dtype)
    if bones.get_output_embeddings().weight is not bones.get_input_embeddings().weight:  # type: ignore[operator]
        return  # a kind of model that ties nothing, whatever its configuration says
    if not torch.equal(head.weight, words.weight):
        raise ModelError(
            f"{path}: the weights hold a head that differs from the embeddings, and the configuration ties the two; "
            'expected "tie_word_embeddings": false in config.json, or weights of a tied head'
        )
    model.tie_weights()


@torch.no_grad()
def rebase(model: nn.Module, source: Source, config: Any, seed: int, expected: str) -> None:
    """Give ``model``, which `load` made of the same, its first weights back.

    They come one at a time where `load` read them so, else through host memory. Raises ModelError where they no
    longer are those of the SHA-256 ``expected`` (see `weights_hash`).
    """
    if source.random_weights:
        _fill(model, seed)
        found = weights_hash(model)
    else:
        found = _read_again(model, source, config)
    if found != expected:
        raise ModelError(
            f"{source.path}: no longer the base weights that the run started from; put them back, and with "
            "resume=auto the run goes on where it was"
        )


def _read_again(model: nn.Module, source: Source, config: Any) -> str:
    """Put the weights of the files into ``model``; returns their hash."""
    theta = dict(model.named_parameters())
    dtype = next(iter(theta.values())).dtype
    with reading("the weights of", source.path):
        outlined = outline(_files(source, config), config, dtype)
        if outlined is not None and theta.keys() <= set(outlined.names.values()):
            return outlined.load_into(theta, home_of(model))
    base = load(source, config, dtype=dtype, device=torch.device("cpu"), seed=0)
    for name, weight in base.named_parameters():
        theta[name].copy_(weight)
        home_of(model).let_go(theta[name])
    return weights_hash(model)


CARD = "README.md"


def save_model(
    write: Callable[[Path], object], tokenizer: Any, folder: Path, card: str | None = None
) -> None:
    """Write model and tokenizer for `from_pretrained`, in place of what was there: a whole folder, on disk, or none.

    ``write`` writes the model, or an adapter of one, to a folder, whose configurations then say to transformers 4 what they say
    to 5. ``card``: what the model says of itself, its CARD. Raises ModelError where they cannot be written; what was there then
    stays.
    """
    try:
        with replaced_folder(folder) as partial:
            write(partial)
            tokenizer.save_pretrained(partial)
            write_for_version_4(partial)
            if card is not None:
                (partial / CARD).write_text(card, encoding="utf-8")
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # tokenizers says that the disk is full with a plain one
        why = f"cannot write the model there ({reason(error)})"
        raise ModelError(f"{folder}: {why}; make room and write it again") from error


def skeleton(config: Any, dtype: torch.dtype) -> nn.Module:
    """The model without its weights (meta tensors), to count and plan with. Raises ModelError."""
    with reading("the configuration of", config.name_or_path or type(config).__name__), torch.device("meta"):
        bones: Any = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
        bones.tie_weights()  # which transformers 5.0 leaves undone on meta
        _freeze_other_senses(bones)
        return bones  # type: ignore[no-any-return]


def _freeze_other_senses(model: Any) -> None:
    """What sees or hears is no part of a language model: no text reaches it, and noise would only spoil it."""
    if (inner := decoder(model)) is not model:
        model.requires_grad_(False)
        inner.requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)


def positions(config: Any) -> int | None:
    """How many positions the model has, where its configuration says so."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of the model this rate: its modules, and what attention reads from the configuration."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)


def _random(config: Any, dtype: torch.dtype, placement: Placement, seed: int, place: Place) -> Any:
    device = placement.home
    apart = len(placement.devices) > 1 or place.is_elsewhere(device)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.device(device),
        _without_memory() if apart else nullcontext(),
    ):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if apart:
        _give_memory(model, place.home(model, placement))
    _fill(model, seed)
    return model.eval()


@contextmanager
def _without_memory() -> Iterator[None]:
    """While it lasts, modules are made with parameters that have shapes and no memory, and buffers as they are.

    Large ones have none from the start: what is let go of at once would still break the allocator's memory to pieces.
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, theta: nn.Parameter | None) -> None:
        if theta is not None:
            bare = torch.empty(theta.shape, dtype=theta.dtype, device="meta")
            theta = nn.Parameter(bare, theta.requires_grad)
        register(module, name, theta)

    nn.Module.register_parameter = registered  # type: ignore[assignment,method-assign]
    try:
        with _LargeOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _LargeOnMeta(TorchFunctionMode):
    """torch.empty, which parameters are made by, gives large tensors no memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.empty:
            bare = torch.empty(*args, **{**kwargs, "device": "meta"})
            if bare.numel() > _SMALL:
                return bare
        return function(*args, **kwargs)


_SMALL = 2**16  # elements


def _give_memory(model: Any, home: Home) -> None:
    """Let the parameters of a model made `_without_memory` be where they belong, without values."""
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ModelError(
                f"{type(model).__name__}: its buffer {name} cannot be made apart from its weights; expected model.home=device"
            )
    model.tie_weights()  # which transformers 5.0 leaves undone on meta
    for name, places in holders(model).items():
        stand_in = places[0][0][places[0][1]]
        if stand_in.is_meta:
            tensor = nn.Parameter(home.empty(name, stand_in), stand_in.requires_grad)
            for table, leaf in places:
                table[leaf] = tensor
    home.take(model)


@torch.no_grad()
def _fill(model: nn.Module, seed: int) -> None:
    """Random weights from our own noise, which has the same bits on every device: matrices of deviation 0.02."""
    for name, theta in model.named_parameters():
        if theta.dim() > 1:
            scale = torch.tensor(-0.02, device=theta.device)
            directions.update_(theta.zero_(), seeds.derive(seed, "random weights"), name, scale, 0.0)
        else:
            theta.fill_(float(name.endswith("weight")))
        home_of(model).let_go(theta)


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _refuse_other_kinds(path: str, config: Any) -> None:
    """Encoders and sequence-to-sequence models have blocks and a head too, and would train on something else."""
    kind, decodes, text = config.model_type, getattr(config, "is_decoder", False), config.get_text_config()
    encodes = config.is_encoder_decoder or (kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes)
    if encodes or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{path}: model_type {kind} is not that of a decoder-only causal language model; expected one, such as "
            "OPT, LLaMA or Qwen"
        )
    for key in ("vocab_size", "hidden_size"):
        if not isinstance(getattr(text, key, None), int):
            raise ModelError(
                f"{path}: the configuration of {kind} has no {key}; expected that of a language model alone"
            )


def _refuse_kernels(path: str, config: Any) -> None:
    """A configuration can name kernels of the hub, which transformers would fetch and run."""
    for part in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        for key in ("attn_implementation", "experts_implementation"):
            if "/" in str(getattr(part, f"_{key}", "")):
                raise ModelError(
                    f"{path}: the configuration asks for code of the hub ({key}: {getattr(part, f'_{key}')}), and lezo "
                    f"runs no code of a model's; remove {key} from config.json"
                )


def _refuse_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: holds an adapter (adapter_config.json) of a model elsewhere; expected a whole model (peft's "
            "merge_and_unload makes one of a LoRA; lezo-replay makes an adapter's run again)"
        )


def _refuse_shapes(path: str, files: WeightFiles, config: Any) -> None:
    """What transformers stumbles over instead of saying it: of a tied head that the files hold twice, say."""
    bones = skeleton(config, torch.float32)
    expected = {name: tuple(tensor.shape) for name, tensor in bones.state_dict().items()}
    for name, found in shapes(files).items():
        for known in (name, f"{getattr(bones, 'base_model_prefix', '')}.{name}"):
            if expected.get(known, found) != found:
                _refuse_shape(path, known, found, expected[known], config)


def _refuse_shape(
    path: str, name: str, found: tuple[int, ...], expected: tuple[int, ...], config: Any
) -> None:
    if found[1:] == expected[1:] and expected[0] == config.get_text_config().vocab_size:
        raise ModelError(
            f"{path}: {name} has {found[0]} rows, and the configuration's vocab_size is {expected[0]}; expected the "
            "config.json that was saved with these weights (resized embeddings have another size)"
        )
    raise ModelError(
        f"{path}: {name} is of shape {list(found)}, and the configuration asks for {list(expected)}; expected "
        "weights and config.json of the same model"
    )


def _refuse_other_weights(path: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Tensors that are missing, of another shape, or of blocks that the configuration does not have."""
    for name, found, expected in sorted(info["mismatched_keys"]):
        _refuse_shape(path, name, tuple(found), tuple(expected), model.config)
    if info["missing_keys"]:
        refuse_packed(path, info["unexpected_keys"])
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"{path}: the weights lack {missing}; expected a complete causal language model")
    blocks = decoder_blocks(model)
    prefix, count = blocks[0].rpartition(".")[0], len(blocks)
    for name in sorted(info["unexpected_keys"]):
        number = name.removeprefix(f"{prefix}.").split(".")[0]
        if name.startswith(f"{prefix}.") and number.isdecimal() and int(number) >= count:
            raise ModelError(
                f"{path}: the weights hold {name}, and the configuration asks for {count} blocks; expected weights "
                "and config.json of the same model"
            )


def _refuse_non_finite(path: str, model: nn.Module, dtype: torch.dtype) -> None:
    bits = {id(layer.weight) for _, layer in quantised_layers(model)}  # which are no numbers
    numbers = ((name, theta) for name, theta in model.named_parameters() if id(theta) not in bits)
    for name, theta in chain(numbers, scales(model)):
        finite = not theta.numel() or bool(torch.stack(torch.aminmax(theta.detach())).isfinite().all())
        home_of(model).let_go(theta)
        if not finite:
            wider = " (or model.dtype=bfloat16 or float32)" if dtype is torch.float16 else ""
            raise ModelError(
                f"{path}: {name} holds NaN or infinity in {str(dtype).removeprefix('torch.')}; expected finite "
                f"weights: copy or download them again{wider}"
            )
