"""How well attacks tell members from others, with the low end visible."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedjax_sim.plots import _style
from fedjax_sim.privacy.audits import Roc


@_style.styled
def membership_roc(attacks: Mapping[str, Roc] | Roc, *, lowest: float = 1e-4) -> Figure:
    """True over false positive rates of membership inference, both on logarithmic scales.

    An attack matters where it is sure: many members found with few false alarms, at the left. The dotted line is guessing; the
    vertical one stands at 0.1 % false positives, where the legend gives the true positive rate.

    Args:
      attacks: curves from ``fs.privacy.audits``, by name; or one.
      lowest: where both axes begin, in (0, 1).

    Raises:
      ValueError: no curve, or ``lowest`` outside (0, 1).

    Example:
      ``membership_roc({"loss": audits.loss_threshold(inside, outside), "LiRA": audits.roc(a, b)}).savefig("roc.png")``
    """
    curves = {"attack": attacks} if isinstance(attacks, Roc) else dict(attacks)
    if not curves:
        raise ValueError(
            "attacks names no curve, expected at least one, such as audits.loss_threshold(members, others)."
        )
    if not 0 < lowest < 1:
        raise ValueError(f"lowest is {lowest}, expected a number in (0, 1), such as 1e-4.")
    figure, (axes,) = _style.panels(1, height=4.6)
    ends = np.array([lowest, 1.0])
    axes.plot(ends, ends, color=_style.GREY, linewidth=1.2, linestyle=(0, (1, 1.5)))
    axes.axvline(1e-3, color=_style.GREY, linewidth=1.0, alpha=0.7, zorder=1)
    handles, labels = [], []
    for (name, curve), style in zip(curves.items(), _style.line_styles(len(curves)), strict=True):
        # Nothing is said of false positive rates below one example's.
        shown = curve.false_rates > 0
        axes.step(curve.false_rates[shown], curve.true_rates[shown], where="post", clip_on=True, **style)
        handles.append(Line2D([], [], **style))
        labels.append(f"{name}: AUC {curve.auc:.3f}, {100 * curve.true_rate_at(1e-3):.3g} % at 0.1 %")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlim=(lowest, 1), ylim=(lowest, 1), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_aspect("equal")
    axes.grid(True)
    axes.minorticks_off()
    # Words, as the style reads no mathematics.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    handles.append(Line2D([], [], color=_style.GREY, linewidth=1.2, linestyle=(0, (1, 1.5))))
    labels.append("guessing")
    _style.legend_below(figure, handles, labels)
    return figure
