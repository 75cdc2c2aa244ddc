"""Llama models of Hugging Face's transformers as ours."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from isoflop.errors import InputError
from isoflop.nn import Decoder
from isoflop.spec import AttentionSpec, DecoderSpec, FeedForwardSpec

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel

_BODY: Final = "model."
"""How the names of all weights but the head's begin."""
_EXPRESSIBLE: Final = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
}
"""Fields of a Llama configuration that change the function, and the values that a DecoderSpec can say."""


def from_transformers(model_or_path: "PreTrainedModel | str | os.PathLike[str]") -> Decoder:
    """A decoder with the weights and the function of a dense Llama, in evaluation mode.

    Args:
        model_or_path: a LlamaForCausalLM, whose device and dtype the decoder gets; or a directory as its
            `save_pretrained` writes, which is read in float32. Nothing is downloaded.

    Raises:
        InputError: if the directory holds no such model or lacks weights, or a DecoderSpec cannot say what the model
            is: another model type, scaled rotary positions, biases, another activation, quantised weights. Attention
            dropout, which only training would use, is dropped.
    """
    if isinstance(model_or_path, str | os.PathLike):
        name = str(Path(model_or_path))
        model = _load(Path(model_or_path))
    else:
        name, model = "model", model_or_path
    config = getattr(model, "config", None)
    spec = _spec(config, name)
    weights = dict(model.state_dict())
    embedding = weights.get(f"{_BODY}embed_tokens.weight")
    if embedding is None or not embedding.is_floating_point():
        raise InputError(f"{name} has no embedding matrix; it must be a LlamaForCausalLM.")
    decoder = Decoder(spec, device=embedding.device, dtype=embedding.dtype)
    _copy(weights, decoder, name)
    return decoder.eval()


def llama_spec(path: str | os.PathLike[str]) -> DecoderSpec:
    """The spec of the Llama in a directory, read from its config.json alone.

    Raises InputError as `from_transformers`.
    """
    return _spec(_config(Path(path)), str(Path(path)))


def _config(path: Path) -> "LlamaConfig":
    file = path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} has no config.json that can be read ({error.strerror}); a directory as save_pretrained of "
            "transformers writes is needed."
        ) from None
    except ValueError:
        raise InputError(f"{file} is not valid JSON.") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    _refuse_other_types(kind, str(path))
    try:
        from transformers import LlamaConfig
    except ImportError:
        raise InputError(
            f"{path} is a model of Hugging Face's transformers, which is not installed: "
            "pip install 'isoflop[transformers]'."
        ) from None
    try:
        return LlamaConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # its validation raises types of its own, which change with the version
        raise InputError(f"{file} is not a Llama configuration: {_line(error)}.") from None


def _load(path: Path) -> "PreTrainedModel":
    _spec(_config(path), str(path))  # before the weights, which may be large
    from transformers import LlamaForCausalLM

    try:
        model, found = LlamaForCausalLM.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # files that are missing, cut off or of other shapes, each a type of its own
        raise InputError(f"{path} has weights that cannot be loaded: {_line(error)}.") from None
    for kind, names in (("lacks", found["missing_keys"]), ("has the unknown", found["unexpected_keys"])):
        if names:
            raise InputError(f"{path} {kind} weight {min(names)}; it must be a whole LlamaForCausalLM.")
    return model


def _refuse_other_types(kind: Any, name: str) -> None:
    if kind != "llama":
        shown = "not given" if kind is None else repr(kind)
        raise InputError(f"{name}: model_type is {shown}; only dense models of the type 'llama' can be read.")


def _spec(config: Any, name: str) -> DecoderSpec:
    """The spec of a Llama configuration."""
    _refuse_other_types(getattr(config, "model_type", None), name)
    for field, allowed in _EXPRESSIBLE.items():
        value = getattr(config, field, None)
        if value not in allowed:
            shown = "given" if isinstance(value, dict) else repr(value)
            raise InputError(f"{name}: {field} is {shown}, which a spec cannot express; allowed: {allowed[0]}.")
    rope = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta", None)
    scaled = [key for key in sorted(rope) if (key, rope[key]) not in (("rope_type", "default"), ("type", "default"))]
    if scaled and not (scaled == ["partial_rotary_factor"] and rope["partial_rotary_factor"] in (None, 1)):
        first = "rope_type" if "rope_type" in scaled else scaled[0]
        raise InputError(
            f"{name}: rope_parameters.{first} is {rope[first]!r}; only plain rotary positions (rope_type 'default') "
            "can be read."
        )
    if theta is None:
        raise InputError(f"{name}: rope_parameters.rope_theta is not given; a number is needed.")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return DecoderSpec(
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        attention=AttentionSpec(
            n_heads=heads,
            head_dim=config.head_dim or config.hidden_size // heads,
            n_kv_heads=None if kv_heads in (None, heads) else kv_heads,
            rope_theta=float(theta),
        ),
        feed_forward=FeedForwardSpec(d_ff=config.intermediate_size),
        tied_head=bool(config.tie_word_embeddings),
        norm_eps=config.rms_norm_eps,
    )


@torch.no_grad()
def _copy(weights: dict[str, Tensor], decoder: Decoder, name: str) -> None:
    for target, sources in _sources(decoder.spec):
        try:
            decoder.get_parameter(target).copy_(torch.cat([weights.pop(source) for source in sources]))
        except KeyError as error:
            raise InputError(f"{name} has no weight {error.args[0]}; it must be a whole LlamaForCausalLM.") from None
        except RuntimeError:
            raise InputError(f"{name}: the shape of {sources[0]} is not that of its configuration.") from None
    if decoder.spec.tied_head:
        weights.pop("lm_head.weight", None)
    if weights:
        raise InputError(f"{name} has the weight {min(weights)}, which a spec cannot express.")


def _sources(spec: DecoderSpec) -> Iterator[tuple[str, list[str]]]:
    """Each of our weights with the names of the matrices that stand above each other in it."""
    yield "embedding_VD", [f"{_BODY}embed_tokens.weight"]
    for layer in range(spec.n_layers):
        ours, theirs = f"blocks.{layer}.", f"{_BODY}layers.{layer}."
        yield f"{ours}attention_gain", [f"{theirs}input_layernorm.weight"]
        yield f"{ours}attention.w_qkv", [f"{theirs}self_attn.{part}_proj.weight" for part in "qkv"]
        yield f"{ours}attention.w_out", [f"{theirs}self_attn.o_proj.weight"]
        yield f"{ours}feed_forward_gain", [f"{theirs}post_attention_layernorm.weight"]
        yield f"{ours}feed_forward.w_up", [f"{theirs}mlp.{part}_proj.weight" for part in ("gate", "up")]
        yield f"{ours}feed_forward.w_down", [f"{theirs}mlp.down_proj.weight"]
    yield "final_gain", [f"{_BODY}norm.weight"]
    if not spec.tied_head:
        yield "head_VD", ["lm_head.weight"]


def _line(error: Exception) -> str:
    """The first line of a message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
