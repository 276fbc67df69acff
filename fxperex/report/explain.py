"""The plan as a table: every site, its shapes, its strategy, its predicted cost and the runner-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxperex.planner import Choice, Plan

HEAD = ("site", "kind", "B,G,T,D,P", "strategy", "ms", "held", "runner-up")


def table(plan: Plan) -> str:
    """Returns the aligned table of `plan`, ending in totals and notes."""
    rows = [HEAD, *(_row(c) for c in plan.choices)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    right = {4, 5}
    lines = ["  ".join(v.rjust(w) if i in right else v.ljust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True))).rstrip()
             for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    how = "one example at a time (naive)" if plan.whole == "naive" else f"{plan.rows} rows per compiled step"
    lines.append(f"total {1e3 * plan.seconds:.2f} ms predicted beside forward and backward, {size(plan.held)} held; "
                 f"{how}; costs for {plan.device}")
    lines += [f"unused (gradient zero): {name}" for name in plan.unused]
    lines += [f"{c.site.name}: {c.note}" for c in plan.choices if c.note]
    return "\n".join(lines)


def _row(choice: Choice) -> tuple[str, ...]:
    d = choice.site.dims
    shape = ",".join(str(v) for v in (d.B, d.G, d.T, d.D, d.P)) if d else "x".join(map(str, choice.site.shape)) or "scalar"
    timed = {k: v for k, v in choice.rejected.items() if isinstance(v, float)}
    runner = min(timed, key=lambda k: timed[k]) if timed else None
    told = f"{runner} {1e3 * timed[runner]:.3f} ms" if runner else "-"
    return (choice.site.name, choice.site.kind, shape, choice.strategy, f"{1e3 * choice.seconds:.3f}",
            size(choice.cost.held), told)


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
