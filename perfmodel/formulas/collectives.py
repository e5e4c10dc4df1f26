"""Time of collectives on rings, tori and switches, in the field's alpha-beta form.

Symbols: n ranks in the group, or members of m ranks each for algorithms that go through those as well; V bytes of the
full buffer on a rank (all-gather: its output, reduce-scatter: its input, others: the buffer, permute:
the message); b bandwidth of one rank in one direction [B/s]; a latency of a step [s]. On a ring: k ranks in all, s
places from a rank of the group to the next. Each function returns the wire time per byte of V [s/B], a number of steps
[1] or a bandwidth [B/s], and broadcasts over its arguments. At n = 1 times and steps are 0 by their formula.
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


def mesh_steps(n: Number) -> Number:
    """Steps of direct messages to everyone at once: 1, and 0 where the group is a single rank [1].

    Source: Neuron docs, intra-node collectives (mesh).
    """
    return np.minimum(n - 1.0, 1.0)


def flat_ring_inner_steps(n: Number, m: Number) -> Number:
    """Steps inside the n members of a group, of one ring through all m ranks of each: n (m - 1) [1].

    Source: NCCL, src/graph/tuning.cc, latency of rings.
    """
    return n * (m - 1.0) * np.minimum(n - 1.0, 1.0)


def pairwise_steps(n: Number, m: Number) -> Number:
    """Messages of a rank to the m ranks of each other member, one after the other: m (n - 1) [1]."""
    return m * (n - 1.0)


def pairwise_inner_steps(n: Number, m: Number) -> Number:
    """Messages of a rank to the others inside its own member: m - 1 [1]."""
    return (m - 1.0) * np.minimum(n - 1.0, 1.0)


def gather_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of all-gather, or of reduce-scatter, per byte of V: (n - 1) / (n b) [s/B].

    The bound of every algorithm whose ranks inject at b all the time: each rank takes in (n-1)/n of V. On a torus b
    is the sum over the dims in use of both directions, which edge-disjoint rings reach.
    """
    return (n - 1.0) / (n * b)


def tree_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of the way up, or of the way down, of an all-reduce on two binary trees that carry half of V each, per
    byte of V: min(n, 4) / (4 b), and 0 where the group is a single rank [s/B].

    Nodes that branch in one tree are leaves of the other. With four nodes or more one of these sends half of V to its
    parent in both trees and half to each of two children: 2 V in all; two nodes only exchange halves, V in all.
    Source: NCCL, src/graph/trees.cc, and issues 812 and 946 for two nodes.
    """
    return np.where(n > 1.0, np.minimum(n, 4.0) / 4.0, 0.0) / b


def flat_ring_seconds_per_byte(n: Number, m: Number, b: Number) -> Number:
    """Wire time of all-gather, or of reduce-scatter, on one ring through all m ranks of each of n members, per byte of
    V: (n m - 1) / (n m b), and 0 where the group lies within one member [s/B].

    All but a rank's own part passes each link of the ring, those between members as well.
    Source: NCCL, issues 471 (its rings are flat) and 812.
    """
    return np.where(n > 1.0, (n * m - 1.0) / (n * m), 0.0) / b


def all_to_all_switch_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of all-to-all through a switch per byte of V: (n - 1) / (n b) [s/B]."""
    return (n - 1.0) / (n * b)


def all_to_all_ring_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of all-to-all over one torus dim per byte of V: n / (4 b) for even n, (n^2 - 1) / (4 n b) for odd n,
    and never less than the (n - 1) / (n b) that a rank injects [s/B], with b both directions of the ring together.

    Each rank's n messages of V/n travel n^2/4 hops in all (odd n: (n^2 - 1)/4), balanced over the two directions.
    Source: JAX scaling book, ch. 3, for the even case.
    """
    odd = n - 2.0 * np.floor(n / 2.0)
    return np.maximum((n * n - odd) / (4.0 * n), (n - 1.0) / n) / b


def ring_bandwidth(n: Number, s: Number, k: Number, b: Number) -> Number:
    """Bandwidth of a rank for a group of n ranks, s places apart, on a ring of k whose other ranks do the same:
    b / s where the group closes the ring (n s = k), else b / (2 s) [B/s], with b both directions together.

    A group that does not close the ring is a line: its ends have one neighbour. Between neighbours s places apart lie
    s - 1 ranks of other groups, which share the links.
    """
    return np.where(n * s > k - 0.5, b, b / 2.0) / s


def full_mesh_bandwidth(n: Number, k: Number, b: Number) -> Number:
    """Bandwidth of a rank for a group of n out of k that all have a link to each other: b (n - 1) / (k - 1) [B/s],
    with b all the k - 1 links of a rank together.
    """
    return b * np.maximum(n - 1.0, 1.0) / np.maximum(k - 1.0, 1.0)


def permute_seconds_per_byte(n: Number, b: Number) -> Number:
    """Wire time of a permute per byte: 1/b, and 0 where the group is a single rank [s/B]."""
    return np.minimum(n - 1.0, 1.0) / b


def permute_ring_seconds_per_byte(n: Number, s: Number, k: Number, b: Number) -> Number:
    """Wire time per byte of a permute to the rank s places on, along a ring of k: max(1, s - s^2 / k) 2/b [s/B],
    with b both directions together; k infinite: a line.

    A shift by one place uses one direction. Longer ones go both ways round, s (k - s) / k links a byte and direction.
    On a line the last ranks send back to the first ones against the others: s messages on a link either way.
    """
    return np.minimum(n - 1.0, 1.0) * np.maximum(s - s * s / k, 1.0) * 2.0 / b
