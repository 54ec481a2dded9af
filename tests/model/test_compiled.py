"""Compiled loops give what torch does, run where they may, and are passed over where they may not."""

import sys
from unittest import mock

import pytest
import torch
from torch import nn

from scfusion_fm import ScFusionTTTModel
from scfusion_fm.model import compiled_scfusion_ttt
from scfusion_fm.model.compiled_scfusion_ttt import load_loops, normalise, normalise_and_gate, runs_compiled
from scfusion_fm.model.ttt_layers import rotary_embedding
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState, ttt_linear, ttt_linear_packed
from scfusion_fm.model.ttt_linear_lanes import runs_on_lanes
from scfusion_fm.model.ttt_reference import ttt_linear_reference

close = {"rtol": 1e-4, "atol": 1e-5}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def by_torch(monkeypatch):
    """Switch the loops off when called."""
    return lambda off=True: monkeypatch.setenv("SCFUSION_COMPILED", "0" if off else "1")


def make_projections(cells, length, heads, width, size):
    """Draw the arguments of `ttt_linear_packed` up to the rotation."""
    qkv, rates = draw(cells, length, 3, heads, width), torch.rand(cells, length, heads) / width
    scale = 1 / torch.arange(1, size + 1) + 0.1 * draw(size, seed=3).abs()
    state = TTTState(0.2 * draw(cells, heads, width, width, seed=1), draw(cells, heads, 1, width, seed=2))
    norm = TTTNorm(draw(heads, 1, width, seed=4), draw(heads, 1, width, seed=5), 1e-6)
    return qkv, rates, scale, state, norm, rotary_embedding(size, width, 10_000.0, qkv)


@pytest.mark.parametrize("shape", [(3, 48, 2, 32, 16), (1, 64, 1, 64, 32), (2, 16, 3, 96, 16)])
@torch.inference_mode()
def test_a_scan_is_that_of_torch_both_ways(shape, by_torch):
    arguments, loss = make_projections(*shape), torch.empty(2, *shape[:3])
    kept = [x.clone() for x in arguments[:3]]
    assert runs_on_lanes(arguments[0], arguments[2])
    out, state = ttt_linear_packed(*arguments, loss[0])
    back, _ = ttt_linear_packed(arguments[0].flip(1), arguments[1].flip(1), *arguments[2:], None, "reverse")
    by_torch()
    expected, end = ttt_linear_packed(*arguments, loss[1])
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(back.flip(1), expected, **close)
    torch.testing.assert_close(loss[0], loss[1], **close)
    torch.testing.assert_close(state[:2], end[:2], **close)
    assert all(torch.equal(x, y) for x, y in zip(kept, arguments[:3], strict=True))


@torch.inference_mode()
def test_a_scan_is_that_of_the_reference():
    qkv, rates, scale, state, norm, _ = make_projections(1, 40, 2, 32, 16)
    assert runs_on_lanes(qkv, scale)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    found, end = ttt_linear(q, k, v, rates.transpose(1, 2), scale, state, norm)
    with torch.inference_mode(False):
        given = [x.clone() for x in (q, k, v, rates.transpose(1, 2), scale)]
        given += [TTTState(*(x.clone() for x in state[:2])), TTTNorm(norm.weight.clone(), norm.bias.clone(), norm.eps)]
        expected, last = ttt_linear_reference(*given)
    torch.testing.assert_close(found, expected.detach(), **close)
    torch.testing.assert_close(end.weight, last.weight.detach(), **close)
    assert not end.at_border


@pytest.mark.parametrize("width", [16, 80])
@torch.inference_mode()
def test_norms_are_those_of_torch(width):
    x, gate, mask = draw(4, 9, width), draw(4, 9, width, seed=1), draw(4, 9, seed=2) > 0
    rms, layer = nn.RMSNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-3)
    for parameter in (*rms.parameters(), *layer.parameters()):
        parameter.copy_(draw(*parameter.shape, seed=3))
    with mock.patch.object(compiled_scfusion_ttt, "load_loops", wraps=load_loops) as used:
        found = normalise(rms, x), normalise(rms, x, mask), normalise_and_gate(layer, x.clone(), gate)
    assert used.call_count > 3
    torch.testing.assert_close(found[0], rms(x), **close)
    torch.testing.assert_close(found[1], rms(x) * mask.unsqueeze(-1), **close)
    torch.testing.assert_close(found[2], layer(x) * gate, **close)
    assert torch.equal(normalise_and_gate(layer, x, None), layer(x))


@pytest.mark.parametrize("direction", ["causal", "alternating", "gated"])
def test_a_model_is_that_of_torch(tiny_config, direction, by_torch):
    torch.manual_seed(0)
    tiny_config.hidden_size, tiny_config.ttt_mini_batch_size, tiny_config.ttt_direction = 64, 16, direction
    model = ScFusionTTTModel(type(tiny_config)(**tiny_config.to_dict())).eval()
    cells = {"rna_values": torch.rand(5, 11, 3), "rna_observed": torch.rand(5, 11, 3) < 0.3}
    cells |= {"adt_values": torch.randn(5, 7), "adt_observed": torch.rand(5, 7) < 0.5}
    with torch.inference_mode(), mock.patch.object(load_loops(), "scan", wraps=load_loops().scan) as scan:
        found = model(**cells, output_inner_loss=True)
    assert scan.call_count == 6
    by_torch()
    with torch.inference_mode():
        expected = model(**cells, output_inner_loss=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **close)


def test_what_learns_or_is_watched_or_does_not_fit_is_left_to_torch(by_torch):
    qkv, _, scale = make_projections(1, 16, 1, 32, 16)[:3]
    norm, x = nn.RMSNorm(32), draw(1, 2, 32)
    assert not runs_compiled(x)
    with torch.inference_mode():
        assert runs_compiled(x)
        assert not runs_compiled(x.double())
        assert not runs_on_lanes(qkv[..., :16], scale)
        assert not runs_on_lanes(qkv, scale[:8])
        with torch.autocast("cpu"):
            assert not runs_compiled(x)
        calls = []
        handle = norm.register_forward_hook(lambda *_: calls.append(1))
        normalise(norm, x)
        handle.remove()
        assert calls == [1]
        with mock.patch.object(compiled_scfusion_ttt, "load_loops", return_value=None):
            assert not runs_compiled(x)
        by_torch()
        assert not runs_compiled(x)
        torch.testing.assert_close(normalise(norm, x, torch.zeros(1, 2, dtype=torch.bool)), torch.zeros(1, 2, 32))


@pytest.mark.parametrize(
    "lacking",
    [
        mock.patch.dict("sys.modules", {"numba": None}),
        mock.patch("numba.njit", side_effect=RuntimeError("cannot cache function: no locator available")),
    ],
)
def test_without_numba_or_room_for_its_cache_there_are_no_loops(lacking):
    with mock.patch.dict("sys.modules"), lacking:
        for name in ("lanes_scfusion_ttt", "row_loops_scfusion_ttt", "ttt_linear_loops"):
            sys.modules.pop(f"scfusion_fm.model.{name}", None)
        assert load_loops.__wrapped__() is None


def test_loops_are_off_where_numba_compiles_nothing():
    with mock.patch("numba.config.DISABLE_JIT", 1):
        assert load_loops.__wrapped__() is None
