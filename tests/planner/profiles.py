"""Small random profiles: chains and branches, shared activations, masks and forms, moments that bind in forward or backward."""

from dataclasses import replace

from hypothesis import strategies as st

from planner.profile import Activation, Form, Holder, Operation, Option, Overwritten, Parameter, Profile, Setting, Step

amounts = st.integers(0, 6)
tenths = st.integers(1, 9).map(lambda n: n / 10)


@st.composite
def small_profiles(draw: st.DrawFn, steps: int = 2) -> Profile:
    """Profiles of a whole batch and, with the `steps` after the first, of parts of it."""
    count = draw(st.integers(2, 4))
    norm = draw(st.sampled_from((0, 1, count - 1, count - 1)))  # reads the one before, alone, unless it is the first
    parameters, reads, inputs = [], [], []
    for i in range(count):
        has_weight = draw(st.booleans()) or i == 0 or (norm and i in (norm - 1, norm))
        reads.append((f"w{i}",) if has_weight else ())
        if has_weight:
            parameters.append(Parameter(f"w{i}", (1,), draw(st.integers(1, 4)), float(draw(st.integers(1, 9)))))
        read = {i - 1, draw(st.integers(0, i - 1))} if i and i != norm else set(range(i - 1, i)) if i else set()
        inputs.append(tuple(sorted({i - 1 if norm and each == norm - 1 and i > norm else each for each in read})))
    if count > 2 and draw(st.booleans()):
        reads[-1] = (*reads[-1], "w0")  # tied
    structure = draw(activations(reads, inputs, parameters, norm))
    by_rows = frozenset(p.name for p in parameters if not draw(st.integers(0, 2)))
    sizes = [4, 2, 1][: draw(st.integers(1, steps))]
    splits = tuple(f"op{i}" for i in range(count - 1) if all(i <= min(inputs[j]) for j in range(i + 1, count)) and not tied(reads, i))
    batch_bytes = sizes[0] * draw(st.integers(0, 2))
    return Profile(
        graph="graph",
        loss="mse",
        batch_norm="frozen",
        static_bytes=batch_bytes + draw(amounts),
        batch_bytes=batch_bytes,
        parameters=tuple(parameters),
        steps=tuple(draw(step(size, reads, inputs, structure, by_rows)) for size in sizes),
        splits=splits if len(sizes) > 1 else (),
        plain_peak_bytes=1 << 20,
        plain_seconds=1.0,
    )


def tied(reads: list[tuple[str, ...]], i: int) -> bool:
    return any(set(reads[a]) & set(reads[b]) for a in range(i + 1) for b in range(i + 1, len(reads)))


