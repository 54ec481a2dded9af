"""Small networks for annotation: weighed by class, stopped by validation cells."""

import numpy as np

from scfusion_fm.evaluation.baselines.classifiers import MlpEnsemble
from scfusion_fm.evaluation.baselines.networks import MlpSettings, train_until_worse

QUICK = MlpSettings(hidden_sizes=(16,), alphas=(0.1,), n_members=2, learning_rate=0.02, max_epochs=12)


def test_balanced_networks_give_a_rare_class_more_probability():
    rng = np.random.default_rng(0)
    y = np.repeat(["many", "rare"], [180, 20])
    x = rng.normal(size=(200, 4)) + (y == "rare")[:, None]
    mean = {
        balanced: MlpEnsemble(QUICK, 0.1, balanced, seed=0).fit(x, y, x, y).predict_proba(x)[:, 1].mean()
        for balanced in (False, True)
    }
    assert mean[True] > 1.3 * mean[False]


def test_training_stops_at_patience_and_returns_to_the_best_pass():
    class Network:
        coefs_, intercepts_ = [0], [0]

    network, passes = Network(), iter(range(1, 100))

    def step():
        network.coefs_ = [next(passes)]

    def loss():
        return abs(network.coefs_[0] - 4)

    train_until_worse(network, step, loss, MlpSettings(patience=3))
    assert network.coefs_ == [4]
    assert next(passes) == 8
