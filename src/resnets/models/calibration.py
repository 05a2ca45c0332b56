"""Turn logits into probabilities, and fit the temperature that makes them honest."""

import numpy as np
from numpy.typing import NDArray

LogProbabilities = NDArray[np.float64]
TEMPERATURES = (0.02, 50.0)  # what is fitted, and what a model file may ask for


def log_softmax(logits: NDArray[np.floating]) -> LogProbabilities:
    """Return the natural logarithm of the softmax of logits (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature T that makes softmax(logits / T) fit validation labels best.

    Guo et al. 2017, with the smoothed targets of Platt 1999: without them a validation side
    without a single error would drive T to zero and every confidence to 1.
    """
    from scipy.optimize import minimize_scalar

    num_images, num_classes = logits.shape
    smoothing = 1 / (num_images + 2)
    targets = np.full(logits.shape, smoothing / num_classes)
    targets[np.arange(num_images), labels] += 1 - smoothing

    def cross_entropy(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature))).sum())

    low, high = (float(np.log(bound)) for bound in TEMPERATURES)
    best = minimize_scalar(cross_entropy, bounds=(low, high), method="bounded")
    return float(np.exp(best.x))
