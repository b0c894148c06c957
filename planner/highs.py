"""Linear programs in HiGHS: rows of Σ coefficient · variable between two bounds, of variables between 0 and their most."""

from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Values = NDArray[np.float64]
ROWWISE, MINIMIZE = int(highspy.MatrixFormat.kRowwise), int(highspy.ObjSense.kMinimize)


@dataclass(frozen=True, slots=True)
class Rows:
    """`least` ≤ matrix · variables ≤ `most`."""

    matrix: csr_array
    least: Values
    most: Values


@dataclass(frozen=True, slots=True)
class Solved:
    """Values of the variables, their costs, which no values are below, and by how much these change with the most of each row."""

    values: Values
    costs: float
    prices: Values


class Relaxation:
    """A program whose variables may lie between 0 and 1. What was solved last is where the next one starts, so that another budget
    or further rows take a few steps of the simplex method only. With other costs it is no help: the first steps are three times quicker.
    """

    def __init__(self, rows: Rows) -> None:
        self._columns = np.arange(rows.matrix.shape[1], dtype=np.int32)
        self._least = rows.least
        self._highs = _highs()
        self._highs.setOptionValue("presolve", "off")  # which takes longer than what it saves
        self._highs.setOptionValue("simplex_scale_strategy", 0)  # the rows are scaled as they are, and it takes a third more steps
        self._costs = zeros = np.zeros(len(self._columns))
        _pass(self._highs, rows, zeros, zeros, zeros, zeros.astype(np.bool_))

    def add(self, matrix: csr_array) -> None:
        """Further rows, after those there are."""
        free = np.full(matrix.shape[0], np.inf)
        starts, columns = matrix.indptr[:-1].astype(np.int32), matrix.indices.astype(np.int32)
        self._highs.addRows(len(free), -free, free, matrix.nnz, starts, columns, matrix.data)
        self._least = np.append(self._least, -free)

    def solve(self, costs: Values, lower: Values, upper: Values, most: Values) -> Solved | None:
        """The least costs with these bounds of variables and most of each row; None where no values satisfy all rows."""
        highs, columns = self._highs, len(self._columns)
        if not np.array_equal(costs, self._costs):
            highs.clearSolver()
            highs.changeColsCost(columns, self._columns, costs)
            self._costs = costs
        highs.changeColsBounds(columns, self._columns, lower, upper)
        highs.changeRowsBounds(len(most), np.arange(len(most), dtype=np.int32), self._least, most)
        highs.run()
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = highs.getSolution()
        return Solved(np.array(solution.col_value), highs.getInfo().objective_function_value, np.array(solution.row_dual))


def solve(
    rows: Rows,
    costs: Values,
    lower: Values,
    upper: Values,
    integral: NDArray[np.bool_],
    gap: float,
    seconds: float,
    wanted: float = np.inf,
) -> tuple[Values | None, float]:
    """Values of the least costs, `integral` ones whole.

    Args:
        gap: of costs, to which they are proved to be the least.
        seconds: after which the best values found stand, with what is proved by then.
        wanted: costs that are of use. Above them nothing is searched for, and nothing proved.

    Returns:
        The best values found that are wanted, None where there are none, and the proven bound that no values cost less than: `wanted` where
        none that are satisfy all rows. Without values it tells that there are none from that none were found in time.
    """
    highs = _highs()
    highs.setOptionValue("mip_abs_gap", gap)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setOptionValue("mip_heuristic_run_feasibility_jump", False)  # costs a tenth of a second, and finds what the first dive does
    highs.setOptionValue("mip_heuristic_run_root_reduced_cost", False)  # a seventh of the time, with nothing better at its end
    highs.setOptionValue("time_limit", seconds)
    highs.setOptionValue("objective_bound", wanted)
    free = np.flatnonzero(upper > 0)  # HiGHS would leave the others out itself, but only after it has read all their rows
    _pass(highs, replace(rows, matrix=rows.matrix[:, free]), costs[free], lower[free], upper[free], integral[free])
    highs.run()
    if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return None, wanted
    info = highs.getInfo()
    bound = min(max(0.0, info.mip_dual_bound), wanted)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible or info.objective_function_value > wanted:
        return None, bound
    values = np.zeros(len(upper))
    values[free] = highs.getSolution().col_value
    return values, bound


def _highs() -> Any:  # highspy's types lack some of its methods
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    return highs


def _pass(highs: Any, rows: Rows, costs: Values, lower: Values, upper: Values, integral: NDArray[np.bool_]) -> None:
    matrix = rows.matrix
    highs.passModel(
        *(matrix.shape[1], matrix.shape[0], matrix.nnz, ROWWISE, MINIMIZE, 0.0),
        *(costs, lower, upper, rows.least, rows.most),
        *(matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data),
        integral.astype(np.int32),
    )
