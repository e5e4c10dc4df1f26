"""Time of collectives on rings, tori and switches, in the field's alpha-beta form.

Symbols: n ranks in the group; V bytes of the full buffer on a rank (all-gather: its output, reduce-scatter: its
input, all-reduce and all-to-all: the buffer, permute: the message); b bandwidth of one rank in one direction [B/s];
a latency of a step [s]. Each function returns the wire time per byte of V [s/B] or a number of steps [1] and
broadcasts over its arguments. At n = 1 all of them are 0 by their formula.
"""

from __future__ import annotations

import numpy as np

from perfmodel.work import Number


def ring_steps(n: Number) -> Number:
    """Steps of a ring all-gather or reduce-scatter: n - 1 [1].

    Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH, section 4.
    """
    return n - 1.0


def recursive_steps(n: Number) -> Number:
    """Steps of recursive doubling or halving: log2 n [1].

    Source: Thakur, Rabenseifner, Gropp, section 4; Neuron docs, intra-node collectives (RDH).
    """
    return np.log2(n)


def gather_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of all-gather, or of reduce-scatter, per byte of V: (n - 1) / (n b) [s/B].

    The bound of every algorithm whose ranks inject at b all the time: each rank takes in (n-1)/n of V. On a torus b
    is the sum over the dims in use of both directions, which edge-disjoint rings reach.
    """
    return (n - 1.0) / (n * b)


def all_to_all_switch_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of all-to-all through a switch per byte of V: (n - 1) / (n b) [s/B]."""
    return (n - 1.0) / (n * b)


def all_to_all_ring_seconds_per_byte(k: Number, b: Number) -> Number:
    """Wire time of all-to-all over one torus dim of k ranks per byte of V: (k^2 - 1) / (4 k b) for odd k, k / (4 b)
    for even k, taken as (k - 1/k) / (4 b) [s/B], with b both directions of the ring together.

    The hottest link of a ring of k carries k/8 of V in each direction (bisection). Source: JAX scaling book, ch. 3.
    """
    return (k - 1.0 / k) / (4.0 * b)


def permute_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of a permute per byte: 1/b, and 0 where the group is a single rank [s/B]."""
    return np.minimum(n - 1.0, 1.0) / b
