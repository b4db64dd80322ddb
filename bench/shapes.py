"""The models and inputs that the benchmarks share: shapes, random weights, their twin in transformers."""

import random

import torch
from torch import Tensor

from analysis import plan
from fast.products import use_fast_products
from model import Config, Qwen

SHAPES = {
    "4M": Config(1024, 256, 1024, 4, 8, 2, tie_word_embeddings=True, max_position_embeddings=4096),
    **plan.SHAPES,  # "0.5B", "1.5B", "7B" and so on: Qwen2.5's
    "toy": Config(1024, 32, 48, 2, 4, 2, tie_word_embeddings=True),  # for the tests of the benchmarks
}


def random_model(shape: str, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Qwen:
    """The shape with random weights of the usual size; the large ones are never in float32 on the way."""
    with torch.device("meta"):
        model = Qwen(SHAPES[shape])
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2:
                p.fill_(1.0 if "norm" in name else 0.0)
            else:
                p.normal_(0, 0.1 if "embed" in name else p.shape[1] ** -0.5, generator=generator)
    return use_fast_products(model.eval())


def twin(model: Qwen):
    """The same weights, the very same tensors, as a Qwen2ForCausalLM that never stops by itself."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    shape = {
        name: getattr(model.config, name)
        for name in Config.__dataclass_fields__
        if name not in ("extra", "rope_theta")
    }
    rope = {"rope_type": "default", "rope_theta": model.config.rope_theta}
    config = transformers.Qwen2Config(**shape, rope_parameters=rope, attention_dropout=0.0)
    config.eos_token_id = config.bos_token_id = None
    weight = model.model.embed_tokens.weight
    with torch.device("meta"):
        other = transformers.Qwen2ForCausalLM(config).to(weight.dtype)
    state = model.state_dict()
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    other.load_state_dict({k: v.detach() for k, v in state.items()}, assign=True)
    other.tie_weights()
    other.model.rotary_emb = type(other.model.rotary_emb)(config).to(weight.device)  # not meta
    other.generation_config.eos_token_id = None
    other.generation_config.pad_token_id = 0
    return other.eval()


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random ids, all different."""
    rng = random.Random(f"prompts {seed}")
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def ragged_lengths(count: int, least: int, most: int, seed: int) -> list[int]:
    """Lengths as rollouts have them, many short and few long: their mean is 0.4 of the longest."""
    rng = random.Random(f"lengths {seed}")
    return [least + round((most - least) * rng.random() ** 1.7) for _ in range(count)]


def weight_elements(model: Qwen) -> int:
    """Weights that one token is multiplied with: all of the layers, and the head; not the table looked up."""
    total = sum(p.numel() for p in model.parameters())
    return total if model.lm_head is None else total - model.model.embed_tokens.weight.numel()


def cache_bytes(model: Qwen, tokens: int, weight: Tensor) -> int:
    """Keys and values of `tokens` tokens, in the dtype of `weight`."""
    c = model.config
    return 2 * tokens * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * weight.element_size()
