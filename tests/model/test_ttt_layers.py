"""TTT layers: the fast paths against the token-by-token references, what padding may not do, and long sequences."""

import dataclasses
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from scfusion_fm.model import ttt_linear_groups
from scfusion_fm.model.ttt_layers import DIRECTIONS, TTT_LAYERS, rotary_embedding
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState, ttt_linear
from scfusion_fm.model.ttt_linear_groups import rotate
from scfusion_fm.model.ttt_mlp import TTTMLPState, ttt_mlp
from scfusion_fm.model.ttt_reference import ttt_linear_reference, ttt_mlp_reference


class Inner(NamedTuple):
    """An inner model: its fast path, its reference, and how its state is made."""

    fast: object
    reference: object
    state: type
    shapes: object


INNER = {
    "linear": Inner(ttt_linear, ttt_linear_reference, TTTState, lambda k: [(k, k), (1, k)]),
    "mlp": Inner(ttt_mlp, ttt_mlp_reference, TTTMLPState, lambda k: [(k, 4 * k), (1, 4 * k), (4 * k, k), (1, k)]),
}
kinds = pytest.mark.parametrize("kind", sorted(INNER))


@dataclasses.dataclass
class Shape:
    batch: int = 2
    heads: int = 2
    length: int = 11
    width: int = 8
    size: int = 4


