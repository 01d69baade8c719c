"""`python -m fluoro_telemetry.document`: the metrics as a Markdown table."""

from fluoro_telemetry.metrics import SPECS, MetricSpec


def markdown() -> str:
    """The table, one line per metric."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|", *map(_line, SPECS)]
    return "\n".join(lines)


def _line(spec: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
    buckets = (
        f" Buckets: {', '.join(f'{bound:g}' for bound in spec.buckets)}." if spec.buckets else ""
    )
    return f"| `{spec.name}` | {spec.kind} | {labels} | {spec.meaning}{buckets} |"


if __name__ == "__main__":
    print(markdown())  # noqa: T201 - printing is what this command is for
