"""How models treat rows: what two short passes find, and per-row gradients wherever a layer's rows lie."""

from functools import cache

import pytest
import torch
import transformers as t
from test_per_sample import TOLERANCE, gradients, state_of
from tiny_adapters import VOCABULARY, adapter, base, flat, rows, slow_gradients
from torch import nn

from clusterucb.errors import ConfigError
from clusterucb.evaluation.loss import losses
from clusterucb.features.hidden import forward, representations
from clusterucb.gradients.anatomy import ROWS, TOKENS, examine, parts, steady_length
from clusterucb.gradients.batches import collate
from clusterucb.gradients.featurizer import Featurizer
from clusterucb.gradients.per_sample import adapter_layers, row_gradients
from clusterucb.gradients.projection import CountSketch

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OPT = SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}
XLNET = {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
GPTJ = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4}
CAUSAL = {  # configuration and target modules, in forms of rows that are not alike
    "rows flattened before experts that all tokens share": (
        t.Qwen2MoeConfig(**LLAMA, **ROUTED, shared_expert_intermediate_size=24),
        ["q_proj", "shared_expert_gate"],
    ),
    "rows flattened before a feed-forward layer": (t.OPTConfig(**OPT), ["fc1", "fc2", "k_proj"]),
    "latent attention, with heads as an axis of their own": (
        t.DeepseekV3Config(
            **(LLAMA | LATENT), n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2
        ),
        ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    ),
    "tokens before rows": (t.XLNetConfig(**XLNET), ["layer_1", "layer_2"]),
    "attention beside routed experts": (t.MixtralConfig(**LLAMA, num_local_experts=4), ["q_proj", "o_proj"]),
    "fused query, key and value": (t.Phi3Config(**LLAMA), ["qkv_proj", "gate_up_proj", "o_proj"]),
    "rotary dimensions from a table": (t.GPTJConfig(**GPTJ), ["q_proj", "fc_in", "fc_out"]),
    "states instead of attention": (t.MambaConfig(**SMALL, state_size=8), ["in_proj", "x_proj"]),
    "attention biases": (t.BloomConfig(**SMALL), ["query_key_value", "dense_h_to_4h"]),
    "biased queries": (t.Qwen2Config(**LLAMA), ["q_proj", "k_proj", "v_proj", "up_proj"]),
    "normed queries": (t.Qwen3Config(**LLAMA, head_dim=8), ["q_proj", "down_proj"]),
    "multi-query attention": (t.FalconConfig(**SMALL), ["query_key_value", "dense_4h_to_h"]),
    "parallel layers": (t.CohereConfig(**LLAMA), ["q_proj", "gate_proj"]),
    "scaled residuals": (t.GraniteConfig(**LLAMA), ["v_proj", "o_proj", "up_proj"]),
    "encoder layers that look back only": (
        t.BertConfig(**SMALL, intermediate_size=48, is_decoder=True),
        ["query", "dense"],
    ),
}


def made(config, targets):
    torch.manual_seed(0)
    return adapter(model=t.AutoModelForCausalLM.from_config(config), target_modules=[*targets])


@cache
def model_of(form):
    """Not to be changed."""
    return made(*CAUSAL[form])


@pytest.mark.parametrize("form", CAUSAL)
def test_each_row_of_a_padded_batch_has_the_gradient_of_the_row_alone(form):
    """Also where a batch has as many rows as tokens, and of one row."""
    model = model_of(form)
    for lengths in ([17, 9, 12, 5], [6, 6, 4, 6, 5, 3], [8]):
        batch = rows(lengths, len(lengths))
        for found, row in zip(gradients(model, batch)[0], batch, strict=True):
            whole = flat(slow_gradients(model, row))
            assert (flat(found) - whole).norm() <= TOLERANCE * whole.norm()
            assert whole.norm() > 1e-4


