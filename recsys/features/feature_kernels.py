"""Compiled loops from a request's counters to its running rates, for all entities of all candidates at once.

Legend: N candidates, E entities of a candidate, S speeds (half-lives), K kinds, C = S × K counter columns, L
labels whose rates are taken.
"""

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import MIX_1, kernel, mix, read_only
from recsys.arrays.key_index import place_of, prefetch_cell
from recsys.arrays.prefetch import LINE, prefetch_line
from recsys.features.counter_kernels import add_row, read

_int, _float = types.int64, types.float32
_INDEX, _VALUES, _TIMES = read_only(_int, 2), read_only(_float, 2), read_only(_int, 1)
_AMOUNTS = read_only(_float, 1)


LOG_COUNT: Final = np.float32(3)  # divides logarithms of counts


@kernel(_int(_int, _int))
def crossed(left: Any, right: Any) -> Any:
    """The key of a pair, as ``recsys.events.hashing.cross``."""
    if right == 0:
        return 0
    return np.int64(mix(mix(np.uint64(left)) + np.uint64(right) * MIX_1))


@kernel(types.void(_INDEX, _VALUES, _TIMES, _INDEX, _VALUES, _TIMES, read_only(types.float64, 1),
                   read_only(_int, 2), read_only(_int, 2), _int, _float[:, :, ::1]))  # fmt: skip
def gather(index: Any, values: Any, last_ms: Any, own_index: Any, own_values: Any, own_last_ms: Any,
           half_lives: Any, items: Any, entities: Any, now_ms: Any, out: Any) -> None:  # fmt: skip
    """Adds the counters of each candidate's entities to ``out`` (N, E, C), zeros before.

    An entity is a row of ``entities`` (E, 5): whether its counters are the user's (``own_…``), whether it is
    crossed, with which key, and its first item column and their number, whose counters are summed.
    """
    # All cells of the index are prefetched first, then all rows, so that memory reads overlap instead of
    # waiting one by one.
    size, each, row = items.shape[0], 0, 4 * values.shape[1]
    for e in range(entities.shape[0]):
        each += entities[e, 4]
    places = np.empty((size, each), np.int64)  # until they are looked up, keys
    for n in range(size):
        at = 0
        for e in range(entities.shape[0]):
            own, is_crossed, left, start, width = entities[e]
            for c in range(start, start + width):
                key = items[n, c]
                if key != 0 and is_crossed != 0:
                    key = crossed(left, key) if left != 0 else 0
                if key != 0 and own == 0:
                    prefetch_cell(index, key)
                places[n, at] = key
                at += 1
    for n in range(size):
        at = 0
        for e in range(entities.shape[0]):
            own = entities[e, 0]
            for _ in range(entities[e, 4]):
                key, place = places[n, at], -1
                if key != 0:
                    place = place_of(own_index, key) if own != 0 else place_of(index, key)
                if place >= 0 and own == 0:
                    prefetch_line(last_ms, place * 8)
                    for byte in range(0, row, LINE):
                        prefetch_line(values, place * row + byte)
                    prefetch_line(values, place * row + row - 1)
                places[n, at] = place
                at += 1
    for n in range(size):
        at = 0
        for e in range(entities.shape[0]):
            for _ in range(entities[e, 4]):
                place = places[n, at]
                if place >= 0 and entities[e, 0] != 0:
                    add_row(own_values, own_last_ms, half_lives, place, now_ms, out[n, e])
                elif place >= 0:
                    add_row(values, last_ms, half_lives, place, now_ms, out[n, e])
                at += 1


