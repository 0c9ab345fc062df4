"""Numbers made of many numbers."""

from collections.abc import Sequence
from typing import Final, TypedDict

MIB: Final = 1 << 20
GIB: Final = 1 << 30


class Summary(TypedDict):
    """Of samples in whatever unit they had."""

    n: int
    p50: float
    p90: float
    p99: float
    max: float
    mean: float


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that *part* of all values do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def summarise(values: Sequence[float]) -> Summary:
    """Of no values: zeros."""
    p50, p90, p99 = (round(percentile(values, part), 4) for part in (0.5, 0.9, 0.99))
    top, mean = (max(values), sum(values) / len(values)) if values else (0.0, 0.0)
    return {"n": len(values), "p50": p50, "p90": p90, "p99": p99, "max": round(top, 4), "mean": round(mean, 4)}


def merge(parts: Sequence[Summary]) -> Summary:
    """Of several processes in the same phase: their mean p50, the worst of the rest."""
    seen = [part for part in parts if part["n"]]
    count = max(len(seen), 1)
    return {
        "n": sum(part["n"] for part in seen),
        "p50": round(sum(part["p50"] for part in seen) / count, 4),
        "p90": max((part["p90"] for part in seen), default=0.0),
        "p99": max((part["p99"] for part in seen), default=0.0),
        "max": max((part["max"] for part in seen), default=0.0),
        "mean": round(sum(part["mean"] for part in seen) / count, 4),
    }


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def show(summary: Summary, unit: str = "ms") -> str:
    """For a cell of the table."""
    return f"p50 {summary['p50']:.3g} p99 {summary['p99']:.3g} max {summary['max']:.3g} {unit} (n {summary['n']})"
