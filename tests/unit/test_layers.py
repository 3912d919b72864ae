from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from r2id import layers
from r2id.layers import ATTENTIONS, MLP, AdaLN, Attention, Block, Reader, centred, softmax_attention


@pytest.fixture(params=[(kind, heads) for kind in ATTENTIONS for heads in (1, 2)])
def attention(request) -> Attention:
    torch.manual_seed(0)
    kind, heads = request.param
    return Attention(8, heads=heads, attention=kind)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_a_normalised_sum_of_values(attention):
    query_BND, context_BMD = tokens(3, 5, 8), tokens(3, 4, 8, seed=1)
    key_BMD, value_BMD = attention.key_value(context_BMD).chunk(2, dim=-1)
    mixed = []
    width = attention.head_width
    for head in (slice(at, at + width) for at in range(0, 8, width)):
        query = attention.query_norm(attention.query(query_BND)[..., head])
        key = attention.key_norm(key_BMD[..., head])
        if attention.attention == "softmax":
            scores_BNM = (query @ key.transpose(1, 2) / width**0.5).exp()
        else:
            scores_BNM = (F.elu(query) + 1) @ (F.elu(key) + 1).transpose(1, 2)
        mixed.append(scores_BNM / scores_BNM.sum(-1, keepdim=True) @ value_BMD[..., head])
    torch.testing.assert_close(
        attention(query_BND, attention.keys_values(context_BMD)), attention.out(torch.cat(mixed, -1))
    )


def test_a_query_of_one_head_costs_no_linear_map():
    """Shares of the context's values, by products of the query itself with the context's keys."""
    attention = Attention(8, heads=1, context_width=6)
    assert {name.split(".")[0] for name in attention.state_dict()} == {"key_value", "key_norm"}
    query, keys_values = tokens(1, 1, 8), attention.keys_values(tokens(1, 4, 6, seed=1))
    torch.testing.assert_close(
        attention(query * 1e4, keys_values)[0, 0], keys_values[1][0, 0, (keys_values[0] @ query[0, 0]).argmax()]
    )


def test_keys_and_values_serve_any_queries_and_are_not_changed(attention):
    keys_values = attention.keys_values(tokens(2, 4, 8, seed=1))
    before = [part.clone() for part in keys_values]
    query = tokens(2, 6, 8)
    whole = attention(query, keys_values)
    torch.testing.assert_close(
        torch.cat((attention(query[:, :1], keys_values), attention(query[:, 1:], keys_values)), 1), whole
    )
    assert all(torch.equal(a, b) for a, b in zip(before, keys_values, strict=True))


def test_a_query_does_not_depend_on_the_others(attention):
    keys_values, query = attention.keys_values(tokens(2, 4, 8, seed=1)), tokens(2, 6, 8)
    other = torch.cat((query[:, :1], tokens(2, 3, 8, seed=2) * 100), 1)
    torch.testing.assert_close(attention(other, keys_values)[:, 0], attention(query, keys_values)[:, 0])


def test_the_order_of_the_context_does_not_matter(attention):
    query, context = tokens(2, 3, 8), tokens(2, 4, 8, seed=1)
    turned = attention(query, attention.keys_values(context.flip(1)))
    torch.testing.assert_close(turned, attention(query, attention.keys_values(context)))