@kernel(types.void(_AMOUNTS, _TIMES, _int, _float, _float[:, ::1], _float[:, ::1], _float[::1]))
def usual(overall: Any, rates: Any, watch: Any, rare: Any, prior: Any, odds: Any, mean: Any) -> None:
    """Writes everybody's rates (S, L) and their odds, and the mean log watch time at the W slowest speeds,
    from their counters (C,)."""
    one, (speeds, labels) = np.float32(1), prior.shape
    kinds, watches = overall.shape[0] // speeds, mean.shape[0]
    for s in range(speeds):
        shown = overall[s * kinds]
        for k in range(labels):
            rate = (overall[s * kinds + rates[k]] + np.float32(0.5)) / (shown + one)
            prior[s, k] = min(max(rate, rare), one - rare)
            odds[s, k] = prior[s, k] / (one - prior[s, k])
        if s >= speeds - watches:
            mean[s - speeds + watches] = overall[s * kinds + watch] / max(shown, one)


@kernel(types.void(read_only(_float, 3), _TIMES, _VALUES, _float, _float, _float[:, :, ::1]))
def ratios(sums: Any, rates: Any, prior: Any, weight: Any, rare: Any, out: Any) -> None:
    """Writes the arguments of logarithms (N, E, S + S · L) from counters (N, E, C): 1 + shown, then the odds
    of each label, speed by speed.

    A rate is smoothed by ``weight`` examples of ``prior`` (S, L) and clipped to ``rare`` from 0 and 1 (a
    label may occur more than once per impression). ``rates`` (L,) are the labels' indices among the kinds.
    """
    one, speeds, labels = np.float32(1), prior.shape[0], rates.shape[0]
    kinds = sums.shape[2] // speeds
    for n in range(sums.shape[0]):
        for e in range(sums.shape[1]):
            cells, ratio = sums[n, e], out[n, e]
            for s in range(speeds):
                shown = cells[s * kinds]
                ratio[s] = one + shown
                for k in range(labels):
                    happened = cells[s * kinds + rates[k]]
                    rate = (happened + weight * prior[s, k]) / (shown + weight)
                    rate = min(max(rate, rare), one - rare)
                    ratio[speeds + s * labels + k] = rate / (one - rate)


@kernel(types.void(read_only(_float, 3), read_only(_float, 3), _int, _VALUES, read_only(_float, 1),
                   _float, _float, _TIMES, _float[:, ::1]))  # fmt: skip
def lay(logs: Any, sums: Any, watch: Any, prior_odds: Any, mean_watch: Any, weight: Any, bound: Any,
        places: Any, dense: Any) -> None:  # fmt: skip
    """Writes rates into ``dense`` (N, at least E · (S + S · L + W)), each entity to its place: log counts /
    3, log odds minus ``prior_odds`` (S, L), and the smoothed mean log watch time at the W slowest speeds
    minus ``mean_watch`` (W,), clipped to ±``bound``. ``logs`` (N or 1, E, S + S · L) and ``sums`` with one
    row apply to all items."""
    speeds, labels, last = prior_odds.shape[0], prior_odds.shape[1], logs.shape[2]
    watches, kinds = mean_watch.shape[0], sums.shape[2] // speeds
    for n in range(dense.shape[0]):
        m = n if logs.shape[0] > 1 else 0
        for e in range(logs.shape[1]):
            own, at = logs[m, e], places[e] * (last + watches)
            out = dense[n, at : at + last + watches]
            for s in range(speeds):
                out[s] = own[s] / LOG_COUNT
                for k in range(labels):
                    c = speeds + s * labels + k
                    out[c] = own[c] - prior_odds[s, k]
            for w in range(watches):
                slow = sums[m, e, (speeds - watches + w) * kinds :]
                usual = mean_watch[w]
                mean = (slow[watch] + weight * usual) / (slow[0] + weight) - usual
                out[last + w] = min(max(mean, -bound), bound)


@kernel(types.void(_INDEX, _VALUES, _TIMES, _INDEX, _VALUES, _TIMES, read_only(types.float64, 1),
                   read_only(_int, 2), read_only(_int, 2), _TIMES, _int, _int, _TIMES, _int, _float,
                   _float, _float[:, :, ::1], _float[:, ::1], _float[:, ::1], _float[::1],
                   _float[::1]))  # fmt: skip
