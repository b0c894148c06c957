"""Small random profiles: chains and branches, shared activations, masks and forms, moments that bind in forward or backward."""

from hypothesis import strategies as st

from planner.profile import Activation, Form, Holder, Operation, Option, Parameter, Profile

amounts = st.integers(0, 6)


@st.composite
def small_profiles(draw: st.DrawFn) -> Profile:
    count = draw(st.integers(2, 4))
    parameters, operations = [], []
    for i in range(count):
        has_weight = draw(st.booleans()) or i == 0
        names = (f"w{i}",) if has_weight else ()
        if has_weight:
            parameters.append(Parameter(f"w{i}", (1,), draw(st.integers(1, 4)), float(draw(st.integers(1, 9)))))
        inputs = sorted({i - 1, draw(st.integers(0, i - 1))}) if i else ()
        operations.append(Operation(f"op{i}", "op", tuple(inputs), names, draw(amounts), draw(amounts), draw(st.integers(0, 2))))
    storages, activations = [], []
    for i in range(count - 1):
        readers = [j for j in range(i + 1, count) if i in operations[j].inputs] or [i + 1]
        size = draw(st.integers(1, 9))
        storages.append((size, i, max(readers)))
        holders = [
            Holder(j, "weight", f"w{j}") if operations[j].parameters and draw(st.booleans()) else Holder(j, "gradient") for j in readers
        ]
        activations.append(
            Activation(f"op{i}", i, (size,), "float32", size, i, max(readers), tuple(holders), draw(forms(holders, size, parameters)))
        )
    storages.append((1, count - 1, count - 1))
    return Profile(
        "graph", "mse", "frozen", 1, draw(amounts), tuple(parameters), tuple(operations), tuple(activations), tuple(storages), 1 << 20, 1.0
    )


@st.composite
def forms(draw: st.DrawFn, holders: list[Holder], size: int, parameters: list[Parameter]) -> tuple[Form, ...]:
    made = []
    energies = {p.name: p.gradient_energy for p in parameters}
    dense = tuple(h for h, holder in enumerate(holders) if holder.needed_for == "weight")
    if dense and draw(st.booleans()):
        options = []
        for _ in range(draw(st.integers(1, 2))):
            lost = {str(holders[h].parameter): draw(st.integers(0, 4)) / 4 * energies.get(str(holders[h].parameter), 1.0) for h in dense}
            options.append(Option("hosvd", {}, draw(st.integers(0, size)), draw(amounts), draw(amounts), lost, 0.0))
        made.append(Form("value", dense, tuple(options)))
    for h, holder in enumerate(holders):
        if holder.needed_for == "gradient" and draw(st.booleans()):
            made.append(Form(f"mask{h}", (h,), (Option("mask", {}, 1, draw(st.integers(0, 2)), 0, {}, 0.0),)))
    return tuple(made)