class Looped(nn.Module):
    """A layer that runs without gradient, then twice, then in vain; what comes before it gets no gradient."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, **kwargs):
        with torch.no_grad():
            hidden = hidden + 0.1 * self.layer(hidden, **kwargs)
        for _ in range(2):
            hidden = self.layer(hidden, **kwargs)
        self.layer(hidden, **kwargs)
        return hidden


@pytest.fixture(scope="module")
def looped():
    model = base()
    model.config.use_cache = False  # it would keep one run's keys for the next
    model.model.layers[0] = Looped(model.model.layers[0])
    return adapter(model=model)


def test_the_runs_of_a_layer_are_one_gradient(looped):
    batch = rows([14, 9, 5], 3)
    found, _ = gradients(looped, batch)  # each layer is consumed once, or this fails
    for mine, row in zip(found, batch, strict=True):
        whole = flat(slow_gradients(looped, row))
        assert (flat(mine) - whole).norm() <= TOLERANCE * whole.norm()


def test_adams_map_is_of_the_sum_of_the_runs(looped):
    """Its square makes it matter: of each run alone the directions are others."""
    from test_featurizer import random_moments, slow_feature

    moments, projection = random_moments(looped), CountSketch(seed=1, dim=96)
    batch = rows([14, 9, 5], 3)
    features, _ = Featurizer(looped, projection, moments)(batch)
    for feature, row in zip(features, batch, strict=True):
        expected = slow_feature(looped, row, projection, moments)
        assert abs(feature - expected).max() < 2e-4


def test_a_layer_that_did_nothing_for_any_row_has_the_gradient_zero():
    """As of a layer that is skipped for some rows: Adam's direction of a zero is its momentum."""
    model = adapter()
    layers, batch = adapter_layers(model), collate(rows([7, 5]))
    axes = examine(model, layers).axes
    skipped = model.get_submodule("base_model.model.model.layers.1.self_attn.o_proj")
    skipped.forward = lambda hidden: torch.zeros_like(hidden)
    found = {}
    row_gradients(model, layers, batch, found.__setitem__, axes)
    of_it = {name for name in layers if "layers.1.self_attn.o_proj" in name}
    assert found.keys() == layers.keys()
    assert all((found[name] == 0).all() for name in of_it)
    assert all(found[name].shape == (2, *layers[name].weight.shape) for name in layers)


class Experts(nn.Module):
    """Two of them; each is given the tokens that are sent to it, of whatever row."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleDict({name: nn.Linear(32, 32, bias=False) for name in ("one", "two")})

    def forward(self, hidden):
        flat, out = hidden.flatten(0, 1), torch.zeros_like(hidden).flatten(0, 1)
        chosen = (flat[:, 0] > flat[:, 0].median()).long()
        for number, expert in enumerate(self.experts.values()):
            out[chosen == number] = expert(flat[chosen == number])
        return out.view_as(hidden)


class Transposed(nn.Module):
    """Tokens and rows flattened the other way round: no row lies in one piece."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(32, 32, bias=False)

    def forward(self, hidden):
        mixed = self.mixed(hidden.transpose(0, 1).reshape(-1, 32))
        return mixed.view(hidden.shape[1], -1, 32).transpose(0, 1)


@pytest.mark.parametrize(("part", "target"), [(Experts, "two"), (Transposed, "mixed")])
def test_a_layer_without_an_axis_of_rows_is_refused_for_what_it_is(part, target):
    model = base()
    model.model.layers[1].mlp = part()
    model = adapter(model=model, target_modules=[target, "q_proj"])
    before = state_of(model)
    given = rf"of {ROWS} rows of {TOKENS} tokens it is given \(\d+, 32\).*tokens of several rows together"
    with pytest.raises(ConfigError, match=rf"^layer .*\.{target}\.lora_A\.weight: {given}"):
        gradients(model, rows([9, 5]))
    assert state_of(model) == before


def test_a_layer_that_no_text_reaches_is_named_by_its_part():
    model = base()
    model.model.vision_tower = nn.ModuleDict({"q_proj": nn.Linear(32, 32), "fc1": nn.Linear(32, 32)})
    model = adapter(model=model, target_modules=["q_proj", "fc1"])
    words = r"takes no part in .*so have 4 of 8 layers, in vision_tower\).*--exclude-modules vision_tower\)"
    with pytest.raises(ConfigError, match=words):
        gradients(model, rows([9, 5]))


@pytest.mark.parametrize(
    ("names", "others", "found"),
    [
        (["a.tower.0.q", "a.tower.1.q"], ["a.text.0.q"], ["tower"]),
        (["a.text.0.k", "a.text.1.k"], ["a.text.0.q", "a.text.1.q"], ["k"]),
        (["a.text.2.q"], ["a.text.0.q", "a.text.1.q"], ["a.text.2"]),
        (["a.text.1.k"], ["a.text.0.k", "a.text.1.q"], ["a.text.1.k"]),
        (["base_model.model.a.tower.q.lora_A.weight"], ["base_model.model.a.q.lora_A.weight"], ["tower"]),
    ],
)
def test_a_part_is_called_by_its_own_word_or_by_its_path(names, others, found):
    assert parts(names, others) == found


