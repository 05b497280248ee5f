"""Score lines in figures: means, by tag where a scorer has tags."""

from collections import defaultdict

import numpy as np

from star.scoring.scorer import scorer_class


def summary(name: str, lines: list[dict]) -> dict:
    """Score lines in figures: `mean`, `tags` (the mean of each), images, prompts, scorer (the fingerprint).

    Where lines have a verdict there is `correct_prompts` too, the share of prompts with a correct picture, by which the
    official summary of GenEval groups lines: their metadata.
    """
    order = scorer_class(name).tags
    tags = by_tag(lines)
    result = {
        "name": name,
        "mean": mean(lines, order),
        "tags": {tag: tags[tag] for tag in sorted(tags, key=lambda tag: order.index(tag) if tag in order else len(order))},
        "images": len(lines),
        "prompts": len({line["prompt_id"] for line in lines}),
        "scorer": lines[0]["scorer"],
    }
    if "correct" in lines[0]:
        correct: dict[str, bool] = defaultdict(bool)
        for line in lines:
            correct[line["metadata"]] |= line["correct"]
        result["correct_prompts"] = float(np.mean(list(correct.values())))
    return result


def by_tag(lines: list[dict]) -> dict[str, float]:
    """The mean score of every tag."""
    scores = defaultdict(list)
    for line in lines:
        scores[line["tag"]].append(line["score"])
    return {tag: float(np.mean(values)) for tag, values in scores.items()}


def mean(lines: list[dict], tags: tuple[str, ...]) -> float:
    """The mean score of all lines, or the unweighted mean of their tags' means where the scorer has `tags`."""
    return float(np.mean(list(by_tag(lines).values()) if tags else [line["score"] for line in lines]))


def print_summary(result: dict) -> None:
    """Print a summary, one figure a line; tags only where the mean is theirs."""
    tagged = bool(scorer_class(result["name"]).tags)
    left_out = f"; {result['left_out']} left out, whose prompts lack what it needs" if result.get("left_out") else ""
    print(f"{result['name']}: {result['images']} images of {result['prompts']} prompts{left_out}")
    for tag, value in result["tags"].items() if tagged else ():
        print(f"  {tag:<14} {value:.4f}")
    print(f"  {'overall' if tagged else 'mean':<14} {result['mean']:.4f}")
    if "correct_prompts" in result:
        print(f"  {'any correct':<14} {result['correct_prompts']:.4f} of prompts")
    print(f"  scorer: {result['scorer']}")