@pytest.mark.parametrize("queries, keys", [(1, 1), (16, 60), (90, 7)])
@pytest.mark.parametrize("small", [layers.SMALL, 0])  # scores held in memory, and not
@pytest.mark.parametrize("mixed", [False, True])  # as under autocast, where norms give float32
def test_softmax_attention_in_bfloat16_is_scaled_dot_product_attention(queries, keys, small, mixed, monkeypatch):
    """Of float32, to the rounding; and so are its gradients."""
    monkeypatch.setattr(layers, "SMALL", small)
    shapes = (3, 2, queries, 4), (3, 2, keys, 4), (3, 2, keys, 4)
    given = [2 * tokens(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    exact = [part.clone().requires_grad_() for part in given]
    given = [part.to(torch.float32 if mixed and place < 2 else torch.bfloat16) for place, part in enumerate(given)]
    given = [part.requires_grad_() for part in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = softmax_attention(*given)
    expected = F.scaled_dot_product_attention(*exact)
    assert found.dtype == torch.bfloat16
    for result in (found.float(), expected):
        (result * tokens(*result.shape, seed=3)).sum().backward()
    close_to(found, expected)
    for one, other in zip(given, exact, strict=True):
        close_to(one.grad, other.grad)


def close_to(rough: torch.Tensor, exact: torch.Tensor) -> None:
    error = (rough.float() - exact).norm() / exact.norm().clamp(min=1e-3)
    assert error < 0.02


def test_sums_of_linear_attention_do_not_grow_with_the_context():
    attention = Attention(8, heads=2, attention="linear")
    few, many = (attention.keys_values(tokens(1, n, 8)) for n in (2, 50))
    assert [part.shape for part in few] == [part.shape for part in many]


@pytest.mark.parametrize("options", [{"heads": 3}, {"heads": 2, "attention": "flash"}])
def test_attention_that_cannot_be_built_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        Attention(8, **options)


@pytest.mark.parametrize("gated", [True, False])
def test_adaln_starts_as_plain_layer_norm(gated):
    normed, gate = AdaLN(8, 4, gated=gated)(tokens(2, 3, 8), tokens(2, 4))
    torch.testing.assert_close(normed, F.layer_norm(tokens(2, 3, 8), (8,)))
    assert torch.equal(gate, torch.zeros(2, 1, 8)) if gated else gate == 1.0


def test_adaln_modulates_every_row_by_its_own_vector():
    adaln = AdaLN(8, 4)
    torch.nn.init.normal_(adaln.modulation.weight)
    x, vector = tokens(2, 3, 8), tokens(2, 4)
    normed, gate = adaln(x, vector)
    shift, scale, expected_gate = adaln.modulation(F.silu(vector))[:, None].chunk(3, -1)
    torch.testing.assert_close(normed, F.layer_norm(x, (8,)) * (1 + scale) + shift)
    torch.testing.assert_close(gate, expected_gate)
    torch.testing.assert_close(adaln(x[1:], vector[1:])[0], normed[1:])


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    mlp, x = MLP(8, mlp_ratio=2, dropout=0.5), tokens(1, 3, 8)
    assert not torch.equal(mlp(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize(
    "cross_attention, self_attention", [(True, False), (False, True), (True, True), (False, False)]
)
def test_a_block_adds_its_parts_to_the_residual(kind, cross_attention, self_attention):
    torch.manual_seed(0)
    block = Block(
        8, heads=2, mlp_ratio=2, cross_attention=cross_attention, self_attention=self_attention, attention=kind
    )
    x, context = tokens(2, 3, 8), tokens(2, 4, 8, seed=1)
    expected = x
    if cross_attention:
        expected = expected + block.cross_attention(
            block.cross_norm(expected), block.cross_attention.keys_values(context)
        )
    if self_attention:
        normed = block.self_norm(expected)
        expected = expected + block.self_attention(normed, block.self_attention.keys_values(normed))
    expected = expected + block.mlp(block.mlp_norm(expected))
    keys_values = block.cross_attention.keys_values(context) if cross_attention else None
    torch.testing.assert_close(block(x, keys_values), expected)
    assert block(x[:, :0], keys_values).shape == (2, 0, 8)


@pytest.mark.parametrize("grad", [True, False])
def test_a_reader_is_a_block_but_for_the_mean_of_its_tokens(attention, grad):
    """Whatever the scales and shifts of its norms; and the tokens it was given stay as they are."""
    options = {"heads": 8 // attention.head_width, "mlp_ratio": 2, "attention": attention.attention, "context_width": 6}
    block, reader = Block(8, cross_attention=True, self_attention=False, **options), Reader(8, **options)
    for seed, parameter in enumerate(block.parameters()):
        parameter.data = tokens(*parameter.shape, seed=seed)
    reader.load_state_dict(block.state_dict())
    x, context = tokens(2, 3, 8), tokens(2, 4, 6, seed=1)
    given = centred(x)
    with torch.set_grad_enabled(grad):
        read = reader(given, reader.keys_values(context))
        expected = centred(block(x, block.cross_attention.keys_values(context)))
    torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(given, centred(x))
