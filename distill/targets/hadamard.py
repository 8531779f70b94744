"""Hadamard matrices by Sylvester's, Paley's and Kronecker's constructions, in integers."""

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@cache
def hadamard(order: int) -> Array | None:
    """A matrix of 1 and -1 with orthogonal rows, (order, order), int8; None where these constructions give none.

    Paley's constructions are used for primes, not for powers of primes: 189 of the 256 multiples of 4 up to 1024 have one.

    Example:
        >>> hadamard(12) @ hadamard(12).T == 12 * np.eye(12)
        array([[ True, ...
        >>> hadamard(92) is None
        True
    """
    if order in (1, 2):
        return np.array([[1, 1], [1, -1]], np.int8)[:order, :order]
    if order < 1 or order % 4:
        return None
    if _is_prime(order - 1):
        return _first(order - 1)
    if _is_prime(order // 2 - 1) and order // 2 % 4 == 2:
        return _second(order // 2 - 1)
    for factor in (2, *range(4, int(order**0.5) + 1, 4)):
        if order % factor == 0:
            left, right = hadamard(factor), hadamard(order // factor)
            if left is not None and right is not None:
                return np.kron(left, right)
    return None


def orthogonal(order: int) -> Array:
    """An orthogonal matrix (order, order), float64: Hadamard's over the root of its order, else a fixed random rotation."""
    matrix = hadamard(order)
    if matrix is not None:
        return np.asarray(matrix / np.sqrt(order))
    q, r = np.linalg.qr(np.random.default_rng(order).standard_normal((order, order)))
    return np.asarray(q * np.sign(np.diag(r)))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _residues(prime: int) -> Array:
    """Jacobsthal's matrix: 1 where i - j is a square modulo ``prime``, -1 where it is none, 0 where i = j."""
    signs = np.full(prime, -1, np.int8)
    signs[np.arange(1, prime, dtype=np.int64) ** 2 % prime] = 1
    signs[0] = 0
    return np.asarray(signs[(np.arange(prime)[:, None] - np.arange(prime)) % prime])


def _first(prime: int) -> Array:
    """Paley's first construction, of order prime + 1, for a prime of the form 4 n + 3."""
    out = np.ones((prime + 1, prime + 1), np.int8)
    out[1:, 0] = -1
    out[1:, 1:] = _residues(prime) + np.eye(prime, dtype=np.int8)
    return out


def _second(prime: int) -> Array:
    """Paley's second construction, of order 2 (prime + 1), for a prime of the form 4 n + 1."""
    conference = np.ones((prime + 1, prime + 1), np.int8)
    conference[1:, 1:] = _residues(prime)
    conference[0, 0] = 0
    ones, zeros = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(conference, ones) + np.kron(np.eye(prime + 1, dtype=np.int8), zeros)