def gather_rates(index: Any, values: Any, last_ms: Any, own_index: Any, own_values: Any,
                 own_last_ms: Any, half_lives: Any, items: Any, entities: Any, keys: Any, own: Any,
                 now_ms: Any, rates: Any, watch: Any, weight: Any, rare: Any, sums: Any, same: Any,
                 prior: Any, mean: Any, logs: Any) -> None:  # fmt: skip
    """Everything of a request up to its logarithms, in one call: for few numbers a call is most of the time.

    Writes counters of each candidate's entities to ``sums`` (N, E, C), those of ``keys`` (everybody's first,
    the viewer's from ``own`` on) to ``same`` (1 + M, C), both zeros before, the rates of ``usual``, and the
    arguments of logarithms: odds of everybody's rates, then ``ratios`` of ``same``, and those of ``sums``.
    """
    read(index, values, last_ms, half_lives, keys[:own], now_ms, same[:own])
    read(own_index, own_values, own_last_ms, half_lives, keys[own:], now_ms, same[own:])
    gather(
        index, values, last_ms, own_index, own_values, own_last_ms, half_lives, items, entities, now_ms, sums
    )
    width, odds = prior.size + prior.shape[0], logs[: prior.size].reshape(prior.shape)
    usual(same[0], rates, watch, rare, prior, odds, mean)
    alike = same[1:].reshape((1, same.shape[0] - 1, same.shape[1]))
    own_at = prior.size + alike.shape[1] * width
    out = logs[prior.size : own_at].reshape((1, alike.shape[1], width))
    ratios(alike, rates, prior, weight, rare, out)
    out = logs[own_at:].reshape((sums.shape[0], sums.shape[1], width))
    ratios(sums, rates, prior, weight, rare, out)


@kernel(types.void(read_only(_float, 1), read_only(_float, 3), _VALUES, _VALUES, _int,
                   read_only(_float, 1), _float, _float, _TIMES, _TIMES, _float[:, ::1]))  # fmt: skip
def lay_rates(logs: Any, sums: Any, same: Any, prior: Any, watch: Any, mean: Any, weight: Any,
              bound: Any, same_at: Any, each_at: Any, dense: Any) -> None:  # fmt: skip
    """``lay`` of everything that ``gather_rates`` wrote, with the logarithms of its ``logs``."""
    width, odds = prior.size + prior.shape[0], logs[: prior.size].reshape(prior.shape)
    alike = same[1:].reshape((1, same.shape[0] - 1, same.shape[1]))
    each_from = prior.size + alike.shape[1] * width
    same_logs = logs[prior.size : each_from].reshape((1, alike.shape[1], width))
    lay(same_logs, alike, watch, odds, mean, weight, bound, same_at, dense)
    each_logs = logs[each_from:].reshape((sums.shape[0], sums.shape[1], width))
    lay(each_logs, sums, watch, odds, mean, weight, bound, each_at, dense)


@kernel(_int(_TIMES, _TIMES, _int[::1]))
def entity_keys(keys: Any, entity: Any, out: Any) -> Any:
    """Writes the keys of an entity for one item's ``keys`` (I,), each once; returns their number.

    ``entity``: whether it is crossed, with which key, its first item column and their number, and the seed
    that its keys are crossed with (0: none). Without item columns its key is the other half.
    """
    count, left, width, seed = 0, entity[1], entity[3], entity[4]
    for c in range(entity[2], entity[2] + max(width, 1)):
        key = left if width == 0 else keys[c]
        if width != 0 and key != 0 and entity[0] != 0:
            key = crossed(left, key) if left != 0 else 0
        if key != 0 and seed != 0:
            key = crossed(seed, key)
        present = key == 0
        for n in range(count):
            present |= out[n] == key
        if not present:
            out[count] = key
            count += 1
    return count


@kernel(_float(types.float64))
def signed_log(value: Any) -> Any:
    """A number on a logarithmic scale, on either side of 0."""
    size = np.log1p(abs(value))
    return np.float32(size if value >= 0 else -size)


@kernel(types.void(_INDEX, _VALUES, _TIMES, _INDEX, _VALUES, _TIMES, read_only(_int, 2),
                   read_only(_int, 2), _int, _float, _float[:, ::1]))  # fmt: skip