def make_inputs(kind, shape, dtype, scale=1.0, seed=0):
    """Draw q, k, v, inner_lr, token_scale, gain, offset and the fast weights, all in need of a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    def positive(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    heads = (shape.batch, shape.heads)
    return [
        *(draw(*heads, shape.length, shape.width) for _ in range(3)),
        positive(*heads, shape.length),
        positive(shape.size),
        draw(shape.heads, 1, shape.width),
        draw(shape.heads, 1, shape.width),
        *(draw(*heads, *size) for size in INNER[kind].shapes(shape.width)),
    ]


def run(kind, function, leaves, eps=1e-6, **keywords):
    q, k, v, inner_lr, token_scale, gain, offset, *fast = leaves
    state = INNER[kind].state(*fast)
    return function(q, k, v, inner_lr, token_scale, state, TTTNorm(gain, offset, eps), **keywords)


def outputs_and_gradients(kind, function, leaves, eps=1e-6):
    out, state = run(kind, function, leaves, eps)
    probe = torch.sin(torch.arange(out.numel(), dtype=out.dtype, device=out.device)).view_as(out)
    loss = (out * probe).sum() + sum((x * x).sum() + x.sum() for x in state[:-1])
    return [out, *state[:-1], *torch.autograd.grad(loss, leaves)]


def check_equal_to_reference(kind, leaves, tolerance, eps=1e-6):
    inner = INNER[kind]
    got, expected = (outputs_and_gradients(kind, f, leaves, eps) for f in (inner.fast, inner.reference))
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * max(b.abs().max().item(), 1e-3), msg=lambda m, n=number: f"{n}: {m}"
        )


@kinds
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    width=st.sampled_from([4, 6, 8]),
    size=st.integers(1, 5),
    whole=st.integers(0, 3),
    rest=st.integers(0, 4),
    kept=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_fast_path_equals_reference_in_outputs_and_gradients(kind, batch, heads, width, size, whole, rest, kept, seed):
    length = max(whole * size + rest % size, 1)
    leaves = make_inputs(kind, Shape(batch, heads, length, width, size), torch.float64, scale=0.5, seed=seed)
    with torch.no_grad():  # some tokens are masked
        leaves[3].mul_(torch.rand(leaves[3].shape, generator=torch.Generator().manual_seed(seed)) < 0.8)
    with mock.patch.multiple(ttt_linear_groups, GROUP_ELEMENTS=1, KEPT_ELEMENTS=2**18 * kept):
        # This epsilon keeps chance from hitting a nearly constant row, where the function itself loses the digits.
        check_equal_to_reference(kind, leaves, 1e-9, eps=1e-2)


@kinds
@pytest.mark.parametrize(
    "shape", [Shape(), Shape(1, 1, 23, 16, 16), Shape(1, 3, 40, 8, 1), Shape(2, 1, 100, 4, 5)], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_fast_path_equals_reference_in_float32(kind, shape, scale):
    leaves = make_inputs(kind, shape, torch.float32, scale)
    with torch.no_grad():
        leaves[3].mul_(1.0 / shape.width)  # as the layer scales its learning rates
    check_equal_to_reference(kind, leaves, 1e-5, eps=1e-2)


@kinds
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-2])
def test_fast_path_equals_reference_at_small_scales(kind, scale):
    """Small inputs blow up what a mean that was not subtracted leaves behind."""
    leaves = make_inputs(kind, Shape(1, 1, 70, 8, 4), torch.float64, scale)
    with torch.no_grad():
        leaves[3].mul_(0.1)
        leaves[5].fill_(1.0)
    inner = INNER[kind]
    (out, state), (expected, expected_state) = (run(kind, f, leaves) for f in (inner.fast, inner.reference))
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(state[:-1], expected_state[:-1], rtol=1e-7, atol=1e-7)


@kinds
def test_gradients_agree_with_finite_differences(kind):
    leaves = make_inputs(kind, Shape(1, 2, 5, 4, 2), torch.float64, 0.5)
    with torch.no_grad():
        leaves[3].add_(0.1)
        leaves[4].add_(0.1)

    def function(*leaves):
        out, state = run(kind, INNER[kind].fast, leaves, eps=1e-2)
        return out, *state[:-1]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize(("kind", "kept"), [("linear", False), ("linear", True), ("mlp", False)])
def test_backward_can_be_run_again(kind, kept, monkeypatch):
    monkeypatch.setattr(ttt_linear_groups, "KEPT_ELEMENTS", 2**18 * kept)
    leaves = make_inputs(kind, Shape(), torch.float64)
    out, _ = run(kind, INNER[kind].fast, leaves)
    first = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(out.square().sum(), leaves)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@kinds
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_to_read_leaves_the_state_alone(kind, batch, length):
    leaves = make_inputs(kind, Shape(batch=batch, length=length), torch.float32)
    out, state = run(kind, INNER[kind].fast, leaves)
    assert out.shape == (batch, 2, length, 8)
    for after, before in zip(state[:-1], leaves[7:], strict=True):
        assert torch.equal(after, before)


@kinds
def test_inner_loss_is_that_of_the_reference_and_changes_nothing(kind):
    leaves = make_inputs(kind, Shape(), torch.float64)
    q, plain = leaves[0], run(kind, INNER[kind].fast, leaves)[0]
    losses = [q.new_empty(q.shape[:3]).detach() for _ in range(2)]
    out = run(kind, INNER[kind].fast, leaves, inner_loss=losses[0])[0]
    run(kind, INNER[kind].reference, leaves, inner_loss=losses[1])
    torch.testing.assert_close(*losses)
    assert not losses[0].requires_grad
    assert torch.equal(out, plain)


@kinds
def test_sequence_can_be_continued_from_its_state(kind):
    leaves = make_inputs(kind, Shape(length=12), torch.float64)
    whole, end = run(kind, INNER[kind].fast, leaves)
    first, state = run(kind, INNER[kind].fast, [x[:, :, :8] for x in leaves[:4]] + leaves[4:])
    rest = [*(x[:, :, 8:] for x in leaves[:4]), *leaves[4:7], *state[:-1]]
    second, end_again = run(kind, INNER[kind].fast, rest)
    torch.testing.assert_close(torch.cat((first, second), 2), whole)
    torch.testing.assert_close(end_again[:-1], end[:-1])


@kinds
def test_padding_leaves_the_state_untouched_to_the_bit(kind):
    leaves = make_inputs(kind, Shape(length=6), torch.float32)
    _, state = run(kind, INNER[kind].fast, leaves)
    for front in (0, 8):  # whole mini-batches may also stand in front
        junk = [torch.randn(2, 2, n, 8) for n in (front, 9)]
        padded = [torch.cat((junk[0], x, junk[1]), 2) for x in leaves[:3]]
        inner_lr = torch.nn.functional.pad(leaves[3], (front, 9))
        _, padded_state = run(kind, INNER[kind].fast, [*padded, inner_lr, *leaves[4:]])
        assert all(torch.equal(a, b) for a, b in zip(state[:-1], padded_state[:-1], strict=True))


def make_layer(kind, config, direction="forward", **changes):
    torch.manual_seed(0)
    layer = TTT_LAYERS[kind](type(config)(**{**config.to_dict(), "ttt_layer_type": kind, **changes}), direction)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


@pytest.fixture(params=sorted(INNER))
def layer(request, tiny_config):
    return make_layer(request.param, tiny_config)


@pytest.fixture(params=[(kind, direction) for kind in sorted(INNER) for direction in DIRECTIONS], ids="-".join)
def any_layer(request, tiny_config):
    return make_layer(request.param[0], tiny_config, request.param[1])


def all_real(*shape):
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize("front", [0, 8])
def test_padding_leaves_real_tokens_alone(any_layer, front):
    x = torch.randn(2, 6, 16)
    out = any_layer(x, all_real(2, 6), return_inner_loss=True)
    padded = torch.full((2, front + 6 + 9, 16), torch.nan)
    padded[:, front : front + 6] = x
    mask = torch.zeros(2, front + 6 + 9, dtype=torch.bool)
    mask[:, front : front + 6] = True
    got = any_layer(padded, mask, return_inner_loss=True)
    torch.testing.assert_close(got.tokens[:, front : front + 6], out.tokens)
    torch.testing.assert_close(got.inner_loss[:, front : front + 6], out.inner_loss)
    assert got.tokens.isfinite().all()
    assert (got.inner_loss[~mask] == 0).all()


def test_masked_tokens_get_no_gradient(any_layer):
    x = torch.randn(1, 8, 16, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, True, False, True, True]])
    out = any_layer(x, mask).tokens
    (gradient,) = torch.autograd.grad(out[mask].square().sum(), x)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any()


def test_cells_do_not_see_their_batch_mates(any_layer):
    x = torch.randn(5, 10, 16)
    together = any_layer(x, all_real(5, 10))
    for cell in range(5):
        alone = any_layer(x[cell : cell + 1], all_real(1, 10))
        # The projections are one product over the batch, whose order of summation may depend on its size.
        torch.testing.assert_close(alone.tokens[0], together.tokens[cell], rtol=1e-5, atol=1e-6)


def test_layer_is_causal(layer):
    x = torch.randn(1, 10, 16)
    changed = x.clone()
    changed[:, 7] += 1
    before, after = layer(x, all_real(1, 10)).tokens, layer(changed, all_real(1, 10)).tokens
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@kinds
def test_reverse_is_forward_on_the_reversed_sequence(kind, tiny_config):
    forward, reverse = (make_layer(kind, tiny_config, direction) for direction in ("forward", "reverse"))
    x = torch.randn(2, 16, 16)
    expected, got = forward(x.flip(1), all_real(2, 16), None, True), reverse(x, all_real(2, 16), None, True)
    torch.testing.assert_close(got.tokens, expected.tokens.flip(1))
    torch.testing.assert_close(got.inner_loss, expected.inner_loss.flip(1))
    assert all(torch.equal(a, b) for a, b in zip(got.state[:-1], expected.state[:-1], strict=True))


@kinds
def test_both_ways_are_forward_and_a_gated_reverse(kind, tiny_config):
    x, mask = torch.randn(2, 16, 16), all_real(2, 16)
    forward, reverse, both = (make_layer(kind, tiny_config, direction) for direction in DIRECTIONS)
    for other in (forward, reverse):
        assert not other.load_state_dict(both.state_dict(), strict=False).missing_keys
    mixed = [layer._mix(x, mask, None, True) for layer in (forward, reverse, both)]
    gate = torch.tanh(both.direction_gate)
    torch.testing.assert_close(mixed[2][0], mixed[0][0] + gate * mixed[1][0])
    torch.testing.assert_close(mixed[2][2], 0.5 * (mixed[0][2] + mixed[1][2]))
    for a, b in zip(mixed[2][1][:-1], mixed[0][1][:-1], strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        both.direction_gate.zero_()
    torch.testing.assert_close(both(x, mask).tokens, forward(x, mask).tokens)


@kinds
def test_both_ways_continue_forward_from_a_state(kind, tiny_config):
    both, forward = (make_layer(kind, tiny_config, direction) for direction in ("both", "forward"))
    x, mask = torch.randn(2, 8, 16), all_real(2, 8)
    state = forward(x, mask).state
    with torch.no_grad():
        both.direction_gate.zero_()
    forward.load_state_dict(both.state_dict(), strict=False)
    torch.testing.assert_close(both(x, mask, state).tokens, forward(x, mask, state).tokens)


def test_order_of_tokens_matters(layer):
    x = torch.randn(1, 10, 16)
    turned = layer(x.flip(1), all_real(1, 10)).tokens.flip(1)
    assert not torch.allclose(layer(x, all_real(1, 10)).tokens, turned, atol=1e-3)


def test_layer_continues_at_the_end_of_a_mini_batch(layer):
    x = torch.randn(2, 14, 16)
    whole = layer(x, all_real(2, 14))
    first = layer(x[:, :8], all_real(2, 8))
    second = layer(x[:, 8:], all_real(2, 6), first.state)
    torch.testing.assert_close(torch.cat((first.tokens, second.tokens), 1), whole.tokens)
    with pytest.raises(ValueError, match="`state` must come from a sequence of whole mini-batches"):
        layer(x, all_real(2, 14), second.state)


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_inner_loop_stays_in_float32_under_bfloat16(any_layer, how):
    x = torch.randn(1, 40, 16)
    expected = any_layer(x, all_real(1, 40)).tokens
    if how == "bfloat16":
        any_layer, x = any_layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out, state, _ = any_layer(x, all_real(1, 40))
        out.float().square().sum().backward()  # inside the section, which must not reach the inner loop
    assert all(weight.dtype == torch.float32 for weight in state[:-1])
    assert (out.float() - expected).norm() < 0.06 * expected.norm()
    assert all(parameter.grad.isfinite().all() for parameter in any_layer.parameters())


def test_every_parameter_of_the_layer_learns(any_layer):
    any_layer(torch.randn(2, 10, 16), all_real(2, 10)).tokens.square().sum().backward()
    silent = [n for n, p in any_layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(any_layer, use_reentrant):
    x = torch.randn(2, 10, 16, requires_grad=True)

    def forward(x):
        return any_layer(x, all_real(2, 10)).tokens

    forward(x).square().sum().backward()
    plain, x.grad = x.grad, None
    checkpoint(forward, x, use_reentrant=use_reentrant).square().sum().backward()
    assert torch.equal(x.grad, plain)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_layer_can_be_compiled(tiny_config, backend):
    layer = make_layer("linear", tiny_config)
    x = torch.randn(2, 10, 16, requires_grad=True)
    results = []
    for function in (layer, torch.compile(layer, backend=backend)):
        out = function(x, all_real(2, 10)).tokens
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "base_lr"), [("linear", 1.0), ("mlp", 0.1)])
@pytest.mark.parametrize("identical", [0.0, 0.8])
def test_twenty_thousand_tokens_neither_break_nor_drift(tiny_config, kind, base_lr, identical):
    """Identical tokens stand for the many genes without a count."""
    torch.manual_seed(0)
    layer = TTT_LAYERS[kind](type(tiny_config)(hidden_size=16, num_attention_heads=1, ttt_base_lr=base_lr))
    torch.nn.init.normal_(next(p for n, p in layer.named_parameters() if n.startswith("weight")), std=0.02)
    x = torch.where(torch.rand(1, 20_000, 1) < identical, torch.randn(16), torch.randn(1, 20_000, 16))
    with torch.no_grad():
        early = layer(x[:, :2_000], all_real(1, 2_000))
        late = layer(x, all_real(1, 20_000), return_inner_loss=True)
        exact = layer.double()(x.double(), all_real(1, 20_000))
    assert late.tokens.isfinite().all()
    assert late.inner_loss[:, -2_000:].mean() < 1.5 * late.inner_loss[:, :2_000].mean()
    assert late.state[0].norm() < 4.0 * early.state[0].norm() + 1.0
    error = (late.tokens - exact.tokens).norm(dim=-1) / exact.tokens.norm(dim=-1)
    assert error[:, -2_000:].mean() < 1e-3


def test_large_inner_rates_overshoot_but_stay_finite(tiny_config):
    x, mask = torch.randn(1, 20_000, 16, requires_grad=True), all_real(1, 20_000)
    outs = []
    for base_lr in (1.0, 20.0):
        torch.manual_seed(0)
        layer = TTT_LAYERS["linear"](type(tiny_config)(hidden_size=16, num_attention_heads=1, ttt_base_lr=base_lr))
        torch.nn.init.normal_(next(p for n, p in layer.named_parameters() if n.startswith("weight")), std=0.02)
        outs.append(layer(x, mask, return_inner_loss=True))
        gradients = torch.autograd.grad(outs[-1].tokens.square().mean(), [x, *layer.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
    small, large = outs
    assert large.state[0].norm() > 2.0 * small.state[0].norm()
    assert large.inner_loss[:, :2_000].mean() > small.inner_loss[:, :2_000].mean()


def test_unknown_direction_is_refused(tiny_config):
    with pytest.raises(ValueError, match=r"`direction` must be one of .*'sideways'"):
        TTT_LAYERS["linear"](tiny_config, "sideways")


def test_rotation_keeps_lengths_and_makes_scores_depend_on_the_distance_alone():
    x = torch.randn(8, dtype=torch.float64).expand(4, 8)
    rotated = torch.empty_like(x)
    rotate(x, rotary_embedding(4, 8, 10000.0, x), out=rotated)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[0], x[0])
    scores = rotated @ rotated.T
    torch.testing.assert_close(scores.diagonal(1), scores[0, 1].expand(3))
