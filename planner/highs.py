"""Linear programs in HiGHS: rows of Σ coefficient · variable between two bounds, of variables between 0 and their most."""

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """`least` ≤ matrix · variables ≤ `most`."""

    matrix: csr_array
    least: Values
    most: Values


@dataclass(frozen=True, slots=True)
class Solved:
    """Values of the variables, their costs, and the proven bound that no values cost less than."""

    values: Values
    costs: float
    bound: float


class Relaxation:
    """A program whose variables may lie between 0 and 1. What was solved last is where the next one starts, so that another budget
    or other costs take a few steps of the simplex method only.
    """

    def __init__(self, rows: Rows) -> None:
        self._columns = np.arange(rows.matrix.shape[1], dtype=np.int32)
        self._rows = np.arange(rows.matrix.shape[0], dtype=np.int32)
        self._least = rows.least
        self._highs = _highs()
        self._highs.setOptionValue("presolve", "off")  # which takes longer than what it saves
        zeros = np.zeros(len(self._columns))
        self._highs.passModel(_program(rows, zeros, zeros, zeros))

    def solve(self, costs: Values, lower: Values, upper: Values, most: Values) -> Solved | None:
        """The least costs with these bounds of variables and most of each row; None where no values satisfy all rows."""
        highs, columns = self._highs, len(self._columns)
        highs.changeColsCost(columns, self._columns, costs)
        highs.changeColsBounds(columns, self._columns, lower, upper)
        highs.changeRowsBounds(len(self._rows), self._rows, self._least, most)
        highs.run()
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        values, least_costs = np.array(highs.getSolution().col_value), highs.getInfo().objective_function_value
        return Solved(values, least_costs, least_costs)


def solve(
    rows: Rows, costs: Values, lower: Values, upper: Values, integral: NDArray[np.bool_], gap: float, seconds: float
) -> Solved | None:
    """Values of the least costs, `integral` ones whole.

    Args:
        gap: of costs, to which they are proved to be the least.
        seconds: after which the best values found stand, with what is proved by then.

    Returns:
        None where no values satisfy all rows, or none were found in time.
    """
    highs = _highs()
    highs.setOptionValue("mip_abs_gap", gap)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setOptionValue("mip_heuristic_run_feasibility_jump", False)  # costs a tenth of a second, and finds what the first dive does
    highs.setOptionValue("time_limit", seconds)
    program = _program(rows, costs, lower, upper)
    program.integrality_ = [highspy.HighsVarType.kInteger if whole else highspy.HighsVarType.kContinuous for whole in integral]
    highs.passModel(program)
    highs.run()
    info = highs.getInfo()
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None
    return Solved(np.array(highs.getSolution().col_value), info.objective_function_value, info.mip_dual_bound)


def _highs() -> Any:  # highspy's types lack some of its methods
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    return highs


def _program(rows: Rows, costs: Values, lower: Values, upper: Values) -> highspy.HighsLp:
    program = highspy.HighsLp()
    program.num_row_, program.num_col_ = rows.matrix.shape
    program.col_cost_, program.col_lower_, program.col_upper_ = costs, lower, upper
    program.row_lower_, program.row_upper_ = rows.least, rows.most
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_, program.a_matrix_.index_ = rows.matrix.indptr, rows.matrix.indices
    program.a_matrix_.value_ = rows.matrix.data
    return program