def latest(index: Any, values: Any, last_ms: Any, own_index: Any, own_values: Any, own_last_ms: Any,
           items: Any, entities: Any, now_ms: Any, never: Any, dense: Any) -> None:  # fmt: skip
    """Writes the time since the newest event of a kind, log seconds / 10, and its value on a signed log
    scale, of each candidate's entities.

    An entity is a row of ``entities`` (E, 8): as for ``entity_keys``, whether its rows are the user's, then
    the column of the time and that of the value, -1 for none.
    """
    keys = np.empty(items.shape[1] + 1, np.int64)
    for n in range(items.shape[0]):
        for e in range(entities.shape[0]):
            own, since_at, value_at = entities[e, 5], entities[e, 6], entities[e, 7]
            if n > 0 and entities[e, 3] == 0:  # the same for all items
                dense[n, since_at] = dense[0, since_at]
                if value_at >= 0:
                    dense[n, value_at] = dense[0, value_at]
                continue
            newest, value = np.int64(-1), np.float32(0)
            for k in range(entity_keys(items[n], entities[e], keys)):
                place = place_of(own_index, keys[k]) if own != 0 else place_of(index, keys[k])
                if place < 0:
                    continue
                time_ms = own_last_ms[place] if own != 0 else last_ms[place]
                each = own_values[place, 0] if own != 0 else values[place, 0]
                if time_ms > newest or (time_ms == newest and each > value):
                    newest, value = time_ms, each
            since = never
            if newest >= 0:
                seconds = max(now_ms - newest, 0) / 1000.0
                since = min(np.float32(np.log1p(seconds) / 10.0), never)
            dense[n, since_at] = since
            if value_at >= 0:
                dense[n, value_at] = signed_log(value)


@kernel(types.void(read_only(_float, 3), _VALUES, _AMOUNTS, _TIMES, _VALUES, read_only(_int, 2),
                   _float, _float, _float, _float[:, ::1]))  # fmt: skip
def operate(each: Any, same: Any, overall: Any, rates: Any, prior: Any, cells: Any, weight: Any,
            rare: Any, bound: Any, dense: Any) -> None:  # fmt: skip
    """Writes columns of operators from the counters of each candidate's entities (N, E, C), of those that
    are the ``same`` for all (M, C), and of everybody (C,).

    A cell is a row of ``cells`` (P, 8): operator, whether the entity is one of ``each``, its place, the kind
    of counter (of a rate: the index of the label in ``rates``), the speed, the same two numbers of the base
    entity, and the column.
    """
    speeds = prior.shape[0]
    kinds = overall.shape[0] // speeds
    for p in range(cells.shape[0]):
        operator, is_each, at, kind, s, base_each, base_at, out = cells[p]
        first = s * kinds
        constant = is_each == 0 and (base_each == 0 or operator != 0)
        for n in range(dense.shape[0]):
            if n > 0 and constant:
                dense[n, out] = dense[0, out]
                continue
            row = each[n, at] if is_each != 0 else same[at]
            if operator == 0:
                base = each[n, base_at] if base_each != 0 else same[base_at]
                label = first + rates[kind]
                usual = (base[label] + weight * prior[s, kind]) / (base[first] + weight)
                usual = min(max(usual, rare), 1 - rare)
                rate = (row[label] + weight * usual) / (row[first] + weight)
                rate = min(max(rate, rare), 1 - rare)
                dense[n, out] = np.log(rate / (1 - rate)) - np.log(usual / (1 - usual))
            elif operator == 1:
                dense[n, out] = signed_log(row[first + kind]) / 3
            elif operator == 2:
                usual = overall[first + kind] / max(overall[first + kind + 1], np.float32(1e-3))
                total = row[first + kind] + weight * usual
                mean = total / (max(row[first + kind + 1], np.float32(0)) + weight)
                dense[n, out] = min(max(signed_log(mean) - signed_log(usual), -bound), bound)
            else:
                dense[n, out] = np.log1p(max(row[first + kind], np.float32(0))) / 3