class TestCausal:
    @pytest.mark.parametrize("form", [form for form in CAUSAL if form != "tokens before rows"])
    def test_models_that_write_are(self, form):
        assert examine(model_of(form), {}).causal

    @pytest.mark.parametrize("kind", [t.BertConfig, t.RobertaConfig, t.ElectraConfig])
    def test_models_that_see_all_tokens_are_not(self, kind):
        assert not examine(t.AutoModelForCausalLM.from_config(kind(**SMALL, intermediate_size=48)), {}).causal

    def test_nor_is_one_of_which_a_single_layer_looks_ahead(self):
        model = base()
        whole = model.model.layers[1].forward
        model.model.layers[1].forward = lambda hidden, **more: (
            whole(hidden, **more) + 0.01 * hidden.roll(-1, 1)
        )
        assert not examine(model, {}).causal


class TestPositions:
    @pytest.mark.parametrize(
        ("config", "room"),
        [
            (t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=33), 33),
            (t.OPTConfig(**OPT, max_position_embeddings=33), 33),  # whose table has two more
            (t.BioGptConfig(**SMALL, intermediate_size=48, max_position_embeddings=33), 33),
            (t.GPTJConfig(**GPTJ), 40),
            (t.LlamaConfig(**LLAMA, max_position_embeddings=33), None),
            (t.BloomConfig(**SMALL), None),
        ],
    )
    def test_a_table_of_positions_is_found_and_ends_where_the_model_does(self, config, room):
        model = t.AutoModelForCausalLM.from_config(config)
        found = examine(model, {}).room
        assert found == (room and (room, f"has {room} positions"))
        model(input_ids=torch.ones(1, room or 34, dtype=torch.long))
        if room:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.ones(1, room + 1, dtype=torch.long))


LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
SCALED = [
    t.LlamaConfig(
        **LLAMA,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    t.Phi3Config(
        **LLAMA,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={**LONG, "original_max_position_embeddings": 32},
    ),
]


@pytest.mark.parametrize("config", SCALED, ids=["dynamic", "longrope"])
class TestPositionsThatDependOnTheRowsBeside:
    TARGETS = ("o_proj", "down_proj")

    def test_the_longest_row_that_changes_none_is_known(self, config):
        model = made(config, self.TARGETS)
        assert steady_length(model)[0] == examine(model, {}).room[0] == 32

    @pytest.mark.parametrize(
        "compute",
        [
            lambda model, batch: gradients(model, batch),
            lambda model, batch: losses(model, batch, 1000),
            lambda model, batch: forward(representations, model, batch),
            lambda model, batch: Featurizer(model, CountSketch(dim=16))(batch),
        ],
        ids=["gradients", "losses", "hidden states", "features"],
    )
    def test_a_longer_row_is_refused_whatever_is_computed_of_it(self, config, compute):
        words = r"rope_type (dynamic|longrope): a row of more than 32 tokens .* one of 45; lower --gradient-"
        with pytest.raises(ConfigError, match=words):
            compute(made(config, self.TARGETS), rows([45, 20]))

    def test_shorter_rows_are_as_alone_also_after_a_longer_one(self, config):
        """As in the training of someone else, whose batches may be longer."""
        model, batch = made(config, self.TARGETS).eval(), rows([31, 20, 9], 2)
        expected = [flat(slow_gradients(model, row)) for row in batch]
        with torch.no_grad():
            model(input_ids=torch.ones(1, 45, dtype=torch.long))
        for found, whole in zip(gradients(model, batch)[0], expected, strict=True):
            assert (flat(found) - whole).norm() <= TOLERANCE * whole.norm()


def test_what_another_library_raises_is_one_line_with_the_layer():
    """Adapters take their input by place; a model may give it by name."""
    model = adapter(target_modules=["q_proj"])
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    layer.forward, plain = lambda hidden: plain(input=hidden), layer.forward
    where = r"model\.layers\.1\.self_attn\.q_proj \(TypeError: "
    before = state_of(model)
    with pytest.raises(ConfigError, match=rf"^LlamaForCausalLM: cannot be run on a text, in {where}"):
        gradients(model, rows([9, 5]))
    assert state_of(model) == before
    del layer.forward
    gradients(model, rows([9, 5]))
