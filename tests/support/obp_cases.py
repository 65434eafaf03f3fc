"""Makes obp_cases.json: small logged bandits and rankings, with Open Bandit Pipeline's estimates.

That library pins versions of other libraries that don't fit beside ours, so it runs apart, once:

    python3 -m venv obp && obp/bin/pip install --no-deps --ignore-requires-python obp==0.5.7
    obp/bin/pip install numpy pandas scikit-learn scipy pyyaml tqdm mypy-extensions matplotlib seaborn torch
    obp/bin/python tests/support/obp_cases.py

Cases are drawn from seeds. Each has L lists of R ranks over A items; a policy's chances at a rank are those
of a Plackett-Luce draw over what is left. ``target`` are the chances of all items along the logged list.
"""

import json
from pathlib import Path

import numpy as np

CASES = ((0, 80, 1, 5), (1, 40, 1, 3), (2, 50, 3, 6), (3, 20, 4, 7))  # seed, L, R, A


def chances(scores_A, above):
    left = np.exp(scores_A)
    left[list(above)] = 0.0
    return left / left.sum()


def case(seed, lists, ranks, items):
    draw = np.random.default_rng(seed)
    logged, target, said = draw.normal(size=(3, lists, items))
    actions = np.zeros((lists, ranks), int)
    rewards = np.zeros((lists, ranks))
    mine, theirs = np.zeros((lists, ranks)), np.zeros((lists, ranks, items))
    for row in range(lists):
        for rank in range(ranks):
            above = actions[row, :rank].tolist()
            its = chances(logged[row], above)
            action = actions[row, rank] = draw.choice(items, p=its)
            mine[row, rank], theirs[row, rank] = its[action], chances(target[row], above)
            rewards[row, rank] = draw.random() < 1 / (1 + np.exp(-said[row, action]))
    q_hat = np.repeat((1 / (1 + np.exp(-said)))[:, None], ranks, 1) * 0.9  # a model that is wrong
    return {"actions": actions, "rewards": rewards, "propensities": mine, "target": theirs, "q_hat": q_hat}


def of_one_rank(its):
    from obp.ope import (
        DoublyRobust,
        InverseProbabilityWeighting,
        SelfNormalizedDoublyRobust,
        SelfNormalizedInverseProbabilityWeighting,
    )

    known = {
        "reward": its["rewards"][:, 0],
        "action": its["actions"][:, 0],
        "pscore": its["propensities"][:, 0],
        "action_dist": its["target"].transpose(0, 2, 1),
        "position": np.zeros(len(its["actions"]), int),
    }
    model = {"estimated_rewards_by_reg_model": its["q_hat"].transpose(0, 2, 1)}
    return {
        "ips": InverseProbabilityWeighting().estimate_policy_value(**known),
        "snips": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**known),
        "dr": DoublyRobust().estimate_policy_value(**known, **model),
        "sndr": SelfNormalizedDoublyRobust().estimate_policy_value(**known, **model),
    }


def of_ranks(its):
    from obp.ope import (
        SelfNormalizedSlateRewardInteractionIPS,
        SlateCascadeDoublyRobust,
        SlateRewardInteractionIPS,
    )

    lists, ranks, items = its["target"].shape
    at = np.take_along_axis(its["target"], its["actions"][..., None], 2)[..., 0]
    known = {
        "slate_id": np.repeat(np.arange(lists), ranks),
        "reward": its["rewards"].ravel(),
        "position": np.tile(np.arange(ranks), lists),
        "pscore_cascade": its["propensities"].cumprod(1).ravel(),
        "evaluation_policy_pscore_cascade": at.cumprod(1).ravel(),
    }
    model = {
        "action": its["actions"].ravel(),
        "q_hat": its["q_hat"].ravel(),
        "evaluation_policy_action_dist": its["target"].ravel(),
    }
    dr = SlateCascadeDoublyRobust(len_list=ranks, n_unique_action=items)
    return {
        "ips": SlateRewardInteractionIPS(len_list=ranks).estimate_policy_value(**known),
        "snips": SelfNormalizedSlateRewardInteractionIPS(len_list=ranks).estimate_policy_value(**known),
        "dr": dr.estimate_policy_value(**known, **model),
    }


def main():
    import obp

    found = []
    for seed, lists, ranks, items in CASES:
        its = case(seed, lists, ranks, items)
        told = {name: np.round(array, 9).tolist() for name, array in its.items()}
        again = {name: np.array(array) for name, array in told.items()}
        values = of_one_rank(again) if ranks == 1 else of_ranks(again)
        found.append(told | {"values": {name: float(value) for name, value in values.items()}})
    file = Path(__file__).with_suffix(".json")
    file.write_text(json.dumps({"obp": obp.__version__, "cases": found}) + "\n")


if __name__ == "__main__":
    main()
