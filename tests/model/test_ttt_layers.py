"""TTT-Linear: the dual form against the token-by-token reference, and what padding may not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scfusion_fm.model.ttt_layers import TTTLinear, rotary_embedding
from scfusion_fm.model.ttt_reference import ttt_linear_reference
from scfusion_fm.model.ttt_scan import TTTNorm, TTTState, rotate, ttt_linear

NAMES = ("q", "k", "v", "inner_lr", "token_scale", "weight", "bias", "gain", "offset")


def make_inputs(batch, heads, length, width, size, dtype, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    def positive(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return [
        *(draw(batch, heads, length, width) for _ in range(3)),
        positive(batch, heads, length),
        positive(size),
        draw(batch, heads, width, width),
        draw(batch, heads, 1, width),
        draw(heads, 1, width),
        draw(heads, 1, width),
    ]


def run(function, leaves, eps=1e-6):
    q, k, v, inner_lr, token_scale, weight, bias, gain, offset = leaves
    out, state = function(q, k, v, inner_lr, token_scale, TTTState(weight, bias), TTTNorm(gain, offset, eps))
    return out, state


def outputs_and_gradients(function, leaves, eps=1e-6):
    out, state = run(function, leaves, eps)
    probe = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    loss = (out * probe).sum() + state.weight.square().sum() + state.bias.sum()
    return [out, *state, *torch.autograd.grad(loss, leaves)]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    width=st.sampled_from([2, 4, 6]),
    size=st.integers(1, 5),
    whole=st.integers(0, 3),
    rest=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_fast_path_equals_reference_in_outputs_and_gradients(batch, heads, width, size, whole, rest, seed):
    length = max(whole * size + rest % size, 1)
    leaves = make_inputs(batch, heads, length, width, size, torch.float64, seed=seed)
    # This epsilon keeps chance from hitting a nearly constant row, where the function itself loses the digits.
    got, expected = (outputs_and_gradients(f, leaves, 1e-2) for f in (ttt_linear, ttt_linear_reference))
    for name, a, b in zip(("out", "W", "b", *NAMES), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(b.abs().max().item(), 1), msg=name)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_fast_path_equals_reference_in_float32(scale):
    leaves = make_inputs(2, 2, 11, 8, 4, torch.float32, scale)
    got, expected = (outputs_and_gradients(f, leaves) for f in (ttt_linear, ttt_linear_reference))
    for name, a, b in zip(("out", "W", "b", *NAMES), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item(), msg=name)


def test_sequence_can_be_continued_from_its_state():
    leaves = make_inputs(2, 2, 12, 4, 4, torch.float64)
    whole, end = run(ttt_linear, leaves)
    first, state = run(ttt_linear, [x[:, :, :8] for x in leaves[:4]] + leaves[4:])
    rest = [x[:, :, 8:] for x in leaves[:4]] + [leaves[4], state.weight, state.bias, *leaves[7:]]
    second, end_again = run(ttt_linear, rest)
    torch.testing.assert_close(torch.cat((first, second), 2), whole)
    torch.testing.assert_close(end_again.weight, end.weight)


@pytest.fixture
def layer(tiny_config):
    torch.manual_seed(0)
    layer = TTTLinear(tiny_config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer


def test_padding_leaves_the_state_untouched_to_the_bit():
    leaves = make_inputs(2, 2, 6, 8, 4, torch.float32)
    _, state = run(ttt_linear, leaves)
    for front in (0, 8):  # whole mini-batches may also stand in front
        junk = [torch.randn(2, 2, n, 8) for n in (front, 9)]
        padded = [torch.cat((junk[0], x, junk[1]), 2) for x in leaves[:3]]
        inner_lr = torch.nn.functional.pad(leaves[3], (front, 9))
        _, state_padded = run(ttt_linear, [*padded, inner_lr, *leaves[4:]])
        assert torch.equal(state.weight, state_padded.weight)
        assert torch.equal(state.bias, state_padded.bias)


@pytest.mark.parametrize("front", [0, 8])
def test_padding_leaves_real_tokens_alone(layer, front):
    x = torch.randn(2, 6, 16)
    out, _ = layer(x, torch.ones(2, 6, dtype=torch.bool))
    padded = torch.full((2, front + 6 + 9, 16), torch.nan)
    padded[:, front : front + 6] = x
    mask = torch.zeros(2, front + 6 + 9, dtype=torch.bool)
    mask[:, front : front + 6] = True
    out_padded, _ = layer(padded, mask)
    torch.testing.assert_close(out_padded[:, front : front + 6], out)
    assert out_padded.isfinite().all()


def test_masked_tokens_get_no_gradient(layer):
    x = torch.randn(1, 8, 16, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, True, False, True, True]])
    out, _ = layer(x, mask)
    (gradient,) = torch.autograd.grad(out[mask].square().sum(), x)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).any()


def test_layer_is_causal(layer):
    x = torch.randn(1, 10, 16)
    mask = torch.ones(1, 10, dtype=torch.bool)
    changed = x.clone()
    changed[:, 7] += 1
    before, after = layer(x, mask)[0], layer(changed, mask)[0]
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_order_of_tokens_matters(layer):
    x = torch.randn(1, 10, 16)
    mask = torch.ones(1, 10, dtype=torch.bool)
    turned = layer(x.flip(1), mask)[0].flip(1)
    assert not torch.allclose(layer(x, mask)[0], turned, atol=1e-3)


def test_inner_loop_stays_in_float32_under_bfloat16(layer):
    x = torch.randn(1, 10, 16)
    mask = torch.ones(1, 10, dtype=torch.bool)
    expected, _ = layer(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = layer(x, mask)
    assert state.weight.dtype == torch.float32
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


def test_every_parameter_of_the_layer_learns(layer):
    x = torch.randn(2, 10, 16)
    layer(x, torch.ones(2, 10, dtype=torch.bool))[0].square().sum().backward()
    silent = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_rotation_keeps_lengths_and_makes_scores_depend_on_the_distance_alone():
    x = torch.randn(8, dtype=torch.float64).expand(4, 8)
    rotated = torch.empty_like(x)
    rotate(x, rotary_embedding(4, 8, 10000.0, x), out=rotated)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[0], x[0])
    scores = rotated @ rotated.T
    torch.testing.assert_close(scores.diagonal(1), scores[0, 1].expand(3))