@st.composite
def step(
    draw: st.DrawFn,
    size: int,
    reads: list[tuple[str, ...]],
    inputs: list[tuple[int, ...]],
    structure: tuple[Activation, ...],
    by_rows: frozenset[str],
) -> Step:
    """One size of a step: the bytes are its own, what is lost is not."""

    def resized(activation: Activation) -> Activation:
        smaller = max(1, activation.bytes * size // 4)
        forms = tuple(
            replace(
                form,
                options=tuple(
                    replace(o, held_bytes=o.held_bytes * size // 4, compress_bytes=draw(amounts), restore_bytes=draw(amounts))
                    for o in form.options
                ),
            )
            for form in activation.forms
        )
        return replace(activation, bytes=smaller, forms=forms)

    resized_structure = tuple(map(resized, structure))
    storages = [(a.bytes, a.born, a.last_use) for a in resized_structure] + [(1, len(reads) - 1, len(reads) - 1)]
    over = {a.last_use: Overwritten(a.born, a.bytes, at) for at, a in enumerate(resized_structure) if at % 2}
    return Step(
        batch_size=size,
        operations=tuple(
            Operation(
                f"op{i}",
                "op",
                inputs[i],
                reads[i],
                forward_bytes=draw(amounts),
                backward_bytes=draw(amounts),
                internal_bytes=draw(st.integers(0, 2)),
                ranged_bytes=draw(st.integers(0, 2)),
                passed_bytes=draw(amounts),
                over=over.get(i),
                forward_seconds=draw(tenths),
                backward_seconds=draw(tenths),
            )
            for i in range(len(reads))
        ),
        activations=resized_structure,
        storages=tuple(storages),
        rows={name: draw(st.integers(1, 3)) for name in sorted(by_rows)},
    )


@st.composite
def activations(
    draw: st.DrawFn, reads: list[tuple[str, ...]], inputs: list[tuple[int, ...]], parameters: list[Parameter], norm: int
) -> tuple[Activation, ...]:
    made: list[Activation] = []
    for i in range(len(reads) - 1):
        readers = [j for j in range(i + 1, len(reads)) if i in inputs[j]] or [i + 1]
        size = draw(st.integers(1, 9))
        holders = [
            Holder(j, "weight", reads[j][0]) if reads[j] and (j in (norm - 1, norm) or draw(st.booleans())) else Holder(j, "gradient")
            for j in readers
        ]
        menu = draw(forms(holders, size, parameters))
        sources = [a for a, other in enumerate(made) if min(h.operation for h in other.holders) <= min(readers)]
        if menu and sources:  # worked out again from what is whole
            source = draw(st.sampled_from(sources))
            settings: dict[str, Setting] = {"sources": (made[source].name,)}
            again = Option("recompute", settings, 0, 0, draw(amounts), {}, draw(st.integers(0, 2)) / 10, (source,))
            menu = (replace(menu[0], options=(*menu[0].options, again)), *menu[1:])
        made.append(Activation(f"op{i}", i, (size,), "float32", size, i, max(readers), tuple(holders), menu))
    return tuple(draw(folded(made, reads, {p.name: p.gradient_energy for p in parameters})))


@st.composite
def folded(draw: st.DrawFn, made: list[Activation], reads: list[tuple[str, ...]], energies: dict[str, float]) -> list[Activation]:
    """Some of them may be left to the gradient of the weight of the operation that makes them."""
    names = [name for each in reads for name in each]
    for a, activation in enumerate(made):
        of, (holder, *others) = reads[activation.born], activation.holders
        alone = of and not others and holder.needed_for == "weight" and names.count(of[0]) == names.count(str(holder.parameter)) == 1
        if not (alone and activation.forms and draw(st.integers(0, 3))):
            continue
        fold = Option("fold", {}, 0, 0, 0, {}, 0.0, by_gradient_of=of[0])
        made[a] = replace(activation, forms=(replace(activation.forms[0], options=(*activation.forms[0].options, fold)),))
        for b, other in enumerate(made[:a]):
            served = {h for h, holder in enumerate(other.holders) if holder == Holder(activation.born, "weight", of[0])}
            made[b] = replace(
                other, forms=tuple(draw(losing(f, str(holder.parameter), energies)) if served & {*f.holders} else f for f in other.forms)
            )
    return made


@st.composite
def losing(draw: st.DrawFn, form: Form, name: str, energies: dict[str, float]) -> Form:
    """The form, from which a weight loses too where it is folded into a holder."""
    options = (
        replace(o, folded_energy={name: draw(st.integers(0, 4)) / 4 * energies[name]} if o.lost_energy else {}) for o in form.options
    )
    return replace(form, options=tuple(options))


@st.composite
def forms(draw: st.DrawFn, holders: list[Holder], size: int, parameters: list[Parameter]) -> tuple[Form, ...]:
    made = []
    energies = {p.name: p.gradient_energy for p in parameters}
    dense = tuple(h for h, holder in enumerate(holders) if holder.needed_for == "weight")
    if dense and draw(st.integers(0, 2)):
        options = []
        for _ in range(draw(st.integers(1, 2))):
            lost = {str(holders[h].parameter): draw(st.integers(0, 4)) / 4 * energies.get(str(holders[h].parameter), 1.0) for h in dense}
            held, shipped = draw(st.integers(0, size)), draw(st.integers(0, 2))
            options.append(Option("hosvd", {}, held, draw(amounts), draw(amounts), lost, 0.0, shipped_bytes=shipped))
        made.append(Form("value", dense, tuple(options)))
    for h, holder in enumerate(holders):
        if holder.needed_for == "gradient" and draw(st.booleans()):
            travels = draw(st.none() | st.sampled_from(parameters))  # the error of what is held, to a weight before it
            lost = {travels.name: draw(st.integers(1, 4)) / 4 * travels.gradient_energy} if travels and travels.gradient_energy else {}
            made.append(Form(f"mask{h}", (h,), (Option("int8" if lost else "mask", {}, 1, draw(st.integers(0, 2)), 0, lost, 0.0),)))
            if dense and draw(st.booleans()):  # one form for what reads the value and what tells from it where its gradient passes
                lost = {str(holders[d].parameter): draw(st.integers(1, 4)) / 4 for d in dense} if draw(st.booleans()) else {}
                bitmap = Option("bitmap", {}, draw(st.integers(1, size)), draw(amounts), draw(amounts), lost, draw(st.integers(0, 2)) / 10)
                made.append(Form("bitmap", tuple(sorted((h, *dense))), (bitmap,)))
    return tuple(made)
